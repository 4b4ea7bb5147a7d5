"""Score the labels of a prompt: log-probabilities of label words or of whole choices.

N examples, W words of an example, L labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpt1cli.models.batch import Item
from gpt1cli.models.inference import prefill, suffix_log_probabilities
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.prompts.prompt import PackedPrompt, Prompt, pack_prompt
from gpt1cli.prompts.zero_shot import ending_scores
from gpt1cli.tasks.example import Example, TokenIds


class PromptScores(NamedTuple):
    """The score of every label for each query, and what was skipped or truncated so that the query fits."""

    scores: np.ndarray  # [N,L]
    skipped: list[int]  # [N] demonstrations that did not fit
    truncated: list[bool]  # [N] whether a text of the query was truncated


def label_scores(token_log_p: Sequence[Sequence[np.ndarray]], prompt: Prompt) -> np.ndarray:
    """Convert log-probabilities of the scored tokens to label scores: N x W arrays -> [N,L].

    A word's score is the sum or the mean over its tokens; the probabilities of a label's alternatives are added.
    """
    word_scores = ending_scores(token_log_p, prompt.task.prompt.normalise, len(prompt.tokenizer))  # [N,W]
    if not prompt.alternatives:
        return word_scores
    starts = np.cumsum([0, *prompt.alternatives[:-1]])
    return np.logaddexp.reduceat(word_scores, starts, axis=1)


def score_examples(
    model: LanguageModel,
    prompt: Prompt,
    demonstrations: Sequence[TokenIds],
    examples: Sequence[Example],
    micro_batch: int | None,
    token_budget: int,
) -> PromptScores:
    """Score the labels of the examples after the demonstrations, which the model reads once.

    The scores are calibrated if the prompt has a content-free text (Zhao et al. 2021).
    """
    packed = [
        pack_prompt(prompt, demonstrations, query, model.config.n_positions) for query in prompt.queries(examples)
    ]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, query in enumerate(packed):
        groups.setdefault(tuple(query.rows[0][: query.prefix_length]), []).append(i)
    token_log_p: list[Sequence[np.ndarray]] = [[]] * len(packed)
    for prefix, members in groups.items():
        cached = max(0, len(prefix) - 1)  # the last token of the prefix starts every row
        cache = prefill(model, prefix[:-1]) if cached else None
        items = []
        for query in (packed[i] for i in members):
            shared = query.shared_length - cached if model.branches else 0
            items.append(Item.from_sequences([row[cached:] for row in query.rows], None, shared))
        counts = [packed[i].scored_counts for i in members]
        vocabulary_size = len(prompt.tokenizer)
        values = suffix_log_probabilities(model, items, counts, vocabulary_size, micro_batch, token_budget, cache)
        for i, value in zip(members, values, strict=True):
            token_log_p[i] = value
    scores = label_scores(token_log_p, prompt)
    if prompt.task.prompt.content_free is not None:
        scores = scores - _content_free_scores(
            model, prompt, demonstrations, examples, packed, micro_batch, token_budget
        )
    return PromptScores(scores, [query.skipped for query in packed], [query.truncated for query in packed])


def _content_free_scores(
    model: LanguageModel,
    prompt: Prompt,
    demonstrations: Sequence[TokenIds],
    examples: Sequence[Example],
    packed: Sequence[PackedPrompt],
    micro_batch: int | None,
    token_budget: int,
) -> np.ndarray:
    """The score of each label after the same demonstrations if every text is content-free. -> [N,L]

    Label words are scored once for all queries; an example's own choices once for each query.
    """
    task = dataclasses.replace(prompt.task, prompt=dataclasses.replace(prompt.task.prompt, content_free=None))
    uncalibrated, scores = dataclasses.replace(prompt, task=task), None
    for skipped in {query.skipped for query in packed}:
        members = [i for i, query in enumerate(packed) if query.skipped == skipped]
        content_free = [prompt.content_free(examples[i]) for i in (members if task.choices else members[:1])]
        kept = demonstrations[skipped:]
        values = score_examples(model, uncalibrated, kept, content_free, micro_batch, token_budget).scores
        scores = np.zeros((len(packed), values.shape[1])) if scores is None else scores
        scores[members] = values
    assert scores is not None
    return scores
