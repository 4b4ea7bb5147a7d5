"""The signals that end a run with its checkpoint, and what happens behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

# What submitit sends before a job's time runs out; anybody may (sbatch --signal=USR2@120).
PREEMPTION = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", signal.SIGUSR2)
BY_HAND = (signal.SIGINT, signal.SIGTERM)
STOPPED = {128 + number for number in (*BY_HAND, PREEMPTION)}  # exit statuses of a run that saved its checkpoint first
PATIENCE = 600.0  # seconds between Slurm's warning and the end of the job


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """A list that Ctrl-C, SIGTERM and pre-emption put their number into; a second one by hand acts as it did before.

    A pre-emption that follows a SIGTERM is noted too: what it did before would leave without the checkpoint.
    """
    stopped: list[int] = []

    def note(number: int, _: object) -> None:
        stopped.append(number)
        for signum in set(BY_HAND) & before.keys() if number in BY_HAND else ():
            signal.signal(signum, before[signum])

    before = {number: signal.signal(number, note) for number in heard()}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def foremost(stopped: Sequence[int]) -> int:
    """The signal that says how a run ends that got several: somebody waits to hear of a pre-emption."""
    return PREEMPTION if PREEMPTION in stopped else stopped[0]


def end(number: int) -> NoReturn:
    """End a run whose checkpoint is saved, as the signal has it: submitit's own handler puts its job into the queue."""
    if PREEMPTION != number == signal.SIGTERM and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        # NOTE Slurm warns so before it ends a job, and puts back into its queue what it has ended, not what left first.
        time.sleep(PATIENCE)
    if number == PREEMPTION and callable(handler := signal.getsignal(number)):
        handler(number, None)
    raise SystemExit(128 + number)


def leave(number: int, _: FrameType | None) -> NoReturn:
    """A handler: end the process as Ctrl-C does, with clean-up."""
    raise SystemExit(128 + number)


def deaf(number: int, _: FrameType | None) -> None:
    """A handler: Ctrl-C reaches every process of a terminal, and is for the first of them, which sends SIGTERM on."""


def heard() -> list[int]:
    """The signals that end a run, but for those that the process is deaf to."""
    return [int(number) for number in (*BY_HAND, PREEMPTION) if signal.getsignal(number) is not deaf]


@contextlib.contextmanager
def terminable(alone: bool = True) -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does: with clean-up, and status 143. One of several is deaf to Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGTERM: leave} if alone else {signal.SIGTERM: leave, signal.SIGINT: deaf}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
