"""Score the answers of a prompt: log-probabilities of label words or of whole choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpt1cli.models.batch import Item
from gpt1cli.models.inference import ending_log_probabilities, read
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.prompts.prompt import Laid, Prompt, lay
from gpt1cli.prompts.zero_shot import likelihoods
from gpt1cli.tasks.example import Example, Ids


class Answers(NamedTuple):
    """The score of every label for each query, and what was left out to fit."""

    scores: np.ndarray  # [N,L]
    dropped: list[int]  # demonstrations
    cut: list[bool]


def scores(found: Sequence[Sequence[np.ndarray]], prompt: Prompt) -> np.ndarray:
    """Log-probabilities of the scored tokens -> the score of each label: N x W arrays -> [N,L].

    The sum or the mean over the tokens; alternatives add their probabilities up.
    """
    each = likelihoods(found, prompt.task.prompt.normalise, len(prompt.vocabulary))  # [N,W]
    if not prompt.alternatives:
        return each
    starts = np.cumsum([0, *prompt.alternatives[:-1]])
    return np.logaddexp.reduceat(each, starts, axis=1)


def answers(
    model: LanguageModel,
    prompt: Prompt,
    demonstrations: Sequence[Ids],
    examples: Sequence[Example],
    micro_batch: int | None,
    token_budget: int,
) -> Answers:
    """What a model says to the examples behind the demonstrations, which are read once; calibrated where asked for."""
    laid = [lay(prompt, demonstrations, query, model.config.n_positions) for query in prompt.queries(examples)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(laid):
        groups.setdefault(tuple(one.rows[0][: one.ahead]), []).append(i)
    found: list[Sequence[np.ndarray]] = [[]] * len(laid)
    for ahead, members in groups.items():
        skipped = max(0, len(ahead) - 1)  # the last token of what is kept opens every row
        past = read(model, ahead[:-1]) if skipped else None
        items = []
        for one in (laid[i] for i in members):
            shared = one.shared - skipped if model.branches else 0
            items.append(Item.of([row[skipped:] for row in one.rows], None, shared))
        counts = [laid[i].scored for i in members]
        vocabulary = len(prompt.vocabulary)
        values = ending_log_probabilities(model, items, counts, vocabulary, micro_batch, token_budget, past)
        for i, value in zip(members, values, strict=True):
            found[i] = value
    scored = scores(found, prompt)
    if prompt.task.prompt.content_free is not None:
        scored = scored - _free_scores(model, prompt, demonstrations, examples, laid, micro_batch, token_budget)
    return Answers(scored, [one.dropped for one in laid], [one.cut for one in laid])


def _free_scores(
    model: LanguageModel,
    prompt: Prompt,
    demonstrations: Sequence[Ids],
    examples: Sequence[Example],
    laid: Sequence[Laid],
    micro_batch: int | None,
    token_budget: int,
) -> np.ndarray:
    """What each label scores behind the same demonstrations where every text is content-free. -> [N,L]

    Labels with words of their own are asked once for all queries; an example's choices for each.
    """
    task = dataclasses.replace(prompt.task, prompt=dataclasses.replace(prompt.task.prompt, content_free=None))
    plain, found = dataclasses.replace(prompt, task=task), None
    for dropped in {one.dropped for one in laid}:
        members = [i for i, one in enumerate(laid) if one.dropped == dropped]
        free = [prompt.free(examples[i]) for i in (members if task.choices else members[:1])]
        kept = demonstrations[dropped:]
        scored = answers(model, plain, kept, free, micro_batch, token_budget).scores
        found = np.zeros((len(laid), scored.shape[1])) if found is None else found
        found[members] = scored
    assert found is not None
    return found
