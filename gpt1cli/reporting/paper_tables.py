"""Finished runs laid out as the paper lays out its own: Tables 2 to 5, what was reached beside what was published.

What the columns are, and every published number, stands in published_numbers.yaml. A cell is the mean over the seeds of
one experiment, in percent; whatever makes it another thing than the paper's cell is told by a sign and a note below.
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
from gpt1cli.reporting.collect import Finished, by_seed, variants
from gpt1cli.reporting.page import Table
from gpt1cli.reporting.plots import Picture

SHAPES = {  # architecture -> what tells the paper's own size from others
    "transformer": {key: options.values("model", "base")[key] for key in ("n_layer", "d_model", "n_head", "d_ff")},
    "lstm": {"d_model": 768, "lstm_units": 2048},  # section 5
}
SIGNS = "†‡§¶‖#"  # the star means something to Markdown
FIELDS = "table row column splits seeds mean sd median paper difference before system notes".split()


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the paper has in a column: its number for each variant, the best one before it, and whose that was."""

    name: str
    paper: Mapping[str, float] = field(default_factory=dict)
    before: float | None = None
    system: str = ""


@dataclass(frozen=True, kw_only=True)
class Column(Published):
    """A task and what is measured of it: metrics, or metric/part for a further split; their mean is the cell."""

    task: str
    measures: Sequence[str]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Overall(Published):
    """The mean over the columns of a table."""

    of: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A table of the paper: its rows are variants."""

    key: str
    title: str
    place: str
    variants: Sequence[str]
    columns: Sequence[Column]
    overall: Overall | None = None
    one_split: bool = False


@dataclass(frozen=True)
class Row:
    """A variant, what else tells it from others of that variant, and its runs by task."""

    variant: str
    label: str
    runs: Mapping[str, Sequence[Finished]]

    def __str__(self) -> str:
        fresh = [task for task, runs in self.runs.items() if not any(run.settings["pretrained"] for run in runs)]
        where = "" if len(fresh) == len(self.runs) else f" on {', '.join(fresh)}"
        told = f"not pretrained{where}" if fresh and self.variant == "lstm" else ""
        return ", ".join(filter(None, (published()["variants"][self.variant], told, self.label)))


@dataclass(frozen=True)
class Cell:
    """What each seed reached, in percent, on which splits, and what has to be said about it."""

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
def published() -> dict[str, Any]:
    """The file of published numbers."""
    return yaml.safe_load(Path(__file__).with_name("published_numbers.yaml").read_text(encoding="utf-8"))


@functools.cache
def layouts() -> dict[str, Layout]:
    """The paper's tables by their names in the file."""
    found = {}
    for key, table in published()["tables"].items():
        columns = [Column(**column) for column in table["columns"]]
        overall = Overall(**table["overall"]) if "overall" in table else None
        found[key] = Layout(**{**table, "key": key, "columns": columns, "overall": overall})
    return found


def likenesses(runs: Sequence[Finished]) -> list[Layout]:
    """Table 5 on the demo world and on tasks of one's own, of which nothing is published, where two variants ran."""
    known = {column.task for layout in layouts().values() for column in layout.columns}
    kinds: dict[str, list[Finished]] = {"the demo world": [], "other tasks": []}
    for run in runs:
        if variant_of(run) and run.config["task"]["name"] not in known:
            kinds["the demo world" if run.config["task"]["source"] == "demo_world" else "other tasks"].append(run)
    found = []
    for kind, chosen in kinds.items():
        if len({variant_of(run) for run in chosen}) < 2:
            continue
        headlines = {run.config["task"]["name"]: run.config["task"]["metrics"][0] for run in chosen}
        columns = [Column(name=task, task=task, measures=[headlines[task]]) for task in sorted(headlines)]
        key, title = kind.split()[-2], f"Table 5 on {kind}: what each ingredient is worth"
        overall, rows = Overall(name="average", of=key), layouts()["table5"].variants
        place = "not in the paper"
        found.append(Layout(key=key, title=title, place=place, variants=rows, columns=columns, overall=overall))
    return found


