"""Plots of runs and studies, each as PNG for Markdown and as SVG inside an html page."""

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

# Text stays text, the same plot has the same bytes, and a dollar sign in a name starts no formula.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False, "font.family": "sans-serif"}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # the metadata would contain URLs
MAX_POINTS = 2000  # in a scatter plot: each is an element of the html page


@dataclass(frozen=True)
class Picture:
    """A plot: `name` is its file name without suffix, `svg` an element for an html page."""

    name: str
    caption: str
    svg: str
    png: bytes


def draw_picture(
    name: str, caption: str, x: str, y: str, marks: Callable[[Any], None], size: tuple[float, float]
) -> Picture:
    """A plot that `marks` draws into the given axes. `x` and `y` are the labels of the axes, `size` is in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        marks(axes)
        axes.set_xlabel(x)
        axes.set_ylabel(
            "\n".join(textwrap.wrap(y, 40, break_long_words=False))
        )  # a label longer than the axis would be truncated
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=120)
        figure.savefig(svg, format="svg", metadata=NO_METADATA)
        pyplot.close(figure)
    return Picture(name, caption, _embed_svg(svg.getvalue(), name), png.getvalue())


def _embed_svg(svg: str, name: str) -> str:
    """The svg element without prologue and namespaces, which html does not need, and with ids unique in a page."""
    element = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    return element.replace("xlink:href", "href").strip()


def draw_lines(
    name: str, caption: str, x: str, y: str, curves: Mapping[str, Sequence[tuple[float, float]]], dotted: str = ""
) -> Picture:
    """A plot of curves: label -> points (x, y). A curve whose label starts with `dotted` is dashed, without markers."""

    def marks(axes: Any) -> None:
        for label, points in curves.items():
            style = "--" if dotted and label.startswith(dotted) else "o-"
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend()

    return draw_picture(name, caption, x, y, marks, (7, 4))


def draw_bands(
    name: str, caption: str, x: str, y: str, curves: Mapping[str, Sequence[tuple[int, Mapping[str, float]]]]
) -> Picture:
    """A plot of means with bands from min to max: label -> (x, {mean, min, max}); the x axis is logarithmic."""

    def marks(axes: Any) -> None:
        for label, points in curves.items():
            xs = [x for x, _ in points]
            low, mean, high = ([values[key] for _, values in points] for key in ("min", "mean", "max"))
            (line,) = axes.plot(xs, mean, "o-", label=label, markersize=3, linewidth=1)
            axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_xscale("symlog", base=2, linthresh=1)  # includes 0
        ticks = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.grid(alpha=0.3)
        axes.legend()

    return draw_picture(name, caption, x, y, marks, (7, 4))


def log_x_axis(axes: Any) -> None:
    """Give the x axis a logarithmic scale with numbers written in full."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def draw_losses(metrics: Sequence[Mapping[str, Any]]) -> Picture:
    """A plot of training and validation loss over the steps."""
    # the training loss of fine-tuning includes the language-model loss, the validation loss does not
    curves = _split_curves(metrics, lambda line: line.get("task_loss", line["loss"]))
    return draw_lines("loss", "training and validation loss", "steps", "loss (nats)", curves, "train")


def draw_metric(metrics: Sequence[Mapping[str, Any]], name: str) -> Picture:
    """A plot of a metric on the validation split over the steps."""
    curves = _split_curves([line for line in metrics if name in line], lambda line: line[name])
    return draw_lines("metric", f"{name} on the validation split", "steps", name, curves)


def _split_curves(
    metrics: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]
) -> dict[str, list[tuple[float, float]]]:
    curves = {s: [(line["step"], value(line)) for line in metrics if line["split"] == s] for s in ("train", "valid")}
    return {split: points for split, points in curves.items() if points}


def draw_confusion(split: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Picture:
    """A confusion matrix: label (row) against prediction (column)."""

    def marks(axes: Any) -> None:
        shades = [[n / max(1, sum(row)) for n in row] for row in counts]
        axes.pcolormesh(shades, cmap="Blues", vmin=0, vmax=1, edgecolors="white")
        for i, row in enumerate(counts):
            for j, n in enumerate(row):
                color = "white" if shades[i][j] > 0.6 else "black"
                axes.text(j + 0.5, i + 0.5, f"{n:,}", ha="center", va="center", color=color)
        middles = [i + 0.5 for i in range(len(labels))]
        axes.set_xticks(middles, labels)
        axes.set_yticks(middles, labels)
        axes.invert_yaxis()

    side = 2 + 0.9 * len(labels)
    caption = f"predictions on {split}, shaded by the share of each label"
    return draw_picture(f"confusion-{split}", caption, "prediction", "label", marks, (side + 1, side))


def draw_scatter(split: str, labels: Sequence[float], predictions: Sequence[float]) -> Picture:
    """A plot of predicted scores against their labels."""

    def marks(axes: Any) -> None:
        axes.plot(labels[:MAX_POINTS], predictions[:MAX_POINTS], "o", markersize=3, alpha=0.4)
        ends = [min(labels), max(labels)]
        axes.plot(ends, ends, "--", color="gray", linewidth=1)
        axes.grid(alpha=0.3)

    some = f", the first {MAX_POINTS:,}" if len(labels) > MAX_POINTS else ""
    return draw_picture(f"scatter-{split}", f"predictions on {split}{some}", "label", "prediction", marks, (5, 5))


def save_scaling_plot(label: str, sizes: Sequence[float], unit: str, rates: Sequence[float], path: Path) -> None:
    """Save a plot of rates (`unit`) over sizes, with a logarithmic x axis, as PNG."""

    def marks(axes: Any) -> None:
        axes.plot(sizes, rates, "o-", markersize=4, linewidth=1)
        log_x_axis(axes)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)

    picture = draw_picture(path.stem, label, label, unit, marks, (7, 4)).png
    with files.name_write_errors(path):
        path.parent.mkdir(exist_ok=True)
    write_bytes(path, picture)


def draw_dots(
    name: str,
    caption: str,
    columns: Sequence[str],
    filled: Mapping[str, Mapping[str, Sequence[float]]],
    hollow: Mapping[str, Mapping[str, Sequence[float]]],
) -> Picture:
    """A plot with the values of every series in each column: their mean as a large point, each value as a small one."""

    def marks(axes: Any) -> None:
        series = [(label, values, True) for label, values in filled.items()]
        series += [(label, values, False) for label, values in hollow.items()]
        for i, (label, values, full) in enumerate(series):
            xs = [columns.index(column) + 0.7 * ((i + 0.5) / len(series) - 0.5) for column in values]
            means = [sum(several) / len(several) for several in values.values()]
            face = {} if full else {"markerfacecolor": "none"}
            (line,) = axes.plot(xs, means, "o" if full else "D", markersize=6, label=label, **face)
            for x, several in zip(xs, values.values(), strict=True):
                if len(several) > 1:
                    axes.plot([x] * len(several), several, ".", markersize=3, color=line.get_color())
        axes.set_xticks(range(len(columns)), columns, rotation=20)
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))

    return draw_picture(name, caption, "", "percent", marks, (11, 4))
