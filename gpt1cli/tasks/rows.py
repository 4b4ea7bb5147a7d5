"""Data sets whose rows hold their texts in columns and their class in one more: GLUE, SNLI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpt1cli.config import InputError, TaskConfig
from gpt1cli.hub import dataset, split_names
from gpt1cli.tasks.layouts import Example

if TYPE_CHECKING:
    from datasets import Features

NO_LABEL = (-1, None)  # how the hub marks a row whose class is not known


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """The rows of a split, each under its number. InputError where columns or classes are not those of the task."""
    if task.repo is None:
        raise InputError(f"task={task.name}: task.repo is needed with task.source=rows")
    if split not in split_names(task.repo, task.subset, hub, cache):
        return None
    rows = dataset(task.repo, task.subset, split, hub, cache)
    where = f"task={task.name}: {task.repo}{'/' + task.subset if task.subset else ''}, split {split}"
    check_columns(rows.features, task, where)
    columns = rows.select_columns([*task.columns, task.label])[:]
    examples = []
    for i, (label, *texts) in enumerate(zip(*(columns[name] for name in [task.label, *task.columns]), strict=True)):
        if None in texts:
            raise InputError(f"{where}: row {i} has no text in column {task.columns[texts.index(None)]}")
        if label not in NO_LABEL and not (type(label) is int and 0 <= label < len(task.labels)):
            right = ", ".join(f"{i} ({name})" for i, name in enumerate(task.labels))
            raise InputError(f"{where}: row {i} has {task.label}={label!r}; right would be {right}, or -1 for none")
        examples.append(Example(str(i), tuple(texts), None if label in NO_LABEL else label))
    return examples


def check_columns(features: Features, task: TaskConfig, where: str) -> None:
    """InputError unless texts and label are there and the data set's own classes are the task's, in its order."""
    if missing := [name for name in [*task.columns, task.label] if name not in features]:
        raise InputError(f"{where}: no column {', '.join(missing)}; there: {', '.join(features)}")
    for name in task.columns:
        if getattr(features[name], "dtype", None) not in ("string", "large_string"):
            raise InputError(f"{where}: column {name} holds no text but {features[name]}")
    names = getattr(features[task.label], "names", None)  # of a ClassLabel; plain numbers have none
    if names is not None and names != task.labels:
        raise InputError(f"{where}: its classes are {names}, but task.labels={task.labels}; their order counts")
