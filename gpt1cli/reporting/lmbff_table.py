"""LM-BFF's table of few-shot results (Gao et al. 2021, Table 3) from our own runs.

A cell is the mean over the seeds of the runs that validation selected, in percent, with the standard deviation as in
LM-BFF's release: of the population (divided by n), where other tables here divide by n - 1. The paper's numbers are of
a RoBERTa-large: they are shown as context in separate rows, and no difference to them is computed.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gpt1cli.reporting import bootstrap, plots
from gpt1cli.reporting.collect import FinishedRun, differing_keys, group_by_seed, group_by_settings
from gpt1cli.reporting.page import ReportTable
from gpt1cli.reporting.paper_tables import FIELDS, SIGNS, is_subset, published_numbers
from gpt1cli.reporting.plots import Picture
from gpt1cli.runs import record

GRID_KEYS = ("batch_size", "lr")  # selected on validation, for each task, row and seed
SEARCHED_KEYS = ("prompt", "task.prompt.")  # a search finds other values for each seed
COMPARISONS = {  # effect -> pairs of rows whose difference measures it
    "gain from prompts": [("prompt", "head"), ("auto", "head")],
    "gain from demonstrations": [("incontext", "zeroshot"), ("prompt_demos", "prompt"), ("auto_demos", "auto")],
    "gain from search": [("auto", "prompt"), ("auto_demos", "prompt_demos")],
}


@dataclass(frozen=True, kw_only=True)
class FewShotColumn:
    """A task, its test split, and by row the paper's mean and standard deviation."""

    name: str
    task: str
    split: str = "test"
    paper: Mapping[str, Sequence[float]] = field(default_factory=dict)


class FewShotRow(NamedTuple):
    """A row, a label if there are several of it, and by task the run that was selected for each seed."""

    row: str
    label: str
    runs: Mapping[str, Sequence[FinishedRun]]

    def __str__(self) -> str:
        name = published_numbers()["few"]["rows"][self.row]
        return f"{name}, {self.label}" if self.label else name


def row_name(run: FinishedRun) -> str | None:
    """The row that a run belongs to, by its settings; None if it belongs to none."""
    config = run.config
    if run.result["command"] == "fewshot":
        single = config.get("pool") and len(config["seeds"]) == len(run.result["shots"]) == 1
        return None if not single else "incontext" if any(map(int, run.result["shots"])) else "zeroshot"
    if run.kind != "few" or not config.get("shots") or not run.settings["pretrained"]:
        return None
    if config["method"] == "head":
        return "head"
    kind = "prompt" if config.get("prompt") is None else "auto" if _has_searched_prompt(run) else None
    return kind and kind + "_demos" * (config["demos"] != "none")


def _has_searched_prompt(run: FinishedRun) -> bool:
    """Whether the prompt of a run is the best of a search: at its old path, or next to the run in a moved study."""
    path = Path(run.config["prompt"])
    folders = path.parent, run.folder.parent / path.parent.name
    return path.name == "best.yaml" and any(record.read_environment(f).get("command") == "search" for f in folders)


def few_shot_rows(runs: Sequence[FinishedRun]) -> tuple[list[FewShotRow], set[Path]]:
    """The rows that the runs fill, in the table's order, and the folders of all runs that they are based on."""
    by_row: dict[tuple[str, str], dict[str, Sequence[FinishedRun]]] = {}
    placed: set[Path] = set()
    for row in published_numbers()["few"]["rows"]:
        by_task: dict[str, list[FinishedRun]] = {}
        for run in runs:
            if row_name(run) == row:
                by_task.setdefault(run.config["task"]["name"], []).append(run)
        for task, several in by_task.items():
            ignored = (*GRID_KEYS, *(SEARCHED_KEYS if row.startswith("auto") else ()))
            keys = [key for key in differing_keys([run.settings for run in several]) if not key.startswith(ignored)]
            groups = group_by_settings(several, keys)
            for label, group in groups.items():
                selected = [_best_trial(same) for same in group_by_seed(group).values()]
                by_row.setdefault((row, label if len(groups) > 1 else ""), {})[task] = selected
                placed |= {run.folder for run in group}
    lines = [FewShotRow(row, label, by_task) for (row, label), by_task in by_row.items()]
    if len({line.row for line in lines}) < 2:  # a single row has nothing to be compared with
        return [], set()
    return lines, placed


def _best_trial(trials: Sequence[FinishedRun]) -> FinishedRun:
    """The run with the best headline metric on validation; if equal, the lower loss."""
    if len(trials) == 1:
        return trials[0]
    metric = trials[0].config["task"]["metrics"][0]
    return max(trials, key=lambda run: (run.result["valid"][metric], -run.result["valid"]["loss"]))


def few_shot_columns(lines: Sequence[FewShotRow]) -> list[FewShotColumn]:
    """The paper's columns that the rows fill, then one for each other task."""
    known = [FewShotColumn(**column) for column in published_numbers()["few"]["columns"]]
    tasks = list(dict.fromkeys(task for line in lines for task in line.runs))
    others = [FewShotColumn(name=task, task=task) for task in tasks if task not in {column.task for column in known}]
    return [column for column in [*known, *others] if any(_seed_scores(column, line) for line in lines)]


def _seed_scores(column: FewShotColumn, line: FewShotRow) -> dict[int, float]:
    """Seed -> score in percent."""
    runs = [run for run in line.runs.get(column.task, ()) if column.split in run.result]
    return {run.settings["seed"]: 100 * run.result[column.split][run.config["task"]["metrics"][0]] for run in runs}


def _format_scores(values: Sequence[float]) -> str:
    """`92.7 (0.9)`: mean and standard deviation; of a single number only the number."""
    spread = f" ({statistics.pstdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):z.1f}{spread}"


