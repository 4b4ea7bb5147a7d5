"""A score over pretraining: the curves of Figure 2, right, as a picture and as the numbers behind it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt1cli.plots import Picture, draw

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


def picture(name: str, caption: str, y: str, curves: Sequence[Curve]) -> Picture:
    """The curves, updates on a logarithmic axis."""

    def marks(axes: Any) -> None:
        for curve in curves:
            points = zip(*sorted(curve.points), strict=True)
            axes.plot(*points, STYLES[curve.architecture], label=curve.label, markersize=3, linewidth=1)
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.legend()

    return draw(name, caption, "updates", y, marks, (7, 4))


def table(curves: Sequence[Curve]) -> str:
    """The points of the curves, as a file of comma-separated values."""
    found = io.StringIO()
    rows = csv.writer(found, lineterminator="\n")
    rows.writerow(["label", "architecture", "step", "value"])
    rows.writerows([c.label, c.architecture, *point] for c in curves for point in sorted(c.points))
    return found.getvalue()
