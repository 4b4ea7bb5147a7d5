"""Labelled data sets. A task is a yaml in conf/task; where its source is new, one loader here and one line in SOURCES.

A loader is a function (task, the data set's own split name, hub, cache) -> examples; None where there is no such split.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt1cli import glue
from gpt1cli.config.schema import InputError, unknown
from gpt1cli.config.task import TaskConfig
from gpt1cli.metrics import CLASSIFICATION, METRICS, REGRESSION
from gpt1cli.tasks.layouts import Example

SOURCES: dict[str, str] = {  # task.source -> its loader
    "rows": "gpt1cli.tasks.rows:load",
    "story_cloze": "gpt1cli.tasks.story_cloze:load",
    "winograd": "gpt1cli.tasks.pronouns:winograd",
    "dprd": "gpt1cli.tasks.pronouns:dprd",
    "blimp": "gpt1cli.tasks.blimp:load",
    "demo_world": "gpt1cli.tasks.demo:load",
    "file": "gpt1cli.tasks.file:load",
}


READ_FILES = ("story_cloze",)  # sources that task.path= means something to


class Loaded(NamedTuple):
    """The examples of a split that are used, and how many were dropped because they have no label."""

    examples: list[Example]
    dropped: int


def check(task: TaskConfig) -> None:
    """InputError for a source or metrics that do not exist or do not fit: what groups.py, one floor below, cannot know.

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
        raise InputError("\n".join(errors))


def resolved(task: TaskConfig) -> TaskConfig:
    """The task with what its files tell, where they are the user's own (task=file)."""
    return importlib.import_module("gpt1cli.tasks.file").resolved(task) if task.source == "file" else task


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
        place = f"{task.repo or getattr(task, split) or task.source}{', subset ' + task.subset if task.subset else ''}"
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
