"""The paired bootstrap beside scipy's, on the same data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import found, write_run
from scipy.stats import bootstrap, pearsonr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from gpt1cli.reporting.bootstrap import SUMS, compare, table
from gpt1cli.reporting.paper_tables import layouts, rows_of

PEERS = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda labels, predictions: pearsonr(labels, predictions)[0],
}
RESAMPLES = 600  # of scipy, one by one


def data(metric: str, n: int = 150) -> tuple[np.ndarray, ...]:
    """Labels, and the predictions of two runs of a good model and two of a worse one."""
    draw = np.random.default_rng(1)
    if metric == "pearson":
        labels = draw.uniform(0, 5, n)
        return labels, *(labels + draw.normal(0, noise, n) for noise in (1, 1.2, 2, 2.2))
    classes = 3 if metric == "accuracy" else 2
    labels = draw.integers(0, classes, n).astype(float)
    wrong = (draw.random((4, n)) < np.array([0.2, 0.25, 0.35, 0.3])[:, None]).astype(int)
    return labels, *((labels + one) % classes for one in wrong)


@pytest.mark.parametrize(
    "metric",
    ["accuracy", "f1", *(pytest.param(one, marks=pytest.mark.slow) for one in SUMS if one not in ("accuracy", "f1"))],
)
def test_the_interval_is_scipys(metric):
    labels, *runs = data(metric)
    peer = PEERS[metric]

    def statistic(labels, a, b, c, d):
        return (peer(labels, a) + peer(labels, b)) / 2 - (peer(labels, c) + peer(labels, d)) / 2

    ours = compare(metric, labels, runs[:2], runs[2:])
    assert ours.first - ours.second == pytest.approx(statistic(labels, *runs))
    theirs = bootstrap(
        (labels, *runs), statistic, paired=True, vectorized=False, n_resamples=RESAMPLES, method="percentile", rng=2
    )
    # the 2.5% quantile of 600 draws is known to sqrt(0.025 * 0.975 / 600) / 0.058 = 0.11 standard deviations
    error = 3 * 0.11 * theirs.standard_error
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=error)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=error)
    below = (theirs.bootstrap_distribution <= 0).mean()
    assert ours.p == pytest.approx(2 * min(below, 1 - below), abs=0.03)


@pytest.mark.parametrize("metric", SUMS)
def test_a_metric_from_sums_is_the_metric(metric):
    labels, *runs = data(metric, 40)
    for predictions in [*runs, labels, np.full(40, labels[0])]:
        if metric == "pearson" and len(set(predictions)) == 1:
            continue  # undefined for scipy
        added, value = SUMS[metric](labels, predictions)
        assert value(added.sum(0)[None])[0] == pytest.approx(PEERS[metric](labels, predictions))


def test_the_same_seed_says_the_same_and_no_difference_is_no_evidence():
    labels, good, _, bad, _ = data("f1")
    assert compare("f1", labels, [good], [bad], 500) == compare("f1", labels, [good], [bad], 500)
    assert compare("f1", labels, [good], [bad], 500) != compare("f1", labels, [good], [bad], 500, seed=1)
    same = compare("f1", labels, [good], [good], 500)
    assert (same.low, same.high, same.p) == (0, 0, 1)
    certain = compare("accuracy", np.ones(50), [np.ones(50)], [np.zeros(50)], 999)
    assert certain.p == pytest.approx(2 / 1000) and (certain.low, certain.high) == (1, 1)


def predicted(
    root: Path, name: str, right: set[int], seed: int = 0, labels: str = "entailment", **changes: object
) -> None:
    """An RTE run that is right about these of ten examples, in an order of its own."""
    other = {"entailment": "not_entailment", "not_entailment": "entailment"}
    lines = [(str(i), labels, labels if i in right else other[labels]) for i in range(10)]
    lines = lines[seed:] + lines[:seed]
    scores = {"valid": {"accuracy": len(right) / 10}}
    write_run(root / f"{name}{seed}", "rte", scores, {"valid": lines}, seed=seed, **changes)


def test_variants_are_compared_by_ids_over_the_seeds_they_share(tmp_path):
    predicted(tmp_path, "full", {0, 1, 2, 3, 4, 5, 6, 7})
    predicted(tmp_path, "full", {0, 1, 2, 3, 4, 5}, seed=1)
    predicted(tmp_path, "full", {0}, seed=2)
    predicted(tmp_path, "fresh", {0, 1, 2, 3, 4, 5}, pretrained=False)
    predicted(tmp_path, "fresh", {0, 1, 2, 3, 4}, seed=1, pretrained=False)
    (line,) = table(rows_of(layouts()["table5"], found(tmp_path))).rows
    task, other, split, metric, seeds, full, fresh, difference, interval, _ = line
    assert (task, other, split, metric) == ("rte", "Transformer w/o pre-training", "valid (10)", "accuracy")
    assert (seeds, full, fresh, difference) == ("0, 1", "70.0", "55.0", "+15.0")
    # full alone is right about 5, 6 and 7, each with one of two seeds: drawing one of them adds 1/20, the rest nothing
    low, high = (float(end) for end in interval.split(" to "))
    assert low == 0 and 25 <= high <= 35


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"seed": 3}, "no seed in common"), ({"labels": "not_entailment"}, "not the same examples")],
)
def test_what_cannot_be_compared_is_told(tmp_path, changes, why):
    predicted(tmp_path, "full", {0, 1})
    predicted(tmp_path, "fresh", {0}, pretrained=False, **changes)
    made = table(rows_of(layouts()["table5"], found(tmp_path)))
    assert not made.rows and made.notes[1] == f"rte, Transformer w/o pre-training: {why}"


def test_runs_that_differ_otherwise_are_not_compared(tmp_path):
    predicted(tmp_path, "full", {0, 1}, epochs=40)
    predicted(tmp_path, "fresh", {0}, epochs=15, pretrained=False)
    for epochs in (40, 15):
        predicted(tmp_path, f"plain{epochs}", {0, 1, 2}, epochs=epochs, aux_lm=False)
    made = table(rows_of(layouts()["table5"], found(tmp_path)))
    assert [line[1] for line in made.rows] == ["Transformer w/o aux LM, epochs=40"]
    assert made.notes[1] == "rte, Transformer w/o pre-training: not compared, they differ in epochs as well"


def test_a_variant_without_predictions_is_told(tmp_path):
    write_run(tmp_path / "a", "rte", {"valid": {"accuracy": 0.5}})
    write_run(tmp_path / "b", "rte", {"valid": {"accuracy": 0.5}}, aux_lm=False)
    made = table(rows_of(layouts()["table5"], found(tmp_path)))
    assert made.notes[1] == "rte, Transformer w/o aux LM: not all runs have predictions/valid.jsonl"
