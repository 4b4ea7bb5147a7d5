"""Is one variant better than another? A paired bootstrap over the examples that both predicted.

Every metric here is a function of sums over the examples (of F1: true positives, positives, calls), so a resample needs
no predictions, only how often it drew each example; and examples that add the same to all sums are interchangeable:
they are drawn together, which makes ten thousand resamples of a large test set a matter of a second. Seeds are not
resampled: every resample holds the same examples for all of them, and the metric is their mean.

N examples, K sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.reporting.collect import Finished, by_seed, varying
from gpt1cli.reporting.page import Table
from gpt1cli.reporting.paper_tables import Row
from gpt1cli.runs import files

RESAMPLES = 10_000
AT_ONCE = 4_000_000  # counts held in memory
ABOUT = f"paired bootstrap over the examples, {RESAMPLES:,} resamples; the seeds are averaged and not resampled"
OF_VARIANTS = ("pretrained", "aux_lm", "lm_coef", "transfer_layers")  # and the model: what rows of Table 5 differ in

Sums = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]  # what an example adds [N,K], and [R,K] -> metric [R]


# --- metrics as functions of sums; undefined is 0, as in metrics.py ---------------------------------------------------


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> Sums:
    """Share of predictions that equal their label."""
    return np.stack([labels == predictions, np.ones(len(labels))], 1).astype(float), lambda s: s[:, 0] / s[:, 1]


def f1(labels: np.ndarray, predictions: np.ndarray) -> Sums:
    """Harmonic mean of precision and recall of class 1."""
    parts = [(labels == 1) & (predictions == 1), labels == 1, predictions == 1]
    return np.stack(parts, 1).astype(float), lambda s: _ratio(2 * s[:, 0], s[:, 1] + s[:, 2])


def matthews_correlation(labels: np.ndarray, predictions: np.ndarray) -> Sums:
    """Correlation of classes, of any number of them (Gorodkin 2004)."""
    classes = np.arange(max(labels.max(), predictions.max()) + 1)
    k = len(classes)
    hits, ones = (labels == predictions)[:, None], np.ones((len(labels), 1))
    added = np.concatenate([hits, ones, labels[:, None] == classes, predictions[:, None] == classes], 1).astype(float)

    def value(s: np.ndarray) -> np.ndarray:
        right, n, true, called = s[:, 0], s[:, 1], s[:, 2 : 2 + k], s[:, 2 + k :]
        spread = (n**2 - (true**2).sum(1)) * (n**2 - (called**2).sum(1))
        return _ratio(right * n - (true * called).sum(1), np.sqrt(spread))

    return added, value


def pearson(labels: np.ndarray, predictions: np.ndarray) -> Sums:
    """Linear correlation."""
    x, y = labels - labels.mean(), predictions - predictions.mean()  # smaller numbers lose fewer digits

    def value(s: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = s.T
        spread = np.clip(n * xx - x**2, 0, None) * np.clip(n * yy - y**2, 0, None)
        return _ratio(n * xy - x * y, np.sqrt(spread))

    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], 1), value


SUMS: dict[str, Callable[[np.ndarray, np.ndarray], Sums]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above, dtype=float), where=below > 0)


# --- the bootstrap ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The first side's metric minus the second's, its 95% interval, and how often chance would say as much (p)."""

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
    """Two sides, each the predictions [N] of one run or of several whose metrics are averaged, of the labels [N].

    The interval is that of the percentiles; p is two-sided: twice the share of resamples on the other side of zero.
    """
    sums = [SUMS[metric](labels, predictions) for predictions in [*first, *second]]
    weights = np.array([1 / len(first)] * len(first) + [-1 / len(second)] * len(second))
    added, times = np.unique(np.concatenate([one for one, _ in sums], 1), axis=0, return_counts=True)
    ends = np.cumsum([one.shape[1] for one, _ in sums])[:-1]

    def values(counts: np.ndarray) -> np.ndarray:
        """How often each kind of example was drawn [R,U] -> the metric of each run [runs,R]."""
        parts = np.split(counts @ added, ends, axis=1)
        return np.stack([value(part) for (_, value), part in zip(sums, parts, strict=True)])

    generator, drawn, n = np.random.default_rng(seed), [], int(times.sum())
    chunk = max(1, AT_ONCE // len(times))
    for start in range(0, resamples, chunk):
        counts = generator.multinomial(n, times / n, size=min(chunk, resamples - start))
        drawn.append(weights @ values(counts))
    differences = np.concatenate(drawn)
    whole = values(times[None])[:, 0]
    low, high = np.quantile(differences, [0.025, 0.975])
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (resamples + 1))  # never 0: the data themselves are one of the resamples
    sides = whole[: len(first)].mean(), whole[len(first) :].mean()
    return Difference(float(sides[0]), float(sides[1]), float(low), float(high), float(p))


