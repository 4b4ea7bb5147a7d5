"""Documents to token shards on disk to windows of contiguous tokens.

    documents  ->  parts of bounded size  ->  ids, on all cores  ->  train.bin and valid.bin  ->  windows

Documents follow one another, those of a byte-level vocabulary behind <|endoftext|> each, as GPT-2's do.

Memory stays bounded however large the corpus (workers.py); at the end the borders of the documents are held, 8 bytes
each. Training a tokenizer also holds one count for each distinct word. The shards are memory-mapped.

A prepared corpus is cached under a key of its content and the tokenizer's identity, and appears whole, by one rename.
Until then it grows in a folder aside, whose files are as long as its done.json says, or longer: a preparation that was
interrupted cuts them to that length and goes on.
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
from gpt1cli.runs.files import _put, appearing, of, read_json, write_json, write_text, writing
from gpt1cli.text import bpe, documents, normalise
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.text.documents import Source, demo, parts
from gpt1cli.text.workers import on_all_cores

FORMAT = 1
VALID_EVERY = 20  # every 20th document is for validation: 5%
VALID_SHARE = 0.05  # of the tokens at the end, where there are fewer documents than that
SAVE_EVERY = 10.0  # seconds: the work that an interruption may cost

Reporting = Callable[..., Progress]  # Progress with its folder and mode filled in: takes total, unit, description

# --- the tokenizer of a run -------------------------------------------------------------------------------------------


def tokenizer_of(
    config: TokenizerConfig, corpus: Source | None, hub_folder: str | None, cache: str, reporting: Reporting
) -> Tokenizer:
    """The tokenizer that the configuration names: published, or merges trained on the corpus and cached."""
    if config.source == "hub":
        assert config.repo
        found = {name: hub.file(config.repo, name, hub_folder, cache) for name in ("vocab.json", "merges.txt")}
        published = bpe.load(found["vocab.json"].parent)
        if published.level != config.level:
            told = f"tokenizer.level={config.level}: the vocabulary of {config.repo} is one of {published.level}"
            raise UserError(f"{told}; name tokenizer.level={published.level}")
        return published
    if config.source == "demo":
        corpus = demo(demo_world.VOCABULARY_DOCUMENTS)
    if corpus is None:
        raise UserError(
            f"tokenizer={config.name} is trained on a corpus, and this command has none;"
            " name init=RUN, whose tokenizer is taken, or tokenizer=openai or tokenizer=demo"
        )
    assert config.merges
    rules = normalise.versions() if config.level == "words" else config.level
    folder = Path(cache) / "tokenizers" / _key(FORMAT, corpus.digest, config.merges, rules)
    if not folder.exists():
        trained = (_train_bytes if config.level == "bytes" else _train)(corpus, config.merges, reporting)
        with appearing(folder) as aside:
            trained.save(aside)
    return bpe.load(folder)


def _train(corpus: Source, merges: int, reporting: Reporting) -> Tokenizer:
    counts: collections.Counter[str] = collections.Counter()
    with reporting(total=corpus.characters, unit="characters", description="counting words") as progress:
        with contextlib.closing(on_all_cores(_count_words, None, parts(corpus.documents()))) as all_counted:
            for part, counted in all_counted:
                counts.update(counted)
                progress.update(progress.step + len(part.text))
        return _told(bpe.train(counts, merges), merges, progress)


def _train_bytes(corpus: Source, merges: int, reporting: Reporting) -> Tokenizer:
    with reporting(total=corpus.characters, unit="characters", description="training the vocabulary") as progress:

        def texts() -> Iterator[str]:
            for part in parts(corpus.documents()):
                yield part.text
                progress.update(progress.step + len(part.text))

        return _told(bpe.train_bytes(texts(), merges), merges, progress)


def _told(trained: Tokenizer, merges: int, progress: Progress) -> Tokenizer:
    progress.say(f"tokenizer: {len(trained):,} entries, {len(trained.merges):,} of {merges:,} merges asked for")
    return trained


def _count_words(_: Tokenizer | None, parts: list[str]) -> list[collections.Counter[str]]:
    return [normalise.count_words(part) for part in parts]


def _key(*parts_of_it: Any) -> str:
    return hashlib.sha256(json.dumps(parts_of_it, sort_keys=True).encode()).hexdigest()[:24]


# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shards:
    """A prepared corpus: two memory-mapped streams of token ids, and where it lies."""

    folder: Path
    train: np.ndarray
    valid: np.ndarray
    documents: int


def prepare(source: Source, name: str, vocabulary: Tokenizer, cache: str, reporting: Reporting) -> Shards:
    """Token shards of a corpus, from the cache or made now. UserError for an empty corpus."""
    folder = Path(cache) / "corpora" / f"{name}-{_key(FORMAT, source.digest, vocabulary.identity)}"
    if not folder.exists():
        with _alone(folder, reporting) as aside:
            if not folder.exists():  # else the process that was waited for has prepared it
                _prepare(aside, source, vocabulary, reporting)
                with writing(folder):
                    _put(aside, folder)
    meta = described(folder)
    if not _seen_whole(folder):
        check(folder, meta)
    sizes = {split: meta[f"{split}_tokens"] for split in ("train", "valid")}
    train, valid = (
        np.memmap(folder / f"{split}.bin", meta["dtype"], "r", shape=(size,)) if size else np.empty(0, meta["dtype"])
        for split, size in sizes.items()  # NOTE: an empty file cannot be mapped
    )
    return Shards(folder, train, valid, meta["documents"])


def described(folder: Path) -> dict[str, Any]:
    """What a prepared corpus says of itself. UserError where that is damaged, or of another format."""
    again = f"remove {folder}, and it is prepared again"
    try:
        meta = read_json(folder / "meta.json")
        if meta["format"] != FORMAT:
            raise UserError(f"{folder / 'meta.json'}: format {display(meta['format'])}; this gpt1 reads {FORMAT}")
        if meta["dtype"] not in ("uint16", "uint32"):
            raise UserError(f"{folder / 'meta.json'}: dtype={display(meta['dtype'])} is none of token ids")
        if not all(type(meta[key]) is int and meta[key] >= 0 for key in ("train_tokens", "valid_tokens", "documents")):
            raise UserError(f"{folder / 'meta.json'}: a number of tokens or of documents is no count")
    except KeyError as error:
        raise UserError(f"{folder / 'meta.json'}: no {error.args[0]} in it; {again}") from None
    except UserError as error:
        raise UserError(f"{error}; {again}") from None
    return meta


def check(folder: Path, meta: Mapping[str, Any]) -> None:
    """Hold the shards against their checksums, reading all of them. UserError names one that is damaged."""
    again = f"remove {folder}, and it is prepared again"
    states = _states(folder)
    for split in ("train", "valid"):
        path, size = folder / f"{split}.bin", meta[f"{split}_tokens"] * np.dtype(meta["dtype"]).itemsize
        held = path.stat().st_size if path.is_file() else None
        if held != size:
            found = "missing" if held is None else f"{held:,} bytes, {size:,} were written"
            raise UserError(f"{path}: {found}; {again}")
        written = meta.get("checksums", {}).get(path.name)  # none by an older gpt1
        if written and (told := of(path)) != written:
            raise UserError(f"{path}: damaged (its checksum is {told}, {written} was written); {again}")
    with contextlib.suppress(OSError):  # a cache that cannot be written to is read again next time
        _seen(folder).write_text(json.dumps({"states": states}))  # torn, it counts as none


# A gigabyte is not read at every start, but when `gpt1 prepare` asks, and when a shard is another file than the one
# that was found whole: a copy, a restored backup, or one that was written to. Bits that flip on the disk itself, under
# the same length and time of change, are left to `gpt1 prepare`.


def _seen(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.seen")


def _states(folder: Path) -> dict[str, list[int]]:
    found = {}
    for split in ("train", "valid"):
        with contextlib.suppress(FileNotFoundError):
            state = (folder / f"{split}.bin").stat()
            found[split] = [state.st_size, state.st_mtime_ns, state.st_ino]
    return found


def _seen_whole(folder: Path) -> bool:
    """Whether the shards are the files that were found whole before."""
    with contextlib.suppress(UserError):
        return read_json(_seen(folder)).get("states") == _states(folder)
    return False


@contextlib.contextmanager
def _alone(folder: Path, reporting: Reporting) -> Iterator[Path]:
    """The folder aside of a folder, for this process alone; another one that works there is waited for."""
    path = folder.with_name(f".{folder.name}.lock")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = _lock(path, reporting)
    except OSError:  # no locks on this file system: an aside of our own, from which nobody goes on
        path.unlink(missing_ok=True)
        aside = folder.with_name(f".{folder.name}-{platform.node()}-{os.getpid()}")
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return
    with handle:
        try:
            yield folder.with_name(f".{folder.name}")
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path, reporting: Reporting) -> TextIO:
    """The file, locked until it is closed; OSError where the file system has no locks."""
    while True:
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the work lasts)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            handle.seek(0)
            with reporting(total=1) as progress:
                progress.say(f"waiting for {handle.read().strip() or 'another process'}, which prepares this corpus")
            fcntl.lockf(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            # NOTE: who held the lock has removed its file; a lock on what has no name any more keeps nobody out.
            if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                handle.truncate(0)
                handle.write(f"process {os.getpid()} on {platform.node()}\n")
                handle.flush()
                return handle
        handle.close()


# --- shards in the making: all that grows with the corpus is in files, all else in done.json -------------------------


@dataclass
class _Done:
    """How far a preparation has come: the parts of the stream that are in the files, and what these then hold."""

    cut: int  # documents.PART, by which the stream was cut into parts
    parts: int = 0
    documents: int = 0
    characters: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"train": 0, "valid": 0})
    begin: int = 0  # tokens of its split before the document that is being written

    def sizes(self, dtype: np.dtype) -> dict[str, int]:
        """The files and their bytes: the tokens of a split, and before how many of them each document begins."""
        valid = self.documents // VALID_EVERY
        begins = {"train": self.documents - valid, "valid": valid}
        sizes = {f"{split}.bin": count * dtype.itemsize for split, count in self.tokens.items()}
        return sizes | {f"{split}.begins": count * 8 for split, count in begins.items()}


def _prepare(aside: Path, source: Source, vocabulary: Tokenizer, reporting: Reporting) -> None:
    """Fill the folder aside, from where an earlier process left it. At any moment it may be killed."""
    dtype = np.dtype(np.uint16 if len(vocabulary) <= 2**16 else np.uint32)
    if not (aside / "meta.json").exists():
        try:
            vocabulary.save(aside)
            done = _write(aside, source, vocabulary, dtype, reporting)
            _complete(aside, done, vocabulary, dtype)
        except UserError:
            shutil.rmtree(aside)  # once mended it is another corpus
            raise
    # From here on only what can be done twice: what meta.json tells is true, and nothing else is left.
    with writing(aside / "train.bin"):
        os.truncate(aside / "train.bin", json.loads((aside / "meta.json").read_text())["train_tokens"] * dtype.itemsize)
    for file in [aside / "done.json", *aside.glob("*.begins"), *aside.glob(".*")]:
        file.unlink(missing_ok=True)


def _write(folder: Path, source: Source, vocabulary: Tokenizer, dtype: np.dtype, reporting: Reporting) -> _Done:
    """Tokenise what is not in the files yet."""
    newline, opening = (
        np.array([] if index is None else [index], dtype) for index in (vocabulary.newline, vocabulary.opening)
    )
    done = _take_up(folder, dtype)
    stream = itertools.islice(parts(source.documents()), done.parts, None)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "ab")) for name in done.sizes(dtype)}
        progress = stack.enter_context(
            reporting(total=source.characters, start=done.characters, unit="characters", description="tokenising")
        )
        if done.parts:
            progress.say(f"going on where it was interrupted, after {done.documents:,} documents")
        saved = time.monotonic()
        for part, ids in stack.enter_context(contextlib.closing(on_all_cores(_encode, folder, stream))):
            done.parts += 1
            done.documents += part.first
            done.characters += len(part.text)
            split = "valid" if done.documents % VALID_EVERY == 0 else "train"
            if part.first:
                done.begin = done.tokens[split]
                with writing(folder / f"{split}.begins"):
                    files[f"{split}.begins"].write(np.int64(done.begin).tobytes())
            opened = done.tokens[split] > done.begin  # blank lines before the first word of a document are no token
            between = newline if opened and part.newline else ids[:0] if opened else opening
            for piece in [between, ids] if len(ids) else []:
                with writing(folder / f"{split}.bin"):
                    files[f"{split}.bin"].write(piece.astype(dtype).tobytes())
                done.tokens[split] += len(piece)
            progress.update(done.characters)
            if time.monotonic() - saved >= SAVE_EVERY:
                _save(folder, done, files)
                saved = time.monotonic()
        _save(folder, done, files)
    return done


def _encode(loaded: Tokenizer | None, parts: list[str]) -> list[np.ndarray]:
    assert loaded is not None
    return loaded.encode_arrays(parts)


def _save(folder: Path, done: _Done, files: Mapping[str, BinaryIO]) -> None:
    for name, file in files.items():  # before done.json: it must never tell of more than there is
        with writing(folder / name):
            file.flush()
            os.fsync(file.fileno())
    write_json(folder / "done.json", asdict(done))


def _take_up(folder: Path, dtype: np.dtype) -> _Done:
    """What an earlier process has done, its files cut to just that; nothing where they do not hold as much."""
    done = fresh = _Done(documents.PART)
    with contextlib.suppress(UserError, TypeError):  # none there, or one of another version
        done = _Done(**read_json(folder / "done.json"))
    held = {file.name: file.stat().st_size for file in folder.iterdir()}
    if done.cut != fresh.cut or any(held.get(name, 0) < size for name, size in done.sizes(dtype).items()):
        done = fresh
    for name, size in done.sizes(dtype).items():
        with writing(folder / name), open(folder / name, "ab") as file:
            file.truncate(size)
    return done


def _complete(folder: Path, done: _Done, vocabulary: Tokenizer, dtype: np.dtype) -> None:
    """The borders of the documents, validation tokens where there are few documents, and last of all meta.json."""
    tokens = dict(done.tokens)
    if not tokens["train"]:
        raise UserError("the corpus is empty: no text in it gave a token")
    begins = {split: np.fromfile(folder / f"{split}.begins", np.int64) for split in tokens}
    ends = {split: np.append(begins[split], tokens[split]) for split in tokens}  # where each document ends, after a 0
    if done.documents < VALID_EVERY:  # the last 5% of the tokens are for validation
        kept = tokens["train"] - int(tokens["train"] * VALID_SHARE)
        tokens = {"train": kept, "valid": tokens["train"] - kept}
        with (
            writing(folder / "valid.bin"),
            open(folder / "train.bin", "rb") as train,
            open(folder / "valid.bin", "wb") as valid,
        ):
            train.seek(kept * dtype.itemsize)
            shutil.copyfileobj(train, valid)
            valid.flush()
            os.fsync(valid.fileno())
        whole = ends["train"]
        ends = {"train": np.append(whole[whole < kept], kept), "valid": np.append(0, whole[whole > kept] - kept)}
    for split in ends:
        with writing(folder / f"{split}-documents.npy"):
            np.save(folder / f"{split}-documents.npy", ends[split])
    kept_bytes = {f"{split}.bin": count * dtype.itemsize for split, count in tokens.items()}
    meta = {
        "format": FORMAT,
        "dtype": dtype.name,
        "train_tokens": tokens["train"],
        "valid_tokens": tokens["valid"],
        "documents": done.documents,
        "characters": done.characters,
        "tokenizer": vocabulary.identity,
        "checksums": {name: of(folder / name, size) for name, size in kept_bytes.items()},
    }
    write_text(folder / "meta.json", json.dumps(meta, indent=1))


# --- windows ----------------------------------------------------------------------------------------------------------
