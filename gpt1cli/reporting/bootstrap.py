"""Is one variant better than another? A paired bootstrap over the examples that both have predicted.

Each metric here is a function of sums over the examples (F1: true positives, positives, predicted positives). So a
resample needs no predictions, only how often it drew each example. Examples that add the same values to all sums are
interchangeable and are drawn together: ten thousand resamples of a large test set then take about a second. Seeds are
not resampled: a resample has the same examples for all seeds, and the metric is their mean.

N examples, K sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.reporting.collect import FinishedRun, differing_keys, group_by_seed
from gpt1cli.reporting.page import ReportTable
from gpt1cli.reporting.paper_tables import VariantRow
from gpt1cli.runs import files

RESAMPLES = 10_000
MAX_COUNTS = 4_000_000  # example counts in memory at a time
METHOD_NOTE = f"paired bootstrap over the examples, {RESAMPLES:,} resamples; seeds are averaged, not resampled"
VARIANT_KEYS = (
    "pretrained",
    "aux_lm",
    "lm_coef",
    "transfer_layers",
)  # and model.*: they define the rows of Table 5

MetricSums = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]  # addends [N,K]; function of sums [R,K] -> [R]


# --- metrics as functions of sums; undefined is 0, as in metrics.py ---------------------------------------------------


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> MetricSums:
    """Share of predictions that equal their label."""
    return np.stack([labels == predictions, np.ones(len(labels))], 1).astype(float), lambda s: s[:, 0] / s[:, 1]


def f1(labels: np.ndarray, predictions: np.ndarray) -> MetricSums:
    """Harmonic mean of precision and recall of class 1."""
    parts = [(labels == 1) & (predictions == 1), labels == 1, predictions == 1]
    return np.stack(parts, 1).astype(float), lambda s: _ratio(2 * s[:, 0], s[:, 1] + s[:, 2])


def matthews_correlation(labels: np.ndarray, predictions: np.ndarray) -> MetricSums:
    """Matthews correlation for any number of classes (Gorodkin 2004)."""
    classes = np.arange(max(labels.max(), predictions.max()) + 1)
    k = len(classes)
    hits, ones = (labels == predictions)[:, None], np.ones((len(labels), 1))
    addends = np.concatenate([hits, ones, labels[:, None] == classes, predictions[:, None] == classes], 1).astype(float)

    def value(s: np.ndarray) -> np.ndarray:
        correct, n, true, predicted = s[:, 0], s[:, 1], s[:, 2 : 2 + k], s[:, 2 + k :]
        spread = (n**2 - (true**2).sum(1)) * (n**2 - (predicted**2).sum(1))
        return _ratio(correct * n - (true * predicted).sum(1), np.sqrt(spread))

    return addends, value


def pearson(labels: np.ndarray, predictions: np.ndarray) -> MetricSums:
    """Pearson's linear correlation."""
    x, y = labels - labels.mean(), predictions - predictions.mean()  # centred: less rounding error

    def value(s: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = s.T
        spread = np.clip(n * xx - x**2, 0, None) * np.clip(n * yy - y**2, 0, None)
        return _ratio(n * xy - x * y, np.sqrt(spread))

    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], 1), value