def variant_of(run: Finished) -> str | None:
    """Which row of Table 5 a run belongs to, by what it did; None where it belongs to none of them."""
    if run.kind != "finetune":
        return None
    settings = run.settings
    pretrained, aux_lm = settings["pretrained"], settings["aux_lm"] and settings["lm_coef"] > 0
    if settings.get("model.architecture") == "lstm":
        return "lstm" if aux_lm else None
    if pretrained and settings["transfer_layers"] != "all":
        return None  # Figure 2
    return {(True, True): "full", (False, True): "no_pretrain", (True, False): "no_aux_lm"}.get((pretrained, aux_lm))


def rows_of(layout: Layout, runs: Sequence[Finished]) -> list[Row]:
    """The rows that the runs fill: one for each variant, more where a task has runs of it that differ otherwise."""
    base = _averaged(layout)
    tasks = dict.fromkeys(column.task for column in [*layout.columns, *(base.columns if base else ())])
    found: dict[tuple[str, str], dict[str, Sequence[Finished]]] = {}
    for variant in layout.variants:
        for task in tasks:
            chosen = [run for run in runs if variant_of(run) == variant and run.config["task"]["name"] == task]
            groups = variants(chosen) if chosen else {}
            for label, group in groups.items():
                found.setdefault((variant, label if len(groups) > 1 else ""), {})[task] = group
    rows = [Row(variant, label, by_task) for (variant, label), by_task in found.items()]
    return [row for row in rows if cells_of(layout, row)]


def cells_of(layout: Layout, row: Row) -> dict[str, Cell]:
    """The cells of a row by their columns: of the test split where it has labels, else of the validation split."""
    on = {
        stage: {c.name: cell for c in layout.columns if (cell := _cell(c, row.runs.get(c.task, ()), stage))}
        for stage in ("valid", "test")
    }
    if layout.one_split:
        return on["test"] if on["test"].keys() >= on["valid"].keys() else on["valid"]
    found = on["valid"] | on["test"]
    return {column.name: found[column.name] for column in layout.columns if column.name in found}


def overall_of(layout: Layout, row: Row) -> Cell | None:
    """The mean over at least two columns, for the seeds that all have; a note names them where some are missing."""
    base = _averaged(layout)
    if base is None:
        return None
    columns, found = base.columns, cells_of(base, row)
    seeds = set.intersection(*(set(cell.seeds) for cell in found.values())) if found else ()
    if not seeds or len(found) < 2:
        return None
    means = {seed: statistics.mean(cell.seeds[seed] for cell in found.values()) for seed in sorted(seeds)}
    notes = list(dict.fromkeys(note for cell in found.values() for note in cell.notes))
    whole = len(found) == len(columns)
    if not whole:
        notes.append(f"the mean over {', '.join(found)} alone: {len(found)} of {len(columns)}")
    splits = list(dict.fromkeys(split for cell in found.values() for split in cell.splits))
    return Cell(means, splits, notes, comparable=whole)


def _averaged(layout: Layout) -> Layout | None:
    """The table whose columns a table's overall number is the mean of."""
    if layout.overall is None:
        return None
    return layout if layout.overall.of == layout.key else layouts()[layout.overall.of]


def _cell(column: Column, runs: Sequence[Finished], stage: str) -> Cell | None:
    """The cell of an experiment on test or on valid; None where not all of it was measured there."""
    parted = [measure.partition("/") for measure in column.measures]
    places = [(f"{stage}_{part}" if part else stage, metric) for metric, _, part in parted]
    if not runs or any(metric not in run.result.get(split, {}) for run in runs for split, metric in places):
        return None
    seeds = {
        seed: 100 * statistics.mean(run.result[split][metric] for run in same for split, metric in places)
        for seed, same in by_seed(runs).items()
    }
    splits = list(dict.fromkeys(split for split, _ in places))
    return Cell(seeds, splits, [*_notes(column, runs, splits)])


