"""Data sets whose rows hold their texts in columns and their label in one more: GLUE, SNLI, SciTail, RACE.

A split is named as the data set names it; SUBSET/SPLIT is that of another subset than the task's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.data.hub import NoSubset, dataset, split_names
from gpt1cli.tasks.example import Example

if TYPE_CHECKING:
    from datasets import Features

NO_LABEL = (-1, None, "-")  # how data sets mark a row whose label is not known


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """The rows of a split, each under its number. UserError where columns or labels are not those of the task."""
    found = columns_of(task, split, [*task.columns, *task.choices, task.label], hub, cache)
    if found is None:
        return None
    where, columns = found
    n = len(task.columns)
    examples = []
    for i, (*values, label) in enumerate(zip(*columns, strict=True)):
        texts, choices = tuple(values[:n]), tuple(answers(values[n:]))
        examples.append(Example(str(i), texts, target(task, label, f"{where}: row {i}"), choices))
    return examples


def columns_of(
    task: TaskConfig, split: str, names: Sequence[str], hub: str | None, cache: str | Path
) -> tuple[str, list[list[Any]]] | None:
    """Where a split was found, and its columns of these names, as lists; None where there is no such split.

    Among the names are all the columns of the task's texts and answers: these are checked.
    """
    if task.repo is None:
        raise UserError(f"task={task.name}: task.repo is needed with task.source={task.source}")
    *other, name = split.rsplit("/", 1)
    subset = other[0] if other else task.subset
    try:
        if name not in split_names(task.repo, subset, hub, cache):
            return None
    except NoSubset:
        if not other:
            raise
        return None
    rows = dataset(task.repo, subset, name, hub, cache)
    where = f"task={task.name}: {task.repo}{'/' + subset if subset else ''}, split {name}"
    if missing := [name for name in names if name not in rows.features]:
        told = f"{where}: no column {', '.join(missing)}; there: {', '.join(rows.features)}"
        raise UserError(f"{told}\ntask.columns=[...] and task.label= name those of another state of the data set")
    check_columns(rows.features, task, where)
    columns = rows.select_columns(list(dict.fromkeys(names)))[:]
    check_rows(columns, task, where)
    return where, [columns[name] for name in names]


def check_columns(features: Features, task: TaskConfig, where: str) -> None:
    """UserError unless the columns hold texts, and the data set's own classes are the task's, in its order."""
    for name in [*task.columns, *task.choices]:
        column = features[name]
        kind = getattr(getattr(column, "feature", column), "dtype", None)  # of a list: that of its items
        if kind not in ("string", "large_string"):
            raise UserError(f"{where}: column {name} holds no text but {column}")
    names = getattr(features.get(task.label), "names", None)  # of a ClassLabel; plain numbers and texts have none
    if task.classes and names is not None and names != task.labels:
        raise UserError(f"{where}: its classes are {names}, but task.labels={task.labels}; their order counts")


def check_rows(columns: Mapping[str, list[Any]], task: TaskConfig, where: str) -> None:
    """UserError for a row that lacks a text, or has not as many answers as the task has labels."""
    names, n = [*task.columns, *task.choices], len(task.columns)
    for i, values in enumerate(zip(*(columns[name] for name in names), strict=True)):
        if None in answers(values):
            bare = next(name for name, value in zip(names, values, strict=True) if None in answers([value]))
            raise UserError(f"{where}: row {i} has no text in column {bare}")
        if task.choices and (given := len(answers(values[n:]))) != len(task.labels):
            raise UserError(f"{where}: row {i} has {given} answers, but task.labels={task.labels}")


def answers(values: Iterable[Any]) -> list[Any]:
    """The answers to choose from: one column each, or one column that holds them all."""
    return [answer for value in values for answer in (value if isinstance(value, list) else [value])]


def target(task: TaskConfig, label: Any, where: str) -> int | float | None:
    """The class index or the score that a label stands for; None where it is unknown. UserError for any other."""
    if label in NO_LABEL:
        return None
    if not task.classes:
        assert task.range
        if type(label) in (int, float) and task.range[0] <= label <= task.range[1]:
            return float(label)
        raise UserError(f"{where} has {task.label}={label!r}; right would be {task.range[0]} to {task.range[1]}")
    if isinstance(label, str) and label in task.labels:
        return task.labels.index(label)
    if type(label) is int and 0 <= label < len(task.labels):
        return label
    names = [name if isinstance(label, str) else f"{i} ({name})" for i, name in enumerate(task.labels)]
    raise UserError(f"{where} has {task.label}={label!r}; right would be {', '.join(names)}, or -1 for none")
