"""Finished runs as tables, pages and plots; everything here is derived from the files of the runs themselves."""

from __future__ import annotations

import contextlib
import math
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from gpt1cli import rundir
from gpt1cli.config import InputError

# Keys that tell one run from another of the same kind without making it another experiment.
NO_VARIANT = {"seed", "name", "out", "cache", "hub", "resume", "config", "init", "dry_run"}
NO_VARIANT_GROUPS = ("runtime.", "ablation.")  # what an ablation does shows in the keys that it sets


@dataclass(frozen=True)
class Finished:
    """A run with a result.json."""

    folder: Path
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration, flat: `limit.train` -> 256; without an init nothing was pretrained, whatever it says."""
        fresh = {"pretrained": False} if self.result["command"] == "finetune" and self.config["init"] == "none" else {}
        return {**dict(_flat(self.config)), **fresh}

    def scores(self) -> dict[str, float]:
        """The headline numbers: the task's first metric on each labelled split, the perplexity of a pretraining run."""
        if self.result["command"] == "pretrain":
            return {"perplexity (valid)": self.result["valid"]["perplexity"]}
        headline = self.config["task"]["metrics"][0]
        splits = [split for split in self.config["task"]["splits"] if split in self.result]
        return {f"{headline} ({split})": self.result[split][headline] for split in splits}


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table as GitHub reads it."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{body}\n"

    def show(self) -> None:
        """Print the table, fitted to the terminal."""
        import rich
        import rich.table
        from rich.markup import escape

        drawn = rich.table.Table(title=self.title, title_justify="left")
        for name in self.header:
            drawn.add_column(escape(name), overflow="fold")  # paths differ at their ends
        for row in self.rows:
            drawn.add_row(*map(escape, row))
        rich.print(drawn)


KINDS = {  # command -> title of its table, and the group that names a row
    "pretrain": ("Pretraining", "corpus"),
    "finetune": ("Fine-tuning", "task"),
    "evaluate": ("Evaluation", "task"),
    "zeroshot": ("Zero-shot", "task"),
}


def find_runs(patterns: Iterable[str]) -> list[Finished]:
    """The finished runs in the folders and globs, in order of their folders. InputError where there is none."""
    patterns = list(patterns)
    found: set[Path] = set()
    for pattern in patterns:
        for start in glob(str(Path(pattern).expanduser()), recursive=True):
            found.update(
                path.parent for path in [*Path(start).glob("result.json"), *Path(start).rglob("*/result.json")]
            )
    runs = []
    for folder in sorted(found):
        result = rundir.read_json(folder / "result.json")
        if result.get("command") in KINDS and not result.get("dry_run"):  # which trained nothing
            runs.append(Finished(folder, rundir.read_config(folder / "config.yaml"), result))
    if not runs:
        raise InputError(f"runs={patterns}: no finished run of gpt1 {', '.join(KINDS)} there (result.json says it is)")
    return runs


def tables(runs: Sequence[Finished]) -> list[Table]:
    """One table for each command among the runs: a row for each task (corpus) and variant, its seeds summed up."""
    made = []
    for command, (title, what) in KINDS.items():
        chosen = [run for run in runs if run.result["command"] == command]
        if not chosen:
            continue
        rows = []
        for name in sorted({run.config[what]["name"] for run in chosen}):
            for variant, group in sorted(variants([run for run in chosen if run.config[what]["name"] == name]).items()):
                seeds = by_seed(group)
                told = [f"{seed} ({len(same)} runs)" if len(same) > 1 else f"{seed}" for seed, same in seeds.items()]
                rows.append([name, variant, ", ".join(told), ", ".join(summed_up([*map(mean, seeds.values())]))])
        made.append(Table(title, [what, "variant", "seeds", "result"], rows))
    return made