def _notes(column: Column, runs: Sequence[Finished], splits: Sequence[str]) -> Iterator[str]:
    """What makes the cell another thing than the paper's."""
    if splits[0].startswith("valid"):
        yield "on the validation split, where the paper has the test split"
    if any(is_part(run, split) for run in runs for split in splits):
        yield "on a part of the split"
    if any(is_part(run, "train") for run in runs):
        yield "trained on a part of the training split"
    if column.paper:
        sizes = {run.config["model"]["name"] for run in runs if not _is_the_papers_size(run)}
        yield from (f"with a model of another size: {size}" for size in sorted(sizes))
    if column.note:
        yield column.note


def is_part(run: Finished, split: str, called: str | None = None) -> bool:
    """Whether the run had fewer examples than the split has: because of a limit, or of a sample instead of the data.

    `called`: what the run itself calls the split, where that is another name.
    """
    official = published()["examples"].get(run.config["task"]["name"], {}).get(split)
    split = called or split
    there = run.result.get("examples", {}).get(split)
    if official and there:
        return there < official
    return run.config["limit"][split.partition("_")[0]] is not None


def _is_the_papers_size(run: Finished) -> bool:
    model = run.config["model"]
    return all(model.get(key) == value for key, value in SHAPES[model.get("architecture", "transformer")].items())


# --- tables -----------------------------------------------------------------------------------------------------------


def table_of(layout: Layout, rows: Sequence[Row]) -> tuple[Table, list[dict[str, Any]]]:
    """The table as it is read, and its own numbers as records of FIELDS."""
    columns: list[Published] = [*layout.columns, *([layout.overall] if layout.overall else [])]
    lines: list[list[str]] = []
    records: list[dict[str, Any]] = []
    signs: dict[str, str] = {}  # note -> sign
    if len(layout.variants) == 1 and any(column.before for column in columns):
        lines.append(["best before", *(f"{c.before:.1f} {c.system}" if c.before else "" for c in columns)])
    for variant in layout.variants:
        if any(variant in column.paper for column in columns):
            numbers = [f"{c.paper[variant]:.1f}" if variant in c.paper else "" for c in columns]
            lines.append([f"{published()['variants'][variant]}: paper", *numbers])
        for row in [row for row in rows if row.variant == variant]:
            cells: dict[str, Cell | None] = {**cells_of(layout, row)}
            if layout.overall:
                cells[layout.overall.name] = overall_of(layout, row)
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
    about = f"in percent; ours: mean ± sample standard deviation over the seeds; the paper's: {layout.place}"
    notes = [about.partition("; the paper's")[0] if layout.key not in layouts() else about]
    notes += [f"{sign} {note}" for note, sign in signs.items()]
    return Table(layout.title, ["", *(column.name for column in columns)], lines, notes), records


def _record(layout: Layout, row: Row, column: Published, cell: Cell, paper: float | None) -> dict[str, Any]:
    spread = statistics.stdev(cell.seeds.values()) if len(cell.seeds) > 1 else None
    difference = None if paper is None else cell.mean - paper
    where = (layout.key, str(row), column.name, " ".join(cell.splits))
    numbers = (len(cell.seeds), cell.mean, spread, cell.median, paper, difference, column.before, column.system)
    return dict(zip(FIELDS, (*where, *numbers, "; ".join(cell.notes)), strict=True))


def picture_of(layout: Layout, rows: Sequence[Row]) -> Picture:
    """The table's own numbers as filled points, the paper's as hollow ones."""
    ours = {str(row): {name: [*cell.seeds.values()] for name, cell in cells_of(layout, row).items()} for row in rows}
    paper = {}
    for variant in layout.variants:
        numbers = {column.name: [column.paper[variant]] for column in layout.columns if variant in column.paper}
        paper[f"paper: {published()['variants'][variant]}"] = numbers
    hollow = {label: there for label, there in paper.items() if there}
    told = "each seed as a small point, their mean as a large one" + ", the paper's as a hollow one" * bool(hollow)
    return plots.dots(layout.key, f"{layout.title}: {told}", [column.name for column in layout.columns], ours, hollow)
