"""Figure 2, left: what each transferred layer adds, from runs that differ in transfer_layers."""

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
from gpt1cli.reporting.collect import Finished, by_seed, grouped, varying
from gpt1cli.reporting.page import Block, Table
from gpt1cli.reporting.plots import Picture, by_factors, draw

Series = tuple[str, str, dict[int, list[Finished]]]  # task, what else tells it from others, layers -> runs
STYLES = {"transformer": "o-", "lstm": "o--"}  # as in the paper: solid and dashed


def series(runs: Sequence[Finished]) -> list[Series]:
    """Runs of one task that differ in how many layers were transferred and in nothing else."""
    tuned = [run for run in runs if run.kind == "finetune" and run.settings["pretrained"]]
    return [found for task in sorted({run.config["task"]["name"] for run in tuned}) for found in _of(task, tuned)]


def _of(task: str, tuned: Sequence[Finished]) -> Iterator[Series]:
    chosen = [run for run in tuned if run.config["task"]["name"] == task]
    keys = [key for key in varying([run.settings for run in chosen]) if key != "transfer_layers"]
    found: dict[str, dict[int, list[Finished]]] = {}
    for label, group in grouped(chosen, keys).items():
        for run in sorted(group, key=transferred):
            found.setdefault(label, {}).setdefault(transferred(run), []).append(run)
    curves = {label: by_layers for label, by_layers in found.items() if len(by_layers) > 1}
    for label, by_layers in curves.items():
        yield task, label if len(curves) > 1 else "", by_layers


def transferred(run: Finished) -> int:
    """How many blocks came from init."""
    layers = run.settings["transfer_layers"]
    return run.settings["model.n_layer"] if layers == "all" else layers


def left_figure(found: Sequence[Series]) -> tuple[Picture, Table]:
    """The headline metric on validation, and on training where it was measured, against the layers."""
    curves: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for task, label, by_layers in found:
        for layers, runs in by_layers.items():
            metric = runs[0].config["task"]["metrics"][0]
            cells = []
            for split in ("train", "valid"):
                several = [
                    100 * statistics.mean(run.result[split][metric] for run in same if metric in run.result[split])
                    for same in by_seed([run for run in runs if metric in run.result.get(split, {})]).values()
                ]
                if several:
                    name = ", ".join(filter(None, (split, task, label)))
                    curves.setdefault(name, []).append((layers, statistics.mean(several)))
                spread = f" ± {statistics.stdev(several):.1f}" if len(several) > 1 else ""
                cells.append(f"{statistics.mean(several):.1f}{spread}" if several else "")
            rows.append([task, label, str(layers), ", ".join(map(str, by_seed(runs))), metric, *cells])
    title = "Figure 2, left: what each transferred layer adds"
    picture = plots.lines("figure2-left", title, "layers transferred", "percent", curves, "train")
    header = ["task", "variant", "layers", "seeds", "metric", "train", "valid"]
    return picture, Table(title, header, rows, ["in percent; 0 layers: the embeddings alone"])


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


def right_figure(runs: Sequence[Finished]) -> list[Block]:
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
    """The curves of a table. UserError where it is none."""
    found: dict[str, Curve] = {}
    try:
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            curve = found.setdefault(row["label"], Curve(row["label"], row["architecture"], []))
            curve.points.append((int(row["step"]), float(row["value"])))
        unknown = {curve.architecture for curve in found.values()} - STYLES.keys()
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no curves: {error}") from error
    if unknown:
        raise UserError(f"{path} holds no curves: there is no architecture {display(', '.join(unknown))}")
    return list(found.values())


def table(curves: Sequence[Curve]) -> str:
    """The points of the curves, as a file of comma-separated values."""
    found = io.StringIO()
    rows = csv.writer(found, lineterminator="\n")
    rows.writerow(["label", "architecture", "step", "value"])
    rows.writerows([c.label, c.architecture, *point] for c in curves for point in sorted(c.points))
    return found.getvalue()
