"""Finished runs on few examples laid out as LM-BFF lays out its own (Gao et al. 2021, Table 3).

A cell is the mean over the seeds of the runs that validation chose, in percent, with the standard deviation that the
release has: of the population, that is with n below, where other tables here have n - 1. The paper's numbers are those
of a RoBERTa-large; they stand there as context, in rows of their own, and nothing is subtracted from them.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gpt1cli.reporting import bootstrap, plots
from gpt1cli.reporting.collect import Finished, by_seed, grouped, varying
from gpt1cli.reporting.page import Table
from gpt1cli.reporting.paper_tables import FIELDS, SIGNS, is_part, published
from gpt1cli.reporting.plots import Picture
from gpt1cli.runs import record

GRID = ("batch_size", "lr")  # what validation chooses, for every task, row and seed
SEARCHED = ("prompt", "task.prompt.")  # what a search finds anew for every seed
PAIRS = {  # what a difference of two rows says
    "prompts bring": [("prompt", "head"), ("auto", "head")],
    "demonstrations bring": [("incontext", "zeroshot"), ("prompt_demos", "prompt"), ("auto_demos", "auto")],
    "searching brings": [("auto", "prompt"), ("auto_demos", "prompt_demos")],
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A task, the split it is tested on, and what the paper has there: mean, and standard deviation."""

    name: str
    task: str
    split: str = "test"
    paper: Mapping[str, Sequence[float]] = field(default_factory=dict)


class Line(NamedTuple):
    """A row, what else tells it from others of that row, and by task the run that was chosen for each seed."""

    row: str
    label: str
    runs: Mapping[str, Sequence[Finished]]

    def __str__(self) -> str:
        name = published()["few"]["rows"][self.row]
        return f"{name}, {self.label}" if self.label else name


def row_of(run: Finished) -> str | None:
    """Which row a run belongs to, by what it did; None where it belongs to none."""
    config = run.config
    if run.result["command"] == "fewshot":
        one = config.get("pool") and len(config["seeds"]) == len(run.result["shots"]) == 1
        return None if not one else "incontext" if any(map(int, run.result["shots"])) else "zeroshot"
    if run.kind != "few" or not config.get("shots") or not run.settings["pretrained"]:
        return None
    if config["method"] == "head":
        return "head"
    kind = "prompt" if config.get("prompt") is None else "auto" if _searched(run) else None
    return kind and kind + "_demos" * (config["demos"] != "none")


def _searched(run: Finished) -> bool:
    """Whether its prompt is the best of a search, which lies where it was, or beside the run in a study that moved."""
    path = Path(run.config["prompt"])
    places = path.parent, run.folder.parent / path.parent.name
    return path.name == "best.yaml" and any(record.environment(p).get("command") == "search" for p in places)


def lines_of(runs: Sequence[Finished]) -> tuple[list[Line], set[Path]]:
    """The rows that the runs fill, in the table's order, and the folders of all runs that had a part in them."""
    found: dict[tuple[str, str], dict[str, Sequence[Finished]]] = {}
    placed: set[Path] = set()
    for row in published()["few"]["rows"]:
        by_task: dict[str, list[Finished]] = {}
        for run in runs:
            if row_of(run) == row:
                by_task.setdefault(run.config["task"]["name"], []).append(run)
        for task, several in by_task.items():
            apart = (*GRID, *(SEARCHED if row.startswith("auto") else ()))
            keys = [key for key in varying([run.settings for run in several]) if not key.startswith(apart)]
            groups = grouped(several, keys)
            for label, group in groups.items():
                chosen = [_best(same) for same in by_seed(group).values()]
                found.setdefault((row, label if len(groups) > 1 else ""), {})[task] = chosen
                placed |= {run.folder for run in group}
    lines = [Line(row, label, by_task) for (row, label), by_task in found.items()]
    if len({line.row for line in lines}) < 2:  # of a single row there is nothing to lay side by side
        return [], set()
    return lines, placed


def _best(trials: Sequence[Finished]) -> Finished:
    """The run that validation chooses: by the headline metric, of equals by the lower loss."""
    if len(trials) == 1:
        return trials[0]
    metric = trials[0].config["task"]["metrics"][0]
    return max(trials, key=lambda run: (run.result["valid"][metric], -run.result["valid"]["loss"]))


def columns_of(lines: Sequence[Line]) -> list[Column]:
    """The paper's columns that the lines fill, and behind them one for each other task."""
    known = [Column(**column) for column in published()["few"]["columns"]]
    tasks = list(dict.fromkeys(task for line in lines for task in line.runs))
    others = [Column(name=task, task=task) for task in tasks if task not in {column.task for column in known}]
    return [column for column in [*known, *others] if any(_seeds(column, line) for line in lines)]


def _seeds(column: Column, line: Line) -> dict[int, float]:
    """Seed -> what was reached, in percent."""
    runs = [run for run in line.runs.get(column.task, ()) if column.split in run.result]
    return {run.settings["seed"]: 100 * run.result[column.split][run.config["task"]["metrics"][0]] for run in runs}


def _worded(values: Sequence[float]) -> str:
    """`92.7 (0.9)`; a single number stands alone."""
    spread = f" ({statistics.pstdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):z.1f}{spread}"


