"""In-context learning: sample demonstrations, order them, and score queries after them.

Brown et al. 2020, "Language Models are Few-Shot Learners", section 2. K is the number of all demonstrations, not of
each class, and all queries of a run have the same ones. A larger K starts with the demonstrations of a smaller one, so
that a curve over K shows the effect of more demonstrations. The order is the sampled one, or shuffled, or the scores
are averaged over several orders (the effect of the order: Zhao et al. 2021, "Calibrate Before Use").
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.prompts import zero_shot
from gpt1cli.prompts.prompt import Prompt
from gpt1cli.prompts.scoring import PromptScores, score_examples
from gpt1cli.tasks.classification import decode_outputs, prediction_records
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.few_shot import class_index, class_names
from gpt1cli.tasks.metrics import metric_values
from gpt1cli.tasks.splits import Split

DRAW_STREAM, ORDER_STREAM = 0, 1  # second part of the random seed: sampling and ordering have their own streams
DEFAULT_PERMUTATIONS = 8  # orders to average if permutations= is not set


def sample_demonstrations(
    task: TaskConfig, pool: Sequence[Example], shots: int, seed: int, balanced: bool
) -> list[Example]:
    """Sample demonstrations with this seed.

    balanced: one of each class in turn, the classes in random order. Raises UserError if there are too few examples.
    """
    generator = np.random.default_rng([seed, DRAW_STREAM])
    order = generator.permutation(len(pool)).tolist()
    if not balanced:
        if len(pool) < shots:
            raise UserError(
                f"task={task.name}: shots={shots}, but train has {len(pool)} examples; use shots={len(pool)} or less"
            )
        return [pool[i] for i in order[:shots]]
    names = class_names(task)
    by_class: list[list[Example]] = [[] for _ in names]
    for i in order:
        by_class[known_class(task, pool[i])].append(pool[i])
    turns = list(itertools.islice(itertools.cycle(generator.permutation(len(names)).tolist()), shots))
    too_few = [
        f"{name} ({turns.count(number)} needed, {len(by_class[number])} found)"
        for number, name in enumerate(names)
        if turns.count(number) > len(by_class[number])
    ]
    if too_few:
        raise UserError(
            f"task={task.name}: shots={shots} in equal numbers for each class, but train has too few examples of"
            f" {', '.join(too_few)}; use a smaller shots=, or balanced=false to sample without regard to the class"
        )
    queues = [iter(examples) for examples in by_class]
    return [next(queues[number]) for number in turns]


def known_class(task: TaskConfig, example: Example) -> int:
    """The class of a labelled example."""
    assert example.label is not None
    return class_index(task, example.label)


def demonstration_orders(shots: int, order: str, permutations: int | None, seed: int) -> list[list[int]]:
    """Orders of the demonstrations: as sampled (fixed), shuffled once (random), or several different ones."""
    if order == "fixed" or shots < 2:
        return [list(range(shots))]
    generator = np.random.default_rng([seed, ORDER_STREAM, shots])
    if order == "random":
        return [generator.permutation(shots).tolist()]
    count = permutations or DEFAULT_PERMUTATIONS
    if shots < 10 and math.factorial(shots) <= count:
        return [list(one) for one in itertools.permutations(range(shots))]
    distinct: dict[tuple[int, ...], None] = {}
    while len(distinct) < count:
        distinct[tuple(generator.permutation(shots).tolist())] = None
    return [list(one) for one in distinct]


def score_queries(
    model: LanguageModel,
    prompt: Prompt,
    orders: Sequence[Sequence[Example]],
    queries: Sequence[Example],
    micro_batch: int | None,
    token_budget: int,
) -> PromptScores:
    """Score the queries: the mean over several orders of the demonstrations.

    The number of skipped demonstrations of a query is the largest over the orders; it counts as truncated if it is
    truncated in any order.
    """
    results = []
    for order in orders:
        demonstrations = [prompt.demonstration(example) for example in order]
        results.append(score_examples(model, prompt, demonstrations, queries, micro_batch, token_budget))
    return PromptScores(
        np.mean([result.scores for result in results], axis=0),
        np.max([result.skipped for result in results], axis=0).tolist(),
        np.any([result.truncated for result in results], axis=0).tolist(),
    )


def compute_in_context_metrics(task: TaskConfig, split: Split, scores: np.ndarray) -> dict[str, float]:
    """The task's metrics on a labelled split; for classes also the number of ties. scores [N,L]"""
    assert split.labels is not None
    if task.is_classification:
        return zero_shot.compute_zero_shot_metrics(task, split.labels, scores)
    return metric_values(task.metrics, split.labels, decode_outputs(task, scores))


def in_context_records(task: TaskConfig, split: Split, scores: np.ndarray) -> list[dict[str, Any]]:
    """A record for each example: id, label and prediction; for classes also the score of each. scores [N,L]"""
    if task.is_classification:
        return list(zero_shot.zero_shot_records(task, split, scores))
    lines = prediction_records(task, split.examples, scores)
    return [{"id": e.id, "label": e.label, **line} for e, line in zip(split.examples, lines, strict=True)]


def summarize_seeds(values: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean, sample standard deviation (None for a single seed), minimum and maximum of each metric over the seeds."""
    summary: dict[str, dict[str, float | None]] = {}
    for name in values[0]:
        numbers = [metrics[name] for metrics in values]
        spread = statistics.stdev(numbers) if len(numbers) > 1 else None
        summary[name] = {"mean": statistics.mean(numbers), "std": spread, "min": min(numbers), "max": max(numbers)}
    return summary