METRIC_SUMS: dict[str, Callable[[np.ndarray, np.ndarray], MetricSums]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    zeros = np.zeros_like(numerator, dtype=float)
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


# --- the bootstrap ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The metric of both sides, the 95% interval of first minus second, and its two-sided p value."""

    first: float
    second: float
    low: float
    high: float
    p: float


def compare(
    metric: str,
    labels: np.ndarray,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two sides: each is the predictions [N] of one or more runs, whose metrics are averaged; labels [N].

    The 95% interval is the percentile interval; p is twice the smaller share of resamples on one side of zero.
    """
    sums = [METRIC_SUMS[metric](labels, predictions) for predictions in [*first, *second]]
    weights = np.array([1 / len(first)] * len(first) + [-1 / len(second)] * len(second))
    addends, frequencies = np.unique(np.concatenate([values for values, _ in sums], 1), axis=0, return_counts=True)
    ends = np.cumsum([values.shape[1] for values, _ in sums])[:-1]

    def metrics(counts: np.ndarray) -> np.ndarray:
        """How often each distinct example was drawn [R,U] -> the metric of each run [runs,R]."""
        parts = np.split(counts @ addends, ends, axis=1)
        return np.stack([value(part) for (_, value), part in zip(sums, parts, strict=True)])

    generator, samples, n = np.random.default_rng(seed), [], int(frequencies.sum())
    chunk = max(1, MAX_COUNTS // len(frequencies))
    for start in range(0, resamples, chunk):
        counts = generator.multinomial(n, frequencies / n, size=min(chunk, resamples - start))
        samples.append(weights @ metrics(counts))
    differences = np.concatenate(samples)
    observed = metrics(frequencies[None])[:, 0]
    low, high = np.quantile(differences, [0.025, 0.975])
    opposite = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (opposite + 1) / (resamples + 1))  # never 0: the data itself counts as one resample
    sides = observed[: len(first)].mean(), observed[len(first) :].mean()
    return Difference(float(sides[0]), float(sides[1]), float(low), float(high), float(p))


# --- comparing runs --------------------------------------------------------------------------------------------------


def comparison_table(rows: Sequence[VariantRow]) -> ReportTable | None:
    """Compare the full variant with each other one, task by task, on their common seeds; None if there is no pair."""
    lines, skipped = [], []
    for full in [row for row in rows if row.variant == "full"]:
        for other in [row for row in rows if row.variant != "full"]:
            for task in full.runs.keys() & other.runs.keys():
                if settings := _other_differences(full.runs[task], other.runs[task]):
                    if full.label == other.label:
                        skipped.append(f"{task}, {other}: not compared, also differs in {settings}")
                    continue
                cells = compare_runs(full.runs[task], other.runs[task])
                if isinstance(cells, str):
                    skipped.append(f"{task}, {other}: not compared, {cells}")
                else:
                    lines.append([task, str(other), *cells])
    if not lines and not skipped:
        return None
    header = ["task", "full against", "split", "metric", "seeds", "full", "other", "difference", "95% interval", "p"]
    return ReportTable("Differences and significance", header, sorted(lines), [METHOD_NOTE, *sorted(skipped)])


def _other_differences(full: Sequence[FinishedRun], other: Sequence[FinishedRun]) -> str:
    """The settings in which runs of two variants differ, without those that define the variants."""
    differing = differing_keys([run.settings for run in (*full, *other)])
    return ", ".join(key for key in differing if key not in VARIANT_KEYS and not key.startswith("model."))


def compare_runs(full: Sequence[FinishedRun], other: Sequence[FinishedRun]) -> list[str] | str:
    """The cells of a comparison: split, metric, seeds, scores, difference, interval, p; or why there is none."""
    metric = full[0].config["task"]["metrics"][0]
    if metric not in METRIC_SUMS:
        return f"no bootstrap for {metric}"
    seeds = sorted(group_by_seed(full).keys() & group_by_seed(other).keys())
    if not seeds:
        return "no common seed"
    sides = [[run for run in runs if run.settings["seed"] in seeds] for runs in (full, other)]
    all_runs = [*sides[0], *sides[1]]
    split = "test" if all(metric in run.result.get("test", {}) for run in all_runs) else "valid"
    paths = [run.folder / "predictions" / f"{split}.jsonl" for run in all_runs]
    if not all(path.exists() for path in paths):
        return f"not all runs have predictions/{split}.jsonl"
    tables = [_read_predictions(path, run.config["task"]["labels"]) for path, run in zip(paths, all_runs, strict=True)]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    labels = np.array([tables[0][key][0] for key in shared])
    if not shared or any((labels != [table[key][0] for key in shared]).any() for table in tables):
        return "their examples differ"
    predictions = [np.array([table[key][1] for key in shared]) for table in tables]
    count = len(sides[0])
    result = compare(metric, labels, predictions[:count], predictions[count:])
    return [
        f"{split} ({len(shared):,})",
        metric,
        ", ".join(map(str, seeds)),
        f"{100 * result.first:z.1f}",
        f"{100 * result.second:z.1f}",
        f"{100 * (result.first - result.second):+z.1f}",
        f"{100 * result.low:+z.1f} to {100 * result.high:+z.1f}",
        f"{result.p:.4f}",
    ]


def _read_predictions(path: Path, labels: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """id -> label and prediction, as numbers. Raises UserError for a line that is no prediction of the task."""
    numbers = {label: float(i) for i, label in enumerate(labels)}

    def number(value: Any) -> float:
        return numbers[value] if labels else float(value)

    predictions = {}
    for line_number, line in enumerate(files.read_jsonl(path), start=1):
        try:
            predictions[str(line["id"])] = number(line["label"]), number(line["prediction"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {line_number}: not a prediction of this task: {error!r}") from error
    return predictions
