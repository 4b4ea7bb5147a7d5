"""Metrics against scikit-learn, scipy and counts by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from gpt1cli.tasks.metrics import METRICS, metric_values

# By hand: 4 true positives, 1 false positive, 2 false negatives, 3 true negatives.
LABELS = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
PREDICTIONS = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0]


def test_counts_by_hand():
    assert METRICS["accuracy"](LABELS, PREDICTIONS) == pytest.approx(7 / 10)
    assert METRICS["f1"](LABELS, PREDICTIONS) == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))
    by_hand = (4 * 3 - 1 * 2) / math.sqrt(5 * 6 * 4 * 5)
    assert METRICS["matthews_correlation"](LABELS, PREDICTIONS) == pytest.approx(by_hand)


def test_f1_is_the_f1_of_class_1():
    flipped = metric_values(["f1"], [1 - y for y in LABELS], [1 - y for y in PREDICTIONS])["f1"]
    assert flipped == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))


def test_equal_to_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    values = metric_values(["matthews_correlation"], y, p)
    assert values["matthews_correlation"] == pytest.approx(sklearn.metrics.matthews_corrcoef(y, p))
    assert values["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, p))
    assert metric_values(["f1"], y > 1, p > 1)["f1"] == pytest.approx(sklearn.metrics.f1_score(y > 1, p > 1))
    a = rng.normal(size=50)
    b = np.exp(a + rng.normal(size=50))
    assert metric_values(["pearson", "spearmanr"], a, b) == pytest.approx(
        {"pearson": np.corrcoef(a, b)[0, 1], "spearmanr": np.corrcoef(*map(scipy.stats.rankdata, (a, b)))[0, 1]}
    )


def test_classification_adds_accuracy_after_the_headline_metric():
    assert list(metric_values(["f1"], LABELS, PREDICTIONS)) == ["f1", "accuracy"]
    assert list(metric_values(["accuracy", "f1"], LABELS, PREDICTIONS)) == ["accuracy", "f1"]
    assert list(metric_values(["pearson"], [1.0, 2.0, 4.0], [1.0, 2.0, 3.0])) == ["pearson"]


@pytest.mark.parametrize("constant", [0, 1])
def test_constant_predictions_score_as_chance_without_a_warning(constant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = metric_values(["matthews_correlation", "f1"], LABELS, [constant] * 10)
        undefined = metric_values(["pearson", "spearmanr"], [1.0, 2.0, 3.0], [constant] * 3)
        alone = metric_values(["pearson", "spearmanr"], [1.0], [2.0])
        nothing_positive = metric_values(["f1"], [0, 0], [0, 0])
    assert values["matthews_correlation"] == 0
    assert values["f1"] == pytest.approx((0, 2 * 6 / (2 * 6 + 4))[constant])
    assert undefined == alone == {"pearson": 0, "spearmanr": 0}
    assert nothing_positive == {"f1": 0, "accuracy": 1}


def test_metrics_are_plain_floats():
    values = metric_values(["f1", "matthews_correlation"], np.array(LABELS), np.array(PREDICTIONS))
    values |= metric_values(["pearson", "spearmanr"], np.arange(4.0), np.array([1.0, 0.0, 2.0, 3.0]))
    assert {type(value) for value in values.values()} == {float}


def test_empty_or_unequal_inputs_are_refused():
    for labels, predictions in (([], []), ([1, 0], [1])):
        with pytest.raises(ValueError, match="cannot be compared"):
            metric_values(["accuracy"], labels, predictions)
