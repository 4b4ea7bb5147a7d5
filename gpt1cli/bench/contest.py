"""Contests: several candidates do the same job, each in its own process, and are timed in turn: A B C A B C ...

A shared machine becomes slower and faster, but measurements shortly after each other can be compared. So only ratios
between candidates of one contest are meaningful, and their range is reported.
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

Job = Callable[[], float]  # does the job once, returns the number of units done (tokens, examples)


@dataclass(frozen=True)
class Candidate:
    """One implementation of a job. `make` names the function that prepares it, in the candidate's own process.

    `tune_allocator` applies the setting that gpt1 uses for itself: glibc's allocator keeps freed memory.
    """

    name: str
    make: str  # module:function, called with the options, returns a Job
    options: Mapping[str, Any] = field(default_factory=dict)
    tune_allocator: bool = False


@dataclass(frozen=True)
class Contest:
    """The same job done by several candidates; the first is gpt1."""

    name: str
    unit: str
    candidates: Sequence[Candidate]
    min_speedup: Mapping[str, float] = field(default_factory=dict)  # candidate -> how many times as fast gpt1 should be
    flops: float | None = None  # of one unit; then the last candidate is the ceiling, and its unit is the FLOP
    min_ceiling_share: float | None = None  # the least share of the ceiling's FLOP/s that gpt1 should reach
    axis: tuple[str, Sequence[float]] | None = None  # for a plot: label of x, its value by candidate
    max_memory_ratio: Mapping[str, float] = field(default_factory=dict)  # candidate -> gpt1's memory / its memory
    in_subprocesses: bool = False  # the job starts processes, whose memory is not measured


@dataclass(frozen=True)
class BenchSettings:
    """The settings of a benchmark."""

    device: str
    peer: bool  # whether transformers is a candidate
    text: str | None = None  # a file to tokenise
    vocabulary: str | None = None  # the folder of the published vocabulary, if there is one


@dataclass(frozen=True)
class CandidateTiming:
    """The measurements of a candidate."""

    name: str
    rates: Sequence[float]  # units per second in each round
    peak_memory_bytes: int
    start_seconds: float = 0.0  # until the job was ready

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)


def speedup(ours: CandidateTiming, other: CandidateTiming) -> float:
    """How many times as fast ours is: the median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(ours.rates, other.rates, strict=True))


def run_contest(contest: Contest, rounds: int, threads: int | None, warm_up: int = 1) -> list[CandidateTiming]:
    """Time all candidates, round by round. Raises RuntimeError with the error message of a candidate that fails."""
    processes: list[CandidateProcess] = []
    try:
        for candidate in contest.candidates:
            processes.append(CandidateProcess(candidate))
            processes[-1].start(threads)
        rates: list[list[float]] = [[] for _ in processes]
        for number in range(warm_up + rounds):
            for process, own_rates in zip(processes, rates, strict=True):
                done = process.ask("go")
                if number >= warm_up:
                    own_rates.append(done["units"] / done["seconds"])
        peaks = [process.ask("stop")["peak_memory_bytes"] for process in processes]
    finally:
        for process in processes:
            process.end()
    return [
        CandidateTiming(process.candidate.name, own_rates, peak, process.start_seconds)
        for process, own_rates, peak in zip(processes, rates, peaks, strict=True)
    ]


class CandidateProcess:
    """The process of a candidate, seen from its parent: one line of JSON per request, one per reply."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
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
        """Start the job in the process, and time it."""
        request = {"make": self.candidate.make, "options": dict(self.candidate.options)}
        began = time.perf_counter()
        self.ask(json.dumps({**request, "tune_allocator": self.candidate.tune_allocator, "threads": threads}))
        self.start_seconds = time.perf_counter() - began

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and return the reply. Raises RuntimeError if the process has ended."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            self.process.wait()
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
            cause = lines[-1] if lines else f"exit status {self.process.returncode}"
            if self.process.returncode < 0:
                cause = f"killed by {signal.Signals(-self.process.returncode).name}, perhaps out of memory"
            raise RuntimeError(f"{self.candidate.name} failed: {cause}")
        return json.loads(reply)

    def end(self) -> None:
        """Kill the process and close its error file."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def _serve_jobs() -> None:
    """The program of a candidate's process: prepare the job, then do it once for each line `go`."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries is not a reply

    def reply(**facts: Any) -> None:
        print(json.dumps(facts), file=replies, flush=True)

    request = json.loads(sys.stdin.readline())
    import torch

    from gpt1cli.models.kernels import tune_allocator
    from gpt1cli.training.device import peak_memory_bytes

    if request["tune_allocator"]:
        tune_allocator()
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    device = torch.device(request["options"].get("device", "cpu"))
    module, _, function = request["make"].partition(":")
    job: Job = getattr(importlib.import_module(module), function)(**request["options"])
    reply(ready=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            reply(peak_memory_bytes=peak_memory_bytes(device))
            return
        began = time.perf_counter()
        units = job()
        if device.type == "cuda":
            torch.cuda.synchronize()
        reply(seconds=time.perf_counter() - began, units=units)


if __name__ == "__main__":
    _serve_jobs()
