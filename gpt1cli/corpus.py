"""Documents to token shards on disk to windows of contiguous tokens.

    documents  ->  parts of bounded size  ->  ids, on all cores  ->  train.bin and valid.bin  ->  windows

Memory stays bounded however large the corpus: the first 16 MB, then at most 4 jobs a worker (256 k characters,
some 60 MB while spaCy holds one), and the borders of the documents (8 bytes each). Training a tokenizer also holds one
count for each distinct word. The shards are memory-mapped.

A prepared corpus is cached under a key of its content and the tokenizer's identity, and appears whole, by one rename.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gpt1cli import demo_world, documents, hub, text, tokenizer
from gpt1cli.config import InputError, TokenizerConfig
from gpt1cli.documents import Part, Source, demo, parts
from gpt1cli.loggers import Progress
from gpt1cli.tokenizer import Tokenizer

FORMAT = 1
FEW_JOBS = 64  # 16 MB: no more than one process tokenises while others would still be starting
VALID_EVERY = 20  # every 20th document is for validation: 5%
VALID_SHARE = 0.05  # of the tokens at the end, where there are fewer documents than that

Reporting = Callable[..., Progress]  # Progress with its folder and mode filled in: takes total, unit, description
R = TypeVar("R")


# --- work on all cores ------------------------------------------------------------------------------------------------


Work = Callable[[Tokenizer | None, str], R]


def _on_all_cores(work: Work[R], having: Path | None, stream: Iterator[Part]) -> Iterator[tuple[Part, R]]:
    """(part, work(tokenizer, text)) in order; a short corpus is done here, a longer one by worker processes."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = _jobs(stream)
    few = list(itertools.islice(jobs, FEW_JOBS))
    if len(few) < FEW_JOBS or workers == 1:  # starting processes would cost more than it saves
        loaded = tokenizer.load(having) if having else None
        for job in itertools.chain(few, jobs):
            yield from ((part, work(loaded, part.text)) for part in job)
        return
    waiting: collections.deque[tuple[list[Part], Future[list[R]]]] = collections.deque()
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(having,)) as pool:
        for job in itertools.chain(few, jobs):
            waiting.append((job, pool.submit(_in_worker, work, [part.text for part in job])))
            if len(waiting) >= 4 * workers:
                done, future = waiting.popleft()
                yield from zip(done, future.result(), strict=True)
        for done, future in waiting:
            yield from zip(done, future.result(), strict=True)


def _jobs(stream: Iterator[Part]) -> Iterator[list[Part]]:
    """Short parts together: about documents.PART characters are handed to a worker at a time."""
    job: list[Part] = []
    characters = 0
    for part in stream:
        job.append(part)
        characters += len(part.text)
        if characters >= documents.PART:
            yield job
            job, characters = [], 0
    if job:
        yield job


_loaded: Tokenizer | None = None  # of a worker process


def _start_worker(having: Path | None) -> None:
    global _loaded
    _loaded = tokenizer.load(having) if having else None


def _in_worker(work: Work[R], texts: list[str]) -> list[R]:
    return [work(_loaded, part) for part in texts]


def _encode(loaded: Tokenizer | None, part: str) -> np.ndarray:
    assert loaded is not None
    return loaded.encode_array(part)


def _count_words(_: Tokenizer | None, part: str) -> collections.Counter[str]:
    return text.count_words(part)


# --- the tokenizer of a run -------------------------------------------------------------------------------------------


def tokenizer_of(
    config: TokenizerConfig, corpus: Source | None, hub_folder: str | None, cache: str, reporting: Reporting
) -> Tokenizer:
    """The tokenizer that the configuration names: published, or merges trained on the corpus and cached."""
    if config.source == "hub":
        assert config.repo
        found = {name: hub.file(config.repo, name, hub_folder, cache) for name in ("vocab.json", "merges.txt")}
        return tokenizer.load(found["vocab.json"].parent)
    if config.source == "demo":
        corpus = demo(demo_world.VOCABULARY_DOCUMENTS)
    if corpus is None:
        raise InputError(
            f"tokenizer={config.name} is trained on a corpus, and this command has none;"
            " name init=RUN, whose tokenizer is taken, or tokenizer=openai or tokenizer=demo"
        )
    assert config.merges
    folder = Path(cache) / "tokenizers" / _key(FORMAT, corpus.digest, config.merges, text.versions())
    if not folder.exists():
        counts: collections.Counter[str] = collections.Counter()
        with reporting(total=corpus.characters, unit="characters", description="counting words") as progress:
            for part, counted in _on_all_cores(_count_words, None, parts(corpus.documents())):
                counts.update(counted)
                progress.update(progress.step + len(part.text))
            trained = tokenizer.train(counts, config.merges)
            progress.say(
                f"tokenizer: {len(trained):,} entries, {len(trained.merges):,} of {config.merges:,} merges asked for"
            )
        with appearing(folder) as aside:
            trained.save(aside)
    return tokenizer.load(folder)


