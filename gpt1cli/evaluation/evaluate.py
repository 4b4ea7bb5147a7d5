"""A fine-tuned run scored on a split: metrics and prediction files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.runs import files
from gpt1cli.runs.files import write_text
from gpt1cli.tasks.classification import _answers, measured, predicted
from gpt1cli.tasks.splits import Split


def write_predictions(path: Path, task: TaskConfig, split: Split, outputs: np.ndarray) -> None:
    """One line an example: id, label, prediction, and the probability of each label where the labels are classes."""
    with files.writing(path):
        path.parent.mkdir(exist_ok=True)
    lines = []
    for example, line in zip(split.examples, predicted(task, split.examples, outputs), strict=True):
        label = task.labels[int(example.label)] if task.classes and example.label is not None else example.label
        lines.append(json.dumps({"id": example.id, "label": label, **line}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def score_split(
    task: TaskConfig, name: str, split: Split, outputs: np.ndarray, folder: Path
) -> dict[str, dict[str, float]]:
    """Write a split's predictions into a run folder; its metrics under its name, or nothing where it has no labels."""
    write_predictions(folder / "predictions" / f"{name}.jsonl", task, split, outputs)
    return {name: measured(task, split, outputs)} if split.labels is not None else {}


def answered_as(task: TaskConfig, trained: TaskConfig) -> TaskConfig:
    """The task with its scores between the two words of a prompt, if that is how a run was trained to give scores."""
    return (
        dataclasses.replace(task, loss=trained.loss) if trained.loss == "interpolation" and not task.classes else task
    )


def refuse_other_labels(trained: TaskConfig, task: TaskConfig, run: str) -> None:
    """UserError unless the head of one task answers the questions of the other, by whatever loss it learned to.

    A choice has one score for any answer: how many there are, and what they are called, is all the same.
    """
    same_head = trained.classes if task.classes else trained.loss == task.loss
    same_answers = (trained.labels, trained.range) == (task.labels, task.range) or (trained.choices and task.choices)
    if not (same_head and same_answers):
        raise UserError(
            f"task={task.name} has {_answers(task)}; {run} was trained on task={trained.name}, {_answers(trained)}"
        )
    if trained.layout != task.layout:
        raise UserError(f"task={task.name} has the layout {task.layout}; {run} was trained on {trained.layout}")
