"""A run's own page: how it went, what came out, in which settings it differs from the default, how to repeat it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt1cli.config import options
from gpt1cli.config.commands import COMMANDS
from gpt1cli.config.schema import annotation_of, display, flat
from gpt1cli.reporting import page, plots
from gpt1cli.reporting.page import Block, Command, Table
from gpt1cli.reporting.plots import Picture
from gpt1cli.runs.files import read_config, read_jsonl
from gpt1cli.runs.record import environment

WHERE = ("name", "out", "cache", "hub")  # settings that say where, and not what


def write_run_report(folder: Path, result: Mapping[str, Any], drawn: Sequence[Block] = ()) -> None:
    """report.md, report.html and plots/ from a run's own files, what it is about to declare, and what it has drawn."""
    path = folder / "config.yaml"
    config = read_config(path) if path.exists() else {}
    facts = [[key, _shown(value)] for key, value in flat(result)]
    changed = [
        [key, display(value), display(default)] for key, value, default in differences(result["command"], config)
    ]
    blocks: list[Block] = [
        Command(again(folder, result["command"])),
        *_curves(folder, config),
        *drawn,
        Table("Result", ["what", "value"], facts),
        *_predicted(folder, config, result),
        Table("Settings that differ from the default", ["key", "value", "default"], changed, ["all: config.yaml"]),
    ]
    page.write(folder, f"{result['command']} {result['name']}", blocks)


def again(folder: Path, command: str) -> list[str]:
    """The words that repeat the run: its own, or its configuration where those were a whole sweep's.

    A command that takes no config= is told as the sweep that it was.
    """
    words = environment(folder).get("command_line", [command])
    sweep = {"-m", "--multirun"} & {*words}
    repeats = annotation_of(COMMANDS[command].config, "config") is not None
    return [command, f"config={folder / 'config.yaml'}"] if sweep and repeats else words


def differences(command: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Key, value, default: of a group its option, and what in it is not as that option has it."""
    groups, defaults = options.defaults(command)
    known = dict(flat(defaults))
    for group, default in groups.items():
        option = config[group].get("name") if isinstance(config.get(group), Mapping) else None
        if option is None:
            continue
        if option != default and group != "runtime":
            yield group, option, default
        if option not in options.names(group):
            option = default  # a file of one's own, or a model that came with init
        known |= {f"{group}.{key}": value for key, value in flat(options.values(group, option))} if option else {}
    for key, value in flat(config):
        default = _resolved(known.get(key), config)
        if key not in WHERE and not key.endswith(".name") and key in known and value != default:
            yield key, value, default


def _resolved(default: Any, config: Mapping[str, Any]) -> Any:
    """A default that follows another key, `${model.finetuning.lr}`, has that key's value."""
    if isinstance(default, str) and default.startswith("${"):
        return dict(flat(config)).get(default[2:-1])
    return default


def _curves(folder: Path, config: Mapping[str, Any]) -> Iterator[Picture]:
    if not (folder / "metrics.jsonl").exists():
        return
    lines = read_jsonl(folder / "metrics.jsonl")
    if not any("loss" in line for line in lines):  # nothing was trained
        return
    yield plots.losses(lines)
    headline = config["task"]["metrics"][0] if "task" in config else "perplexity"
    if any(headline in line for line in lines):
        yield plots.metric(lines, headline)


def _predicted(folder: Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[Block]:
    """What was predicted beside what was right, for each labelled split."""
    if "task" not in config:
        return
    for split in {**config["task"]["splits"], **result.get("examples", {})}:
        path = folder / "predictions" / f"{split}.jsonl"
        if split not in result or not path.exists():
            continue
        lines = read_jsonl(path)
        if lines and "shots" in lines[0]:  # of gpt1 fewshot, the same examples many times
            continue
        rows = [(line["label"], line["prediction"]) for line in lines]
        if not (classes := config["task"]["labels"]):
            yield plots.scatter(split, [label for label, _ in rows], [score for _, score in rows])
            continue
        counts = Counter(rows)
        table = [[counts[label, called] for called in classes] for label in classes]
        yield plots.confusion(split, classes, table)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else str(value)
