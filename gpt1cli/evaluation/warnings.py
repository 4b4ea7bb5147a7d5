"""Warnings that matter: pure functions, each the line to tell once, or None."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks.classification import predictions
from gpt1cli.tasks.splits import Split

BLIND = "the model does not look at its input; another lr=, more epochs= or another seed= may help"  # of a trained one
FEW = 5  # examples of a label that may go unpredicted by chance
TEXTS_IGNORED = "its words alone decide, not the texts; where there are two labels roc_auc shows what the scores know"


def half_cut(split: str, cut: int, examples: int, n_positions: int) -> str | None:
    """Told where at least half of the examples lose a part of their text."""
    if 2 * cut < examples or not cut:
        return None
    return (
        f"warning: {cut:,} of {examples:,} examples of {split} are longer than the model's n_positions={n_positions}"
        " and lose a part of their text; a model with more positions would read all of it"
    )


def one_sided(
    split: str, labels: Sequence[str], predicted: Sequence[int], true: Sequence[int], way: str = BLIND
) -> str | None:
    """Told where every example gets the same label though they differ, or where a label of several is never given."""
    given, wanted = Counter(predicted), Counter(true)
    if len(given) == 1 and len(wanted) > 1:
        (only,) = given
        return f"warning: all {len(predicted):,} predictions on {split} are {labels[only]}: {way}"
    if never := [f"{labels[n]} ({count:,})" for n, count in sorted(wanted.items()) if n not in given and count >= FEW]:
        return f"warning: never predicted on {split}, though there are such examples: {', '.join(never)}"
    return None


def constant(split: str, predicted: np.ndarray, true: np.ndarray) -> str | None:
    """Told where scores hardly differ though those of the labels do. predicted, true [N]"""
    if len(predicted) < 2 or np.std(predicted) > 1e-3 * np.std(true) or np.std(true) == 0:
        return None
    return f"warning: all {len(predicted):,} predictions on {split} are about {np.mean(predicted):.3f}: {BLIND}"


def collapse_warning(task: TaskConfig, name: str, split: Split, outputs: np.ndarray) -> str | None:
    """A warning where what is predicted of a labelled split hardly depends on the examples. outputs [N,O]"""
    if split.labels is None:
        return None
    found, labels = predictions(task, outputs), np.array(split.labels)
    if not task.classes:
        return constant(name, found, labels)
    return one_sided(name, task.labels, found.tolist(), labels.astype(int).tolist())


def zero_shot_collapse_warning(task: TaskConfig, name: str, answers: Sequence[Mapping[str, Any]]) -> str | None:
    """A warning where all answers to a labelled split are the same, or a label is never given; see `predictions`."""
    number = {label: n for n, label in enumerate(task.labels)}
    if any(line["label"] is None for line in answers):
        return None
    predicted, true = ([number[line[key]] for line in answers] for key in ("prediction", "label"))
    return one_sided(name, task.labels, predicted, true, TEXTS_IGNORED)
