"""From head outputs to losses, predictions, metrics and prediction records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks import metrics
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.losses import TASK_LOSSES, TaskLoss, interpolation, ordinal
from gpt1cli.tasks.splits import Split


def outputs_of(task: TaskConfig) -> int:
    """How many values the head gives for an item (for a choice: one for each answer)."""
    if task.classes:
        return len(task.labels)
    assert task.range
    return 1 if task.loss == "mse" else task.range[1] - task.range[0] + 1


def loss_of(task: TaskConfig) -> TaskLoss:
    """The task's loss, (outputs [N,O] fp32, labels [N]) -> [] summed."""
    if task.loss == "ordinal":
        assert task.range
        lowest = task.range[0]
        return lambda outputs, labels: ordinal(outputs, labels - lowest)
    if task.loss == "interpolation":
        assert task.range
        low, high = task.range
        return lambda outputs, labels: interpolation(outputs, (labels - low) / (high - low))
    return TASK_LOSSES[task.loss]


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """softmax over the outputs of each item. [N,O] -> [N,O]"""
    return torch.from_numpy(outputs).softmax(-1).numpy()


def predictions(task: TaskConfig, outputs: np.ndarray) -> np.ndarray:
    """The likeliest class, the score, or what is expected of the levels or the two ends of it. [N,O] -> [N]"""
    if task.classes:
        return outputs.argmax(-1)
    if task.loss == "mse":
        return outputs[:, 0]
    assert task.range
    levels = task.range if task.loss == "interpolation" else range(task.range[0], task.range[1] + 1)
    return probabilities(outputs) @ np.array(levels)


def measured(task: TaskConfig, split: Split, outputs: np.ndarray) -> dict[str, float]:
    """The mean loss and the metrics of a labelled split. outputs [N,O]"""
    assert split.labels is not None
    loss = loss_of(task)(torch.from_numpy(outputs), torch.tensor(split.labels)).item() / len(outputs)
    return {"loss": loss, **metrics.score(task.metrics, split.labels, predictions(task, outputs))}


def predicted(task: TaskConfig, examples: Sequence[Example], outputs: np.ndarray) -> Iterator[dict[str, Any]]:
    """Of each example its id and prediction, and the probability of each label where the labels are classes."""
    found = predictions(task, outputs)
    if not task.classes:
        for example, score in zip(examples, found, strict=True):
            yield {"id": example.id, "prediction": round(float(score), 6)}
        return
    for example, prediction, row in zip(examples, found, probabilities(outputs), strict=True):
        scores = {label: round(float(p), 6) for label, p in zip(task.labels, row, strict=True)}
        yield {"id": example.id, "prediction": task.labels[prediction], "scores": scores}


def _answers(task: TaskConfig) -> str:
    return "labels " + ", ".join(task.labels) if task.classes else f"scores of {task.range}, loss {task.loss}"
