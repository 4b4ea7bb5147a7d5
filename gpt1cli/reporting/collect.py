"""Finished runs: find them in folders, group them by their settings, and average their seeds in a table per command.

Longer than 300 lines: every setting by which two runs may differ, and how it is written in a table.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Literal

from gpt1cli.config.commands import COMMANDS
from gpt1cli.config.schema import UserError, display, flatten, value_problems
from gpt1cli.reporting.page import ReportTable
from gpt1cli.runs.files import read_config, read_json
from gpt1cli.runs.record import newer_version_hint, read_environment

# Keys that may differ between runs of the same experiment.
NON_VARIANT_KEYS = {
    "seed", "seeds", "name", "out", "cache", "hub", "resume", "config", "init", "init_lstm", "score_train", "dry_run",
}  # fmt: skip
# An ablation or a recipe is visible in the keys that it sets; the submission format changes no result.
NON_VARIANT_PREFIXES = ("runtime.", "logger.", "ablation.", "task.submission.", "few.")


@dataclass(frozen=True)
class FinishedRun:
    """A run with a result.json."""

    folder: Path
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration, flat: `limit.train` -> 256. `pretrained` is False without init, whatever it says."""
        settings = dict(flatten(self.config))
        if self.result["command"] == "finetune" and self.config["init"] == "none":
            settings["pretrained"] = False
        if (sets := settings.pop("demo_sets", None)) and settings["demos"] != "none":
            settings["demos"] += f" ({sets} sets)"
        return settings

    @property
    def kind(self) -> str:
        """The key of its table in RUN_KINDS: few-shot fine-tuning as LM-BFF's is not in one table with the paper's."""
        command = self.result["command"]
        few = self.config.get("shots") or self.config.get("method") == "prompt"
        return "few" if command == "finetune" and few else command

    def scores(self) -> dict[str, float]:
        """The main scores: the task's first metric on each labelled split, or the perplexity of a pretraining run."""
        if self.result["command"] == "pretrain":
            return {"perplexity (valid)": self.result["valid"]["perplexity"]}
        headline, splits = self.config["task"]["metrics"][0], {**self.config["task"]["splits"]}
        if self.kind == "few":  # its test split may have another name there
            splits |= {split: "" for split in self.result.get("examples", ()) if split != "train"}
        runs = self.result.get("runs", {})  # of gpt1 zeroshot, and fewshot
        results = {f"{label}: ": result for label, result in zip(unique_labels(runs), runs.values(), strict=True)}
        return {
            f"{prefix}{headline} ({split})": result[split][headline]
            for prefix, result in (results or {"": self.result}).items()
            for split in splits
            if split in result
        }


def unique_labels(paths: Iterable[str]) -> list[str]:
    """A short label for each path: as many of its last parts as are needed to make all labels different."""
    parts = [Path(path).parts for path in paths]
    longest = max(map(len, parts), default=1)
    for n in range(1, longest + 1):
        labels = ["/".join(path[-n:]) for path in parts]
        if len(set(labels)) == len(labels):
            return labels
    return labels if parts else []


RUN_KINDS = {  # kind of runs -> title of its table, the group that names a row, settings that are always shown
    "pretrain": ("Pretraining", "corpus", ()),
    "finetune": ("Fine-tuning", "task", ()),
    "few": ("Fine-tuning on few examples, or through a prompt", "task", ("method", "shots", "demos")),
    "evaluate": ("Evaluation", "task", ()),
    "zeroshot": ("Zero-shot", "task", ()),
    "fewshot": ("In context, without training", "task", ()),
}


def find_runs(patterns: Iterable[str]) -> list[FinishedRun]:
    """The finished runs in the folders and globs, sorted by folder. Raises UserError if there is none.

    Runs that are damaged, incomplete, or written by an incompatible gpt1 are skipped with a message on stderr.
    """
    patterns = list(patterns)
    folders: set[Path] = set()
    for pattern in patterns:
        for start in glob(str(Path(pattern).expanduser()), recursive=True):
            folders.update(_run_folders(Path(start)))
    runs, skipped = [], []
    for folder in sorted(folders):
        try:
            run = _read_run(folder)
        except UserError as error:
            skipped.append(f"{folder} is skipped: {error}{newer_version_hint(folder)}")
            continue
        runs += split_seeds(run) if run else []
    if skipped and not runs:
        raise UserError("\n".join([f"runs={patterns}: no run there can be reported:", *skipped]))
    for line in skipped:
        print(f"gpt1: {line}", file=sys.stderr)
    if not runs:
        missing = [pattern for pattern in patterns if not glob(str(Path(pattern).expanduser()), recursive=True)]
        prefix = f"no such folder: {', '.join(missing)}; " if missing else ""
        kinds = ", ".join(kind for kind in RUN_KINDS if kind in COMMANDS)
        raise UserError(f"runs={patterns}: {prefix}no finished run (a folder with result.json) of gpt1 {kinds}")
    return runs


