"""Turns the documents of a corpus into token shards on disk, and trains tokenizers.

    documents  ->  parts of bounded size  ->  ids, on all cores  ->  train.bin and valid.bin  ->  windows

Documents are concatenated; with a byte-level vocabulary each follows <|endoftext|>, as in GPT-2's training text.

Memory stays bounded for any corpus size (workers.py), except 8 bytes per document at the end and, when a tokenizer is
trained, one count per distinct word. The shards are memory-mapped.

A prepared corpus is cached under a key of its content and the tokenizer's identity. It is written to a temporary folder
and renamed when complete. The files in the temporary folder are at least as long as its done.json says: an interrupted
preparation truncates them to that length and continues.

Longer than 300 lines: the steps of one preparation, with its locks and its recovery.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from gpt1cli.config.data import TokenizerConfig
from gpt1cli.config.schema import UserError, display
from gpt1cli.data import demo_world, hub
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import (
    atomic_folder,
    file_checksum,
    name_write_errors,
    publish_folder,
    read_json,
    write_json,
    write_text,
)
from gpt1cli.text import bpe, documents, normalise
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.text.documents import CorpusSource, demo_corpus, split_documents
from gpt1cli.text.workers import map_on_all_cores

FORMAT = 1
VALID_EVERY = 20  # every 20th document is for validation: 5%
VALID_SHARE = 0.05  # share of the tokens, taken from the end, if there are fewer documents than that
SAVE_EVERY = 10.0  # seconds of work that an interruption can lose

Reporting = Callable[..., Progress]  # Progress with folder and mode set: takes total, unit, description

# --- the tokenizer of a run -------------------------------------------------------------------------------------------


def prepare_tokenizer(
    config: TokenizerConfig, corpus: CorpusSource | None, hub_folder: str | None, cache: str, reporting: Reporting
) -> Tokenizer:
    """Return the configured tokenizer: a published one, or one trained on the corpus and cached.

    Raises UserError if it cannot be loaded, is of another level, or there is no corpus to train it on.
    """
    if config.source == "hub":
        assert config.repo
        paths = {name: hub.find_file(config.repo, name, hub_folder, cache) for name in ("vocab.json", "merges.txt")}
        published = bpe.load(paths["vocab.json"].parent)
        if published.level != config.level:
            problem = f"tokenizer.level={config.level}: the vocabulary of {config.repo} is made of {published.level}"
            raise UserError(f"{problem}; use tokenizer.level={published.level}")
        return published
    if config.source == "demo":
        corpus = demo_corpus(demo_world.VOCABULARY_DOCUMENTS)
    if corpus is None:
        raise UserError(
            f"tokenizer={config.name} is trained on a corpus, and this command has no corpus;"
            " use init=RUN to take the tokenizer of that run, or tokenizer=openai or tokenizer=demo"
        )
    assert config.merges
    rules = normalise.library_versions() if config.level == "words" else config.level
    folder = Path(cache) / "tokenizers" / _cache_key(FORMAT, corpus.digest, config.merges, rules)
    if not folder.exists():
        trained = (_train_bytes if config.level == "bytes" else _train_words)(corpus, config.merges, reporting)
        with atomic_folder(folder) as temporary:
            trained.save(temporary)
    return bpe.load(folder)


def _train_words(corpus: CorpusSource, merges: int, reporting: Reporting) -> Tokenizer:
    counts: collections.Counter[str] = collections.Counter()
    with reporting(total=corpus.characters, unit="characters", description="counting words") as progress:
        with contextlib.closing(map_on_all_cores(_count_words, None, split_documents(corpus.documents()))) as results:
            for part, part_counts in results:
                counts.update(part_counts)
                progress.update(progress.step + len(part.text))
        return _log_vocabulary(bpe.train(counts, merges), merges, progress)


def _train_bytes(corpus: CorpusSource, merges: int, reporting: Reporting) -> Tokenizer:
    with reporting(total=corpus.characters, unit="characters", description="training the vocabulary") as progress:

        def texts() -> Iterator[str]:
            for part in split_documents(corpus.documents()):
                yield part.text
                progress.update(progress.step + len(part.text))

        return _log_vocabulary(bpe.train_bytes(texts(), merges), merges, progress)


def _log_vocabulary(trained: Tokenizer, merges: int, progress: Progress) -> Tokenizer:
    shortfall = "" if len(trained.merges) == merges else f"; {merges:,} requested, but the corpus gives no more"
    progress.say(f"tokenizer: vocabulary {len(trained):,} ({len(trained.merges):,} merges{shortfall})")
    return trained


def _count_words(_: Tokenizer | None, texts: list[str]) -> list[collections.Counter[str]]:
    return [normalise.count_words(text) for text in texts]


def _cache_key(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shards:
    """A prepared corpus: two memory-mapped arrays of token ids, and their folder."""

    folder: Path
    train: np.ndarray
    valid: np.ndarray
    documents: int


def prepare_shards(source: CorpusSource, name: str, tokenizer: Tokenizer, cache: str, reporting: Reporting) -> Shards:
    """Return the token shards of a corpus, prepared now or before. Raises UserError if the corpus is empty."""
    folder = Path(cache) / "corpora" / f"{name}-{_cache_key(FORMAT, source.digest, tokenizer.identity)}"
    if not folder.exists():
        with _exclusive_build(folder, reporting) as temporary:
            if not folder.exists():  # else the process that held the lock has prepared it
                _build_shards(temporary, source, tokenizer, reporting)
                with name_write_errors(folder):
                    publish_folder(temporary, folder)
    meta = read_meta(folder)
    if not _is_verified(folder):
        check_shards(folder, meta)
    sizes = {split: meta[f"{split}_tokens"] for split in ("train", "valid")}
    train, valid = (
        np.memmap(folder / f"{split}.bin", meta["dtype"], "r", shape=(size,)) if size else np.empty(0, meta["dtype"])
        for split, size in sizes.items()  # NOTE: an empty file cannot be mapped
    )
    return Shards(folder, train, valid, meta["documents"])


def read_meta(folder: Path) -> dict[str, Any]:
    """Read meta.json of a prepared corpus. Raises UserError if it is damaged or of another format."""
    hint = f"remove {folder} to prepare the corpus again"
    try:
        meta = read_json(folder / "meta.json")
        if meta["format"] != FORMAT:
            raise UserError(
                f"{folder / 'meta.json'}: format {display(meta['format'])}; this version of gpt1 reads format {FORMAT}"
            )
        if meta["dtype"] not in ("uint16", "uint32"):
            raise UserError(f"{folder / 'meta.json'}: dtype={display(meta['dtype'])} is neither uint16 nor uint32")
        if not all(type(meta[key]) is int and meta[key] >= 0 for key in ("train_tokens", "valid_tokens", "documents")):
            raise UserError(f"{folder / 'meta.json'}: train_tokens, valid_tokens and documents must be integers >= 0")
    except KeyError as error:
        raise UserError(f"{folder / 'meta.json'}: no key {error.args[0]}; {hint}") from None
    except UserError as error:
        raise UserError(f"{error}; {hint}") from None
    return meta


def check_shards(folder: Path, meta: Mapping[str, Any]) -> None:
    """Read the shards whole and compare their checksums. Raises UserError if one is damaged."""
    hint = f"remove {folder} to prepare the corpus again"
    states = _file_states(folder)
    for split in ("train", "valid"):
        path, size = folder / f"{split}.bin", meta[f"{split}_tokens"] * np.dtype(meta["dtype"]).itemsize
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            problem = "missing" if actual is None else f"{actual:,} bytes instead of {size:,}"
            raise UserError(f"{path}: {problem}; {hint}")
        written = meta.get("checksums", {}).get(path.name)  # older versions wrote none
        if written and (checksum := file_checksum(path)) != written:
            raise UserError(f"{path}: damaged (its checksum is {checksum} instead of {written}); {hint}")
    with contextlib.suppress(OSError):  # in a read-only cache the shards are checked each time
        _verified_file(folder).write_text(json.dumps({"states": states}))  # a partial file is ignored


# To avoid reading a gigabyte at every start, the shards are checked by `gpt1 prepare`, and if a shard is not the file
# that was checked before: a copy, a restored backup, a file written to. Flipped bits on the disk itself, which change
# neither length nor time of change, are only found by `gpt1 prepare`.


def _verified_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.seen")


def _file_states(folder: Path) -> dict[str, list[int]]:
    states = {}
    for split in ("train", "valid"):
        with contextlib.suppress(FileNotFoundError):
            state = (folder / f"{split}.bin").stat()
            states[split] = [state.st_size, state.st_mtime_ns, state.st_ino]
    return states


def _is_verified(folder: Path) -> bool:
    """Return whether the shards are the files that were checked before."""
    with contextlib.suppress(UserError):
        return read_json(_verified_file(folder)).get("states") == _file_states(folder)
    return False


@contextlib.contextmanager
def _exclusive_build(folder: Path, reporting: Reporting) -> Iterator[Path]:
    """Yield the temporary folder for `folder`, locked: waits for another process that prepares the same corpus."""
    path = folder.with_name(f".{folder.name}.lock")
    with name_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = _lock_file(path, reporting)
    except OSError:  # no locks on this file system: use a separate folder, which is not resumed
        path.unlink(missing_ok=True)
        temporary = folder.with_name(f".{folder.name}-{platform.node()}-{os.getpid()}")
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    with handle:
        try:
            yield folder.with_name(f".{folder.name}")
        finally:
            path.unlink(missing_ok=True)


def _lock_file(path: Path, reporting: Reporting) -> TextIO:
    """Return the file, locked until it is closed. Raises OSError if the file system has no locks."""
    while True:
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (stays open during the work)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            handle.seek(0)
            with reporting(total=1) as progress:
                progress.say(f"waiting for {handle.read().strip() or 'another process'}: it prepares this corpus")
            fcntl.lockf(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            # NOTE: the previous holder has removed the file; a lock on a removed file excludes nobody.
            if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                handle.truncate(0)
                handle.write(f"process {os.getpid()} on {platform.node()}\n")
                handle.flush()
                return handle
        handle.close()


# --- building shards: what grows with the corpus is in files, everything else in done.json ----------------------------


@dataclass
class _BuildProgress:
    """The progress of a preparation (done.json): the number of parts in the files, and what the files contain then."""

    cut: int  # documents.PART_CHARACTERS when the preparation began
    parts: int = 0
    documents: int = 0
    characters: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"train": 0, "valid": 0})
    begin: int = 0  # tokens of its split before the current document

    def sizes(self, dtype: np.dtype) -> dict[str, int]:
        """Return file name -> bytes: the tokens of each split, and the token offsets at which its documents begin."""
        valid = self.documents // VALID_EVERY
        begins = {"train": self.documents - valid, "valid": valid}
        sizes = {f"{split}.bin": count * dtype.itemsize for split, count in self.tokens.items()}
        return sizes | {f"{split}.begins": count * 8 for split, count in begins.items()}


def _build_shards(temporary: Path, source: CorpusSource, tokenizer: Tokenizer, reporting: Reporting) -> None:
    """Fill the temporary folder, continuing the work of an earlier process. It may be killed at any moment."""
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    if not (temporary / "meta.json").exists():
        try:
            tokenizer.save(temporary)
            done = _tokenise_parts(temporary, source, tokenizer, dtype, reporting)
            _finish_build(temporary, done, tokenizer, dtype)
        except UserError:
            shutil.rmtree(temporary)  # the corrected corpus has another key
            raise
    # These steps can be repeated: make the files agree with meta.json, and remove all others.
    with name_write_errors(temporary / "train.bin"):
        train_tokens = json.loads((temporary / "meta.json").read_text())["train_tokens"]
        os.truncate(temporary / "train.bin", train_tokens * dtype.itemsize)
    for file in [temporary / "done.json", *temporary.glob("*.begins"), *temporary.glob(".*")]:
        file.unlink(missing_ok=True)


def _tokenise_parts(
    folder: Path, source: CorpusSource, tokenizer: Tokenizer, dtype: np.dtype, reporting: Reporting
) -> _BuildProgress:
    """Tokenise the parts that are not in the files yet."""
    newline, separator = (
        np.array([] if index is None else [index], dtype) for index in (tokenizer.newline, tokenizer.document_separator)
    )
    done = _resume_build(folder, dtype)
    stream = itertools.islice(split_documents(source.documents()), done.parts, None)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "ab")) for name in done.sizes(dtype)}
        progress = stack.enter_context(
            reporting(total=source.characters, start=done.characters, unit="characters", description="tokenising")
        )
        if done.parts:
            progress.say(f"continuing an interrupted preparation after {done.documents:,} documents")
        saved = time.monotonic()
        for part, ids in stack.enter_context(contextlib.closing(map_on_all_cores(_encode_parts, folder, stream))):
            done.parts += 1
            done.documents += part.first
            done.characters += len(part.text)
            split = "valid" if done.documents % VALID_EVERY == 0 else "train"
            if part.first:
                done.begin = done.tokens[split]
                with name_write_errors(folder / f"{split}.begins"):
                    files[f"{split}.begins"].write(np.int64(done.begin).tobytes())
            has_tokens = done.tokens[split] > done.begin  # blank lines before the first word give no tokens
            between = newline if has_tokens and part.newline else ids[:0] if has_tokens else separator
            for array in [between, ids] if len(ids) else []:
                with name_write_errors(folder / f"{split}.bin"):
                    files[f"{split}.bin"].write(array.astype(dtype).tobytes())
                done.tokens[split] += len(array)
            progress.update(done.characters)
            if time.monotonic() - saved >= SAVE_EVERY:
                _save_progress(folder, done, files)
                saved = time.monotonic()
        _save_progress(folder, done, files)
    return done


def _encode_parts(tokenizer: Tokenizer | None, texts: list[str]) -> list[np.ndarray]:
    assert tokenizer is not None
    return tokenizer.encode_arrays(texts)


def _save_progress(folder: Path, done: _BuildProgress, files: Mapping[str, BinaryIO]) -> None:
    for name, file in files.items():  # before done.json, which must never count more than is written
        with name_write_errors(folder / name):
            file.flush()
            os.fsync(file.fileno())
    write_json(folder / "done.json", asdict(done))


def _resume_build(folder: Path, dtype: np.dtype) -> _BuildProgress:
    """Return the progress of an earlier process and truncate its files to it; start again if they are too short."""
    done = fresh = _BuildProgress(documents.PART_CHARACTERS)
    with contextlib.suppress(UserError, TypeError):  # not found, or of another version
        done = _BuildProgress(**read_json(folder / "done.json"))
    lengths = {file.name: file.stat().st_size for file in folder.iterdir()}
    if done.cut != fresh.cut or any(lengths.get(name, 0) < size for name, size in done.sizes(dtype).items()):
        done = fresh
    for name, size in done.sizes(dtype).items():
        with name_write_errors(folder / name), open(folder / name, "ab") as file:
            file.truncate(size)
    return done


def _finish_build(folder: Path, done: _BuildProgress, tokenizer: Tokenizer, dtype: np.dtype) -> None:
    """Write the document offsets, the validation tokens if there are few documents, and last meta.json."""
    tokens = dict(done.tokens)
    if not tokens["train"]:
        raise UserError("the corpus is empty: its text gives no tokens")
    begins = {split: np.fromfile(folder / f"{split}.begins", np.int64) for split in tokens}
    ends = {split: np.append(begins[split], tokens[split]) for split in tokens}  # 0, then the end of each document
    if done.documents < VALID_EVERY:  # use the last 5% of the tokens for validation
        kept = tokens["train"] - int(tokens["train"] * VALID_SHARE)
        tokens = {"train": kept, "valid": tokens["train"] - kept}
        with (
            name_write_errors(folder / "valid.bin"),
            open(folder / "train.bin", "rb") as train,
            open(folder / "valid.bin", "wb") as valid,
        ):
            train.seek(kept * dtype.itemsize)
            shutil.copyfileobj(train, valid)
            valid.flush()
            os.fsync(valid.fileno())
        all_ends = ends["train"]
        ends = {
            "train": np.append(all_ends[all_ends < kept], kept),
            "valid": np.append(0, all_ends[all_ends > kept] - kept),
        }
    for split in ends:
        with name_write_errors(folder / f"{split}-documents.npy"):
            np.save(folder / f"{split}-documents.npy", ends[split])
    sizes = {f"{split}.bin": count * dtype.itemsize for split, count in tokens.items()}
    meta = {
        "format": FORMAT,
        "dtype": dtype.name,
        "train_tokens": tokens["train"],
        "valid_tokens": tokens["valid"],
        "documents": done.documents,
        "characters": done.characters,
        "tokenizer": tokenizer.identity,
        "checksums": {name: file_checksum(folder / name, size) for name, size in sizes.items()},
    }
    write_text(folder / "meta.json", json.dumps(meta, indent=1))


# --- windows ----------------------------------------------------------------------------------------------------------
