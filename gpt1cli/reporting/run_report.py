"""The report of one run: the command that repeats it, its curves, its result, and its non-default settings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt1cli.config import options
from gpt1cli.config.commands import COMMANDS
from gpt1cli.config.schema import annotation_of, display, flatten
from gpt1cli.reporting import page, plots
from gpt1cli.reporting.page import Block, CommandLine, ReportTable
from gpt1cli.reporting.plots import Picture
from gpt1cli.runs.files import read_config, read_jsonl
from gpt1cli.runs.record import read_environment

LOCATION_KEYS = ("name", "out", "cache", "hub")  # settings that do not change the result
SETTINGS_NOTE = "all settings: config.yaml"


def write_run_report(folder: Path, result: Mapping[str, Any], extra: Sequence[Block] = ()) -> None:
    """Write report.md, report.html and plots/ from a run's files, its result, and `extra` blocks of its command."""
    path = folder / "config.yaml"
    config = read_config(path) if path.exists() else {}
    facts = [[key, _format_value(value)] for key, value in flatten(result)]
    changed = [
        [key, display(value), display(default)] for key, value, default in changed_settings(result["command"], config)
    ]
    blocks: list[Block] = [
        CommandLine(repeat_command(folder, result["command"])),
        *_draw_curves(folder, config),
        *extra,
        ReportTable("Result", ["what", "value"], facts),
        *_draw_predictions(folder, config, result),
        ReportTable(
            "Settings that differ from the default", ["key", "value", "default"], changed, ["all: config.yaml"]
        ),
    ]
    page.write_page(folder, f"{result['command']} {result['name']}", blocks)


def repeat_command(folder: Path, command: str) -> list[str]:
    """The words that repeat the run: its command line, or config= if that was the command line of a whole sweep.

    A command without config= repeats the whole sweep.
    """
    words = read_environment(folder).get("command_line", [command])
    sweep = {"-m", "--multirun"} & {*words}
    takes_config = annotation_of(COMMANDS[command].config, "config") is not None
    return [command, f"config={folder / 'config.yaml'}"] if sweep and takes_config else words


def changed_settings(command: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Key, value, default of each changed setting: the option of a group, and values that differ from that option."""
    groups, defaults = options.defaults(command)
    known = dict(flatten(defaults))
    for group, default in groups.items():
        option = config[group].get("name") if isinstance(config.get(group), Mapping) else None
        if option is None:
            continue
        if option != default and group != "runtime":
            yield group, option, default
        if option not in options.names(group):
            option = default  # the user's own file, or a model that came with init
        known |= {f"{group}.{key}": value for key, value in flatten(options.values(group, option))} if option else {}
    for key, value in flatten(config):
        default = _resolve_reference(known.get(key), config)
        if key not in LOCATION_KEYS and not key.endswith(".name") and key in known and value != default:
            yield key, value, default


def _resolve_reference(default: Any, config: Mapping[str, Any]) -> Any:
    """A default; for one that refers to another key, `${model.finetuning.lr}`, the value of that key."""
    if isinstance(default, str) and default.startswith("${"):
        return dict(flatten(config)).get(default[2:-1])
    return default


def _draw_curves(folder: Path, config: Mapping[str, Any]) -> Iterator[Picture]:
    if not (folder / "metrics.jsonl").exists():
        return
    lines = read_jsonl(folder / "metrics.jsonl")
    if not any("loss" in line for line in lines):  # no training
        return
    yield plots.draw_losses(lines)
    headline = config["task"]["metrics"][0] if "task" in config else "perplexity"
    if any(headline in line for line in lines):
        yield plots.draw_metric(lines, headline)


def _draw_predictions(folder: Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[Block]:
    """For each labelled split a plot of predictions against labels."""
    if "task" not in config:
        return
    for split in {**config["task"]["splits"], **result.get("examples", {})}:
        path = folder / "predictions" / f"{split}.jsonl"
        if split not in result or not path.exists():
            continue
        lines = read_jsonl(path)
        if lines and "shots" in lines[0]:  # of gpt1 fewshot: the same examples several times
            continue
        rows = [(line["label"], line["prediction"]) for line in lines]
        if not (classes := config["task"]["labels"]):
            yield plots.draw_scatter(split, [label for label, _ in rows], [score for _, score in rows])
            continue
        counts = Counter(rows)
        matrix = [[counts[label, prediction] for prediction in classes] for label in classes]
        yield plots.draw_confusion(split, classes, matrix)


def _format_value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else str(value)
