"""The signals that stop a run after it has saved its checkpoint: Ctrl-C, SIGTERM and pre-emption."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

# submitit sends it before a job's time runs out; it can also be requested with sbatch --signal=USR2@120.
PREEMPTION = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", signal.SIGUSR2)
MANUAL_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Exit statuses of a run that saved its checkpoint before it stopped.
STOPPED_STATUSES = {128 + number for number in (*MANUAL_SIGNALS, PREEMPTION)}
SLURM_GRACE_SECONDS = 600.0  # seconds between Slurm's warning and the end of the job


@contextlib.contextmanager
def record_stop_signals() -> Iterator[list[int]]:
    """A list of the numbers of received signals: Ctrl-C, SIGTERM and pre-emption.

    After the first Ctrl-C or SIGTERM a second one acts as before. A pre-emption after SIGTERM is recorded too: its
    previous handler would exit without the checkpoint.
    """
    received: list[int] = []

    def record_signal(number: int, _: object) -> None:
        received.append(number)
        for signum in set(MANUAL_SIGNALS) & before.keys() if number in MANUAL_SIGNALS else ():
            signal.signal(signum, before[signum])

    before = {number: signal.signal(number, record_signal) for number in handled_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def deciding_signal(received: Sequence[int]) -> int:
    """The signal that decides how a run ends after several: pre-emption, because submitit must requeue the job."""
    return PREEMPTION if PREEMPTION in received else received[0]


def exit_after_signal(number: int) -> NoReturn:
    """Exit after the checkpoint is saved. On pre-emption, submitit's own handler requeues the job first."""
    if PREEMPTION != number == signal.SIGTERM and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        # NOTE Slurm sends this signal before it ends a job. It requeues a job that it ended, not one that exited first.
        time.sleep(SLURM_GRACE_SECONDS)
    if number == PREEMPTION and callable(handler := signal.getsignal(number)):
        handler(number, None)
    raise SystemExit(128 + number)


def exit_on_signal(number: int, _: FrameType | None) -> NoReturn:
    """Signal handler: exit with clean-up, as after Ctrl-C."""
    raise SystemExit(128 + number)


def ignore(number: int, _: FrameType | None) -> None:
    """Signal handler of child processes: Ctrl-C reaches all of them, but the main process sends them SIGTERM."""


def handled_signals() -> list[int]:
    """The numbers of the signals that stop a run, without those that this process ignores."""
    return [int(number) for number in (*MANUAL_SIGNALS, PREEMPTION) if signal.getsignal(number) is not ignore]


@contextlib.contextmanager
def handle_sigterm(alone: bool = True) -> Iterator[None]:
    """Let SIGTERM end the process with clean-up and status 143.

    A process that is not `alone`, but one of several, also ignores Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGTERM: exit_on_signal} if alone else {signal.SIGTERM: exit_on_signal, signal.SIGINT: ignore}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
