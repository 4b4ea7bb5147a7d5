"""Curves of a score over pretraining, as a picture and as the numbers behind it (paper, Figure 2, right)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt1cli import rundir
from gpt1cli.report import figure

STYLES = {"transformer": "o-", "lstm": "o--"}  # as in the paper: solid and dashed


@dataclass(frozen=True)
class Curve:
    """Values after so many updates, of one model on one task."""

    label: str
    architecture: str
    points: list[tuple[int, float]]


def relative(score: float, chance: float, reference: float | None) -> float:
    """0 for chance, 1 for the reference; where that is unknown the score itself."""
    return score if reference is None else (score - chance) / (reference - chance)


def write(curves: Sequence[Curve], y: str, picture: Path) -> None:
    """The picture, updates on a logarithmic axis, and beside it the same points as .csv."""
    with figure(picture, "updates", y) as axes:
        for curve in curves:
            steps, values = zip(*sorted(curve.points), strict=True)
            axes.plot(steps, values, STYLES[curve.architecture], label=curve.label, markersize=3, linewidth=1)
        axes.set_xscale("log")
        axes.legend()
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["label", "architecture", "step", "value"])
    rows.writerows([c.label, c.architecture, *point] for c in curves for point in sorted(c.points))
    rundir.write_text(picture.with_suffix(".csv"), table.getvalue())
