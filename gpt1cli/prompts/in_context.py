"""In-context learning: which labelled examples stand before the queries, in which order, and what is said behind them.

Brown et al. 2020, "Language Models are Few-Shot Learners", section 2. K demonstrations in all, not K of each class, the
same for all queries of a run; those of a larger K begin with those of a smaller one, so that a curve over K says what
more of them bring. The order is that of the draw, or shuffled, or scores are averaged over several orders (what hangs
on it: Zhao et al. 2021, "Calibrate Before Use").
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
from gpt1cli.prompts.scoring import Answers, answers
from gpt1cli.tasks.classification import predicted
from gpt1cli.tasks.classification import predictions as answers_of
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.few_shot import class_names, class_of
from gpt1cli.tasks.metrics import score
from gpt1cli.tasks.splits import Split

DRAW, ORDER = 0, 1  # which draws: each kind has a stream of its own
PERMUTATIONS = 8  # orders that are averaged where their number is not named


def drawn(task: TaskConfig, pool: Sequence[Example], shots: int, seed: int, balanced: bool) -> list[Example]:
    """Demonstrations by seed, in the order of the draw; balanced: one of each class in turn, the classes in an order of
    that seed. UserError where there are too few.
    """
    generator = np.random.default_rng([seed, DRAW])
    order = generator.permutation(len(pool)).tolist()
    if not balanced:
        if len(pool) < shots:
            raise UserError(f"task={task.name}: shots={shots}, but train has {len(pool)} examples")
        return [pool[i] for i in order[:shots]]
    names = class_names(task)
    waiting: list[list[Example]] = [[] for _ in names]
    for i in order:
        waiting[label_of(task, pool[i])].append(pool[i])
    turns = list(itertools.islice(itertools.cycle(generator.permutation(len(names)).tolist()), shots))
    lacking = [
        f"{name} ({turns.count(number)} wanted, there are {len(waiting[number])})"
        for number, name in enumerate(names)
        if turns.count(number) > len(waiting[number])
    ]
    if lacking:
        told = f"shots={shots}, of each class as many, takes more than train has of {', '.join(lacking)}"
        raise UserError(f"task={task.name}: {told}; balanced=false takes them as they come")
    queues = [iter(examples) for examples in waiting]
    return [next(queues[number]) for number in turns]


def label_of(task: TaskConfig, example: Example) -> int:
    """The class of an example whose label is known."""
    assert example.label is not None
    return class_of(task, example.label)


def orders(shots: int, order: str, permutations: int | None, seed: int) -> list[list[int]]:
    """The orders in which so many demonstrations are shown: as drawn, shuffled once, or several, no two alike."""
    if order == "fixed" or shots < 2:
        return [list(range(shots))]
    generator = np.random.default_rng([seed, ORDER, shots])
    if order == "random":
        return [generator.permutation(shots).tolist()]
    wanted = permutations or PERMUTATIONS
    if shots < 10 and math.factorial(shots) <= wanted:
        return [list(one) for one in itertools.permutations(range(shots))]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < wanted:
        found[tuple(generator.permutation(shots).tolist())] = None
    return [list(one) for one in found]


def asked(
    model: LanguageModel,
    prompt: Prompt,
    shown: Sequence[Sequence[Example]],
    queries: Sequence[Example],
    micro_batch: int | None,
    token_budget: int,
) -> Answers:
    """What a model says to the queries, the mean over the orders in which the demonstrations are shown.

    Of these a query counts as many as dropped, and as cut, as in the order where most had to go.
    """
    found = []
    for order in shown:
        demonstrations = [prompt.demonstration(example) for example in order]
        found.append(answers(model, prompt, demonstrations, queries, micro_batch, token_budget))
    return Answers(
        np.mean([one.scores for one in found], axis=0),
        np.max([one.dropped for one in found], axis=0).tolist(),
        np.any([one.cut for one in found], axis=0).tolist(),
    )


def measured(task: TaskConfig, split: Split, scores: np.ndarray) -> dict[str, float]:
    """The task's metrics on a labelled split, of classes also how many are tied. scores [N,L]"""
    assert split.labels is not None
    if task.classes:
        return zero_shot.measured(task, split.labels, scores)
    return score(task.metrics, split.labels, answers_of(task, scores))


def predictions(task: TaskConfig, split: Split, scores: np.ndarray) -> list[dict[str, Any]]:
    """For each example id, label and prediction, of classes also the score of each. scores [N,L]"""
    if task.classes:
        return list(zero_shot.predictions(task, split, scores))
    lines = predicted(task, split.examples, scores)
    return [{"id": e.id, "label": e.label, **line} for e, line in zip(split.examples, lines, strict=True)]


def summed_up(values: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Of each number its mean, sample standard deviation (None of a single one), least and greatest over the seeds."""
    found: dict[str, dict[str, float | None]] = {}
    for name in values[0]:
        several = [one[name] for one in values]
        spread = statistics.stdev(several) if len(several) > 1 else None
        found[name] = {"mean": statistics.mean(several), "std": spread, "min": min(several), "max": max(several)}
    return found
