"""Tables 2 to 5 of the GPT-1 paper from our own runs, with the published numbers.

The columns and all published numbers are in published_numbers.yaml. A cell is the mean over the seeds of one
experiment, in percent. If it does not measure the same as the paper's cell, a sign and a note below say why.

Longer than 300 lines: four tables, and every reason why a cell is not comparable.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpt1cli.config import options
from gpt1cli.reporting import plots
from gpt1cli.reporting.collect import FinishedRun, group_by_seed, group_variants
from gpt1cli.reporting.page import ReportTable
from gpt1cli.reporting.plots import Picture

PAPER_SIZES = {  # architecture -> the sizes of the paper's model
    "transformer": {key: options.values("model", "base")[key] for key in ("n_layer", "d_model", "n_head", "d_ff")},
    "lstm": {"d_model": 768, "lstm_units": 2048},  # section 5
}
SIGNS = "†‡§¶‖#"  # no star: Markdown reads it as emphasis
FIELDS = "table row column splits seeds mean sd median paper difference before system notes".split()


@dataclass(frozen=True, kw_only=True)
class PublishedScores:
    """The paper's numbers in a column: one by variant, and the best earlier one (`before`) with its `system`."""

    name: str
    paper: Mapping[str, float] = field(default_factory=dict)
    before: float | None = None
    system: str = ""


@dataclass(frozen=True, kw_only=True)
class PublishedColumn(PublishedScores):
    """A task and its `measures`: metrics, or metric/part on a further split; their mean is the cell."""

    task: str
    measures: Sequence[str]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class AverageColumn(PublishedScores):
    """The mean over the columns of the table `average_over`."""

    average_over: str


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table of the paper; its rows are variants."""

    key: str
    title: str
    source: str
    variants: Sequence[str]
    columns: Sequence[PublishedColumn]
    overall: AverageColumn | None = None
    one_split: bool = False


@dataclass(frozen=True)
class VariantRow:
    """A variant, a label if it has several rows, and its runs by task."""

    variant: str
    label: str
    runs: Mapping[str, Sequence[FinishedRun]]

    def __str__(self) -> str:
        untrained = [task for task, runs in self.runs.items() if not any(run.settings["pretrained"] for run in runs)]
        tasks = "" if len(untrained) == len(self.runs) else f" on {', '.join(untrained)}"
        remark = f"not pretrained{tasks}" if untrained and self.variant == "lstm" else ""
        return ", ".join(filter(None, (published_numbers()["variants"][self.variant], remark, self.label)))


@dataclass(frozen=True)
class ScoreCell:
    """The score of each seed in percent, the splits, and notes; `comparable` with the paper's cell or not."""

    seeds: Mapping[int, float]
    splits: Sequence[str]
    notes: Sequence[str]
    comparable: bool = True

    def __str__(self) -> str:
        spread = f" ± {statistics.stdev(self.seeds.values()):.1f}" if len(self.seeds) > 1 else ""
        return f"{self.mean:z.1f}{spread}"

    @property
    def mean(self) -> float:
        return statistics.mean(self.seeds.values())

    @property
    def median(self) -> float:
        return statistics.median(self.seeds.values())


@functools.cache
def published_numbers() -> dict[str, Any]:
    """The content of published_numbers.yaml."""
    return yaml.safe_load(Path(__file__).with_name("published_numbers.yaml").read_text(encoding="utf-8"))


@functools.cache
def published_tables() -> dict[str, PublishedTable]:
    """Key in published_numbers.yaml -> table."""
    tables = {}
    for key, table in published_numbers()["tables"].items():
        columns = [PublishedColumn(**column) for column in table["columns"]]
        overall = AverageColumn(**table["overall"]) if "overall" in table else None
        tables[key] = PublishedTable(**{**table, "key": key, "columns": columns, "overall": overall})
    return tables


def table5_like(runs: Sequence[FinishedRun]) -> list[PublishedTable]:
    """Tables like Table 5 for the demo world and for the user's own tasks, if at least two variants were run."""
    known = {column.task for layout in published_tables().values() for column in layout.columns}
    kinds: dict[str, list[FinishedRun]] = {"the demo world": [], "other tasks": []}
    for run in runs:
        if variant_of(run) and run.config["task"]["name"] not in known:
            kinds["the demo world" if run.config["task"]["source"] == "demo_world" else "other tasks"].append(run)
    tables = []
    for kind, chosen in kinds.items():
        if len({variant_of(run) for run in chosen}) < 2:
            continue
        headlines = {run.config["task"]["name"]: run.config["task"]["metrics"][0] for run in chosen}
        columns = [PublishedColumn(name=task, task=task, measures=[headlines[task]]) for task in sorted(headlines)]
        key, title = kind.split()[-2], f"Table 5 on {kind}: ablations"
        overall, rows = AverageColumn(name="average", average_over=key), published_tables()["table5"].variants
        source = "not in the paper"
        tables.append(
            PublishedTable(key=key, title=title, source=source, variants=rows, columns=columns, overall=overall)
        )
    return tables


