"""gpt1 zeroshot: a task answered by a language model as it is, without training (paper, section 5, Figure 2 right)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from gpt1cli.config import options
from gpt1cli.config.commands import ZeroshotConfig
from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.data.hub import Need, task_needs
from gpt1cli.evaluation.warnings import zero_shot_collapse_warning
from gpt1cli.models.inference import ending_log_probabilities
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.pretrained import load, locate
from gpt1cli.pretrained.locate import init_needs
from gpt1cli.prompts.zero_shot import Probes, against, best_threshold, likelihoods, load_probes, measured, predictions
from gpt1cli.reporting import figure2
from gpt1cli.reporting.collect import told_apart
from gpt1cli.reporting.figure2 import Curve
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import files, trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import write_text
from gpt1cli.runs.folder import finish
from gpt1cli.runs.record import note, note_checksums
from gpt1cli.tasks.splits import check, warn_absent
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import device
from gpt1cli.training.device import Machine


def needs(config: ZeroshotConfig) -> list[Need]:
    """What must be at hand before the run starts; UserError where the task has no rule, or a checkpoint is missing."""
    trackers.check(config.logger)
    check(config.task)
    if config.task.zeroshot.rule is None:
        ruled = [name for name in options.names("task") if "zeroshot" in options.values("task", name)]
        raise UserError(f"task={config.task.name} has no task.zeroshot.rule; those that have: {', '.join(ruled)}")
    models = [name for init in config.inits for name in locate.checkpoints(init, config.checkpoint)]
    return task_needs(config.task) + [need for name in models for need in init_needs(name)]


def run(config: ZeroshotConfig, folder: Path) -> None:
    """Each checkpoint that was asked for -> scores of the endings -> answers and metrics; of several a curve."""
    machine = device.start(config.runtime, config.seed)
    note(folder, **machine.describe())
    task, began = config.task, time.perf_counter()
    chosen = [(init, name) for init in config.inits for name in locate.checkpoints(init, config.checkpoint)]
    asked: dict[tuple[str, int, bool], dict[str, Probes]] = {}  # what the models read differently is laid out again
    found: dict[str, dict[str, Any]] = {}  # init -> the scores of its latest checkpoint
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {}  # and its answers to each split
    drawn: dict[str, Curve] = {}
    labels = dict(zip(config.inits, told_apart(config.inits), strict=True))
    with (
        Progress(folder, len(chosen), config.runtime.progress, description="checkpoint") as progress,
        trackers.recording(config, folder, progress.say, labels if config.runs else {}) as log,
    ):
        for number, (init, name) in enumerate(chosen, start=1):
            model, vocabulary = load.load(name, config.hub, config.cache)
            reading = vocabulary.identity, model.config.n_positions, model.branches
            if reading not in asked:
                asked[reading] = load_all(config, vocabulary, model, progress)
            model.to(machine.device, machine.precision)
            about = {"init": init, "step": locate.step_of(name)}
            scores, answers[init] = score(task, model, len(vocabulary), asked[reading], machine)
            found[init] = {**about, **scores}
            for split in task.splits:
                if split in scores:
                    log({**about, "split": split, **scores[split]})
            if (point := point_of(task, found[init])) is not None:
                drawn.setdefault(init, Curve(labels[init], model.config.architecture, [])).points.append(point)
            progress.say(f"{name}: {told(task, scores)}")
            progress.update(number)
        pictures = []
        if len(chosen) > 1 and drawn:
            placed = task.zeroshot.reference is not None
            y = task.metrics[0] + (", from chance (0) to reference (1)" if placed else "")
            several = list(drawn.values())
            pictures = [figure2.picture("zeroshot", f"{task.name} without training", y, several, zero=placed)]
            with files.writing(folder / "plots"):
                (folder / "plots").mkdir()
            write_text(folder / "plots" / "zeroshot.csv", figure2.table(several))
        write_answers(folder, answers, several=bool(config.runs))
        for init, split in ((init, split) for init, said in answers.items() for split in said):
            if warning := zero_shot_collapse_warning(task, split, answers[init][split]):
                progress.say(warning if len(answers) == 1 else f"{labels[init]}: {warning}")
        splits = {name: probes.split for name, probes in next(iter(asked.values())).items()}
        tokenizers = " ".join(dict.fromkeys(identity for identity, _, _ in asked))
        note_checksums(folder, tokenizer=tokenizers, **{name: split.digest for name, split in splits.items()})
        result = {
            "status": "finished",
            "command": "zeroshot",
            "name": config.name,
            "seed": config.seed,
            "seconds": round(time.perf_counter() - began, 3),
            "peak_memory_bytes": device.peak_memory_bytes(machine.device),
            "checkpoints": len(chosen),
            "examples": {name: len(split.items) for name, split in splits.items()},
            "cut": {name: split.cut for name, split in splits.items()},
            **({"runs": found} if config.runs else found[config.inits[0]]),
        }
        write_run_report(folder, result, pictures)
        finish(folder, result)
        curve = f"; curve: {folder / 'plots' / 'zeroshot.png'}" if pictures else ""
        progress.say(f"predictions: {folder / 'predictions'}{curve}")


def load_all(
    config: ZeroshotConfig, vocabulary: Tokenizer, model: LanguageModel, progress: Progress
) -> dict[str, Probes]:
    """The splits to answer, after train where a threshold is chosen on it. UserError where none is there."""
    names = [name for name in config.task.splits if name != "train"]
    found = {}
    for name in (["train"] if config.task.zeroshot.rule == "sentence" else []) + names:
        probes = load_probes(config, name, vocabulary, model.config.n_positions, model.branches)
        if probes is None:
            warn_absent(progress, config.task, name)
            continue
        progress.say(f"{name}: {probes.split}")
        found[name] = probes
    if not found.keys() & set(names):
        raise UserError(f"task={config.task.name}: nothing to answer, none of {', '.join(names)} is there")
    return found


def score(
    task: TaskConfig, model: LanguageModel, vocabulary: int, asked: dict[str, Probes], machine: Machine
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """What one model scores: the metrics of each labelled split and the threshold, if any; and all of its answers."""
    found: dict[str, Any] = {}
    answers = {}
    for name, probes in asked.items():
        items, counts, labels = probes.split.items, probes.scored, probes.split.labels
        values = ending_log_probabilities(model, items, counts, vocabulary, machine.micro_batch, machine.token_budget)
        scores = likelihoods(values, task.zeroshot.normalise, vocabulary)
        if name == "train":
            assert labels is not None
            found["threshold"] = best_threshold(scores[:, 0], labels)
            continue
        if "threshold" in found:
            scores = against(found["threshold"], scores)
        answers[name] = list(predictions(task, probes.split, scores))
        if labels is not None:
            found[name] = measured(task, labels, scores)
    return found, answers


def point_of(task: TaskConfig, found: dict[str, Any]) -> tuple[int, float] | None:
    """Step and headline metric for the figure, on valid, else on the first split with labels; None without either."""
    split = next((name for name in ("valid", *task.splits) if name in found), None)
    if found["step"] is None or split is None:
        return None
    value = found[split][task.metrics[0]]
    return found["step"], figure2.relative(value, task.zeroshot.chance, task.zeroshot.reference)


def write_answers(folder: Path, answers: dict[str, dict[str, list[dict[str, Any]]]], several: bool) -> None:
    """predictions/<split>.jsonl: the answers of the latest checkpoint; those of several runs name their run."""
    with files.writing(folder / "predictions"):
        (folder / "predictions").mkdir()
    for name in next(iter(answers.values())):
        lines = [{**line, **({"init": init} if several else {})} for init in answers for line in answers[init][name]]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(folder / "predictions" / f"{name}.jsonl", text)


def told(task: TaskConfig, found: dict[str, Any]) -> str:
    """The scores of one model in a line."""
    splits = {name: found[name] for name in task.splits if name in found}
    lines = [f"{name} " + " ".join(f"{m} {v:.4g}" for m, v in values.items()) for name, values in splits.items()]
    return "; ".join(lines) or "no labels; predicted"