def _read_run(folder: Path) -> FinishedRun | None:
    """The run of a folder; None if no table shows such runs. Raises UserError if a value is missing for the tables."""
    result = read_json(folder / "result.json")
    # NOTE not in the dict itself: a stranger's value may be unhashable
    if result.get("command") not in [*RUN_KINDS] or result.get("dry_run"):
        return None
    run = FinishedRun(folder, read_config(folder / "config.yaml"), result)
    if problems := list(result_problems(run)):
        raise UserError("; ".join(problems[:3]))
    return run


def _run_folders(start: Path) -> Iterable[Path]:
    """The folders of finished runs below `start`, without the runs inside a search: its own tables show them."""
    for path in [*start.glob("result.json"), *start.rglob("*/result.json")]:
        run = path.parent
        parents = [path for path in (run.parent, run.parent.parent) if path == start or start in path.parents]
        if not any(read_environment(parent).get("command") == "search" for parent in parents):
            yield run


REQUIRED_KEYS: dict[str, dict[str, Any]] = {  # command -> the keys of its configuration that the tables read
    "all": {"seed": int},
    "task": {"task.name": str, "task.source": str, "task.metrics": list[str], "task.splits": dict[str, str]},
    "pretrain": {"corpus.name": str},
    "finetune": {
        "init": str, "pretrained": bool, "aux_lm": bool, "lm_coef": float, "transfer_layers": int | Literal["all"],
        "model.name": str, "model.n_layer": int, "task.labels": list[str], "limit": dict[str, int | None],
    },
    "fewshot": {"seeds": list[int]},
}  # fmt: skip


def result_problems(run: FinishedRun) -> Iterator[str]:
    """The values that the tables need but that are missing or wrong in a run's config.yaml and result.json."""
    command: str = run.result["command"]
    required: dict[str, Any] = {}
    for name in ("all", command, *(["task"] if command != "pretrain" else [])):
        required |= REQUIRED_KEYS.get(name, {})
    if run.config.get("demo_sets"):
        required["demos"] = str
    for key, annotation in required.items():
        value: Any = run.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        yield from value_problems(annotation, value, key)
    yield from value_problems(dict[str, int], run.result.get("examples", {}), "examples")
    if command == "pretrain":
        yield from _missing_scores({"valid": run.result.get("valid")}, "perplexity")
        return
    task = run.config.get("task")
    if not (isinstance(task, Mapping) and isinstance(task.get("metrics"), list) and task["metrics"]):
        yield "task.metrics: none"
        return
    splits, examples = task.get("splits"), run.result.get("examples")
    scored = [*(splits if isinstance(splits, Mapping) else ()), *(examples if isinstance(examples, Mapping) else ())]
    for metrics in _scored_results(run.result):
        if not isinstance(metrics, Mapping):
            yield f"{display(metrics)} instead of the metrics of splits"
        else:
            yield from _missing_scores(
                {split: metrics[split] for split in scored if split in metrics}, task["metrics"][0]
            )


def _scored_results(result: Mapping[str, Any]) -> Iterator[Any]:
    """The parts that should contain metrics by split: the result, each run of a zero-shot, each seed of a few-shot."""
    yield result
    if result["command"] == "zeroshot":
        runs = result.get("runs", {})
        yield from runs.values() if isinstance(runs, Mapping) else [runs]
    if result["command"] == "fewshot":
        shots = result.get("shots")
        for scores in shots.values() if isinstance(shots, Mapping) else [shots]:
            seeds = scores.get("seeds") if isinstance(scores, Mapping) else scores
            yield from seeds.values() if isinstance(seeds, Mapping) else [seeds]


