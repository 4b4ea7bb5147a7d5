"""From head outputs to losses, predictions, metrics and prediction records. N examples, O outputs of the head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks import metrics
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.losses import TASK_LOSSES, TaskLoss, interpolation_divergence, ordinal_cross_entropy
from gpt1cli.tasks.splits import Split


def output_count(task: TaskConfig) -> int:
    """Outputs of the head for one example (for multiple choice: one for each answer)."""
    if task.is_classification:
        return len(task.labels)
    assert task.range
    return 1 if task.loss == "mse" else task.range[1] - task.range[0] + 1


def task_loss(task: TaskConfig) -> TaskLoss:
    """The task's loss: (outputs [N,O] fp32, labels [N]) -> [], summed over examples."""
    if task.loss == "ordinal":
        assert task.range
        lowest = task.range[0]
        return lambda outputs, labels: ordinal_cross_entropy(outputs, labels - lowest)
    if task.loss == "interpolation":
        assert task.range
        low, high = task.range
        return lambda outputs, labels: interpolation_divergence(outputs, (labels - low) / (high - low))
    return TASK_LOSSES[task.loss]


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Softmax over the outputs of each example. [N,O] -> [N,O]"""
    return torch.from_numpy(outputs).softmax(-1).numpy()


def decode_outputs(task: TaskConfig, outputs: np.ndarray) -> np.ndarray:
    """The most probable class, or the score: the output itself, or the expected value over levels or over both ends.

    [N,O] -> [N]
    """
    if task.is_classification:
        return outputs.argmax(-1)
    if task.loss == "mse":
        return outputs[:, 0]
    assert task.range
    levels = task.range if task.loss == "interpolation" else range(task.range[0], task.range[1] + 1)
    return probabilities(outputs) @ np.array(levels)


def compute_metrics(task: TaskConfig, split: Split, outputs: np.ndarray) -> dict[str, float]:
    """The mean loss and the metrics of a labelled split. outputs [N,O]"""
    assert split.labels is not None
    loss = task_loss(task)(torch.from_numpy(outputs), torch.tensor(split.labels)).item() / len(outputs)
    return {"loss": loss, **metrics.metric_values(task.metrics, split.labels, decode_outputs(task, outputs))}


def prediction_records(task: TaskConfig, examples: Sequence[Example], outputs: np.ndarray) -> Iterator[dict[str, Any]]:
    """For each example its id and prediction, and the probability of each label if the labels are classes."""
    decoded = decode_outputs(task, outputs)
    if not task.is_classification:
        for example, score in zip(examples, decoded, strict=True):
            yield {"id": example.id, "prediction": round(float(score), 6)}
        return
    for example, prediction, row in zip(examples, decoded, probabilities(outputs), strict=True):
        scores = {label: round(float(p), 6) for label, p in zip(task.labels, row, strict=True)}
        yield {"id": example.id, "prediction": task.labels[prediction], "scores": scores}


def describe_answers(task: TaskConfig) -> str:
    """The labels, or the range of scores and the loss, as a message names them."""
    return "labels " + ", ".join(task.labels) if task.is_classification else f"scores of {task.range}, loss {task.loss}"
