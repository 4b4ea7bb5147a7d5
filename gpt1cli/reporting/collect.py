"""Finished runs: found in folders, told apart by their settings, their seeds summed up in a table for each command."""

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
from gpt1cli.config.schema import UserError, check, display, flat
from gpt1cli.reporting.page import Table
from gpt1cli.runs.files import read_config, read_json
from gpt1cli.runs.record import environment, newer

# Keys that tell one run from another of the same kind without making it another experiment.
NO_VARIANT = {
    "seed", "seeds", "name", "out", "cache", "hub", "resume", "config", "init", "init_lstm", "score_train", "dry_run",
}  # fmt: skip
# What an ablation or a recipe does shows in the keys that it sets; where predictions are handed in changes nothing.
NO_VARIANT_GROUPS = ("runtime.", "logger.", "ablation.", "task.submission.", "few.")


@dataclass(frozen=True)
class Finished:
    """A run with a result.json."""

    folder: Path
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration, flat: `limit.train` -> 256; without an init nothing was pretrained, whatever it says."""
        found = dict(flat(self.config))
        if self.result["command"] == "finetune" and self.config["init"] == "none":
            found["pretrained"] = False
        if (sets := found.pop("demo_sets", None)) and found["demos"] != "none":
            found["demos"] += f" ({sets} sets)"
        return found

    @property
    def kind(self) -> str:
        """Which table it belongs to: fine-tuning as the paper's is another thing than LM-BFF's."""
        command = self.result["command"]
        few = self.config.get("shots") or self.config.get("method") == "prompt"
        return "few" if command == "finetune" and few else command

    def scores(self) -> dict[str, float]:
        """The headline numbers: the task's first metric on each labelled split, the perplexity of a pretraining run."""
        if self.result["command"] == "pretrain":
            return {"perplexity (valid)": self.result["valid"]["perplexity"]}
        headline, splits = self.config["task"]["metrics"][0], {**self.config["task"]["splits"]}
        if self.kind == "few":  # its test split may be called otherwise there
            splits |= {split: "" for split in self.result.get("examples", ()) if split != "train"}
        parts = self.result.get("runs", {})  # of gpt1 zeroshot, and fewshot
        several = {f"{label}: ": found for label, found in zip(told_apart(parts), parts.values(), strict=True)}
        return {
            f"{prefix}{headline} ({split})": found[split][headline]
            for prefix, found in (several or {"": self.result}).items()
            for split in splits
            if split in found
        }


