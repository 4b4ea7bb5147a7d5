"""One run on several devices: one process per device, each with its own rows of every step.

Rank 0 writes the run folder; the other ranks write to temporary folders that are then deleted. With
DistributedDataParallel every process holds the full model; with `runtime.shard` FSDP2 shards parameters, gradients and
optimizer state, and gathers the weights of each block when they are needed. A checkpoint always holds full tensors, so
that any number of processes can resume it.
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

RunCommand = Callable[[Any, Path], None]  # a command's run(config, folder)
GRACE_SECONDS = 60.0  # time for the other ranks to end after one was stopped


class RankFailed(RuntimeError):
    """The run failed because one of its processes failed or was killed."""


def run_as_rank(function: RunCommand, config: TrainConfig, folder: Path) -> None:
    """Run a command as one rank; torchrun or `launch_ranks` sets the environment."""
    cuda = _uses_cuda(config)
    if cuda:
        local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= count:
            raise UserError(
                f"{local_rank + 1} processes on this machine, but {count} CUDA devices: start fewer processes"
            )
        torch.cuda.set_device(local_rank)
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


def _uses_cuda(config: TrainConfig) -> bool:
    return torch.cuda.is_available() and config.runtime.device != "cpu"


def launch_ranks(function: RunCommand, config: TrainConfig, folder: Path) -> None:
    """Run a command on runtime.devices processes of this machine, which end together.

    Passes on UserError and SystemExit from the ranks. Raises RankFailed if a rank failed or was killed.
    """
    count, context, runtime = config.runtime.devices, get_context("spawn"), config.runtime
    if runtime.threads is None and not _uses_cuda(config):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        limit = os.environ.get("OMP_NUM_THREADS", "")  # the share of this job, if several run on this machine
        cores = int(limit) if limit.isdigit() else cores
        config = dataclasses.replace(config, runtime=dataclasses.replace(runtime, threads=max(1, cores // count)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for number in range(count):
        ours, theirs = context.Pipe()
        environment = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
        process = context.Process(target=_rank_process, args=(environment, function, config, folder, theirs))
        process.start()
        theirs.close()
        ranks.append((process, ours))
    try:
        with _forward_signals([process.pid for process, _ in ranks]) as forwarded:
            _wait_for_ranks([process for process, _ in ranks])
        codes = [process.exitcode for process, _ in ranks]  # None: still running
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()
    _raise_outcome(codes, [report for _, ours in ranks for report in _received_reports(ours)], folder, forwarded)


def _rank_process(
    environment: Mapping[str, int], function: RunCommand, config: TrainConfig, folder: Path, reports: Connection
) -> None:
    """Run one rank in its own process. Errors are sent to the main process, which reports them once."""
    os.setsid()  # Ctrl-C on a terminal reaches only the main process, which forwards it
    signal.signal(signals.PREEMPTION, signals.exit_on_signal)
    os.environ.update({name: str(value) for name, value in environment.items()}, MASTER_ADDR="127.0.0.1")
    threading.Thread(target=_exit_with_parent, args=(reports,), daemon=True).start()
    try:
        run_as_rank(function, config, folder)
    except UserError as error:
        reports.send(("input", str(error), ""))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if write_error := files.find_write_error(error):
            reports.send(("unwritten", write_error, ""))
            raise SystemExit(2) from None
        message = f"rank {environment['RANK']}: {type(error).__name__}: {error}"
        reports.send(("fault", message, traceback.format_exc()))
        raise SystemExit(1) from None


def _exit_with_parent(parent: Connection) -> None:
    """Exit when the main process is killed, which closes its end of the pipe."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)


def _wait_for_ranks(processes: Sequence[Any]) -> None:
    """Wait until all ranks have ended, one has failed, or GRACE_SECONDS have passed after a stop."""
    alive, stopped = list(processes), False
    while alive:
        ended = wait([process.sentinel for process in alive], timeout=GRACE_SECONDS if stopped else None)
        alive = [process for process in alive if process.is_alive()]
        codes = {process.exitcode for process in processes} - {None}
        if not ended or not codes <= {0, *signals.STOPPED_STATUSES}:
            break
        stopped = bool(codes & signals.STOPPED_STATUSES)
    for process in alive:  # time to report errors that the failed rank caused
        process.join(1.0)


def _received_reports(connection: Connection) -> Iterator[tuple[str, Any, str]]:
    with contextlib.suppress(EOFError, OSError):  # the rank ended without a report
        yield connection.recv()


def _raise_outcome(
    codes: Sequence[int | None], reports: Sequence[tuple[str, Any, str]], folder: Path, forwarded: Sequence[int] = ()
) -> None:
    """Raise the error that the ranks ended with: a user error, a kill, a failure, or a forwarded signal."""
    for kind, message, _ in reports:
        if kind == "input":
            raise UserError(message)
        if kind == "unwritten":
            raise message
    for number, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            raise RankFailed(
                f"rank {number} of {len(codes)} was ended by {name}, and the other ranks were stopped."
                f" To continue: the same command with resume={folder}"
            )
    for _, message, trace in reports:
        error = RankFailed(message)
        error.add_note(trace)
        raise error
    for code in codes:
        if code in signals.STOPPED_STATUSES:
            signals.exit_after_signal(signals.deciding_signal(forwarded or (code - 128,)))
        if code:
            raise SystemExit(code)


@contextlib.contextmanager
def _forward_signals(pids: Sequence[int | None]) -> Iterator[list[int]]:
    """Forward Ctrl-C, SIGTERM and pre-emption to the ranks, which save a checkpoint and end; yield those forwarded."""
    forwarded: list[int] = []

    def forward(number: int, _: object) -> None:
        forwarded.append(number)
        for pid in pids:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield forwarded
        return
    previous = {number: signal.signal(number, forward) for number in signals.handled_signals()}
    try:
        yield forwarded
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
