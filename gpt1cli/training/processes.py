"""One run on several devices: a process for each, which all do the same run on their own rows of every update.

Rank 0 writes the run folder; the others leave their record in a scratch folder that vanishes with them. With
DistributedDataParallel every process holds the whole model; with `runtime.shard` FSDP2 cuts weights, gradients and
moments up, and gathers a block's weights when it is their turn. A checkpoint holds whole tensors either way, so that
any number of processes can go on from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gpt1cli.config.commands import TrainConfig
from gpt1cli.config.schema import UserError
from gpt1cli.runs import files, signals
from gpt1cli.training.collective import rank

Run = Callable[[Any, Path], None]  # a command's run(config, folder)
GRACE = 60.0  # seconds in which the other ranks end, too, after one of them was stopped


# --- who we are -------------------------------------------------------------------------------------------------------


# --- a model on several devices ---------------------------------------------------------------------------------------


# --- starting and ending the processes --------------------------------------------------------------------------------


class RankFailed(RuntimeError):
    """One of the processes failed or was killed, and so the run."""


def join(function: Run, config: TrainConfig, folder: Path) -> None:
    """A command's run as one rank of those that the environment tells of: torchrun's, or ours."""
    cuda = _on_cuda(config)
    if cuda:
        here, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if here >= there:
            raise UserError(f"{here + 1} processes on this machine, but {there} CUDA devices: start fewer")
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        if rank() == 0:
            function(config, folder)
        else:
            silent = dataclasses.replace(config.runtime, progress="none")
            with tempfile.TemporaryDirectory(prefix="gpt1-") as scratch, contextlib.redirect_stdout(None):
                function(dataclasses.replace(config, runtime=silent), Path(scratch))
    finally:
        dist.destroy_process_group()


def _on_cuda(config: TrainConfig) -> bool:
    return torch.cuda.is_available() and config.runtime.device != "cpu"


def launch(function: Run, config: TrainConfig, folder: Path) -> None:
    """A command's run on runtime.devices processes of this machine, which end together.

    UserError and SystemExit are passed on from the ranks; RankFailed where one of them failed or was killed.
    """
    count, context, runtime = config.runtime.devices, get_context("spawn"), config.runtime
    if runtime.threads is None and not _on_cuda(config):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        told = os.environ.get("OMP_NUM_THREADS", "")  # of several jobs on this machine each is told its share
        cores = int(told) if told.isdigit() else cores
        config = dataclasses.replace(config, runtime=dataclasses.replace(runtime, threads=max(1, cores // count)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for number in range(count):
        ours, theirs = context.Pipe()
        place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
        process = context.Process(target=_rank, args=(place, function, config, folder, theirs))
        process.start()
        theirs.close()
        ranks.append((process, ours))
    try:
        with _passing_signals([process.pid for process, _ in ranks]) as passed:
            _wait([process for process, _ in ranks])
        codes = [process.exitcode for process, _ in ranks]  # None: it did not end by itself
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()
    _tell(codes, [found for _, ours in ranks for found in _words(ours)], folder, passed)


def _rank(place: Mapping[str, int], function: Run, config: TrainConfig, folder: Path, words: Connection) -> None:
    """A rank's own process. What went wrong is sent to the first process, which tells it once."""
    os.setsid()  # Ctrl-C on a terminal reaches the first process alone, which passes it on
    signal.signal(signals.PREEMPTION, signals.leave)
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    threading.Thread(target=_end_with, args=(words,), daemon=True).start()
    try:
        join(function, config, folder)
    except UserError as error:
        words.send(("input", str(error), ""))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if unwritten := files.found(error):
            words.send(("unwritten", unwritten, ""))
            raise SystemExit(2) from None
        about = f"rank {place['RANK']}: {type(error).__name__}: {error}"
        words.send(("fault", about, traceback.format_exc()))
        raise SystemExit(1) from None


def _end_with(parent: Connection) -> None:
    """Leave no rank behind when the first process is killed: its end of the pipe is then closed."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)


def _wait(processes: Sequence[Any]) -> None:
    """Until all have ended, or one of them so that the others cannot go on, or later than GRACE after a stop."""
    alive, stopped = list(processes), False
    while alive:
        ended = wait([process.sentinel for process in alive], timeout=GRACE if stopped else None)
        alive = [process for process in alive if process.is_alive()]
        codes = {process.exitcode for process in processes} - {None}
        if not ended or not codes <= {0, *signals.STOPPED}:
            break
        stopped = bool(codes & signals.STOPPED)
    for process in alive:  # time for what another rank's end did to them
        process.join(1.0)


def _words(rank: Connection) -> Iterator[tuple[str, Any, str]]:
    with contextlib.suppress(EOFError, OSError):  # it ended without a word
        yield rank.recv()


def _tell(
    codes: Sequence[int | None], words: Sequence[tuple[str, Any, str]], folder: Path, passed: Sequence[int] = ()
) -> None:
    """Raise what the ranks' ends amount to: a mistake in the input, a kill, a fault, a signal passed on to them."""
    for kind, message, _ in words:
        if kind == "input":
            raise UserError(message)
        if kind == "unwritten":
            raise message
    for number, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            raise RankFailed(
                f"rank {number} of {len(codes)} was ended by {name}, and the others with it; go on with resume={folder}"
            )
    for _, message, trace in words:
        error = RankFailed(message)
        error.add_note(trace)
        raise error
    for code in codes:
        if code in signals.STOPPED:
            signals.end(signals.foremost(passed or (code - 128,)))
        if code:
            raise SystemExit(code)


@contextlib.contextmanager
def _passing_signals(pids: Sequence[int | None]) -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and a pre-emption go on to the ranks, which save a checkpoint and end; those that did."""
    passed: list[int] = []

    def forward(number: int, _: object) -> None:
        passed.append(number)
        for pid in pids:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield passed
        return
    before = {number: signal.signal(number, forward) for number in signals.heard()}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
