"""Drawings of runs and studies, each as a picture for Markdown and as vectors that stand inside an html page."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt1cli.runs import files
from gpt1cli.runs.files import write_bytes

# Texts stay texts, the same drawing has the same bytes, and a dollar sign in a name opens no formula.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False, "font.family": "sans-serif"}
NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # metadata, full of addresses
POINTS = 2000  # in a scatter plot: each is an element of the page


@dataclass(frozen=True)
class Picture:
    """A drawing: `name` is that of its file, `svg` an element for an html page."""

    name: str
    caption: str
    svg: str
    png: bytes


def draw(name: str, caption: str, x: str, y: str, marks: Callable[[Any], None], size: tuple[float, float]) -> Picture:
    """A picture of whatever `marks` draws into the axes it is given. x and y name the axes, size is in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        marks(axes)
        axes.set_xlabel(x)
        axes.set_ylabel("\n".join(textwrap.wrap(y, 40, break_long_words=False)))  # longer than the axis it is cut
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=120)
        figure.savefig(svg, format="svg", metadata=NOTHING)
        pyplot.close(figure)
    return Picture(name, caption, _embedded(svg.getvalue(), name), png.getvalue())


def _embedded(svg: str, name: str) -> str:
    """The svg element alone: no prologue, no namespaces (html knows them), names of its own within a page."""
    element = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    return element.replace("xlink:href", "href").strip()


def lines(
    name: str, caption: str, x: str, y: str, curves: Mapping[str, Sequence[tuple[float, float]]], dotted: str = ""
) -> Picture:
    """Curves by their labels, as points (x, y); one whose label starts with `dotted` has no marks at its points."""

    def marks(axes: Any) -> None:
        for label, points in curves.items():
            style = "--" if dotted and label.startswith(dotted) else "o-"
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend()

    return draw(name, caption, x, y, marks, (7, 4))


def bands(
    name: str, caption: str, x: str, y: str, curves: Mapping[str, Sequence[tuple[int, Mapping[str, float]]]]
) -> Picture:
    """Curves of means by their labels, as (x, {mean, min, max}), each in the band of its range; x grows by factors."""

    def marks(axes: Any) -> None:
        for label, points in curves.items():
            places = [place for place, _ in points]
            low, mean, high = ([values[key] for _, values in points] for key in ("min", "mean", "max"))
            (drawn,) = axes.plot(places, mean, "o-", label=label, markersize=3, linewidth=1)
            axes.fill_between(places, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
        axes.set_xscale("symlog", base=2, linthresh=1)  # 0 has a place too
        ticks = sorted({place for points in curves.values() for place, _ in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.grid(alpha=0.3)
        axes.legend()

    return draw(name, caption, x, y, marks, (7, 4))


def by_factors(axes: Any) -> None:
    """Give the x axis a logarithmic scale, its numbers written out."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def losses(metrics: Sequence[Mapping[str, Any]]) -> Picture:
    """Training and validation loss against the updates."""
    # what fine-tuning minimises also holds the language-model loss; the validation loss is the task's alone
    curves = _curves(metrics, lambda line: line.get("task_loss", line["loss"]))
    return lines("loss", "training and validation loss", "updates", "loss (nats)", curves, "train")


def metric(metrics: Sequence[Mapping[str, Any]], name: str) -> Picture:
    """A metric on the validation split against the updates."""
    curves = _curves([line for line in metrics if name in line], lambda line: line[name])
    return lines("metric", f"{name} on the validation split", "updates", name, curves)


def _curves(
    metrics: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]
) -> dict[str, list[tuple[float, float]]]:
    found = {s: [(line["step"], value(line)) for line in metrics if line["split"] == s] for s in ("train", "valid")}
    return {split: points for split, points in found.items() if points}


def confusion(split: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Picture:
    """How often each class (a row) was called what (a column)."""

    def marks(axes: Any) -> None:
        shades = [[n / max(1, sum(row)) for n in row] for row in counts]
        axes.pcolormesh(shades, cmap="Blues", vmin=0, vmax=1, edgecolors="white")
        for i, row in enumerate(counts):
            for j, n in enumerate(row):
                ink = "white" if shades[i][j] > 0.6 else "black"
                axes.text(j + 0.5, i + 0.5, f"{n:,}", ha="center", va="center", color=ink)
        middles = [i + 0.5 for i in range(len(labels))]
        axes.set_xticks(middles, labels)
        axes.set_yticks(middles, labels)
        axes.invert_yaxis()

    side = 2 + 0.9 * len(labels)
    caption = f"predictions on {split}, shaded by their share of the label"
    return draw(f"confusion-{split}", caption, "prediction", "label", marks, (side + 1, side))


def scatter(split: str, labels: Sequence[float], predictions: Sequence[float]) -> Picture:
    """Predicted scores against their labels."""

    def marks(axes: Any) -> None:
        axes.plot(labels[:POINTS], predictions[:POINTS], "o", markersize=3, alpha=0.4)
        ends = [min(labels), max(labels)]
        axes.plot(ends, ends, "--", color="gray", linewidth=1)
        axes.grid(alpha=0.3)

    some = f", the first {POINTS:,}" if len(labels) > POINTS else ""
    return draw(f"scatter-{split}", f"predictions on {split}{some}", "label", "prediction", marks, (5, 5))


def save_sizes(label: str, sizes: Sequence[float], unit: str, rates: Sequence[float], path: Path) -> None:
    """A rate against a size that grows by factors, as a picture in a file."""

    def marks(axes: Any) -> None:
        axes.plot(sizes, rates, "o-", markersize=4, linewidth=1)
        by_factors(axes)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)

    picture = draw(path.stem, label, label, unit, marks, (7, 4)).png
    with files.writing(path):
        path.parent.mkdir(exist_ok=True)
    write_bytes(path, picture)


def dots(
    name: str,
    caption: str,
    columns: Sequence[str],
    filled: Mapping[str, Mapping[str, Sequence[float]]],
    hollow: Mapping[str, Mapping[str, Sequence[float]]],
) -> Picture:
    """In each column the values of every series, side by side: their mean large, each of them small."""

    def marks(axes: Any) -> None:
        series = [(label, values, True) for label, values in filled.items()]
        series += [(label, values, False) for label, values in hollow.items()]
        for i, (label, values, full) in enumerate(series):
            x = [columns.index(column) + 0.7 * ((i + 0.5) / len(series) - 0.5) for column in values]
            means = [sum(several) / len(several) for several in values.values()]
            face = {} if full else {"markerfacecolor": "none"}
            (drawn,) = axes.plot(x, means, "o" if full else "D", markersize=6, label=label, **face)
            for place, several in zip(x, values.values(), strict=True):
                if len(several) > 1:
                    axes.plot([place] * len(several), several, ".", markersize=3, color=drawn.get_color())
        axes.set_xticks(range(len(columns)), columns, rotation=20)
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))

    return draw(name, caption, "", "percent", marks, (11, 4))
