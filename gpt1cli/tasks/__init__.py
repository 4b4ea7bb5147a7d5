"""Labelled data sets. A task is a yaml in conf/task; where its source is new, one loader here and one line in SOURCES.

A loader is a function (task, the data set's own split name, hub, cache) -> examples; None where there is no such split.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt1cli.config import InputError, TaskConfig, unknown
from gpt1cli.metrics import METRICS, REGRESSION
from gpt1cli.tasks.layouts import Example

SOURCES: dict[str, str] = {  # task.source -> its loader
    "rows": "gpt1cli.tasks.rows:load",
    "demo_world": "gpt1cli.tasks.demo:load",
}


class Loaded(NamedTuple):
    """The examples of a split that are used, and how many were dropped because they have no label."""

    examples: list[Example]
    dropped: int


def check(task: TaskConfig) -> None:
    """InputError for a source or metrics that do not exist: what config.py, one floor below, cannot know."""
    errors = [f"task.metrics: {unknown(name, METRICS, 'metric')}" for name in task.metrics if name not in METRICS]
    if task.source not in SOURCES:
        errors.append(f"task.source: {unknown(task.source, SOURCES, 'source')}")
    if scores := [name for name in task.metrics if name in REGRESSION]:
        errors.append(f"task.metrics: {', '.join(scores)} is for scores, but the labels are classes")
    if "f1" in task.metrics and len(task.labels) != 2:
        errors.append(f"task.metrics=f1 is that of class 1 of two, but task.labels={task.labels}")
    if errors:
        raise InputError("\n".join(errors))


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> Loaded | None:
    """A split of a task under our name; None where the data set lacks it, InputError for train or valid.

    Rows without a label are dropped, but for a test split that has no label at all: that one is there to be predicted.
    """
    check(task)
    if split not in task.splits:
        raise InputError(unknown(split, task.splits, f"split of task={task.name}"))
    module, _, function = SOURCES[task.source].partition(":")
    examples = getattr(importlib.import_module(module), function)(task, task.splits[split], hub, cache)
    labelled = [example for example in examples or () if example.label is not None]
    if split in ("train", "valid") and not labelled:
        amiss = "has no labelled row" if examples else "is missing or empty"
        place = f"{task.repo or task.source}{', subset ' + task.subset if task.subset else ''}"
        raise InputError(f"task={task.name}: split {task.splits[split]} of {place} {amiss}")
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