def variants(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """Runs of one task or corpus by the settings in which they differ; what is left within a variant are its seeds.

    Each seed may have an init of its own, from a pretraining with that seed; where one seed has several, they count.
    """
    settings = [run.settings for run in runs]
    differing = varying(settings)
    groups = _grouped(runs, differing)
    seeds = [same for group in groups.values() for same in by_seed(group).values()]
    if any(len({run.settings.get("init") for run in same}) > 1 for same in seeds):
        groups = _grouped(runs, [*differing, "init"])
    return groups


def by_seed(runs: Sequence[Finished]) -> dict[int, list[Finished]]:
    """Seed -> its runs: more than one where it was repeated, which tells nothing about other seeds."""
    seeds: dict[int, list[Finished]] = {}
    for run in sorted(runs, key=lambda run: run.settings["seed"]):
        seeds.setdefault(run.settings["seed"], []).append(run)
    return seeds


def mean(runs: Sequence[Finished]) -> dict[str, float]:
    """The mean of each headline number over the runs of one seed."""
    scores = [run.scores() for run in runs]
    names = dict.fromkeys(name for one in scores for name in one)
    return {name: statistics.mean(one[name] for one in scores if name in one) for name in names}


def _grouped(runs: Sequence[Finished], keys: Sequence[str]) -> dict[str, list[Finished]]:
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        variant = ", ".join(f"{key}={run.settings.get(key)}" for key in keys) or "default"
        groups.setdefault(variant, []).append(run)
    return groups


def varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which the runs differ, other than those that name no variant; a group by its name where that does."""
    keys = dict.fromkeys(key for one in settings for key in one)
    found = [
        key
        for key in keys
        if key not in NO_VARIANT
        and not key.startswith(NO_VARIANT_GROUPS)
        and len({repr(one.get(key)) for one in settings}) > 1
    ]
    named = {key.removesuffix("name") for key in found if key.endswith(".name")}

    def goes_along(key: str) -> bool:
        """model.d_model with model.name, unless one model's name stands for several of them."""
        prefix = next((prefix for prefix in named if key.startswith(prefix)), None)
        if prefix is None or key.endswith(".name"):
            return False
        pairs = {(repr(one.get(f"{prefix}name")), repr(one.get(key))) for one in settings}
        return len(pairs) == len({name for name, _ in pairs})

    return [key for key in found if not goes_along(key)]


def summed_up(scores: Sequence[Mapping[str, float]]) -> list[str]:
    """Mean and sample standard deviation of each number over the seeds: `accuracy (test) 0.812 ± 0.010`."""
    lines = []
    for name in dict.fromkeys(name for one in scores for name in one):
        values = [one[name] for one in scores if name in one]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        lines.append(f"{name} {statistics.mean(values):.3f}{spread}")
    return lines


# --- a run's own page -------------------------------------------------------------------------------------------------


def write_run_report(folder: Path, result: Mapping[str, Any]) -> None:
    """report.md with its plots, of training plots/loss.png too, from a run's own files and what it will declare."""
    if "steps" in result:  # of training
        plot_losses(rundir.read_jsonl(folder / "metrics.jsonl"), folder / "plots" / "loss.png")
    plots = [f"![{path.stem}](plots/{path.name})\n" for path in sorted(folder.glob("plots/*.png"))]
    command_line = rundir.environment(folder).get("command_line", [])
    settings = dict(_flat(rundir.read_config(folder / "config.yaml"))) if (folder / "config.yaml").exists() else {}
    facts = [[key, _shown(value)] for key, value in _flat(result)]
    lines = [
        f"# {result['command']} {result['name']}\n",
        f"    gpt1 {shlex.join(command_line)}\n",
        *plots,
        Table("Result", ["what", "value"], facts).markdown(),
        Table("Settings", ["key", "value"], [[key, _shown(value)] for key, value in settings.items()]).markdown(),
    ]
    rundir.write_text(folder / "report.md", "\n".join(lines))


def plot_losses(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training and validation loss against the updates."""
    with figure(path, "updates", "loss (nats)") as axes:
        for split, style in (("train", "-"), ("valid", "o-")):
            # what fine-tuning minimises also holds the language-model loss; the validation loss is the task's alone
            points = [(line["step"], line.get("task_loss", line["loss"])) for line in metrics if line["split"] == split]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=split, markersize=3, linewidth=1)
        axes.legend()


def plot_sizes(label: str, sizes: Sequence[float], unit: str, rates: Sequence[float], path: Path) -> None:
    """A rate against a size that grows by factors."""
    with figure(path, label, unit) as axes:
        axes.plot(sizes, rates, "o-", markersize=4, linewidth=1)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)


@contextlib.contextmanager
def figure(path: Path, x: str, y: str) -> Iterator[Any]:
    """Axes to draw into, written as a picture when that is done."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    yield axes
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else str(value)
