"""Metrics as pure functions (labels, predictions) -> fraction: those of the GLUE metric in Hugging Face `evaluate`.

scikit-learn and scipy do the arithmetic. Where a value is undefined it is 0, without a warning: the GLUE metric's own
answer for f1 and matthews_correlation; for a correlation of constants it says nan, which no JSON can hold.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Values = Sequence[float] | np.ndarray


def accuracy(labels: Values, predictions: Values) -> float:
    """Share of predictions that equal their label."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def f1(labels: Values, predictions: Values) -> float:
    """Harmonic mean of precision and recall of class 1, of two."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def matthews_correlation(labels: Values, predictions: Values) -> float:
    """Correlation of classes, in -1..1; 0 is chance."""
    from sklearn.metrics import matthews_corrcoef

    return float(_quiet(matthews_corrcoef, labels, predictions))


def pearson(labels: Values, predictions: Values) -> float:
    """Linear correlation, in -1..1; 0 where either is constant."""
    from scipy.stats import pearsonr

    return _defined(float(_quiet(pearsonr, predictions, labels)[0])) if len(labels) > 1 else 0.0


def spearmanr(labels: Values, predictions: Values) -> float:
    """Correlation of ranks, in -1..1; 0 where either is constant."""
    from scipy.stats import spearmanr

    return _defined(float(_quiet(spearmanr, predictions, labels)[0])) if len(labels) > 1 else 0.0


def roc_auc(labels: Values, scores: Values) -> float:
    """Chance that an example of class 1 scores above one of class 0, equal scores counting half; 0.5 of one class."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if len(set(labels)) == 2 else 0.5


Metric = Callable[[Values, Values], float]
CLASSIFICATION: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "matthews_correlation": matthews_correlation}
REGRESSION: dict[str, Metric] = {"pearson": pearson, "spearmanr": spearmanr}
METRICS: dict[str, Metric] = CLASSIFICATION | REGRESSION


def score(names: Sequence[str], labels: Values, predictions: Values) -> dict[str, float]:
    """The named metrics, in their order; a classification always has accuracy too.

    Labels and predictions [N] are class indices, or scores for the correlations.
    """
    if len(labels) != len(predictions) or not len(labels):
        raise ValueError(f"{len(labels)} labels and {len(predictions)} predictions cannot be compared")
    wanted = dict.fromkeys([*names, *(["accuracy"] if CLASSIFICATION.keys() & set(names) else [])])
    return {name: METRICS[name](labels, predictions) for name in wanted}


def _defined(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _quiet(function: Callable[..., Any], *values: Values) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*values)