def variant_of(run: FinishedRun) -> str | None:
    """The variant of Table 5 that a run is, by its settings; None if it is none of them."""
    if run.kind != "finetune":
        return None
    settings = run.settings
    pretrained, aux_lm = settings["pretrained"], settings["aux_lm"] and settings["lm_coef"] > 0
    if settings.get("model.architecture") == "lstm":
        return "lstm" if aux_lm else None
    if pretrained and settings["transfer_layers"] != "all":
        return None  # Figure 2
    return {(True, True): "full", (False, True): "no_pretrain", (True, False): "no_aux_lm"}.get((pretrained, aux_lm))


def variant_rows(layout: PublishedTable, runs: Sequence[FinishedRun]) -> list[VariantRow]:
    """The rows that the runs fill: one for each variant, several if its runs on a task differ in other settings."""
    base = _averaged_table(layout)
    tasks = dict.fromkeys(column.task for column in [*layout.columns, *(base.columns if base else ())])
    by_row: dict[tuple[str, str], dict[str, Sequence[FinishedRun]]] = {}
    for variant in layout.variants:
        for task in tasks:
            chosen = [run for run in runs if variant_of(run) == variant and run.config["task"]["name"] == task]
            groups = group_variants(chosen) if chosen else {}
            for label, group in groups.items():
                by_row.setdefault((variant, label if len(groups) > 1 else ""), {})[task] = group
    rows = [VariantRow(variant, label, by_task) for (variant, label), by_task in by_row.items()]
    return [row for row in rows if row_cells(layout, row)]


def row_cells(layout: PublishedTable, row: VariantRow) -> dict[str, ScoreCell]:
    """Column -> cell of a row: on the test split if it has labels, else on the validation split."""
    by_stage = {
        stage: {c.name: cell for c in layout.columns if (cell := _score_cell(c, row.runs.get(c.task, ()), stage))}
        for stage in ("valid", "test")
    }
    if layout.one_split:
        valid, test = by_stage["valid"], by_stage["test"]
        return test if test.keys() >= valid.keys() else valid
    cells = by_stage["valid"] | by_stage["test"]
    return {column.name: cells[column.name] for column in layout.columns if column.name in cells}


def average_cell(layout: PublishedTable, row: VariantRow) -> ScoreCell | None:
    """The mean over at least two columns, for their common seeds; a note says if columns are missing."""
    base = _averaged_table(layout)
    if base is None:
        return None
    columns, cells = base.columns, row_cells(base, row)
    seeds = set.intersection(*(set(cell.seeds) for cell in cells.values())) if cells else ()
    if not seeds or len(cells) < 2:
        return None
    means = {seed: statistics.mean(cell.seeds[seed] for cell in cells.values()) for seed in sorted(seeds)}
    notes = list(dict.fromkeys(note for cell in cells.values() for note in cell.notes))
    complete = len(cells) == len(columns)
    if not complete:
        notes.append(f"mean over {', '.join(cells)} only: {len(cells)} of {len(columns)}")
    splits = list(dict.fromkeys(split for cell in cells.values() for split in cell.splits))
    return ScoreCell(means, splits, notes, comparable=complete)


def _averaged_table(layout: PublishedTable) -> PublishedTable | None:
    """The table over whose columns the overall number of `layout` is averaged."""
    if layout.overall is None:
        return None
    return layout if layout.overall.average_over == layout.key else published_tables()[layout.overall.average_over]


def _score_cell(column: PublishedColumn, runs: Sequence[FinishedRun], stage: str) -> ScoreCell | None:
    """The cell of an experiment on `stage` (test or valid); None if not all of it was measured there."""
    measures = [measure.partition("/") for measure in column.measures]
    split_metrics = [(f"{stage}_{part}" if part else stage, metric) for metric, _, part in measures]
    if not runs or any(metric not in run.result.get(split, {}) for run in runs for split, metric in split_metrics):
        return None
    seeds = {
        seed: 100 * statistics.mean(run.result[split][metric] for run in same for split, metric in split_metrics)
        for seed, same in group_by_seed(runs).items()
    }
    splits = list(dict.fromkeys(split for split, _ in split_metrics))
    return ScoreCell(seeds, splits, [*_cell_notes(column, runs, splits)])


def _cell_notes(column: PublishedColumn, runs: Sequence[FinishedRun], splits: Sequence[str]) -> Iterator[str]:
    """The differences between the cell and the paper's."""
    if splits[0].startswith("valid"):
        yield "on the validation split (paper: test split)"
    if any(is_subset(run, split) for run in runs for split in splits):
        yield "on a part of the split"
    if any(is_subset(run, "train") for run in runs):
        yield "trained on a part of the training split"
    if column.paper:
        sizes = {run.config["model"]["name"] for run in runs if not _has_paper_size(run)}
        yield from (f"with a model of another size: {size}" for size in sorted(sizes))
    if column.note:
        yield column.note


