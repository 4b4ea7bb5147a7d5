"""A task's splits: examples loaded, checked, limited, and encoded as items for the model.

Every command that reads labelled data loads it here.
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
from gpt1cli.config.schema import UserError, unknown_name
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.batch import Item
from gpt1cli.runs.console import Progress
from gpt1cli.tasks import SOURCES, few_shot, glue
from gpt1cli.tasks.example import Example, LabelledSplit
from gpt1cli.tasks.metrics import CLASSIFICATION, METRICS, REGRESSION

PATH_SOURCES = ("story_cloze",)  # sources that read the files in task.path=


@dataclass(frozen=True)
class Split:
    """The examples of one split, as items for the model."""

    examples: Sequence[Example]
    items: Sequence[Item]
    truncated: int  # examples with a text truncated to fit n_positions
    unlabelled: int  # rows of the data set without a label, skipped
    skipped_demonstrations: int = 0  # demonstrations that did not fit before their query

    @property
    def digest(self) -> str:
        """16 hex digits over the examples, in order."""
        rows = [(example.id, example.texts, example.choices, example.label) for example in self.examples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @property
    def labels(self) -> list[int | float] | None:
        """The labels, or None if an example has none."""
        labels = [example.label for example in self.examples if example.label is not None]
        return labels if len(labels) == len(self.examples) else None

    def __str__(self) -> str:
        truncated = f", {self.truncated:,} truncated to n_positions" if self.truncated else ""
        labels = ", without labels" if self.labels is None else ""
        unlabelled = f", {self.unlabelled:,} rows without a label skipped" if self.unlabelled else ""
        skipped = self.skipped_demonstrations
        demonstrations = f", {skipped:,} demonstrations skipped (they did not fit)" if skipped else ""
        return f"{len(self.examples):,} examples{truncated}{labels}{unlabelled}{demonstrations}"


class EncodedExamples(NamedTuple):
    """Examples as items of at most n_positions positions, and how many examples were truncated for that."""

    items: Sequence[Item]
    truncated: int
    skipped_demonstrations: int = 0


ExampleEncoder = Callable[[Sequence[Example]], EncodedExamples]  # see evaluation/predictor.py


def check_task(task: TaskConfig) -> None:
    """Check what gpt1cli/config cannot know: sources and metrics. Every command calls this before it loads data.

    Raises UserError if a source or a metric does not exist or does not fit the task.
    """
    errors = [f"task.metrics: {unknown_name(name, METRICS, 'metric')}" for name in task.metrics if name not in METRICS]
    if task.source not in SOURCES:
        errors.append(f"task.source: {unknown_name(task.source, SOURCES, 'source')}")
    fitting = CLASSIFICATION if task.is_classification else REGRESSION
    errors += [
        f"task.metrics: {name} does not fit loss={task.loss}; allowed: {', '.join(fitting)}"
        for name in task.metrics
        if name in METRICS and name not in fitting
    ]
    if "f1" in task.metrics and task.is_classification and (len(task.labels) != 2 or task.choices):
        problem = "the task is multiple choice" if task.choices else f"task.labels={task.labels}"
        errors.append(f"task.metrics=f1 is the F1 of class 1 of two classes, but {problem}")
    if task.path and task.source not in PATH_SOURCES:
        errors.append(f"task.path={task.path}: only task.source={', '.join(PATH_SOURCES)} reads a folder of files")
    elif task.path and not Path(task.path).is_dir():
        errors.append(f"task.path={task.path}: no such folder")
    errors += glue.submission_problems(task)
    if errors:
        raise UserError("\n".join(errors))


def complete_task(task: TaskConfig) -> TaskConfig:
    """The task with the columns, labels and splits inferred from its files, if they are the user's own (task=file)."""
    return importlib.import_module("gpt1cli.tasks.sources.file").infer_task(task) if task.source == "file" else task


def load_labelled(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> LabelledSplit | None:
    """The labelled rows of a task's split; None if the data set does not have this split. `split` is our name of it.

    Rows without a label are skipped. A test split in which no row has a label is kept whole: it can be predicted.

    Raises UserError if train or valid does not exist or has no labelled row.
    """
    check_task(task)
    if split not in task.splits:
        raise UserError(unknown_name(split, task.splits, f"split of task={task.name}"))
    module, _, function = SOURCES[task.source].partition(":")
    examples = getattr(importlib.import_module(module), function)(task, task.splits[split], hub, cache)
    labelled = [example for example in examples or () if example.label is not None]
    if split in ("train", "valid") and not labelled:
        problem = "has no labelled row" if examples else "is missing or empty"
        place = f"{task.repo or getattr(task, split) or task.source}{', subset ' + task.subset if task.subset else ''}"
        raise UserError(f"task={task.name}: split {task.splits[split]} of {place} {problem}")
    if examples and not labelled and split.startswith("test"):
        return LabelledSplit(examples, 0)
    return LabelledSplit(labelled, len(examples) - len(labelled)) if labelled else None


def sample_examples(examples: Sequence[Example], n: int | None, seed: int) -> list[Example]:
    """The first n examples of a seeded shuffle, the same on every machine; all examples in their order if n is None."""
    if n is None:
        return list(examples)
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:n]


def load_examples(
    config: FinetuneConfig | EvaluateConfig | ZeroshotConfig | FewshotConfig | SearchConfig, name: str
) -> tuple[list[Example], int] | None:
    """The examples of a split within the command's limit, and how many rows had no label; None if there is no split.

    A limit selects the same validation and test examples for every seed. With shots=K train and valid are K examples
    of each class, drawn from the training split with the run's seed.
    """
    loaded = load_labelled(config.task, name, config.hub, config.cache)
    if loaded is None:
        return None
    if isinstance(config, FinetuneConfig | SearchConfig) and config.shots and name in ("train", "valid"):
        train, valid = few_shot.draw_examples(config.task, loaded.examples, config.shots, config.seed)
        return train if name == "train" else valid, loaded.unlabelled
    assert not isinstance(config, SearchConfig)  # which reads nothing else
    count = getattr(config.limit, name.partition("_")[0])  # valid_mismatched has the limit of valid
    return sample_examples(loaded.examples, count, config.seed if name == "train" else 0), loaded.unlabelled


def load_split(config: FinetuneConfig | EvaluateConfig, name: str, encode: ExampleEncoder) -> Split | None:
    """A split of the command's task as items; None if the data set does not have it."""
    loaded = load_examples(config, name)
    if loaded is None:
        return None
    examples, unlabelled = loaded
    items, truncated, skipped_demonstrations = encode(examples)
    return Split(examples, items, truncated, unlabelled, skipped_demonstrations)


def warn_missing_split(progress: Progress, task: TaskConfig, name: str) -> None:
    """Report that the data set does not have a split of the task."""
    progress.say(f"{task.name} has no split {task.splits[name]}: {name} is skipped")