def _missing_scores(splits: Mapping[str, Any], headline: str) -> Iterator[str]:
    """The splits without a finite number for the headline metric, which is not finite if a run diverged."""
    for split, metrics in splits.items():
        value = metrics.get(headline, 0.0 if split == "train" else None) if isinstance(metrics, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            yield f"{split}.{headline}={display(value)} is not a finite number"


def split_seeds(run: FinishedRun) -> list[FinishedRun]:
    """The run itself; a run of gpt1 fewshot as one run for each of its seeds."""
    if run.result["command"] != "fewshot":
        return [run]
    parts = []
    for seed in run.config["seeds"]:
        seeds = {f"shots={shots}": scores["seeds"] for shots, scores in run.result["shots"].items()}
        runs = {shots: scores[str(seed)] for shots, scores in seeds.items() if str(seed) in scores}
        if runs:  # without demonstrations only the first seed was run: all would be equal
            parts.append(FinishedRun(run.folder, {**run.config, "seed": seed}, {**run.result, "runs": runs}))
    return parts


def summary_tables(runs: Sequence[FinishedRun]) -> list[ReportTable]:
    """One table for each kind of runs: a row for each task (corpus) and variant, averaged over its seeds."""
    tables = []
    for kind, (title, group_name, _) in RUN_KINDS.items():
        rows = []
        for name, variant, group in group_experiments(runs, kind):
            seeds = group_by_seed(group)
            counts = [f"{seed} ({len(same)} runs)" if len(same) > 1 else f"{seed}" for seed, same in seeds.items()]
            rows.append(
                [name, variant, ", ".join(counts), ", ".join(format_mean_std([*map(mean_scores, seeds.values())]))]
            )
        if rows:
            tables.append(ReportTable(title, [group_name, "variant", "seeds", "result"], rows))
    return tables


def summary_records(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """The numbers of these tables as records, not rounded."""
    records = []
    for kind in RUN_KINDS:
        for name, variant, group in group_experiments(runs, kind):
            scores = [*map(mean_scores, group_by_seed(group).values())]
            for column in dict.fromkeys(name for run_scores in scores for name in run_scores):
                values = [run_scores[column] for run_scores in scores if column in run_scores]
                labels = {"table": kind, "row": f"{name}, {variant}", "column": column, "seeds": len(values)}
                spread = statistics.stdev(values) if len(values) > 1 else None
                numbers = {"mean": statistics.mean(values), "sd": spread, "median": statistics.median(values)}
                records.append({**labels, **numbers})
    return records


def group_experiments(runs: Sequence[FinishedRun], kind: str) -> Iterable[tuple[str, str, list[FinishedRun]]]:
    """Task (corpus), variant and runs of each experiment of a kind."""
    _, group_name, always_shown = RUN_KINDS[kind]
    by_name: dict[str, list[FinishedRun]] = {}
    for run in runs:
        if run.kind == kind:
            by_name.setdefault(run.config[group_name]["name"], []).append(run)
    for name, chosen in sorted(by_name.items()):
        for variant, group in sorted(group_variants(chosen, always_shown).items()):
            yield name, variant, group


def group_variants(runs: Sequence[FinishedRun], always_shown: Sequence[str] = ()) -> dict[str, list[FinishedRun]]:
    """Runs of one task or corpus, grouped by the settings in which they differ and by those that are always shown.

    Runs of one variant differ in their seed only. Each seed may have its own init, from a pretraining with that seed;
    if one seed was run with several inits, these are variants.
    """
    settings = [run.settings for run in runs]
    differing = [*dict.fromkeys([*always_shown, *differing_keys(settings)])]
    groups = group_by_settings(runs, differing)
    seeds = [same for group in groups.values() for same in group_by_seed(group).values()]
    if any(len({run.settings.get("init") for run in same}) > 1 for same in seeds):
        groups = group_by_settings(runs, [*differing, "init"])
    return groups


def group_by_seed(runs: Sequence[FinishedRun]) -> dict[int, list[FinishedRun]]:
    """Seed -> its runs; several if the seed was repeated, which adds no information about other seeds."""
    seeds: dict[int, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: run.settings["seed"]):
        seeds.setdefault(run.settings["seed"], []).append(run)
    return seeds


def mean_scores(runs: Sequence[FinishedRun]) -> dict[str, float]:
    """The mean of each main score over the runs of one seed."""
    scores = [run.scores() for run in runs]
    names = dict.fromkeys(name for run_scores in scores for name in run_scores)
    return {name: statistics.mean(values[name] for values in scores if name in values) for name in names}


def group_by_settings(runs: Sequence[FinishedRun], keys: Sequence[str]) -> dict[str, list[FinishedRun]]:
    """The runs grouped by their values of these settings."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        variant = ", ".join(f"{key}={run.settings.get(key)}" for key in keys) or "default"
        groups.setdefault(variant, []).append(run)
    return groups


def differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which the runs differ, without NON_VARIANT_KEYS; if the name of a group differs, only its name."""
    keys = dict.fromkeys(key for values in settings for key in values)
    differing = [
        key
        for key in keys
        if key not in NON_VARIANT_KEYS
        and not key.startswith(NON_VARIANT_PREFIXES)
        and len({repr(values.get(key)) for values in settings}) > 1
    ]
    prefixes = {key.removesuffix("name") for key in differing if key.endswith(".name")}

    def follows_name(key: str) -> bool:
        """Whether the group's name determines the key: model.d_model, if no model name has two values of it."""
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is None or key.endswith(".name"):
            return False
        pairs = {(repr(values.get(f"{prefix}name")), repr(values.get(key))) for values in settings}
        return len(pairs) == len({name for name, _ in pairs})

    return [key for key in differing if not follows_name(key)]


def format_mean_std(scores: Sequence[Mapping[str, float]]) -> list[str]:
    """Mean and sample standard deviation of each number over the seeds: `accuracy (test) 0.812 ± 0.010`."""
    lines = []
    for name in dict.fromkeys(name for run_scores in scores for name in run_scores):
        values = [run_scores[name] for run_scores in scores if name in run_scores]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        lines.append(f"{name} {statistics.mean(values):.3f}{spread}")
    return lines
