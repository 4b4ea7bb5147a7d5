"""Metrics as pure functions (labels, predictions) -> fraction, as in the GLUE metric of Hugging Face `evaluate`.

scikit-learn and scipy do the arithmetic. An undefined value is 0, without a warning. The GLUE metric does the same for
f1 and matthews_correlation; for a correlation of constants it returns nan, which JSON cannot hold.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Values = Sequence[float] | np.ndarray


def accuracy(labels: Values, predictions: Values) -> float:
    """Fraction of predictions that equal their label."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def f1(labels: Values, predictions: Values) -> float:
    """Harmonic mean of precision and recall of class 1; for two classes."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def matthews_correlation(labels: Values, predictions: Values) -> float:
    """Correlation of classes, in -1..1; 0 is chance."""
    from sklearn.metrics import matthews_corrcoef

    return float(_without_warnings(matthews_corrcoef, labels, predictions))


def pearson(labels: Values, predictions: Values) -> float:
    """Linear correlation, in -1..1; 0 if either side is constant."""
    from scipy.stats import pearsonr

    return _zero_if_nan(float(_without_warnings(pearsonr, predictions, labels)[0])) if len(labels) > 1 else 0.0


def spearmanr(labels: Values, predictions: Values) -> float:
    """Rank correlation, in -1..1; 0 if either side is constant."""
    from scipy.stats import spearmanr

    return _zero_if_nan(float(_without_warnings(spearmanr, predictions, labels)[0])) if len(labels) > 1 else 0.0


def roc_auc(labels: Values, scores: Values) -> float:
    """Area under the ROC curve; ties count half. 0.5 if all labels are of one class."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if len(set(labels)) == 2 else 0.5


Metric = Callable[[Values, Values], float]
CLASSIFICATION: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "matthews_correlation": matthews_correlation}
REGRESSION: dict[str, Metric] = {"pearson": pearson, "spearmanr": spearmanr}
METRICS: dict[str, Metric] = CLASSIFICATION | REGRESSION


def metric_values(names: Sequence[str], labels: Values, predictions: Values) -> dict[str, float]:
    """The named metrics, in their order; accuracy is added to any classification metric.

    Labels and predictions [N] are class indices, or scores for the correlations.
    """
    if len(labels) != len(predictions) or not len(labels):
        raise ValueError(f"{len(labels)} labels and {len(predictions)} predictions cannot be compared")
    selected = dict.fromkeys([*names, *(["accuracy"] if CLASSIFICATION.keys() & set(names) else [])])
    return {name: METRICS[name](labels, predictions) for name in selected}


def _zero_if_nan(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _without_warnings(function: Callable[..., Any], *values: Values) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*values)
