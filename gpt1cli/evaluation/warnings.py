"""Warnings about a model's predictions: pure functions, each returns a line to print once, or None."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks.classification import decode_outputs
from gpt1cli.tasks.splits import Split

# Advice for a trained model, and for one that scores label words without training.
COLLAPSE_ADVICE = "the model predicts the same for every input; try another lr=, more epochs= or another seed="
WORDS_ONLY_ADVICE = (
    "the label words decide, not the texts; with two labels, roc_auc shows how well the scores separate them"
)
MIN_EXAMPLES = 5  # a label with fewer examples may be never predicted by chance


def warn_truncation(split: str, truncated: int, examples: int, n_positions: int) -> str | None:
    """Warn if at least half of the examples are truncated."""
    if 2 * truncated < examples or not truncated:
        return None
    return (
        f"warning: {truncated:,} of {examples:,} examples of {split} are truncated to the model's"
        f" n_positions={n_positions}; a model with more positions reads all of their text"
    )


def warn_collapse(
    split: str, labels: Sequence[str], predicted: Sequence[int], true: Sequence[int], advice: str = COLLAPSE_ADVICE
) -> str | None:
    """Warn if all predictions are one label although the true labels differ, or if a label is never predicted.

    predicted, true: indices into `labels`.
    """
    predicted_counts, true_counts = Counter(predicted), Counter(true)
    if len(predicted_counts) == 1 and len(true_counts) > 1:
        (only,) = predicted_counts
        return f"warning: all {len(predicted):,} predictions on {split} are {labels[only]}: {advice}"
    never = [n for n, count in sorted(true_counts.items()) if n not in predicted_counts and count >= MIN_EXAMPLES]
    if never:
        listed = ", ".join(f"{labels[n]} ({true_counts[n]:,} examples)" for n in never)
        return f"warning: labels never predicted on {split}: {listed}"
    return None


def warn_constant(split: str, predicted: np.ndarray, true: np.ndarray) -> str | None:
    """Warn if predicted scores hardly differ although the true scores do. predicted, true [N]"""
    if len(predicted) < 2 or np.std(predicted) > 1e-3 * np.std(true) or np.std(true) == 0:
        return None
    return (
        f"warning: all {len(predicted):,} predictions on {split} are about {np.mean(predicted):.3f}: {COLLAPSE_ADVICE}"
    )


def collapse_warning(task: TaskConfig, name: str, split: Split, outputs: np.ndarray) -> str | None:
    """Warn if a fine-tuned model's predictions on a labelled split hardly depend on the examples. outputs [N,O]"""
    if split.labels is None:
        return None
    predicted, labels = decode_outputs(task, outputs), np.array(split.labels)
    if not task.is_classification:
        return warn_constant(name, predicted, labels)
    return warn_collapse(name, task.labels, predicted.tolist(), labels.astype(int).tolist())


def zero_shot_collapse_warning(task: TaskConfig, name: str, records: Sequence[Mapping[str, Any]]) -> str | None:
    """Warn if all zero-shot predictions on a labelled split are one label, or if a label is never predicted.

    records: those of zero_shot_records.
    """
    index = {label: n for n, label in enumerate(task.labels)}
    if any(record["label"] is None for record in records):
        return None
    predicted, true = ([index[record[key]] for record in records] for key in ("prediction", "label"))
    return warn_collapse(name, task.labels, predicted, true, WORDS_ONLY_ADVICE)
