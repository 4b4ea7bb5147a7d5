"""gpt1 evaluate: a fine-tuned run scored on any split of its task, or of a task with the same labels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gpt1cli import checkpoint, glue, origins, rundir, runtime, tasks
from gpt1cli.config import EvaluateConfig
from gpt1cli.evaluation import doubt, load_split, refuse_other_labels, score_split, warn_absent
from gpt1cli.hub import Need, task_needs
from gpt1cli.loggers import Progress
from gpt1cli.runpage import write_run_report
from gpt1cli.schema import InputError
from gpt1cli.scoring import head_outputs


def needs(config: EvaluateConfig) -> list[Need]:
    """What must be at hand before the run starts; InputError where it was trained on no task, or on other labels."""
    tasks.check(config.task)
    trained = origins.task_of(origins.described(origins.find(config.run, "run")), config.run)
    refuse_other_labels(trained, config.task, f"run={config.run}")
    return task_needs(config.task)


def run(config: EvaluateConfig, folder: Path) -> None:
    """The best checkpoint -> its outputs on each split -> predictions and metrics."""
    machine = runtime.start(config.runtime, config.seed)
    rundir.note(folder, **machine.describe())
    origin = origins.find(config.run, "run")
    model, vocabulary = checkpoint.load_classifier(origin)
    model.to(machine.device, machine.precision)
    names = [config.split] if config.split else [name for name in config.task.splits if name != "train"]

    began = time.perf_counter()
    result: dict[str, dict[str, float]] = {}
    examples: dict[str, int] = {}
    checksums = {"tokenizer": vocabulary.identity}
    with Progress(folder, len(names), config.runtime.progress, description="split") as progress:
        for number, name in enumerate(names, start=1):
            body = model.body
            split = load_split(config, name, vocabulary, body.config.n_positions, body.branches)
            if split is None:
                warn_absent(progress, config.task, name)
                continue
            progress.say(f"{name}: {split}")
            outputs = head_outputs(model, split.items, machine.micro_batch, machine.token_budget)
            found = score_split(config.task, name, split, outputs, folder)
            if warning := doubt(config.task, name, split, outputs):
                progress.say(warning)
            if told := glue.write_submission(folder, config.task, name, config.limit.test):
                progress.say(told)
            examples[name], checksums[name] = len(split.items), split.digest
            result |= found
            told = " ".join(f"{metric} {value:.4f}" for metric, value in found.get(name, {}).items())
            progress.say(f"{name}: {told or 'no labels; predicted'}")
            progress.update(number)
        if not examples:
            raise InputError(f"task={config.task.name}: nothing to score, none of {', '.join(names)} is there")
        rundir.note_checksums(folder, **checksums)
        about: dict[str, Any] = {
            "status": "finished",
            "command": "evaluate",
            "name": config.name,
            "seed": config.seed,
            "run": config.run,
            "checkpoint": origin.name,
            "seconds": round(time.perf_counter() - began, 3),
            "peak_memory_bytes": runtime.peak_memory_bytes(machine.device),
            "examples": examples,
        }
        write_run_report(folder, {**about, **result})
        rundir.finish(folder, {**about, **result})
        progress.say(f"predictions: {folder / 'predictions'}")
