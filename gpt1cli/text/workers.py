"""Work on all cores: parts of documents go out to worker processes, what they make of them comes back in order.

Memory stays bounded: the first 16 MB, then at most 4 jobs a worker (512 k characters each). A worker loads what the
work needs and no more (neither torch nor anything of a model): about 100 MB, and the chunks the tokenizer remembers.
"""

from __future__ import annotations

import collections
import itertools
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

from gpt1cli.text import bpe, documents
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.text.documents import Part

FEW = 2**24  # characters: no more than one process tokenises while others would still be starting

R = TypeVar("R")
Work = Callable[[Tokenizer | None, list[str]], list[R]]


def on_all_cores(work: Work[R], having: Path | None, stream: Iterator[Part]) -> Generator[tuple[Part, R], None, None]:
    """Parts and what the work makes of their texts, in order; of a short corpus here, of a longer one in processes.

    `having` is the folder of the tokenizer. Close the generator (contextlib.closing): that ends the workers.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = _jobs(stream)
    few: list[list[Part]] = []
    characters = 0
    while characters < FEW and (job := next(jobs, None)):
        few.append(job)
        characters += sum(len(part.text) for part in job)
    if characters < FEW or workers == 1:  # starting processes would cost more than it saves
        loaded = bpe.load(having) if having else None
        for job in itertools.chain(few, jobs):
            yield from zip(job, work(loaded, [part.text for part in job]), strict=True)
        return
    waiting: collections.deque[tuple[list[Part], Future[list[R]]]] = collections.deque()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(having,))
    try:
        for job in itertools.chain(few, jobs):
            waiting.append((job, pool.submit(_do, work, [part.text for part in job])))
            if len(waiting) >= 4 * workers:
                done, future = waiting.popleft()
                yield from zip(done, future.result(), strict=True)
        for done, future in waiting:
            yield from zip(done, future.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


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


# --- in a worker process ----------------------------------------------------------------------------------------------

_loaded: Tokenizer | None = None


def _start(having: Path | None) -> None:
    global _loaded
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent ends the work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _loaded = bpe.load(having) if having else None


def _end_with_parent() -> None:
    # NOTE: a worker holds both ends of the pipe its jobs come through: for those of a killed parent it waits for ever.
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _do(work: Work[R], texts: list[str]) -> list[R]:
    return work(_loaded, texts)
