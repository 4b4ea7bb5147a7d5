"""gpt1 evaluate: a fine-tuned run scored on any split of its task, or of a task with the same labels.

Several runs, as of one task with several prompts, are an ensemble: the mean of their scores answers (LM-BFF, section
5.2, where a model is fine-tuned for each template and the logits are averaged).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpt1cli.config.commands import EvaluateConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data.hub import Need, task_needs
from gpt1cli.evaluation import predictor
from gpt1cli.evaluation.evaluate import answered_as, refuse_other_labels, score_split
from gpt1cli.evaluation.predictor import load_tuned
from gpt1cli.evaluation.warnings import collapse_warning
from gpt1cli.pretrained import locate
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs.console import Progress
from gpt1cli.runs.folder import finish
from gpt1cli.runs.record import note, note_checksums
from gpt1cli.tasks import glue
from gpt1cli.tasks.splits import Split, check, load_split, warn_absent
from gpt1cli.training import device


def needs(config: EvaluateConfig) -> list[Need]:
    """What must be at hand before the run starts; UserError where a run was trained on no task, or on other labels."""
    check(config.task)
    methods = {}
    for run in config.members:
        described = locate.described(locate.find(run, "run"))
        trained = locate.task_of(described, run)
        refuse_other_labels(trained, answered_as(config.task, trained), f"run={run}")
        methods[described.get("method", "head"), trained.loss] = run
    if len(methods) > 1:
        told = ", ".join(f"{run}: method={method}, loss={loss}" for (method, loss), run in methods.items())
        raise UserError(f"runs: scores of different kinds have no mean: {told}")
    return task_needs(config.task)


def run(config: EvaluateConfig, folder: Path) -> None:
    """The best checkpoint of each run -> its outputs on each split -> their mean -> predictions and metrics."""
    machine = device.start(config.runtime, config.seed)
    note(folder, **machine.describe())
    first = locate.described(locate.find(config.members[0], "run"))
    task = answered_as(config.task, locate.task_of(first, config.members[0]))
    config = dataclasses.replace(config, task=task)
    names = [config.split] if config.split else [name for name in task.splits if name != "train"]

    began = time.perf_counter()
    result: dict[str, dict[str, float]] = {}
    checksums: dict[str, str] = {}
    splits: dict[str, Split] = {}
    outputs: dict[str, list[np.ndarray]] = {}
    checkpoints: list[str] = []
    total = len(config.members) * len(names)
    with Progress(folder, total, config.runtime.progress, description="split") as progress:
        for member in config.members:
            origin = locate.find(member, "run")
            model, vocabulary = load_tuned(origin)
            model.to(machine.device, machine.precision)
            asked = predictor.of(locate.described(origin), model, vocabulary, machine, config.hub)
            checkpoints.append(origin.name)
            checksums["tokenizer"] = vocabulary.identity
            for name in names:
                split = load_split(config, name, asked.arrange)
                if split is None:
                    warn_absent(progress, task, name)
                    continue
                progress.say(f"{name}: {split}")
                splits[name] = split
                outputs.setdefault(name, []).append(asked.outputs(model, split.examples, split.items))
                progress.update(sum(map(len, outputs.values())))
        for name, split in splits.items():
            mean = np.mean(outputs[name], axis=0)
            found = score_split(task, name, split, mean, folder)
            if warning := collapse_warning(task, name, split, mean):
                progress.say(warning)
            if told := glue.write_submission(folder, task, name, config.limit.test):
                progress.say(told)
            checksums[name] = split.digest
            result |= found
            told = " ".join(f"{metric} {value:.4f}" for metric, value in found.get(name, {}).items())
            progress.say(f"{name}: {told or 'no labels; predicted'}")
        if not splits:
            raise UserError(f"task={task.name}: nothing to score, none of {', '.join(names)} is there")
        note_checksums(folder, **checksums)
        about: dict[str, Any] = {
            "status": "finished",
            "command": "evaluate",
            "name": config.name,
            "seed": config.seed,
            **({"members": config.runs, "checkpoints": checkpoints} if config.runs else {}),
            **({"run": config.run, "checkpoint": checkpoints[0]} if config.run else {}),
            "seconds": round(time.perf_counter() - began, 3),
            "peak_memory_bytes": device.peak_memory_bytes(machine.device),
            "examples": {name: len(split.items) for name, split in splits.items()},
        }
        write_run_report(folder, {**about, **result})
        finish(folder, {**about, **result})
        progress.say(f"predictions: {folder / 'predictions'}")
