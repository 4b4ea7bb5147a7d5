"""Processes parts of documents on all cores and returns the results in order.

Memory stays bounded: the first 16 MB, then at most 4 jobs per worker (512 k characters each). A worker process loads
neither torch nor a model: it takes about 100 MB plus the tokenizer's caches.
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
from gpt1cli.text.documents import TextPart

SERIAL_CHARACTERS = 2**24  # characters that one process tokenises in the time others need to start

R = TypeVar("R")
Work = Callable[[Tokenizer | None, list[str]], list[R]]


def map_on_all_cores(
    work: Work[R], tokenizer_folder: Path | None, parts: Iterator[TextPart]
) -> Generator[tuple[TextPart, R], None, None]:
    """Yield each part with the result of `work` on its text, in order; a short corpus is processed without workers.

    `work` gets the tokenizer in `tokenizer_folder`. Close the generator (contextlib.closing) to end the workers.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = _group_parts(parts)
    first_jobs: list[list[TextPart]] = []
    characters = 0
    while characters < SERIAL_CHARACTERS and (job := next(jobs, None)):
        first_jobs.append(job)
        characters += sum(len(part.text) for part in job)
    if characters < SERIAL_CHARACTERS or workers == 1:  # starting processes would cost more than it saves
        tokenizer = bpe.load(tokenizer_folder) if tokenizer_folder else None
        for job in itertools.chain(first_jobs, jobs):
            yield from zip(job, work(tokenizer, [part.text for part in job]), strict=True)
        return
    waiting: collections.deque[tuple[list[TextPart], Future[list[R]]]] = collections.deque()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(tokenizer_folder,))
    try:
        for job in itertools.chain(first_jobs, jobs):
            waiting.append((job, pool.submit(_run_work, work, [part.text for part in job])))
            if len(waiting) >= 4 * workers:
                done, future = waiting.popleft()
                yield from zip(done, future.result(), strict=True)
        for done, future in waiting:
            yield from zip(done, future.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _group_parts(parts: Iterator[TextPart]) -> Iterator[list[TextPart]]:
    """Group short parts into jobs of about documents.PART_CHARACTERS characters."""
    job: list[TextPart] = []
    characters = 0
    for part in parts:
        job.append(part)
        characters += len(part.text)
        if characters >= documents.PART_CHARACTERS:
            yield job
            job, characters = [], 0
    if job:
        yield job


# --- in a worker process ----------------------------------------------------------------------------------------------

_tokenizer: Tokenizer | None = None


def _start_worker(tokenizer_folder: Path | None) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the parent ends the workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _tokenizer = bpe.load(tokenizer_folder) if tokenizer_folder else None


def _exit_with_parent() -> None:
    # NOTE: a worker holds both ends of the pipe of its jobs, so it would wait for ever for those of a killed parent.
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _run_work(work: Work[R], texts: list[str]) -> list[R]:
    return work(_tokenizer, texts)
