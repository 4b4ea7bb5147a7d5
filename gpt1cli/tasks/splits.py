"""A task's splits as items for the model, and what the model makes of them: metrics and predictions.

Shared by every command that scores a fine-tuned model. N items, O outputs of the head.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpt1cli.config.commands import EvaluateConfig, FewshotConfig, FinetuneConfig, SearchConfig, ZeroshotConfig
from gpt1cli.config.schema import UserError, unknown
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.batch import Item
from gpt1cli.runs.console import Progress
from gpt1cli.tasks import SOURCES, few_shot, glue
from gpt1cli.tasks.example import Example, Loaded
from gpt1cli.tasks.metrics import CLASSIFICATION, METRICS, REGRESSION

READ_FILES = ("story_cloze",)  # sources that task.path= means something to


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


def load_examples(
    config: FinetuneConfig | EvaluateConfig | ZeroshotConfig | FewshotConfig | SearchConfig, name: str
) -> tuple[list[Example], int] | None:
    """The examples of a split within the command's limit, and how many rows had no label; None: no such split.

    The examples that a limit leaves for validation and test are the same for every seed. With shots=K train and valid
    are K of each class, drawn from the training split by seed.
    """
    loaded = load(config.task, name, config.hub, config.cache)
    if loaded is None:
        return None
    if isinstance(config, FinetuneConfig | SearchConfig) and config.shots and name in ("train", "valid"):
        train, valid = few_shot.draw(config.task, loaded.examples, config.shots, config.seed)
        return train if name == "train" else valid, loaded.dropped
    assert not isinstance(config, SearchConfig)  # which reads nothing else
    limit = getattr(config.limit, name.partition("_")[0])  # of valid_mismatched: that of valid
    return limit(loaded.examples, limit, config.seed if name == "train" else 0), loaded.dropped


# --- what the head gives: how many values, which loss, which prediction -----------------------------------------------


def warn_absent(progress: Progress, task: TaskConfig, name: str) -> None:
    """Say once that the data set lacks a split."""
    progress.say(f"{task.name} has no split {task.splits[name]} here: {name} is left out")


def check(task: TaskConfig) -> None:
    """UserError for a source or metrics that do not exist or do not fit: what groups.py, one floor below, cannot know.

    Every command calls it before it asks for data.
    """
    errors = [f"task.metrics: {unknown(name, METRICS, 'metric')}" for name in task.metrics if name not in METRICS]
    if task.source not in SOURCES:
        errors.append(f"task.source: {unknown(task.source, SOURCES, 'source')}")
    fitting = CLASSIFICATION if task.classes else REGRESSION
    errors += [
        f"task.metrics: {name} does not fit loss={task.loss}; right would be {', '.join(fitting)}"
        for name in task.metrics
        if name in METRICS and name not in fitting
    ]
    if "f1" in task.metrics and task.classes and (len(task.labels) != 2 or task.choices):
        classes = "a choice's are places" if task.choices else f"task.labels={task.labels}"
        errors.append(f"task.metrics=f1 is that of class 1 of two, but {classes}")
    if task.path and task.source not in READ_FILES:
        errors.append(f"task.path={task.path}: only task.source={', '.join(READ_FILES)} reads files of one's own")
    elif task.path and not Path(task.path).is_dir():
        errors.append(f"task.path={task.path}: no such folder")
    errors += glue.check(task)
    if errors:
        raise UserError("\n".join(errors))


def resolved(task: TaskConfig) -> TaskConfig:
    """The task with what its files tell, where they are the user's own (task=file)."""
    return importlib.import_module("gpt1cli.tasks.sources.file").resolved(task) if task.source == "file" else task


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> Loaded | None:
    """A split of a task under our name; None where the data set lacks it, UserError for train or valid.

    Rows without a label are dropped, but for a test split that has no label at all: that one is there to be predicted.
    """
    check(task)
    if split not in task.splits:
        raise UserError(unknown(split, task.splits, f"split of task={task.name}"))
    module, _, function = SOURCES[task.source].partition(":")
    examples = getattr(importlib.import_module(module), function)(task, task.splits[split], hub, cache)
    labelled = [example for example in examples or () if example.label is not None]
    if split in ("train", "valid") and not labelled:
        amiss = "has no labelled row" if examples else "is missing or empty"
        place = f"{task.repo or getattr(task, split) or task.source}{', subset ' + task.subset if task.subset else ''}"
        raise UserError(f"task={task.name}: split {task.splits[split]} of {place} {amiss}")
    if examples and not labelled and split.startswith("test"):
        return Loaded(examples, 0)
    return Loaded(labelled, len(examples) - len(labelled)) if labelled else None


def limit(examples: Sequence[Example], n: int | None, seed: int) -> list[Example]:
    """The first n of a seeded shuffle, the same on every machine; all of them, as they come, where n is None."""
    if n is None:
        return list(examples)
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:n]
