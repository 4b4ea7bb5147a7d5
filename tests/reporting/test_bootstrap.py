"""The paired bootstrap compared with scipy's on the same data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import runs_below, write_run
from scipy.stats import bootstrap, pearsonr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from gpt1cli.reporting.bootstrap import METRIC_SUMS, compare, comparison_table
from gpt1cli.reporting.paper_tables import published_tables, variant_rows

PEERS = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda labels, predictions: pearsonr(labels, predictions)[0],
}
RESAMPLES = 600  # of scipy, which computes them one by one


def data(metric: str, n: int = 150) -> tuple[np.ndarray, ...]:
    """Labels, and the predictions of two runs of a good model and of two runs of a worse one."""
    draw = np.random.default_rng(1)
    if metric == "pearson":
        labels = draw.uniform(0, 5, n)
        return labels, *(labels + draw.normal(0, noise, n) for noise in (1, 1.2, 2, 2.2))
    classes = 3 if metric == "accuracy" else 2
    labels = draw.integers(0, classes, n).astype(float)
    wrong = (draw.random((4, n)) < np.array([0.2, 0.25, 0.35, 0.3])[:, None]).astype(int)
    return labels, *((labels + errors) % classes for errors in wrong)


@pytest.mark.parametrize(
    "metric",
    ["accuracy", "f1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("matthews_correlation", "pearson"))],
)
def test_interval_and_p_are_those_of_scipy(metric):
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


@pytest.mark.parametrize("metric", METRIC_SUMS)
def test_metric_from_sums_equals_the_metric(metric):
    labels, *runs = data(metric, 40)
    for predictions in [*runs, labels, np.full(40, labels[0])]:
        if metric == "pearson" and len(set(predictions)) == 1:
            continue  # undefined for scipy
        addends, value = METRIC_SUMS[metric](labels, predictions)
        assert value(addends.sum(0)[None])[0] == pytest.approx(PEERS[metric](labels, predictions))


def test_same_seed_gives_the_same_result_and_equal_runs_have_p_1():
    labels, good, _, bad, _ = data("f1")
    assert compare("f1", labels, [good], [bad], 500) == compare("f1", labels, [good], [bad], 500)
    assert compare("f1", labels, [good], [bad], 500) != compare("f1", labels, [good], [bad], 500, seed=1)
    same = compare("f1", labels, [good], [good], 500)
    assert (same.low, same.high, same.p) == (0, 0, 1)
    certain = compare("accuracy", np.ones(50), [np.ones(50)], [np.zeros(50)], 999)
    assert certain.p == pytest.approx(2 / 1000) and (certain.low, certain.high) == (1, 1)


def write_rte_run(
    root: Path, name: str, correct: set[int], seed: int = 0, labels: str = "entailment", **changes: object
) -> None:
    """Write an RTE run that predicts these of ten examples correctly; their order depends on the seed."""
    other = {"entailment": "not_entailment", "not_entailment": "entailment"}
    lines = [(str(i), labels, labels if i in correct else other[labels]) for i in range(10)]
    lines = lines[seed:] + lines[:seed]
    scores = {"valid": {"accuracy": len(correct) / 10}}
    write_run(root / f"{name}{seed}", "rte", scores, {"valid": lines}, seed=seed, **changes)


def test_variants_are_compared_by_id_on_their_common_seeds(tmp_path):
    write_rte_run(tmp_path, "full", {0, 1, 2, 3, 4, 5, 6, 7})
    write_rte_run(tmp_path, "full", {0, 1, 2, 3, 4, 5}, seed=1)
    write_rte_run(tmp_path, "full", {0}, seed=2)
    write_rte_run(tmp_path, "fresh", {0, 1, 2, 3, 4, 5}, pretrained=False)
    write_rte_run(tmp_path, "fresh", {0, 1, 2, 3, 4}, seed=1, pretrained=False)
    (line,) = comparison_table(variant_rows(published_tables()["table5"], runs_below(tmp_path))).rows
    task, other, split, metric, seeds, full, fresh, difference, interval, _ = line
    assert (task, other, split, metric) == ("rte", "Transformer w/o pre-training", "valid (10)", "accuracy")
    assert (seeds, full, fresh, difference) == ("0, 1", "70.0", "55.0", "+15.0")
    # only full predicts 5, 6 and 7 correctly; each draw of one of them adds 1/20 per correct seed, the rest nothing
    low, high = (float(end) for end in interval.split(" to "))
    assert low == 0 and 25 <= high <= 35


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"seed": 3}, "no common seed"), ({"labels": "not_entailment"}, "their examples differ")],
)
def test_runs_that_cannot_be_compared_are_reported(tmp_path, changes, reason):
    write_rte_run(tmp_path, "full", {0, 1})
    write_rte_run(tmp_path, "fresh", {0}, pretrained=False, **changes)
    comparison = comparison_table(variant_rows(published_tables()["table5"], runs_below(tmp_path)))
    assert not comparison.rows and comparison.notes[1] == f"rte, Transformer w/o pre-training: not compared, {reason}"


def test_runs_with_other_differences_are_not_compared(tmp_path):
    write_rte_run(tmp_path, "full", {0, 1}, epochs=40)
    write_rte_run(tmp_path, "fresh", {0}, epochs=15, pretrained=False)
    for epochs in (40, 15):
        write_rte_run(tmp_path, f"plain{epochs}", {0, 1, 2}, epochs=epochs, aux_lm=False)
    comparison = comparison_table(variant_rows(published_tables()["table5"], runs_below(tmp_path)))
    assert [line[1] for line in comparison.rows] == ["Transformer w/o aux LM, epochs=40"]
    assert comparison.notes[1] == "rte, Transformer w/o pre-training: not compared, also differs in epochs"


def test_variant_without_predictions_is_reported(tmp_path):
    write_run(tmp_path / "a", "rte", {"valid": {"accuracy": 0.5}})
    write_run(tmp_path / "b", "rte", {"valid": {"accuracy": 0.5}}, aux_lm=False)
    comparison = comparison_table(variant_rows(published_tables()["table5"], runs_below(tmp_path)))
    assert comparison.notes[1] == "rte, Transformer w/o aux LM: not compared, not all runs have predictions/valid.jsonl"
