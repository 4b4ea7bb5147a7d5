"""gpt1 evaluate: a fine-tuned run scored on any split of its task, or of a task with the same labels.

Several runs, for example of one task with several prompts, form an ensemble: the mean of their scores predicts (LM-BFF,
section 5.2: one model fine-tuned for each template, logits averaged).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpt1cli.config.commands import EvaluateConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data.hub import Requirement, task_requirements
from gpt1cli.evaluation.evaluate import adopt_trained_loss, check_same_labels, score_split
from gpt1cli.evaluation.predictor import load_fine_tuned, restore_predictor
from gpt1cli.evaluation.warnings import collapse_warning
from gpt1cli.pretrained import locate
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs.console import Progress
from gpt1cli.runs.folder import finish_run
from gpt1cli.runs.record import record_checksums, update_environment
from gpt1cli.tasks import glue
from gpt1cli.tasks.splits import Split, check_task, load_split, warn_missing_split
from gpt1cli.training import device


def needs(config: EvaluateConfig) -> list[Requirement]:
    """Return what the run requires. Raises UserError if a run was trained on no task or on other labels."""
    check_task(config.task)
    methods = {}
    for run in config.ensemble_runs:
        checkpoint = locate.read_checkpoint_config(locate.resolve_checkpoint(run, "run"))
        trained = locate.checkpoint_task(checkpoint, run)
        check_same_labels(trained, adopt_trained_loss(config.task, trained), f"run={run}")
        methods[checkpoint.get("method", "head"), trained.loss] = run
    if len(methods) > 1:
        groups = ", ".join(f"{run}: method={method}, loss={loss}" for (method, loss), run in methods.items())
        raise UserError(f"runs: scores of different methods or losses cannot be averaged: {groups}")
    return task_requirements(config.task)


def run(config: EvaluateConfig, folder: Path) -> None:
    """Best checkpoint of each run -> outputs on each split -> their mean -> predictions and metrics."""
    machine = device.setup_device(config.runtime, config.seed)
    update_environment(folder, **machine.describe())
    checkpoint = locate.read_checkpoint_config(locate.resolve_checkpoint(config.ensemble_runs[0], "run"))
    task = adopt_trained_loss(config.task, locate.checkpoint_task(checkpoint, config.ensemble_runs[0]))
    config = dataclasses.replace(config, task=task)
    names = [config.split] if config.split else [name for name in task.splits if name != "train"]

    start_time = time.perf_counter()
    result: dict[str, dict[str, float]] = {}
    checksums: dict[str, str] = {}
    splits: dict[str, Split] = {}
    outputs: dict[str, list[np.ndarray]] = {}
    checkpoints: list[str] = []
    total = len(config.ensemble_runs) * len(names)
    with Progress(folder, total, config.runtime.progress, description="split") as progress:
        for member in config.ensemble_runs:
            checkpoint_folder = locate.resolve_checkpoint(member, "run")
            model, tokenizer = load_fine_tuned(checkpoint_folder)
            model.to(machine.device, machine.precision)
            predictor = restore_predictor(
                locate.read_checkpoint_config(checkpoint_folder), model, tokenizer, machine, config.hub
            )
            checkpoints.append(checkpoint_folder.name)
            checksums["tokenizer"] = tokenizer.identity
            for name in names:
                split = load_split(config, name, predictor.encode)
                if split is None:
                    warn_missing_split(progress, task, name)
                    continue
                progress.say(f"{name}: {split}")
                splits[name] = split
                outputs.setdefault(name, []).append(predictor.outputs(model, split.examples, split.items))
                progress.update(sum(map(len, outputs.values())))
        for name, split in splits.items():
            mean = np.mean(outputs[name], axis=0)
            metrics = score_split(task, name, split, mean, folder)
            if warning := collapse_warning(task, name, split, mean):
                progress.say(warning)
            if message := glue.write_submission(folder, task, name, config.limit.test):
                progress.say(message)
            checksums[name] = split.digest
            result |= metrics
            message = " ".join(f"{metric} {value:.4f}" for metric, value in metrics.get(name, {}).items())
            progress.say(f"{name}: {message or 'no labels, predicted only'}")
        if not splits:
            raise UserError(f"task={task.name}: nothing to score; no split found of {', '.join(names)}")
        record_checksums(folder, **checksums)
        summary: dict[str, Any] = {
            "status": "finished",
            "command": "evaluate",
            "name": config.name,
            "seed": config.seed,
            **({"members": config.runs, "checkpoints": checkpoints} if config.runs else {}),
            **({"run": config.run, "checkpoint": checkpoints[0]} if config.run else {}),
            "seconds": round(time.perf_counter() - start_time, 3),
            "peak_memory_bytes": device.peak_memory_bytes(machine.device),
            "examples": {name: len(split.items) for name, split in splits.items()},
        }
        write_run_report(folder, {**summary, **result})
        finish_run(folder, {**summary, **result})
        progress.say(f"predictions: {folder / 'predictions'}")
