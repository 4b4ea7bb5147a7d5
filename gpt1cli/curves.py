"""A score over pretraining: the curves of Figure 2, right, as a picture and as the numbers behind it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt1cli.config.schema import InputError, shown
from gpt1cli.pages import Block, Table
from gpt1cli.plots import Picture, by_factors, draw
from gpt1cli.report import Finished

STYLES = {"transformer": "o-", "lstm": "o--"}  # as in the paper: solid and dashed


@dataclass(frozen=True)
class Curve:
    """Values after so many updates, of one model on one task."""

    label: str
    architecture: str
    points: list[tuple[int, float]]
    task: str = ""  # curves of one task share a colour


def relative(score: float, chance: float, reference: float | None) -> float:
    """0 for chance, 1 for the reference; where that is unknown the score itself."""
    return score if reference is None else (score - chance) / (reference - chance)


def picture(name: str, caption: str, y: str, curves: Sequence[Curve], zero: bool = True) -> Picture:
    """The curves, updates on a logarithmic axis; `zero` where 0 means chance, and so is in sight."""

    colours = {key: f"C{n}" for n, key in enumerate(dict.fromkeys(c.task or c.label for c in curves))}

    def marks(axes: Any) -> None:
        for curve in curves:
            points, colour = zip(*sorted(curve.points), strict=True), colours[curve.task or curve.label]
            style = STYLES[curve.architecture]
            axes.plot(*points, style, color=colour, label=curve.label, markersize=3, linewidth=1)
        by_factors(axes)
        if zero:  # noise around it does not look like a slope then
            axes.axhline(0, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, of any number

    return draw(name, caption, "updates", y, marks, (9, 4))


def figure(runs: Sequence[Finished]) -> list[Block]:
    """The curves of all runs of gpt1 zeroshot that scored several checkpoints, drawn and in numbers."""
    found = []
    for run in runs:
        points = run.folder / "plots" / "zeroshot.csv"
        if run.result["command"] == "zeroshot" and points.is_file():
            task = run.config["task"]["name"]
            scale = "" if run.settings.get("task.zeroshot.reference") is not None else " (score)"
            found += [Curve(f"{task}{scale}, {c.label}", c.architecture, c.points, task) for c in read(points)]
    title = "Figure 2, right: what pretraining alone brings (solid: Transformer, dashed: LSTM)"
    if not found:
        return []
    steps = sorted({step for curve in found for step, _ in curve.points})
    rows = []
    for curve in found:
        values = dict(curve.points)
        rows.append([curve.label, *(f"{values[step]:.3f}" if step in values else "" for step in steps)])
    return [
        picture("figure2-right", title, "from chance (0) to reference (1), else the score", found),
        Table("Figure 2, right: after so many updates", ["task, run", *(f"{step:,}" for step in steps)], rows),
    ]


def read(path: Path) -> list[Curve]:
    """The curves of a table. InputError where it is none."""
    found: dict[str, Curve] = {}
    try:
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            curve = found.setdefault(row["label"], Curve(row["label"], row["architecture"], []))
            curve.points.append((int(row["step"]), float(row["value"])))
        unknown = {curve.architecture for curve in found.values()} - STYLES.keys()
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no curves: {error}") from error
    if unknown:
        raise InputError(f"{path} holds no curves: there is no architecture {shown(', '.join(unknown))}")
    return list(found.values())


def table(curves: Sequence[Curve]) -> str:
    """The points of the curves, as a file of comma-separated values."""
    found = io.StringIO()
    rows = csv.writer(found, lineterminator="\n")
    rows.writerow(["label", "architecture", "step", "value"])
    rows.writerows([c.label, c.architecture, *point] for c in curves for point in sorted(c.points))
    return found.getvalue()
