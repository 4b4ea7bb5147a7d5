"""A few labelled examples: K of each class to train on and K more to validate on, as LM-BFF draws them.

Gao, Fisch and Chen 2021, "Making Pre-trained Language Models Better Few-shot Learners", section 3.3, and the released
code (princeton-nlp/LM-BFF, tools/generate_k_shot_data.py): the training rows are shuffled by numpy's legacy generator,
seeded anew for each task; of each class the first K are for training and the next K for validation. What then tests is
the data set's own validation split, or its test split where that one has official labels.

Where the data are the same, so are the draws. Seen against the released md5 sums: all of RTE. Not seen: SST-2, whose
training file there is another one (sentences alone, without the phrases of GLUE's); CoLA, MRPC and STS-B, whose files
have columns that the hub's rows lack; MNLI, SNLI, QNLI and QQP, for which complete data were not at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks.example import Example

# NOTE the released code shuffles CoLA's rows in place, these seeds one after the other: each begins from the order that
# the one before it has left. Of all other tasks it shuffles a copy.
IN_PLACE = {"cola": (100, 13, 21, 42, 87)}
SEEDS = 2**32  # that the legacy generator takes


def class_of(task: TaskConfig, label: int | float) -> int:
    """The class of a label; a score is of the lower half of its range, 0, or of the upper one, 1 (STS-B: from 2.5)."""
    if task.classes:
        return int(label)
    assert task.range
    return int(label >= sum(task.range) / 2)


def class_names(task: TaskConfig) -> list[str]:
    """What the classes are called."""
    if task.classes:
        return task.labels
    assert task.range
    middle = sum(task.range) / 2
    return [f"a score below {middle:g}", f"a score of {middle:g} or more"]


def order(task: str, rows: int, seed: int) -> np.ndarray:
    """The order in which the rows of a task's training split are drawn from."""
    found, released = np.arange(rows), IN_PLACE.get(task, ())
    for each in released[: released.index(seed) + 1] if seed in released else (seed,):
        np.random.RandomState(each).shuffle(found)
    return found


def draw(task: TaskConfig, rows: Sequence[Example], shots: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Of each class `shots` rows to train on, and as many others to validate on; a class that comes first stands first.

    UserError names the classes with too few.
    """
    by_class: dict[int, list[Example]] = {}
    for i in order(task.name, len(rows), seed):
        label = rows[i].label
        assert label is not None
        by_class.setdefault(class_of(task, label), []).append(rows[i])
    there = {name: len(by_class.get(number, ())) for number, name in enumerate(class_names(task))}
    if few := [f"{name}: {count}" for name, count in there.items() if count < 2 * shots]:
        wanted = f"shots={shots} takes {shots} of each class to train on and {shots} more to validate on"
        raise UserError(f"task={task.name}: {wanted}; too few in its training split are {', '.join(few)}")
    parts = slice(shots), slice(shots, 2 * shots)
    train, valid = ([row for found in by_class.values() for row in found[part]] for part in parts)
    return train, valid


def tested(task: TaskConfig) -> str:
    """The split that tests: with few_test=valid, or where there is no test split, the validation split."""
    return "test" if task.few_test == "test" and "test" in task.splits else "valid"


def arranged(task: TaskConfig) -> TaskConfig:
    """The task with the splits of a run on few examples: train and valid are both drawn from its training split.

    `test` is the split that tests, `test_X` likewise. Nothing of that is for the GLUE server, which has other rows.
    """
    there, kind = task.splits, tested(task)
    tests = {f"test{name.removeprefix(kind)}": own for name, own in there.items() if name.partition("_")[0] == kind}
    return dataclasses.replace(task, splits={"train": there["train"], "valid": there["train"], **tests}, submission={})