def is_subset(run: FinishedRun, split: str, run_split: str | None = None) -> bool:
    """Whether the run used fewer examples than the split has: because of a limit, or because the data are a sample.

    `run_split` is the name of the split in the run, if it has another one.
    """
    official = published_numbers()["examples"].get(run.config["task"]["name"], {}).get(split)
    split = run_split or split
    count = run.result.get("examples", {}).get(split)
    if official and count:
        return count < official
    return run.config["limit"][split.partition("_")[0]] is not None


def _has_paper_size(run: FinishedRun) -> bool:
    model = run.config["model"]
    return all(model.get(key) == value for key, value in PAPER_SIZES[model.get("architecture", "transformer")].items())


# --- tables -----------------------------------------------------------------------------------------------------------


def format_table(layout: PublishedTable, rows: Sequence[VariantRow]) -> tuple[ReportTable, list[dict[str, Any]]]:
    """The table for the report, and our numbers as records with the keys FIELDS."""
    columns: list[PublishedScores] = [*layout.columns, *([layout.overall] if layout.overall else [])]
    lines: list[list[str]] = []
    records: list[dict[str, Any]] = []
    signs: dict[str, str] = {}  # note -> sign
    if len(layout.variants) == 1 and any(column.before for column in columns):
        lines.append(["best before", *(f"{c.before:.1f} {c.system}" if c.before else "" for c in columns)])
    for variant in layout.variants:
        if any(variant in column.paper for column in columns):
            numbers = [f"{c.paper[variant]:.1f}" if variant in c.paper else "" for c in columns]
            lines.append([f"{published_numbers()['variants'][variant]}: paper", *numbers])
        for row in [row for row in rows if row.variant == variant]:
            cells: dict[str, ScoreCell | None] = {**row_cells(layout, row)}
            if layout.overall:
                cells[layout.overall.name] = average_cell(layout, row)
            ours, medians, differences = [f"{row}: ours"], ["  median (seeds)"], ["  ours - paper"]
            for column in columns:
                if (cell := cells.get(column.name)) is None:
                    for line in (ours, medians, differences):
                        line.append("")
                    continue
                for note in cell.notes:
                    signs.setdefault(note, SIGNS[len(signs) % len(SIGNS)] * (len(signs) // len(SIGNS) + 1))
                paper = column.paper.get(variant) if cell.comparable else None
                ours.append(f"{cell} {' '.join(signs[note] for note in cell.notes)}".strip())
                medians.append(f"{cell.median:z.1f} ({len(cell.seeds)})")
                differences.append("" if paper is None else f"{cell.mean - paper:+z.1f}")
                records.append(_record(layout, row, column, cell, paper))
            lines += [ours, medians, *([differences] if any(differences[1:]) else [])]
    description = f"in percent; ours: mean ± sample standard deviation over the seeds; the paper's: {layout.source}"
    notes = [description if layout.key in published_tables() else description.partition("; the paper's")[0]]
    notes += [f"{sign} {note}" for note, sign in signs.items()]
    return ReportTable(layout.title, ["", *(column.name for column in columns)], lines, notes), records


def _record(
    layout: PublishedTable, row: VariantRow, column: PublishedScores, cell: ScoreCell, paper: float | None
) -> dict[str, Any]:
    spread = statistics.stdev(cell.seeds.values()) if len(cell.seeds) > 1 else None
    difference = None if paper is None else cell.mean - paper
    labels = (layout.key, str(row), column.name, " ".join(cell.splits))
    numbers = (len(cell.seeds), cell.mean, spread, cell.median, paper, difference, column.before, column.system)
    return dict(zip(FIELDS, (*labels, *numbers, "; ".join(cell.notes)), strict=True))


def draw_table(layout: PublishedTable, rows: Sequence[VariantRow]) -> Picture:
    """A plot of our numbers as filled points and the paper's as hollow points."""
    ours = {str(row): {name: [*cell.seeds.values()] for name, cell in row_cells(layout, row).items()} for row in rows}
    paper = {}
    for variant in layout.variants:
        numbers = {column.name: [column.paper[variant]] for column in layout.columns if variant in column.paper}
        paper[f"paper: {published_numbers()['variants'][variant]}"] = numbers
    hollow = {label: numbers for label, numbers in paper.items() if numbers}
    legend = "each seed as a small point, their mean as a large one" + ", the paper's as a hollow one" * bool(hollow)
    names = [column.name for column in layout.columns]
    return plots.draw_dots(layout.key, f"{layout.title}: {legend}", names, ours, hollow)