def _cell_notes(column: FewShotColumn, line: FewShotRow) -> Iterator[str]:
    """The differences between a cell and the paper's."""
    runs = line.runs[column.task]
    if any(is_subset(run, _official_split(run, column.split), column.split) for run in runs):
        yield "on a part of the split"
    sizes = sorted({count for run in runs if (count := run.config.get("shots") or 0) and run.kind == "few"})
    if sizes and sizes != [16]:
        yield f"{', '.join(map(str, sizes))} examples of each class"


def _official_split(run: FinishedRun, split: str) -> str:
    """The data set's own split that a few-shot run used as its test split."""
    return split.replace("test", "valid", 1) if run.config["task"].get("few_test") == "valid" else split


def format_few_shot_table(lines: Sequence[FewShotRow]) -> tuple[ReportTable, list[dict[str, Any]]]:
    """The table for the report, and our numbers as records with the keys paper_tables.FIELDS."""
    published, columns = published_numbers()["few"], few_shot_columns(lines)
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    signs: dict[str, str] = {}
    for row, name in published["rows"].items():
        row_lines = [line for line in lines if line.row == row]
        if row_lines and any(row in column.paper for column in columns):
            numbers = [column.paper.get(row, ()) for column in columns]
            texts = [f"{mean[0]:.1f}" + "".join(f" ({sd:.1f})" for sd in mean[1:]) if mean else "" for mean in numbers]
            rows.append([f"{name}: {published['system']}", *texts])
        for line in row_lines:
            cells = [str(line)]
            for column in columns:
                seeds = _seed_scores(column, line)
                if not seeds:
                    cells.append("")
                    continue
                notes = list(_cell_notes(column, line))
                for note in notes:
                    signs.setdefault(note, SIGNS[len(signs) % len(SIGNS)] * (len(signs) // len(SIGNS) + 1))
                cells.append(" ".join([_format_scores([*seeds.values()]), *(signs[note] for note in notes)]))
                records.append(_record(line, column, [*seeds.values()], notes))
            rows.append(cells)
    notes = [
        "in percent: mean (population standard deviation over the seeds, as in LM-BFF's release)",
        "for each task, row and seed: the run of the grid that is best on its validation examples",
        *([f"{published['system']}: only for context; {published['source']}"] if len(rows) > len(lines) else []),
        *(f"{sign} {note}" for note, sign in signs.items()),
    ]
    return ReportTable(published["title"], ["", *(column.name for column in columns)], rows, notes), records


def _record(line: FewShotRow, column: FewShotColumn, values: Sequence[float], notes: Sequence[str]) -> dict[str, Any]:
    spread = statistics.pstdev(values) if len(values) > 1 else None
    paper = column.paper.get(line.row, [None])[0]
    system = published_numbers()["few"]["system"] if paper is not None else ""
    notes = [
        *notes,
        *(["sd: of the population"] if spread is not None else []),
        *([f"paper: {system}"] if system else []),
    ]
    labels = ("lmbff", str(line), column.name, column.split)
    numbers = (len(values), statistics.mean(values), spread, statistics.median(values), paper, None, None, "")
    return dict(zip(FIELDS, (*labels, *numbers, "; ".join(notes)), strict=True))


def draw_few_shot_table(lines: Sequence[FewShotRow]) -> Picture:
    """A plot with each seed as a small point and their mean as a large one, for each row and column."""
    columns = few_shot_columns(lines)
    ours = {
        str(line): {c.name: [*seeds.values()] for c in columns if (seeds := _seed_scores(c, line))} for line in lines
    }
    caption = f"{published_numbers()['few']['title']}: each seed as a small point, their mean as a large one"
    return plots.draw_dots("lmbff", caption, [column.name for column in columns], ours, {})


def compare_rows(lines: Sequence[FewShotRow]) -> ReportTable | None:
    """The gains from prompts, demonstrations and search, by a paired bootstrap; None if no two rows can be compared."""
    rows, skipped = [], []
    for effect, pairs in COMPARISONS.items():
        for first_name, second_name in pairs:
            for first in [line for line in lines if line.row == first_name]:
                for second in [line for line in lines if line.row == second_name and line.label == first.label]:
                    for task in [task for task in first.runs if task in second.runs]:
                        sides = _paired_runs(first.runs[task], second.runs[task])
                        cells = bootstrap.compare_runs(*sides)
                        names = f"{first} - {second}".replace("  + ", "+ ")
                        if isinstance(cells, str):
                            skipped.append(f"{task}, {names}: not compared, {cells}")
                        else:
                            rows.append([effect, task, names, *cells])
    if not rows and not skipped:
        return None
    header = [
        "effect", "task", "rows", "split", "metric", "seeds", "first", "second", "difference", "95% interval", "p",
    ]  # fmt: skip
    return ReportTable("Gains from prompts and demonstrations", header, rows, [bootstrap.METHOD_NOTE, *skipped])


def _paired_runs(first: Sequence[FinishedRun], second: Sequence[FinishedRun]) -> list[Sequence[FinishedRun]]:
    """Both sides with the same seeds: a zero-shot run does not depend on a seed, so it stands for each of the other."""

    def repeat_zero_shot(runs: Sequence[FinishedRun], others: Sequence[FinishedRun]) -> Sequence[FinishedRun]:
        if len(runs) > 1 or row_name(runs[0]) != "zeroshot":
            return runs
        return [
            dataclasses.replace(runs[0], config={**runs[0].config, "seed": other.settings["seed"]}) for other in others
        ]

    return [repeat_zero_shot(first, second), repeat_zero_shot(second, first)]
