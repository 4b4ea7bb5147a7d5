"""Score a fine-tuned run on a split: metrics and prediction files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.runs import files
from gpt1cli.runs.files import write_text
from gpt1cli.tasks.classification import compute_metrics, describe_answers, prediction_records
from gpt1cli.tasks.splits import Split


def write_predictions(path: Path, task: TaskConfig, split: Split, outputs: np.ndarray) -> None:
    """Write one JSON line for each example: id, label, prediction, and for classes the probability of each label."""
    with files.name_write_errors(path):
        path.parent.mkdir(exist_ok=True)
    lines = []
    for example, line in zip(split.examples, prediction_records(task, split.examples, outputs), strict=True):
        label = (
            task.labels[int(example.label)] if task.is_classification and example.label is not None else example.label
        )
        lines.append(json.dumps({"id": example.id, "label": label, **line}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def score_split(
    task: TaskConfig, name: str, split: Split, outputs: np.ndarray, folder: Path
) -> dict[str, dict[str, float]]:
    """Write a split's predictions into a run folder; return {name: metrics}, or {} if the split has no labels."""
    write_predictions(folder / "predictions" / f"{name}.jsonl", task, split, outputs)
    return {name: compute_metrics(task, split, outputs)} if split.labels is not None else {}


def adopt_trained_loss(task: TaskConfig, trained: TaskConfig) -> TaskConfig:
    """The task with loss=interpolation (a score between the two words of a prompt) if the run was trained with it."""
    if trained.loss == "interpolation" and not task.is_classification:
        return dataclasses.replace(task, loss=trained.loss)
    return task


def check_same_labels(trained: TaskConfig, task: TaskConfig, run: str) -> None:
    """Check that the head trained on one task can answer the other task. `run` is the key and value, as run=PATH.

    The loss of a classification, and the number and names of choices, may differ: a choice has one score per answer.
    Raises UserError if labels, range or layout differ.
    """
    same_head = trained.is_classification if task.is_classification else trained.loss == task.loss
    same_answers = (trained.labels, trained.range) == (task.labels, task.range) or (trained.choices and task.choices)
    if not (same_head and same_answers):
        raise UserError(
            f"task={task.name} has {describe_answers(task)}, but {run} was trained on task={trained.name},"
            f" {describe_answers(trained)}; use a task with the same labels or scores"
        )
    if trained.layout != task.layout:
        raise UserError(
            f"task={task.name} has layout {task.layout}, but {run} was trained with layout {trained.layout};"
            " use a task with the same layout"
        )
