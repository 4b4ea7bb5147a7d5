"""Figure 2, left: what each transferred layer adds, from runs that differ in transfer_layers."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from gpt1cli import plots
from gpt1cli.pages import Table
from gpt1cli.plots import Picture
from gpt1cli.report import Finished, by_seed, grouped, varying

Series = tuple[str, str, dict[int, list[Finished]]]  # task, what else tells it from others, layers -> runs


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


def figure(found: Sequence[Series]) -> tuple[Picture, Table]:
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
