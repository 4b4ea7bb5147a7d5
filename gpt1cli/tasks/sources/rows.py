"""Data sets with texts in columns and the label in another column: GLUE, SNLI, SciTail, RACE.

A split has the data set's own name; SUBSET/SPLIT names a split of a subset other than the task's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.data.hub import UnknownSubset, load_split, split_names
from gpt1cli.tasks.example import Example

if TYPE_CHECKING:
    from datasets import Features

NO_LABEL = (-1, None, "-")  # what data sets write for an unknown label


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """The rows of a split, with their numbers as ids; None if there is no such split.

    Raises UserError if columns or labels do not fit the task.
    """
    loaded = load_columns(task, split, [*task.columns, *task.choices, task.label], hub, cache)
    if loaded is None:
        return None
    where, columns = loaded
    n = len(task.columns)
    examples = []
    for i, (*values, label) in enumerate(zip(*columns, strict=True)):
        texts, choices = tuple(values[:n]), tuple(flatten_answers(values[n:]))
        examples.append(Example(str(i), texts, parse_label(task, label, f"{where}: row {i}"), choices))
    return examples


def load_columns(
    task: TaskConfig, split: str, names: Sequence[str], hub: str | None, cache: str | Path
) -> tuple[str, list[list[Any]]] | None:
    """The place of a split, for messages, and its columns `names` as lists; None if there is no such split.

    `names` must include the columns of the task's texts and answers. Raises UserError if these do not fit the task.
    """
    if task.repo is None:
        raise UserError(f"task={task.name}: task.source={task.source} needs task.repo=")
    *prefix, name = split.rsplit("/", 1)
    subset = prefix[0] if prefix else task.subset
    try:
        if name not in split_names(task.repo, subset, hub, cache):
            return None
    except UnknownSubset:
        if not prefix:
            raise
        return None
    rows = load_split(task.repo, subset, name, hub, cache)
    where = f"task={task.name}: {task.repo}{'/' + subset if subset else ''}, split {name}"
    if missing := [name for name in names if name not in rows.features]:
        problem = f"{where}: no column {', '.join(missing)}; available: {', '.join(rows.features)}"
        raise UserError(f"{problem}\nif this is another version of the data set: task.columns=[...] task.label=...")
    check_columns(rows.features, task, where)
    columns = rows.select_columns(list(dict.fromkeys(names)))[:]
    check_rows(columns, task, where)
    return where, [columns[name] for name in names]


def check_columns(features: Features, task: TaskConfig, where: str) -> None:
    """Raises UserError unless the columns hold texts and the data set has the task's classes in the same order."""
    for name in [*task.columns, *task.choices]:
        column = features[name]
        kind = getattr(getattr(column, "feature", column), "dtype", None)  # of a list: the type of its items
        if kind not in ("string", "large_string"):
            raise UserError(f"{where}: column {name} must hold texts, but holds {column}")
    names = getattr(features.get(task.label), "names", None)  # only a ClassLabel has names
    if task.is_classification and names is not None and names != task.labels:
        raise UserError(
            f"{where}: the data set has the classes {names}, but task.labels={task.labels}; the order must be the same"
        )


def check_rows(columns: Mapping[str, list[Any]], task: TaskConfig, where: str) -> None:
    """Raises UserError if a row has a missing text, or a number of answers other than the number of labels."""
    names, n = [*task.columns, *task.choices], len(task.columns)
    for i, values in enumerate(zip(*(columns[name] for name in names), strict=True)):
        if None in flatten_answers(values):
            empty = next(name for name, value in zip(names, values, strict=True) if None in flatten_answers([value]))
            raise UserError(f"{where}: row {i} has no text in column {empty}")
        if task.choices and (count := len(flatten_answers(values[n:]))) != len(task.labels):
            raise UserError(f"{where}: row {i} has {count} answers, but task.labels={task.labels}")


def flatten_answers(values: Iterable[Any]) -> list[Any]:
    """The answers to choose from, as one list: from one column each, or from one column that holds a list."""
    return [answer for value in values for answer in (value if isinstance(value, list) else [value])]


def parse_label(task: TaskConfig, label: Any, where: str) -> int | float | None:
    """The class index or the score of a label; None if it is unknown. Raises UserError for any other value."""
    if label in NO_LABEL:
        return None
    if not task.is_classification:
        assert task.range
        if type(label) in (int, float) and task.range[0] <= label <= task.range[1]:
            return float(label)
        raise UserError(f"{where} has {task.label}={label!r}; allowed: {task.range[0]} to {task.range[1]}")
    if isinstance(label, str) and label in task.labels:
        return task.labels.index(label)
    if type(label) is int and 0 <= label < len(task.labels):
        return label
    names = [name if isinstance(label, str) else f"{i} ({name})" for i, name in enumerate(task.labels)]
    raise UserError(f"{where} has {task.label}={label!r}; allowed: {', '.join(names)}, or -1 for no label")
