"""gpt1 zeroshot: a task answered by a language model as it is, without training (paper, section 5, Figure 2 right)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from gpt1cli import checkpoint, curves, options, origins, rundir, runtime, tasks
from gpt1cli.config import InputError, TaskConfig, ZeroshotConfig
from gpt1cli.curves import Curve
from gpt1cli.evaluation import warn_absent
from gpt1cli.hub import Need, init_needs, task_needs
from gpt1cli.loggers import Progress
from gpt1cli.models.transformer import Transformer
from gpt1cli.probing import Probes, against, best_threshold, likelihoods, load_probes, measured, predictions
from gpt1cli.report import write_run_report
from gpt1cli.runtime import Machine
from gpt1cli.scoring import ending_log_probabilities
from gpt1cli.tokenizer import Tokenizer


def needs(config: ZeroshotConfig) -> list[Need]:
    """What must be at hand before the run starts; InputError where the task has no rule, or a checkpoint is missing."""
    tasks.check(config.task)
    if config.task.zeroshot.rule is None:
        ruled = [name for name in options.names("task") if "zeroshot" in options.values("task", name)]
        raise InputError(f"task={config.task.name} has no task.zeroshot.rule; those that have: {', '.join(ruled)}")
    models = [need for init in config.inits for one in models_of(config, init) for need in init_needs(one)]
    return task_needs(config.task) + list(dict.fromkeys(models))


def run(config: ZeroshotConfig, folder: Path) -> None:
    """Each checkpoint that was asked for -> scores of the endings -> answers and metrics; of several a curve."""
    machine = runtime.start(config.runtime, config.seed)
    rundir.note(folder, **machine.describe())
    task = config.task
    chosen = [(init, name) for init in config.inits for name in models_of(config, init)]
    began = time.perf_counter()
    found: dict[str, dict[str, Any]] = {}  # init -> what its latest checkpoint scores
    drawn: dict[str, Curve] = {}
    asked: dict[tuple[str, int], dict[str, Probes]] = {}  # by tokenizer and positions
    with Progress(folder, len(chosen), config.runtime.progress, description="checkpoint") as progress:
        for number, (init, name) in enumerate(chosen, start=1):
            model, vocabulary = checkpoint.load(name, config.hub, config.cache)
            key = vocabulary.identity, model.config.n_positions
            if key not in asked:
                asked[key] = load_all(config, vocabulary, model.config.n_positions, progress)
            model.to(machine.device, machine.precision)
            step = origins.step_of(name)
            found[init] = score(task, model, vocabulary, asked[key], machine, folder, {"init": init, "step": step})
            headline = headline_of(task, found[init])
            if step is not None and headline is not None:
                architecture = getattr(model.config, "architecture", "transformer")
                label = "/".join(Path(init).parts[-2:])
                curve = drawn.setdefault(init, Curve(label, architecture, []))
                curve.points.append((step, curves.relative(headline, task.zeroshot.chance, task.zeroshot.reference)))
            progress.say(f"{name}: {told(task, found[init])}")
            progress.update(number)
        if len(chosen) > 1 and drawn:
            y = task.metrics[0] + ("" if task.zeroshot.reference is None else ", from chance (0) to reference (1)")
            curves.write(list(drawn.values()), f"{task.name}: {y}", folder / "plots" / "zeroshot.png")
        read = next(iter(asked.values()))
        digests = {split: probes.split.digest for split, probes in read.items()}
        rundir.note_checksums(folder, tokenizer=" ".join(dict.fromkeys(identity for identity, _ in asked)), **digests)
        result = {
            "status": "finished",
            "command": "zeroshot",
            "name": config.name,
            "seed": config.seed,
            "seconds": round(time.perf_counter() - began, 3),
            "peak_memory_bytes": runtime.peak_memory_bytes(machine.device),
            "examples": {split: len(probes.split.items) for split, probes in read.items()},
            "cut": {split: probes.split.cut for split, probes in read.items()},
            "checkpoints": len(chosen),
            **({"runs": found} if config.runs else found[config.inits[0]]),
        }
        write_run_report(folder, result)
        rundir.finish(folder, result)
        progress.say(f"predictions: {folder / 'predictions'}")


def models_of(config: ZeroshotConfig, init: str) -> list[str]:
    """The checkpoints of one init that are asked for."""
    return origins.checkpoints(init, config.checkpoint)


def load_all(config: ZeroshotConfig, vocabulary: Tokenizer, n_positions: int, progress: Progress) -> dict[str, Probes]:
    """The splits to answer, and train where a threshold is chosen on it. InputError where there is none to answer."""
    found = {}
    for name in config.task.splits:
        if name == "train" and config.task.zeroshot.rule != "sentence":
            continue
        probes = load_probes(config, name, vocabulary, n_positions)
        if probes is None:
            warn_absent(progress, config.task, name)
            continue
        progress.say(f"{name}: {probes.split}")
        found[name] = probes
    if not found.keys() - {"train"}:
        raise InputError(f"task={config.task.name}: nothing to answer, it has no split but train here")
    return found


def score(
    task: TaskConfig,
    model: Transformer,
    vocabulary: Tokenizer,
    asked: dict[str, Probes],
    machine: Machine,
    folder: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Answer every split with one model: a line of metrics each, their predictions, and both as part of the result."""
    V, found = len(vocabulary), {**about}
    for name in sorted(asked, key=lambda name: name != "train"):  # whose threshold the others need
        items, counts = asked[name].split.items, asked[name].scored
        values = ending_log_probabilities(model, items, counts, V, machine.micro_batch, machine.token_budget)
        scores, labels = likelihoods(values, task.zeroshot.normalise, V), asked[name].split.labels
        if name == "train":
            assert labels is not None
            found["threshold"] = best_threshold(scores[:, 0], labels)
            continue
        if "threshold" in found:
            scores = against(found["threshold"], scores)
        path = folder / "predictions" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for line in predictions(task, asked[name].split, scores):
                file.write(json.dumps({**line, **about}, ensure_ascii=False) + "\n")
        if labels is not None:
            found[name] = measured(task, labels, scores)
            rundir.append_jsonl(folder / "metrics.jsonl", {**about, "split": name, **found[name]})
    return found


def headline_of(task: TaskConfig, found: dict[str, Any]) -> float | None:
    """The number for a figure: the headline metric on valid, else on the first split with labels (winograd's test)."""
    split = next((name for name in ("valid", *task.splits) if name in found), None)
    return None if split is None else found[split][task.metrics[0]]


def told(task: TaskConfig, found: dict[str, Any]) -> str:
    """The scores of one model in a line."""
    splits = {name: found[name] for name in task.splits if name in found}
    lines = [f"{name} " + " ".join(f"{m} {v:.4g}" for m, v in values.items()) for name, values in splits.items()]
    return "; ".join(lines) or "no labels; predicted"
