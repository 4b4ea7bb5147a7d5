"""Figure 2 of the GPT-1 paper from our own runs.

Left: the score over the number of transferred layers (section 5), from fine-tuning runs that differ in transfer_layers.
Right: the zero-shot score over the pretraining steps, from runs of gpt1 zeroshot with several checkpoints.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt1cli.config.schema import UserError, display
from gpt1cli.reporting import plots
from gpt1cli.reporting.collect import FinishedRun, differing_keys, group_by_seed, group_by_settings
from gpt1cli.reporting.page import Block, ReportTable
from gpt1cli.reporting.plots import Picture, draw_picture, log_x_axis

# --- left: transferred layers -----------------------------------------------------------------------------------------

LayerSeries = tuple[str, str, dict[int, list[FinishedRun]]]  # task, its other settings, number of layers -> runs


def layer_series(runs: Sequence[FinishedRun]) -> list[LayerSeries]:
    """Groups of runs of one task that differ only in the number of transferred layers."""
    tuned = [run for run in runs if run.kind == "finetune" and run.settings["pretrained"]]
    tasks = sorted({run.config["task"]["name"] for run in tuned})
    return [series for task in tasks for series in _task_series(task, tuned)]


def _task_series(task: str, tuned: Sequence[FinishedRun]) -> Iterator[LayerSeries]:
    task_runs = [run for run in tuned if run.config["task"]["name"] == task]
    keys = [key for key in differing_keys([run.settings for run in task_runs]) if key != "transfer_layers"]
    groups: dict[str, dict[int, list[FinishedRun]]] = {}
    for label, group in group_by_settings(task_runs, keys).items():
        for run in sorted(group, key=transferred_layers):
            groups.setdefault(label, {}).setdefault(transferred_layers(run), []).append(run)
    curves = {label: by_layers for label, by_layers in groups.items() if len(by_layers) > 1}
    for label, by_layers in curves.items():
        yield task, label if len(curves) > 1 else "", by_layers


def transferred_layers(run: FinishedRun) -> int:
    """The number of layers that a run took from init."""
    layers = run.settings["transfer_layers"]
    return run.settings["model.n_layer"] if layers == "all" else layers


def left_figure(all_series: Sequence[LayerSeries]) -> tuple[Picture, ReportTable]:
    """Plot and table of the headline metric over the layers: on validation, and on training if it was measured."""
    curves: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for task, label, by_layers in all_series:
        for layers, runs in by_layers.items():
            metric = runs[0].config["task"]["metrics"][0]
            cells = []
            for split in ("train", "valid"):
                scores = [
                    100 * statistics.mean(run.result[split][metric] for run in same if metric in run.result[split])
                    for same in group_by_seed([run for run in runs if metric in run.result.get(split, {})]).values()
                ]
                if scores:
                    name = ", ".join(filter(None, (split, task, label)))
                    curves.setdefault(name, []).append((layers, statistics.mean(scores)))
                spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
                cells.append(f"{statistics.mean(scores):.1f}{spread}" if scores else "")
            rows.append([task, label, str(layers), ", ".join(map(str, group_by_seed(runs))), metric, *cells])
    title = "Figure 2, left: score by number of transferred layers"
    picture = plots.draw_lines("figure2-left", title, "layers transferred", "percent", curves, "train")
    header = ["task", "variant", "layers", "seeds", "metric", "train", "valid"]
    return picture, ReportTable(title, header, rows, ["in percent; 0 layers: only the embeddings"])


# --- right: zero-shot curves ------------------------------------------------------------------------------------------

STYLES = {"transformer": "o-", "lstm": "o--"}  # as in the paper: solid and dashed


@dataclass(frozen=True)
class Curve:
    """Values of one model on one task as points (step, value)."""

    label: str
    architecture: str
    points: list[tuple[int, float]]
    task: str = ""  # curves of one task have one colour


def relative_score(score: float, chance: float, reference: float | None) -> float:
    """The score scaled so that chance is 0 and the reference 1; without a reference the score itself."""
    return score if reference is None else (score - chance) / (reference - chance)


def draw_curves(name: str, caption: str, y: str, curves: Sequence[Curve], zero: bool = True) -> Picture:
    """A plot of the curves over a logarithmic axis of steps; `zero` also draws the line of 0, which means chance."""

    colours = {key: f"C{n}" for n, key in enumerate(dict.fromkeys(c.task or c.label for c in curves))}

    def marks(axes: Any) -> None:
        for curve in curves:
            points, colour = zip(*sorted(curve.points), strict=True), colours[curve.task or curve.label]
            style = STYLES[curve.architecture]
            axes.plot(*points, style, color=colour, label=curve.label, markersize=3, linewidth=1)
        log_x_axis(axes)
        if zero:  # then noise around 0 does not look like a slope
            axes.axhline(0, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # outside: there may be many curves

    return draw_picture(name, caption, "steps", y, marks, (9, 4))


def curves_csv(curves: Sequence[Curve]) -> str:
    """The points of the curves as comma-separated values."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["label", "architecture", "step", "value"])
    rows.writerows([c.label, c.architecture, *point] for c in curves for point in sorted(c.points))
    return text.getvalue()


def read_curves(path: Path) -> list[Curve]:
    """The curves in a file written from `curves_csv`. Raises UserError if it contains none."""
    curves: dict[str, Curve] = {}
    try:
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            curve = curves.setdefault(row["label"], Curve(row["label"], row["architecture"], []))
            curve.points.append((int(row["step"]), float(row["value"])))
        unknown = {curve.architecture for curve in curves.values()} - STYLES.keys()
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} contains no curves: {error}") from error
    if unknown:
        known = ", ".join(STYLES)
        raise UserError(f"{path} contains no curves: unknown architecture {display(', '.join(unknown))}, not {known}")
    return list(curves.values())


def right_figure(runs: Sequence[FinishedRun]) -> list[Block]:
    """Plot and table of the curves of all runs of gpt1 zeroshot that scored several checkpoints."""
    curves = []
    for run in runs:
        path = run.folder / "plots" / "zeroshot.csv"
        if run.result["command"] == "zeroshot" and path.is_file():
            task = run.config["task"]["name"]
            scale = "" if run.settings.get("task.zeroshot.reference") is not None else " (score)"
            curves += [Curve(f"{task}{scale}, {c.label}", c.architecture, c.points, task) for c in read_curves(path)]
    title = "Figure 2, right: zero-shot performance during pretraining (solid: Transformer, dashed: LSTM)"
    if not curves:
        return []
    steps = sorted({step for curve in curves for step, _ in curve.points})
    rows = []
    for curve in curves:
        values = dict(curve.points)
        rows.append([curve.label, *(f"{values[step]:.3f}" if step in values else "" for step in steps)])
    return [
        draw_curves("figure2-right", title, "from chance (0) to reference (1), else the score", curves),
        ReportTable("Figure 2, right: values by step", ["task, run", *(f"{step:,}" for step in steps)], rows),
    ]
