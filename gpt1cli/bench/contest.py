"""Contenders for the same job, each in a process of its own, measured in turn: A B C A B C ...

A machine that is shared slows down and speeds up; what is measured a moment apart still compares. Only ratios between
contenders of one contest mean something, and their spread is told.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

Job = Callable[[], float]  # does the job once; how many units (tokens, examples) that were


@dataclass(frozen=True)
class Contender:
    """One way to do a job. `make` names the function that prepares it, in the contender's own process.

    `tuned` gives it the general settings that gpt1 gives itself: glibc's allocator keeps its memory.
    """

    name: str
    make: str  # module:function, called with the options, gives a Job
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: bool = False


@dataclass(frozen=True)
class Contest:
    """The same job done by several contenders, of which the first is ours."""

    name: str
    unit: str
    contenders: Sequence[Contender]
    floors: Mapping[str, float] = field(default_factory=dict)  # contender -> how many times as fast ours should be
    flops: float | None = None  # floating point operations of a unit; the last contender then counts those it does
    share_floor: float | None = None  # the least part of the last contender's rate that ours should reach
    axis: tuple[str, Sequence[float]] | None = None  # for a plot: what the contenders differ in, and how much
    memory_limits: Mapping[str, float] = field(default_factory=dict)  # contender -> at most so much of its memory
    in_subprocesses: bool = False  # each job starts some: what memory they take is not measured


@dataclass(frozen=True)
class Setting:
    """What a benchmark is told."""

    device: str
    peer: bool  # whether transformers takes part
    text: str | None = None  # a file to tokenise
    vocabulary: str | None = None  # the folder of the published vocabulary, where it is at hand


@dataclass(frozen=True)
class Measured:
    """A contender's rounds."""

    name: str
    rates: Sequence[float]  # units a second, of each round
    peak_memory_bytes: int
    start_seconds: float = 0.0  # from the start of its process until the job was ready

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)


def ratio(ours: Measured, other: Measured) -> float:
    """How many times as fast ours is: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(ours.rates, other.rates, strict=True))


def hold(contest: Contest, rounds: int, threads: int | None, warm_up: int = 1) -> list[Measured]:
    """Measure all contenders, round by round. RuntimeError with a contender's own words where it fails."""
    processes: list[_Process] = []
    try:
        for contender in contest.contenders:
            processes.append(_Process(contender))
            processes[-1].start(threads)
        rates: list[list[float]] = [[] for _ in processes]
        for number in range(warm_up + rounds):
            for process, found in zip(processes, rates, strict=True):
                done = process.ask("go")
                if number >= warm_up:
                    found.append(done["units"] / done["seconds"])
        peaks = [process.ask("stop")["peak_memory_bytes"] for process in processes]
    finally:
        for process in processes:
            process.end()
    return [
        Measured(process.contender.name, found, peak, process.start_seconds)
        for process, found, peak in zip(processes, rates, peaks, strict=True)
    ]


class _Process:
    """The parent's end of a contender's process: a line of JSON there, a line of JSON back."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.start_seconds = 0.0
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process runs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def start(self, threads: int | None) -> None:
        """Have the job made."""
        about = {"make": self.contender.make, "options": dict(self.contender.options)}
        began = time.perf_counter()
        self.ask(json.dumps({**about, "tuned": self.contender.tuned, "threads": threads}))
        self.start_seconds = time.perf_counter() - began

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            words = self.errors.read().decode(errors="replace").strip().splitlines()
            end = words[-1] if words else f"exit status {self.process.returncode}"
            if self.process.returncode < 0:
                end = f"ended by {signal.Signals(-self.process.returncode).name}, as where a machine is out of memory"
            raise RuntimeError(f"{self.contender.name} failed: {end}")
        return json.loads(answer)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def _contend() -> None:
    """The contender's own process: make the job, then do it once for every line `go`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    about = json.loads(sys.stdin.readline())
    import torch

    from gpt1cli.models.kernels import keep_memory
    from gpt1cli.training.device import peak_memory_bytes

    if about["tuned"]:
        keep_memory()
    if about["threads"]:
        torch.set_num_threads(about["threads"])
    torch.manual_seed(0)
    device = torch.device(about["options"].get("device", "cpu"))
    module, _, function = about["make"].partition(":")
    job: Job = getattr(importlib.import_module(module), function)(**about["options"])
    answer(ready=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            answer(peak_memory_bytes=peak_memory_bytes(device))
            return
        began = time.perf_counter()
        units = job()
        if device.type == "cuda":
            torch.cuda.synchronize()
        answer(seconds=time.perf_counter() - began, units=units)


if __name__ == "__main__":
    _contend()
