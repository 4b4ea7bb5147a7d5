"""A task's splits as items for the model, and what the model makes of them: metrics and predictions.

Shared by every command that scores a fine-tuned model. N items, O outputs of the head.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from gpt1cli import metrics, tasks
from gpt1cli.config.commands import EvaluateConfig, FewshotConfig, FinetuneConfig, SearchConfig, ZeroshotConfig
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.batch import Item
from gpt1cli.objectives import TASK_LOSSES, TaskLoss, interpolation, ordinal
from gpt1cli.runs.console import Progress
from gpt1cli.tasks import few
from gpt1cli.tasks.layouts import LAYOUTS, Example, Ids, special
from gpt1cli.tokenizer import Tokenizer

TOGETHER = 1024  # examples whose texts go to the tokenizer at a time


@dataclass(frozen=True)
class Split:
    """The examples of one split, as items for the model."""

    examples: Sequence[Example]
    items: Sequence[Item]
    cut: int  # examples of which a text was cut to fit
    dropped: int  # rows of the data set without a label
    left_out: int = 0  # demonstrations that did not fit before their query

    @property
    def digest(self) -> str:
        """16 hex digits over the examples, in order."""
        rows = [(example.id, example.texts, example.choices, example.label) for example in self.examples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @property
    def labels(self) -> list[int | float] | None:
        """The labels, or None where the split has none."""
        labels = [example.label for example in self.examples if example.label is not None]
        return labels if len(labels) == len(self.examples) else None

    def __str__(self) -> str:
        cut = f", {self.cut:,} cut to fit n_positions" if self.cut else ""
        unknown = ", without labels" if self.labels is None else ""
        dropped = f", {self.dropped:,} without a label left out" if self.dropped else ""
        left_out = f", {self.left_out:,} demonstrations left out to fit" if self.left_out else ""
        return f"{len(self.examples):,} examples{cut}{unknown}{dropped}{left_out}"


class Arranged(NamedTuple):
    """Examples as items of which no position exceeds n_positions, and what that took."""

    items: Sequence[Item]
    cut: int
    left_out: int = 0  # demonstrations


Arrange = Callable[[Sequence[Example]], Arranged]  # see asking.py


def load_split(config: FinetuneConfig | EvaluateConfig, name: str, arrange: Arrange) -> Split | None:
    """A split of the command's task as items; None where there is no such."""
    loaded = load_examples(config, name)
    if loaded is None:
        return None
    examples, dropped = loaded
    items, cut, left_out = arrange(examples)
    return Split(examples, items, cut, dropped, left_out)


def items_of(
    task: TaskConfig, examples: Sequence[Example], vocabulary: Tokenizer, n_positions: int, branches: bool
) -> tuple[list[Item], int]:
    """Examples as items for a head, of which no position exceeds n_positions, and how many were cut for that.

    A model without branches gets every sequence in a row of its own.
    """
    arrange, items, cuts = LAYOUTS[task.layout], [], 0
    for example, texts, choices in encoded(examples, vocabulary):
        laid = arrange(texts, choices, special(len(vocabulary)), n_positions)
        items.append(Item.of(laid.rows, example.label, laid.shared if branches else 0))
        cuts += laid.cut
    return items, cuts


def load_examples(
    config: FinetuneConfig | EvaluateConfig | ZeroshotConfig | FewshotConfig | SearchConfig, name: str
) -> tuple[list[Example], int] | None:
    """The examples of a split within the command's limit, and how many rows had no label; None: no such split.

    The examples that a limit leaves for validation and test are the same for every seed. With shots=K train and valid
    are K of each class, drawn from the training split by seed.
    """
    loaded = tasks.load(config.task, name, config.hub, config.cache)
    if loaded is None:
        return None
    if isinstance(config, FinetuneConfig | SearchConfig) and config.shots and name in ("train", "valid"):
        train, valid = few.draw(config.task, loaded.examples, config.shots, config.seed)
        return train if name == "train" else valid, loaded.dropped
    assert not isinstance(config, SearchConfig)  # which reads nothing else
    limit = getattr(config.limit, name.partition("_")[0])  # of valid_mismatched: that of valid
    return tasks.limit(loaded.examples, limit, config.seed if name == "train" else 0), loaded.dropped


def encoded(
    examples: Sequence[Example], vocabulary: Tokenizer
) -> Iterator[tuple[Example, Sequence[Ids], Sequence[Ids]]]:
    """Each example with the token ids of its texts and of its choices, every text tokenised by itself.

    As they stand behind one another: with byte-level pieces a blank comes before each.
    """
    for start in range(0, len(examples), TOGETHER):
        some = examples[start : start + TOGETHER]
        ids = iter(
            vocabulary.encode_batch(vocabulary.running(text) for each in some for text in (*each.texts, *each.choices))
        )
        for example in some:
            texts, choices = (list(itertools.islice(ids, len(given))) for given in (example.texts, example.choices))
            yield example, texts, choices


# --- what the head gives: how many values, which loss, which prediction -----------------------------------------------


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






def warn_absent(progress: Progress, task: TaskConfig, name: str) -> None:
    """Say once that the data set lacks a split."""
    progress.say(f"{task.name} has no split {task.splits[name]} here: {name} is left out")






def _answers(task: TaskConfig) -> str:
    return "labels " + ", ".join(task.labels) if task.classes else f"scores of {task.range}, loss {task.loss}"
