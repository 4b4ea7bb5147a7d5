"""Few-shot splits: K examples of each class for training and K more for validation, as LM-BFF draws them.

Gao, Fisch and Chen 2021, "Making Pre-trained Language Models Better Few-shot Learners", section 3.3, and the released
code (princeton-nlp/LM-BFF, tools/generate_k_shot_data.py): the training rows are shuffled by numpy's legacy generator,
seeded again for each task; the first K of each class are for training and the next K for validation. The test set is
the data set's validation split, or its test split if that has official labels.

The same data give the same draws. Verified against the released md5 sums: all of RTE. Not verified: SST-2, whose
training file there is different (whole sentences only, without GLUE's phrases); CoLA, MRPC and STS-B, whose files
have columns that the hub's rows do not have; MNLI, SNLI, QNLI and QQP, whose complete data were not available.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks.example import Example

# NOTE the released code shuffles CoLA's rows in place, with these seeds one after the other: each starts from the order
# that the previous one left. For all other tasks it shuffles a copy.
SHUFFLED_IN_PLACE = {"cola": (100, 13, 21, 42, 87)}
SEED_LIMIT = 2**32  # the legacy generator takes smaller seeds


def class_index(task: TaskConfig, label: int | float) -> int:
    """The class of a label. A score has class 0 in the lower half of its range, else class 1 (STS-B: from 2.5)."""
    if task.is_classification:
        return int(label)
    assert task.range
    return int(label >= sum(task.range) / 2)


def class_names(task: TaskConfig) -> list[str]:
    """The names of the classes, for messages."""
    if task.is_classification:
        return task.labels
    assert task.range
    middle = sum(task.range) / 2
    return [f"a score below {middle:g}", f"a score of {middle:g} or more"]


def draw_order(task: str, rows: int, seed: int) -> np.ndarray:
    """The shuffled row numbers of a task's training split, in the order in which examples are drawn. -> [rows]"""
    order, released = np.arange(rows), SHUFFLED_IN_PLACE.get(task, ())
    for each in released[: released.index(seed) + 1] if seed in released else (seed,):
        np.random.RandomState(each).shuffle(order)
    return order


def draw_examples(
    task: TaskConfig, rows: Sequence[Example], shots: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """`shots` rows of each class for training, and as many others for validation, grouped by class in draw order.

    Raises UserError if a class has too few rows.
    """
    by_class: dict[int, list[Example]] = {}
    for i in draw_order(task.name, len(rows), seed):
        label = rows[i].label
        assert label is not None
        by_class.setdefault(class_index(task, label), []).append(rows[i])
    counts = {name: len(by_class.get(number, ())) for number, name in enumerate(class_names(task))}
    if few := [f"{name}: {count}" for name, count in counts.items() if count < 2 * shots]:
        needed = f"shots={shots} needs {2 * shots} examples of each class: {shots} for training, {shots} for validation"
        raise UserError(f"task={task.name}: {needed}; the training split has too few ({', '.join(few)}): use fewer")
    parts = slice(shots), slice(shots, 2 * shots)
    train, valid = ([row for members in by_class.values() for row in members[part]] for part in parts)
    return train, valid


def tested_split(task: TaskConfig) -> str:
    """The split used as test set: the validation split with few_test=valid, or if there is no test split."""
    return "test" if task.few_test == "test" and "test" in task.splits else "valid"


def few_shot_task(task: TaskConfig) -> TaskConfig:
    """The task with the splits of a few-shot run: train and valid are both drawn from its training split.

    `test` and `test_X` are the split used as test set. The GLUE server has other rows, so there is no submission.
    """
    splits, source = task.splits, tested_split(task)
    tests = {
        f"test{name.removeprefix(source)}": own for name, own in splits.items() if name.partition("_")[0] == source
    }
    return dataclasses.replace(
        task, splits={"train": splits["train"], "valid": splits["train"], **tests}, submission={}
    )