def _notes(column: Column, line: Line) -> Iterator[str]:
    """What has to be said about a cell."""
    runs = line.runs[column.task]
    if any(is_part(run, _official(run, column.split), column.split) for run in runs):
        yield "on a part of the split"
    sizes = sorted({count for run in runs if (count := run.config.get("shots") or 0) and run.kind == "few"})
    if sizes and sizes != [16]:
        yield f"{', '.join(map(str, sizes))} examples of each class"


def _official(run: Finished, split: str) -> str:
    """The data set's own split that a run on few examples has tested on."""
    return split.replace("test", "valid", 1) if run.config["task"].get("few_test") == "valid" else split


def table_of(lines: Sequence[Line]) -> tuple[Table, list[dict[str, Any]]]:
    """The table as it is read, and its numbers as records of paper.FIELDS."""
    about, columns = published()["few"], columns_of(lines)
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    signs: dict[str, str] = {}
    for row, name in about["rows"].items():
        mine = [line for line in lines if line.row == row]
        if mine and any(row in column.paper for column in columns):
            numbers = [column.paper.get(row, ()) for column in columns]
            told = [f"{mean[0]:.1f}" + "".join(f" ({sd:.1f})" for sd in mean[1:]) if mean else "" for mean in numbers]
            rows.append([f"{name}: {about['system']}", *told])
        for line in mine:
            cells = [str(line)]
            for column in columns:
                seeds = _seeds(column, line)
                if not seeds:
                    cells.append("")
                    continue
                notes = list(_notes(column, line))
                for note in notes:
                    signs.setdefault(note, SIGNS[len(signs) % len(SIGNS)] * (len(signs) // len(SIGNS) + 1))
                cells.append(" ".join([_worded([*seeds.values()]), *(signs[note] for note in notes)]))
                records.append(_record(line, column, [*seeds.values()], notes))
            rows.append(cells)
    told = [
        "in percent: mean (standard deviation over the seeds, that of the population, as in LM-BFF's release)",
        "of every task, row and seed the run of the grid that is best on its validation examples",
        *([f"{about['system']}: context, not a target; {about['source']}"] if len(rows) > len(lines) else []),
        *(f"{sign} {note}" for note, sign in signs.items()),
    ]
    return Table(about["title"], ["", *(column.name for column in columns)], rows, told), records


def _record(line: Line, column: Column, values: Sequence[float], notes: Sequence[str]) -> dict[str, Any]:
    spread = statistics.pstdev(values) if len(values) > 1 else None
    paper = column.paper.get(line.row, [None])[0]
    whose = published()["few"]["system"] if paper is not None else ""
    notes = [
        *notes,
        *(["sd: of the population"] if spread is not None else []),
        *([f"paper: {whose}"] if whose else []),
    ]
    where = ("lmbff", str(line), column.name, column.split)
    numbers = (len(values), statistics.mean(values), spread, statistics.median(values), paper, None, None, "")
    return dict(zip(FIELDS, (*where, *numbers, "; ".join(notes)), strict=True))


def picture_of(lines: Sequence[Line]) -> Picture:
    """Each seed as a small point, their mean as a large one, for every row and column."""
    columns = columns_of(lines)
    ours = {str(line): {c.name: [*seeds.values()] for c in columns if (seeds := _seeds(c, line))} for line in lines}
    caption = f"{published()['few']['title']}: each seed as a small point, their mean as a large one"
    return plots.dots("lmbff", caption, [column.name for column in columns], ours, {})


def worth(lines: Sequence[Line]) -> Table | None:
    """What prompts, demonstrations and a search bring, by a paired bootstrap over the examples; None: no two rows."""
    found, left_out = [], []
    for what, pairs in PAIRS.items():
        for one, other in pairs:
            for first in [line for line in lines if line.row == one]:
                for second in [line for line in lines if line.row == other and line.label == first.label]:
                    for task in [task for task in first.runs if task in second.runs]:
                        sides = _side_by_side(first.runs[task], second.runs[task])
                        line = bootstrap.line(*sides)
                        named = f"{first} - {second}".replace("  + ", "+ ")
                        if isinstance(line, str):
                            left_out.append(f"{task}, {named}: {line}")
                        else:
                            found.append([what, task, named, *line])
    if not found and not left_out:
        return None
    header = ["what", "task", "rows", "split", "metric", "seeds", "first", "second", "difference", "95% interval", "p"]
    return Table("What prompts and demonstrations bring", header, found, [bootstrap.ABOUT, *left_out])


def _side_by_side(first: Sequence[Finished], second: Sequence[Finished]) -> list[Sequence[Finished]]:
    """Two sides of the same seeds: what no seed changes is the same run for each of the other side's."""

    def spread(runs: Sequence[Finished], others: Sequence[Finished]) -> Sequence[Finished]:
        if len(runs) > 1 or row_of(runs[0]) != "zeroshot":
            return runs
        return [
            dataclasses.replace(runs[0], config={**runs[0].config, "seed": other.settings["seed"]}) for other in others
        ]

    return [spread(first, second), spread(second, first)]
