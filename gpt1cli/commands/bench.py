"""gpt1 bench: our speed beside a peer's, measured in turn on this machine."""

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
from gpt1cli.bench.contest import Contest, Measured, Setting, hold, ratio
from gpt1cli.config.commands import BenchConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data import hub
from gpt1cli.data.hub import Need
from gpt1cli.pretrained.hf_config import OPENAI
from gpt1cli.reporting.page import Table
from gpt1cli.reporting.plots import save_sizes
from gpt1cli.runs.console import Progress, short
from gpt1cli.runs.files import write_json, write_text
from gpt1cli.runs.folder import finish
from gpt1cli.training.device import start

HEADER = ("contender", "a second", "range", "gpt1 is", "floor", "of the ceiling", "peak memory")


def needs(config: BenchConfig) -> list[Need]:
    """Nothing from outside; UserError where the peer is not installed, or there is no text to read."""
    if config.peer == "transformers" and importlib.util.find_spec("transformers") is None:
        raise UserError("peer=transformers: it is not installed; pip install 'gpt1[bench]', or name peer=none")
    if config.input is not None and not Path(config.input).is_file():
        raise UserError(f"input={config.input}: no such file; a text file to tokenise is wanted")
    return []


def run(config: BenchConfig, folder: Path) -> None:
    """Contests, one after the other -> bench.json as they end, and a table."""
    device = start(config.runtime, config.seed).device.type
    setting = Setting(device, config.peer == "transformers", config.input, published_vocabulary(config))
    contests = [contest for what in config.what for contest in contests_of(what, setting)]
    about, facts, tables = machine(device), [], []
    with Progress(folder, total=len(contests), mode=config.runtime.progress, description="contest") as progress:
        for number, contest in enumerate(contests, start=1):
            progress.say(f"{contest.name}: {', '.join(contender.name for contender in contest.contenders)}")
            measured = hold(contest, config.rounds, config.runtime.threads)
            facts.append({"name": contest.name, "unit": contest.unit, "contenders": facts_of(contest, measured)})
            tables.append(table_of(contest, measured))
            write_json(folder / "bench.json", {"machine": about, "rounds": config.rounds, "contests": facts})
            if contest.axis:
                label, sizes = contest.axis
                path = folder / "plots" / f"{contest.name.replace(', ', '-')}.png"
                save_sizes(label, sizes, f"{contest.unit} a second", [one.rate for one in measured], path)
            progress.update(number)
    for table in tables:
        table.show()
    title = f"# gpt1 bench: {about['device']}, {about['platform']}, torch {about['torch']}, {config.rounds} rounds\n"
    write_text(folder / "report.md", "\n".join([title, *(table.markdown() for table in tables)]))
    finish(folder, {"status": "finished", "command": "bench", "name": config.name, "contests": facts})
    print(f"bench: {folder / 'bench.json'}")


def contests_of(what: str, setting: Setting) -> Iterator[Contest]:
    """The contests of one benchmark."""
    module, _, function = BENCHMARKS[what].partition(":")
    yield from getattr(importlib.import_module(module), function)(setting)


def published_vocabulary(config: BenchConfig) -> str | None:
    """The folder of the published vocabulary, where it is at hand; the network is not asked for it."""
    files = [hub.Need("vocabulary", OPENAI, None, name, ()) for name in ("vocab.json", "merges.txt")]
    if any(hub.amiss(need, config.hub, config.cache) for need in files):
        return None
    return str(hub.file(OPENAI, "vocab.json", config.hub, config.cache).parent)


def machine(device: str) -> dict[str, Any]:
    """What was measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    return {"device": name, "platform": platform.platform(), "torch": torch.__version__}


def facts_of(contest: Contest, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """For bench.json: each contender's rounds, memory, how many times as fast ours is, its share of the ceiling."""
    ours = measured[0]
    return [
        {
            "name": one.name,
            "rates": [float(f"{rate:.6g}") for rate in one.rates],
            "median": float(f"{one.rate:.6g}"),
            "peak_memory_bytes": (held := None if contest.in_subprocesses else one.peak_memory_bytes),
            "start_seconds": round(one.start_seconds, 3),
            "ratio": None if one is ours or is_ceiling(contest, one) else round(ratio(ours, one), 3),
            "floor": contest.floors.get(one.name),
            "share_of_ceiling": share(contest, one, measured),
            "share_floor": contest.share_floor if one is ours else None,
            "memory_ratio": None if one is ours or not held else round(ours.peak_memory_bytes / held, 3),
            "memory_limit": contest.memory_limits.get(one.name),
        }
        for one in measured
    ]


def table_of(contest: Contest, measured: Sequence[Measured]) -> Table:
    """The contest's table, without columns that nobody fills."""
    rows = rows_of(contest, measured)
    filled = [number for number in range(len(HEADER)) if any(row[number] for row in rows)]
    return Table(contest.name, [HEADER[n] for n in filled], [[row[n] for n in filled] for row in rows])


def rows_of(contest: Contest, measured: Sequence[Measured]) -> list[list[str]]:
    """For the table: a line a contender."""
    rows = []
    for fact, one in zip(facts_of(contest, measured), measured, strict=True):
        unit = "FLOP" if is_ceiling(contest, one) else contest.unit
        span = f"{short(min(one.rates))} - {short(max(one.rates))}"
        times = "" if fact["ratio"] is None else f"{fact['ratio']:.2f} x"
        floor = "" if fact["floor"] is None else f"{fact['floor']:.3g} x"
        part = "" if fact["share_of_ceiling"] is None else f"{fact['share_of_ceiling']:.0%}"
        if fact["share_floor"]:
            part += f" (floor {fact['share_floor']:.0%})"
        held = "" if contest.in_subprocesses else f"{one.peak_memory_bytes / 2**30:.2f} GB"
        if fact["memory_limit"]:
            held += f" (gpt1: {fact['memory_ratio']:.2f} of it, limit {fact['memory_limit']:.2f})"
        rows.append([one.name, f"{short(one.rate)} {unit}", span, times, floor, part, held])
    return rows


def is_ceiling(contest: Contest, one: Measured) -> bool:
    """Whether this contender does bare products, to compare with."""
    return contest.flops is not None and one.name == contest.contenders[-1].name


def share(contest: Contest, one: Measured, measured: Sequence[Measured]) -> float | None:
    """The part of the bare products' floating point operations a second that a contender reaches."""
    if contest.flops is None or is_ceiling(contest, one):
        return None
    return round(contest.flops / ratio(measured[-1], one), 4)