def told_apart(paths: Iterable[str]) -> list[str]:
    """As many of the last parts of each path as it takes to tell them apart."""
    parts = [Path(path).parts for path in paths]
    longest = max(map(len, parts), default=1)
    for n in range(1, longest + 1):
        labels = ["/".join(one[-n:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    return labels if parts else []


KINDS = {  # kind of runs -> title of its table, the group that names a row, settings that are always told
    "pretrain": ("Pretraining", "corpus", ()),
    "finetune": ("Fine-tuning", "task", ()),
    "few": ("Fine-tuning on few examples, or through a prompt", "task", ("method", "shots", "demos")),
    "evaluate": ("Evaluation", "task", ()),
    "zeroshot": ("Zero-shot", "task", ()),
    "fewshot": ("In context, without training", "task", ()),
}


def find_runs(patterns: Iterable[str]) -> list[Finished]:
    """The finished runs in the folders and globs, in order of their folders. UserError where there is none.

    What is damaged, says less of itself than the tables need, or is written by no gpt1 of today is left out, and told.
    """
    patterns = list(patterns)
    found: set[Path] = set()
    for pattern in patterns:
        for start in glob(str(Path(pattern).expanduser()), recursive=True):
            found.update(_below(Path(start)))
    runs, left_out = [], []
    for folder in sorted(found):
        try:
            run = _read(folder)
        except UserError as error:
            left_out.append(f"{folder} is left out: {error}{newer(folder)}")
            continue
        runs += by_seeds(run) if run else []
    if left_out and not runs:
        raise UserError("\n".join([f"runs={patterns}: no run there that can be reported:", *left_out]))
    for line in left_out:
        print(f"gpt1: {line}", file=sys.stderr)
    if not runs:
        lost = [pattern for pattern in patterns if not glob(str(Path(pattern).expanduser()), recursive=True)]
        told = f"no such folder: {', '.join(lost)}; " if lost else ""
        kinds = ", ".join(kind for kind in KINDS if kind in COMMANDS)
        raise UserError(f"runs={patterns}: {told}no finished run of gpt1 {kinds} there (with a result.json)")
    return runs


def _read(folder: Path) -> Finished | None:
    """The run of a folder; None where no table has a place for it. UserError where it tells less than they need."""
    result = read_json(folder / "result.json")
    if result.get("command") not in [*KINDS] or result.get("dry_run"):  # a list: what a stranger wrote may have no hash
        return None
    run = Finished(folder, read_config(folder / "config.yaml"), result)
    if amiss := list(lacking(run)):
        raise UserError("; ".join(amiss[:3]))
    return run


def _below(start: Path) -> Iterable[Path]:
    """The folders of finished runs below another; what a search has tuned stands in that search's own tables."""
    for path in [*start.glob("result.json"), *start.rglob("*/result.json")]:
        run = path.parent
        searches = [place for place in (run.parent, run.parent.parent) if place == start or start in place.parents]
        if not any(environment(place).get("command") == "search" for place in searches):
            yield run


TOLD: dict[str, dict[str, Any]] = {  # kind of command -> what the tables read of its configuration
    "all": {"seed": int},
    "task": {"task.name": str, "task.source": str, "task.metrics": list[str], "task.splits": dict[str, str]},
    "pretrain": {"corpus.name": str},
    "finetune": {
        "init": str, "pretrained": bool, "aux_lm": bool, "lm_coef": float, "transfer_layers": int | Literal["all"],
        "model.name": str, "model.n_layer": int, "task.labels": list[str], "limit": dict[str, int | None],
    },
    "fewshot": {"seeds": list[int]},
}  # fmt: skip


def lacking(run: Finished) -> Iterator[str]:
    """What the tables need of a run and do not find in its config.yaml and result.json, which may be a stranger's."""
    command: str = run.result["command"]
    told: dict[str, Any] = {}
    for name in ("all", command, *(["task"] if command != "pretrain" else [])):
        told |= TOLD.get(name, {})
    if run.config.get("demo_sets"):
        told["demos"] = str
    for key, annotation in told.items():
        value: Any = run.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        yield from check(annotation, value, key)
    yield from check(dict[str, int], run.result.get("examples", {}), "examples")
    if command == "pretrain":
        yield from _unmeasured({"valid": run.result.get("valid")}, "perplexity")
        return
    task = run.config.get("task")
    if not (isinstance(task, Mapping) and isinstance(task.get("metrics"), list) and task["metrics"]):
        yield "task.metrics: none"
        return
    splits, examples = task.get("splits"), run.result.get("examples")
    scored = [*(splits if isinstance(splits, Mapping) else ()), *(examples if isinstance(examples, Mapping) else ())]
    for found in _parts(run.result):
        if not isinstance(found, Mapping):
            yield f"{display(found)} stands where metrics of splits should"
        else:
            yield from _unmeasured({split: found[split] for split in scored if split in found}, task["metrics"][0])


def _parts(result: Mapping[str, Any]) -> Iterator[Any]:
    """What should hold the metrics of splits: the result, and each of a zero-shot's runs, of a few-shot's seeds."""
    yield result
    if result["command"] == "zeroshot":
        runs = result.get("runs", {})
        yield from runs.values() if isinstance(runs, Mapping) else [runs]
    if result["command"] == "fewshot":
        shots = result.get("shots")
        for one in shots.values() if isinstance(shots, Mapping) else [shots]:
            seeds = one.get("seeds") if isinstance(one, Mapping) else one
            yield from seeds.values() if isinstance(seeds, Mapping) else [seeds]


def _unmeasured(splits: Mapping[str, Any], headline: str) -> Iterator[str]:
    """The splits whose metrics are none, or of whose headline there is no mean: it may be inf where a run diverged."""
    for split, found in splits.items():
        value = found.get(headline, 0.0 if split == "train" else None) if isinstance(found, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            yield f"{split}.{headline}={display(value)} is no number"


def by_seeds(run: Finished) -> list[Finished]:
    """The run; one of gpt1 fewshot as one run for each of its seeds."""
    if run.result["command"] != "fewshot":
        return [run]
    found = []
    for seed in run.config["seeds"]:
        seeds = {f"shots={shots}": one["seeds"] for shots, one in run.result["shots"].items()}
        runs = {shots: scores[str(seed)] for shots, scores in seeds.items() if str(seed) in scores}
        if runs:  # without demonstrations the first seed stands for all
            found.append(Finished(run.folder, {**run.config, "seed": seed}, {**run.result, "runs": runs}))
    return found


def tables(runs: Sequence[Finished]) -> list[Table]:
    """One table for each kind of runs: a row for each task (corpus) and variant, its seeds summed up."""
    made = []
    for kind, (title, what, _) in KINDS.items():
        rows = []
        for name, variant, group in experiments(runs, kind):
            seeds = by_seed(group)
            told = [f"{seed} ({len(same)} runs)" if len(same) > 1 else f"{seed}" for seed, same in seeds.items()]
            rows.append([name, variant, ", ".join(told), ", ".join(summed_up([*map(mean, seeds.values())]))])
        if rows:
            made.append(Table(title, [what, "variant", "seeds", "result"], rows))
    return made


def records(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """The numbers of those tables, one by one, as they were measured."""
    found = []
    for kind in KINDS:
        for name, variant, group in experiments(runs, kind):
            scores = [*map(mean, by_seed(group).values())]
            for column in dict.fromkeys(column for one in scores for column in one):
                values = [one[column] for one in scores if column in one]
                about = {"table": kind, "row": f"{name}, {variant}", "column": column, "seeds": len(values)}
                spread = statistics.stdev(values) if len(values) > 1 else None
                numbers = {"mean": statistics.mean(values), "sd": spread, "median": statistics.median(values)}
                found.append({**about, **numbers})
    return found


def experiments(runs: Sequence[Finished], kind: str) -> Iterable[tuple[str, str, list[Finished]]]:
    """Task (corpus), variant and runs of each experiment of a kind."""
    _, what, told = KINDS[kind]
    by_name: dict[str, list[Finished]] = {}
    for run in runs:
        if run.kind == kind:
            by_name.setdefault(run.config[what]["name"], []).append(run)
    for name, chosen in sorted(by_name.items()):
        for variant, group in sorted(variants(chosen, told).items()):
            yield name, variant, group


def variants(runs: Sequence[Finished], told: Sequence[str] = ()) -> dict[str, list[Finished]]:
    """Runs of one task or corpus by the settings in which they differ, and by those that are told in any case.

    What is left within a variant are its seeds. Each seed may have an init of its own, from a pretraining with that
    seed; where one seed has several, they count.
    """
    settings = [run.settings for run in runs]
    differing = [*dict.fromkeys([*told, *varying(settings)])]
    groups = grouped(runs, differing)
    seeds = [same for group in groups.values() for same in by_seed(group).values()]
    if any(len({run.settings.get("init") for run in same}) > 1 for same in seeds):
        groups = grouped(runs, [*differing, "init"])
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


def grouped(runs: Sequence[Finished], keys: Sequence[str]) -> dict[str, list[Finished]]:
    """The runs by their values of these settings."""
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
