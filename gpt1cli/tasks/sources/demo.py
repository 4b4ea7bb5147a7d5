"""The labelled tasks of the demo world, generated without reading any file."""

from __future__ import annotations

from pathlib import Path

from gpt1cli.config.schema import UserError, unknown_name
from gpt1cli.config.task import TaskConfig
from gpt1cli.data import demo_world
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources.rows import flatten_answers


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """The examples of a demo task. Its rows have class names as labels, or the number of the right answer."""
    if task.name not in demo_world.TASKS:
        raise UserError(unknown_name(task.name, demo_world.TASKS, "task of the demo world"))
    if split not in ("train", "valid", "test"):
        return None
    rows = demo_world.examples(task.name, split)
    if missing := [column for column in [*task.columns, *task.choices] if column not in rows[0]]:
        raise UserError(f"task={task.name}: no column {', '.join(missing)}; available: {', '.join(rows[0])}")
    if odd := sorted({str(row["label"]) for row in rows} - set(task.labels)):
        raise UserError(f"task={task.name}: the data has the label {odd[0]}, but task.labels={task.labels}")
    return [
        Example(
            row["id"],
            tuple(row[column] for column in task.columns),
            task.labels.index(str(row["label"])),
            tuple(flatten_answers(row[column] for column in task.choices)),
        )
        for row in rows
    ]
