"""gpt1 bench: the speed of gpt1 and of a peer, measured in alternation on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gpt1cli.bench import BENCHMARKS
from gpt1cli.bench.contest import BenchSettings, CandidateTiming, Contest, run_contest, speedup
from gpt1cli.config.commands import BenchConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data import hub
from gpt1cli.data.hub import Requirement
from gpt1cli.pretrained.hf_config import OPENAI_REPO
from gpt1cli.reporting.page import ReportTable
from gpt1cli.reporting.plots import save_scaling_plot
from gpt1cli.runs.console import Progress, abbreviate_number
from gpt1cli.runs.files import write_json, write_text
from gpt1cli.runs.folder import finish_run
from gpt1cli.training.device import setup_device

HEADER = ("candidate", "per second", "range", "speedup of gpt1", "floor", "share of ceiling", "peak memory")


def needs(config: BenchConfig) -> list[Requirement]:
    """Require nothing. Raises UserError if the peer is not installed or input= is not found."""
    if config.peer == "transformers" and importlib.util.find_spec("transformers") is None:
        raise UserError("peer=transformers is not installed; pip install 'gpt1[bench]', or set peer=none")
    if config.input is not None and not Path(config.input).is_file():
        raise UserError(f"input={config.input}: no such file; give a text file to tokenise")
    return []


def run(config: BenchConfig, folder: Path) -> None:
    """Contests one by one -> bench.json after each -> tables."""
    device = setup_device(config.runtime, config.seed).device.type
    settings = BenchSettings(device, config.peer == "transformers", config.input, find_published_vocabulary(config))
    contests = [contest for what in config.what for contest in build_contests(what, settings)]
    machine, facts, tables = describe_machine(device), [], []
    with Progress(folder, total=len(contests), mode=config.runtime.progress, description="contest") as progress:
        for number, contest in enumerate(contests, start=1):
            progress.say(f"{contest.name}: {', '.join(candidate.name for candidate in contest.candidates)}")
            timings = run_contest(contest, config.rounds, config.runtime.threads)
            facts.append({"name": contest.name, "unit": contest.unit, "contenders": contest_facts(contest, timings)})
            tables.append(contest_table(contest, timings))
            write_json(folder / "bench.json", {"machine": machine, "rounds": config.rounds, "contests": facts})
            if contest.axis:
                label, sizes = contest.axis
                path = folder / "plots" / f"{contest.name.replace(', ', '-')}.png"
                save_scaling_plot(label, sizes, f"{contest.unit} per second", [timing.rate for timing in timings], path)
            progress.update(number)
    for table in tables:
        table.show()
    title = (
        f"# gpt1 bench: {machine['device']}, {machine['platform']}, torch {machine['torch']}, {config.rounds} rounds\n"
    )
    write_text(folder / "report.md", "\n".join([title, *(table.markdown() for table in tables)]))
    finish_run(folder, {"status": "finished", "command": "bench", "name": config.name, "contests": facts})
    print(f"bench: {folder / 'bench.json'}")


def build_contests(what: str, settings: BenchSettings) -> Iterator[Contest]:
    """Yield the contests of one benchmark."""
    module, _, function = BENCHMARKS[what].partition(":")
    yield from getattr(importlib.import_module(module), function)(settings)


def find_published_vocabulary(config: BenchConfig) -> str | None:
    """Return the folder of the published vocabulary, or None if it is not on this machine (nothing is downloaded)."""
    files = [hub.Requirement("vocabulary", OPENAI_REPO, None, name, ()) for name in ("vocab.json", "merges.txt")]
    if any(hub.missing_reason(file, config.hub, config.cache) for file in files):
        return None
    return str(hub.find_file(OPENAI_REPO, "vocab.json", config.hub, config.cache).parent)


def describe_machine(device: str) -> dict[str, Any]:
    """Name the device, the platform and the version of torch."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    return {"device": name, "platform": platform.platform(), "torch": torch.__version__}


def contest_facts(contest: Contest, timings: Sequence[CandidateTiming]) -> list[dict[str, Any]]:
    """Return for bench.json each candidate's rounds, memory, speedup of gpt1 over it, and share of the ceiling."""
    ours = timings[0]
    return [
        {
            "name": timing.name,
            "rates": [float(f"{rate:.6g}") for rate in timing.rates],
            "median": float(f"{timing.rate:.6g}"),
            "peak_memory_bytes": (peak_bytes := None if contest.in_subprocesses else timing.peak_memory_bytes),
            "start_seconds": round(timing.start_seconds, 3),
            "ratio": None if timing is ours or is_ceiling(contest, timing) else round(speedup(ours, timing), 3),
            "floor": contest.min_speedup.get(timing.name),
            "share_of_ceiling": ceiling_share(contest, timing, timings),
            "share_floor": contest.min_ceiling_share if timing is ours else None,
            "memory_ratio": None if timing is ours or not peak_bytes else round(ours.peak_memory_bytes / peak_bytes, 3),
            "memory_limit": contest.max_memory_ratio.get(timing.name),
        }
        for timing in timings
    ]


def contest_table(contest: Contest, timings: Sequence[CandidateTiming]) -> ReportTable:
    """Return the table of a contest, without empty columns."""
    rows = contest_rows(contest, timings)
    filled = [number for number in range(len(HEADER)) if any(row[number] for row in rows)]
    return ReportTable(contest.name, [HEADER[n] for n in filled], [[row[n] for n in filled] for row in rows])


def contest_rows(contest: Contest, timings: Sequence[CandidateTiming]) -> list[list[str]]:
    """Return the rows of the table, one per candidate."""
    rows = []
    for fact, timing in zip(contest_facts(contest, timings), timings, strict=True):
        unit = "FLOP" if is_ceiling(contest, timing) else contest.unit
        rate_range = f"{abbreviate_number(min(timing.rates))} - {abbreviate_number(max(timing.rates))}"
        ratio = "" if fact["ratio"] is None else f"{fact['ratio']:.2f} x"
        floor = "" if fact["floor"] is None else f"{fact['floor']:.3g} x"
        ceiling = "" if fact["share_of_ceiling"] is None else f"{fact['share_of_ceiling']:.0%}"
        if fact["share_floor"]:
            ceiling += f" (floor {fact['share_floor']:.0%})"
        memory = "" if contest.in_subprocesses else f"{timing.peak_memory_bytes / 2**30:.2f} GB"
        if fact["memory_limit"]:
            memory += f" (gpt1: {fact['memory_ratio']:.2f} of it, limit {fact['memory_limit']:.2f})"
        rows.append(
            [timing.name, f"{abbreviate_number(timing.rate)} {unit}", rate_range, ratio, floor, ceiling, memory]
        )
    return rows


def is_ceiling(contest: Contest, timing: CandidateTiming) -> bool:
    """Return whether this candidate computes bare matrix products, the ceiling of the others."""
    return contest.flops is not None and timing.name == contest.candidates[-1].name


def ceiling_share(contest: Contest, timing: CandidateTiming, timings: Sequence[CandidateTiming]) -> float | None:
    """Return a candidate's FLOP per second divided by those of the bare products."""
    if contest.flops is None or is_ceiling(contest, timing):
        return None
    return round(contest.flops / speedup(timings[-1], timing), 4)