# --- of runs ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table | None:
    """The full variant against each other one, task by task, for the seeds that both have; None where none compare."""
    lines, left_out = [], []
    for full in [row for row in rows if row.variant == "full"]:
        for other in [row for row in rows if row.variant != "full"]:
            for task in full.runs.keys() & other.runs.keys():
                if apart := _apart(full.runs[task], other.runs[task]):
                    if full.label == other.label:
                        left_out.append(f"{task}, {other}: not compared, they differ in {apart} as well")
                    continue
                told = line(full.runs[task], other.runs[task])
                if isinstance(told, str):
                    left_out.append(f"{task}, {other}: {told}")
                else:
                    lines.append([task, str(other), *told])
    if not lines and not left_out:
        return None
    header = ["task", "full against", "split", "metric", "seeds", "full", "other", "full - other", "95% interval", "p"]
    return Table("What the differences are worth", header, sorted(lines), [ABOUT, *sorted(left_out)])


def _apart(full: Sequence[Finished], other: Sequence[Finished]) -> str:
    """The settings in which runs of two variants differ besides what makes the variants."""
    differing = varying([run.settings for run in (*full, *other)])
    return ", ".join(key for key in differing if key not in OF_VARIANTS and not key.startswith("model."))


def line(full: Sequence[Finished], other: Sequence[Finished]) -> list[str] | str:
    """Split, metric, seeds and what the bootstrap says of them; or why it says nothing."""
    metric = full[0].config["task"]["metrics"][0]
    if metric not in SUMS:
        return f"{metric} is no function of sums"
    seeds = sorted(by_seed(full).keys() & by_seed(other).keys())
    if not seeds:
        return "no seed in common"
    sides = [[run for run in runs if run.settings["seed"] in seeds] for runs in (full, other)]
    everyone = [*sides[0], *sides[1]]
    split = "test" if all(metric in run.result.get("test", {}) for run in everyone) else "valid"
    paths = [run.folder / "predictions" / f"{split}.jsonl" for run in everyone]
    if not all(path.exists() for path in paths):
        return f"not all runs have predictions/{split}.jsonl"
    read = [_predictions(path, run.config["task"]["labels"]) for path, run in zip(paths, everyone, strict=True)]
    shared = sorted(set.intersection(*(set(one) for one in read)))
    labels = np.array([read[0][key][0] for key in shared])
    if not shared or any((labels != [one[key][0] for key in shared]).any() for one in read):
        return "not the same examples"
    predictions = [np.array([one[key][1] for key in shared]) for one in read]
    count = len(sides[0])
    found = compare(metric, labels, predictions[:count], predictions[count:])
    return [
        f"{split} ({len(shared):,})",
        metric,
        ", ".join(map(str, seeds)),
        f"{100 * found.first:z.1f}",
        f"{100 * found.second:z.1f}",
        f"{100 * (found.first - found.second):+z.1f}",
        f"{100 * found.low:+z.1f} to {100 * found.high:+z.1f}",
        f"{found.p:.4f}",
    ]


def _predictions(path: Path, labels: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """id -> label and prediction, as numbers. UserError for a line that is none of ours."""
    numbers = {label: float(i) for i, label in enumerate(labels)}

    def number(value: Any) -> float:
        return numbers[value] if labels else float(value)

    found = {}
    for place, line in enumerate(files.read_jsonl(path), start=1):
        try:
            found[str(line["id"])] = number(line["label"]), number(line["prediction"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {place}: no prediction of this task: {error!r}") from error
    return found