def _key(*parts_of_it: Any) -> str:
    return hashlib.sha256(json.dumps(parts_of_it, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, renamed to its place when the block ends well; one that came first stays."""
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():  # else another process has prepared the same, which is as good
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shards:
    """A prepared corpus: two memory-mapped streams of token ids, and where it lies."""

    folder: Path
    train: np.ndarray
    valid: np.ndarray
    documents: int


def prepare(source: Source, name: str, vocabulary: Tokenizer, cache: str, reporting: Reporting) -> Shards:
    """Token shards of a corpus, from the cache or made now. InputError for an empty corpus."""
    folder = Path(cache) / "corpora" / f"{name}-{_key(FORMAT, source.digest, vocabulary.identity)}"
    if not folder.exists():
        with appearing(folder) as aside:
            vocabulary.save(aside)
            with reporting(total=source.characters, unit="characters", description="tokenising") as progress:
                _write(aside, source, vocabulary, progress)
    meta = json.loads((folder / "meta.json").read_text())
    sizes = {split: meta[f"{split}_tokens"] for split in ("train", "valid")}
    train, valid = (
        np.memmap(folder / f"{split}.bin", meta["dtype"], "r", shape=(size,)) if size else np.empty(0, meta["dtype"])
        for split, size in sizes.items()  # NOTE: an empty file cannot be mapped
    )
    return Shards(folder, train, valid, meta["documents"])


def _write(folder: Path, source: Source, vocabulary: Tokenizer, progress: Progress) -> None:
    dtype = np.dtype(np.uint16 if len(vocabulary) <= 2**16 else np.uint32)
    newline = np.array([len(vocabulary) - 1], dtype)
    tokens, ends = {"train": 0, "valid": 0}, {"train": [0], "valid": [0]}  # ends: where each document ends, after a 0
    documents = 0
    with open(folder / "train.bin", "wb") as train, open(folder / "valid.bin", "wb") as valid:
        files = {"train": train, "valid": valid}
        for part, ids in _on_all_cores(_encode, folder, parts(source.documents())):
            documents += part.first
            split = "valid" if documents % VALID_EVERY == 0 else "train"
            if part.first:
                ends[split].append(tokens[split])
            opened = tokens[split] > ends[split][-2]  # blank lines before the first word of a document are no token
            for piece in [newline, ids] if part.newline and len(ids) and opened else [ids]:
                piece.astype(dtype).tofile(files[split])
                tokens[split] += len(piece)
            ends[split][-1] = tokens[split]
            progress.update(progress.step + len(part.text))
    if not tokens["train"]:
        raise InputError("the corpus is empty: no text in it gave a token")
    if documents < VALID_EVERY:
        tokens = _split_off_end(folder, tokens["train"], dtype)
        kept = tokens["train"]
        ends["valid"] = [0, *(end - kept for end in ends["train"] if end > kept)]
        ends["train"] = [*(end for end in ends["train"] if end < kept), kept]
    for split in ends:
        np.save(folder / f"{split}-documents.npy", np.array(ends[split], dtype=np.int64))
    meta = {
        "format": FORMAT,
        "dtype": dtype.name,
        "train_tokens": tokens["train"],
        "valid_tokens": tokens["valid"],
        "documents": documents,
        "characters": progress.step,
        "tokenizer": vocabulary.identity,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _split_off_end(folder: Path, total: int, dtype: np.dtype) -> dict[str, int]:
    """Few documents: the last 5% of the tokens are for validation."""
    kept = total - int(total * VALID_SHARE)
    with open(folder / "train.bin", "rb") as train, open(folder / "valid.bin", "wb") as valid:
        train.seek(kept * dtype.itemsize)
        shutil.copyfileobj(train, valid)
    os.truncate(folder / "train.bin", kept * dtype.itemsize)
    return {"train": kept, "valid": total - kept}


# --- windows ----------------------------------------------------------------------------------------------------------


def unigram_loss(shards: Shards, vocabulary: int, limit: int = 10_000_000) -> float:
    """Mean -log p of the validation tokens, in nats, by the training tokens' frequencies (add one; `limit` of each)."""
    counts = np.bincount(shards.train[:limit], minlength=vocabulary) + 1
    return float(-np.log(counts / counts.sum())[shards.valid[:limit]].mean())


def random_windows(tokens: np.ndarray, context: int, count: int, seed: int, step: int) -> np.ndarray:
    """Windows of context+1 contiguous tokens at random places, a function of (seed, step) alone: [count,context+1]."""
    starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - context, size=count)
    return np.stack([tokens[start : start + context + 1] for start in starts])


def spread_windows(tokens: np.ndarray, context: int, limit: int) -> np.ndarray:
    """Windows of context+1 tokens side by side, or evenly spread where they exceed `limit` tokens: [N,context+1]."""
    starts = np.arange(0, len(tokens) - context, context)
    if len(starts) * context > limit:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // context)).astype(int)]
    return np.stack([tokens[start : start + context + 1] for start in starts])
