"""Zero-shot tasks: a language model answers without training (paper, section 5).

A rule is a pure function of an example's texts and choices, as token ids. It returns the context, the endings to
compare, and how many tokens at the start of each ending are not scored. An ending's score is the mean or the sum of
the log-probabilities of its scored tokens. The names are the values of the key task.zeroshot.rule:

 - `sentence`: acceptability; the score of the whole text, compared with a threshold from the training split (the paper
   mentions a threshold and says no more)
 - `answer`: each choice, or the word of each label, after the texts and the cue (questions; sentiment with the cue
   "very")
 - `rest`: partial scoring; the score of the tokens after the pronoun, with each candidate instead of the pronoun

The pretrained model has no start token, so the first token of a text without context has no log-probability. It is
skipped, unless the task has an `opening`, which then stands before it.

Texts are tokenised separately and concatenated as ids, as in fine-tuning. No byte pair crosses the end of a word, so
the ids are those of the joined text, except if a word rule looks across the border, as for "mr" and ".". Byte-level
vocabularies write a word with the space before it: there each text, cue and word starts with a space.

N examples, K endings of an example, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpt1cli.config.commands import ZeroshotConfig
from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.batch import Item
from gpt1cli.tasks import metrics
from gpt1cli.tasks.encode import tokenize_examples
from gpt1cli.tasks.example import TokenIds
from gpt1cli.tasks.splits import Split, load_examples
from gpt1cli.text.bpe import Tokenizer


class Question(NamedTuple):
    """Endings to compare after one context; the first `unscored` tokens of each ending are not scored."""

    context: TokenIds
    endings: Sequence[TokenIds]
    unscored: Sequence[int]


def acceptability_question(texts: Sequence[TokenIds], choices: Sequence[TokenIds]) -> Question:
    """Rule `sentence`: the text itself, without context."""
    return Question([], texts, [0])


def choice_question(texts: Sequence[TokenIds], choices: Sequence[TokenIds]) -> Question:
    """Rule `answer`: each choice after all texts."""
    return Question([token for text in texts for token in text], choices, [0] * len(choices))


def partial_question(texts: Sequence[TokenIds], choices: Sequence[TokenIds]) -> Question:
    """Rule `rest`: the tokens after the pronoun, given each candidate instead of the pronoun."""
    before, after = texts
    return Question(before, [[*choice, *after] for choice in choices], [len(choice) for choice in choices])


RULES: dict[str, Callable[[Sequence[TokenIds], Sequence[TokenIds]], Question]] = {
    "sentence": acceptability_question,
    "answer": choice_question,
    "rest": partial_question,
}


class PackedQuestion(NamedTuple):
    """A question as rows that fit the model, one row for each ending."""

    rows: list[list[int]]
    scored_counts: list[int]  # scored tokens at the end of each row
    shared_length: int  # tokens at the start that are the same in all rows
    truncated: bool  # whether the context was truncated


def pack_question(question: Question, n_positions: int) -> PackedQuestion:
    """Pack context and ending, for each ending.

    A context that does not fit is truncated at its start: the tokens nearest to the answer matter most. Endings are
    never truncated. Raises UserError if an ending does not fit.
    """
    context, endings, unscored = question
    room = n_positions - max(map(len, endings))
    if room < min(1, len(context)):
        raise UserError(
            f"n_positions={n_positions} is too small for an ending of {n_positions - room} tokens and the context"
            " before it; use a model with more positions"
        )
    kept = context[max(0, len(context) - room) :]
    first = 0 if kept else 1  # the first token of an ending that can be scored
    counts = [max(0, len(ending) - max(skipped, first)) for ending, skipped in zip(endings, unscored, strict=True)]
    return PackedQuestion([[*kept, *ending] for ending in endings], counts, len(kept), len(kept) < len(context))


@dataclass(frozen=True)
class ScoredSplit:
    """A split as items, and for each item how many tokens at the end of each sequence are scored."""

    split: Split
    scored_counts: Sequence[Sequence[int]]


def load_scored_split(
    config: ZeroshotConfig, name: str, tokenizer: Tokenizer, n_positions: int, branches: bool
) -> ScoredSplit | None:
    """Load a split and apply the task's rule; None if the task has no such split.

    branches=False: no shared prefix, a complete row for each ending.
    """
    loaded = load_examples(config, name)
    if loaded is None:
        return None
    examples, unlabelled = loaded
    zeroshot = config.task.zeroshot
    assert zeroshot.rule is not None
    cue, opening, *words = tokenizer.encode_batch(
        map(tokenizer.with_leading_space, [zeroshot.cue, zeroshot.opening, *zeroshot.words])
    )
    items, scored_counts, truncated = [], [], 0
    for example, texts, choices in tokenize_examples(examples, tokenizer):
        question = RULES[zeroshot.rule]([*texts, cue] if cue else texts, choices or words)
        packed = pack_question(question._replace(context=question.context or opening), n_positions)
        items.append(Item.from_sequences(packed.rows, example.label, packed.shared_length if branches else 0))
        scored_counts.append(packed.scored_counts)
        truncated += packed.truncated
    return ScoredSplit(Split(examples, items, truncated, unlabelled), scored_counts)


# --- log-probabilities -> scores -> predictions -----------------------------------------------------------------------


def ending_scores(token_log_p: Sequence[Sequence[np.ndarray]], normalise: str, vocabulary_size: int) -> np.ndarray:
    """The mean or the sum of each ending's log-probabilities: N x K arrays -> [N,K].

    An ending without scored tokens gets the log-probability of one token under the uniform distribution.
    """
    uniform = -math.log(vocabulary_size)
    reduce: Callable[..., np.floating] = np.mean if normalise == "mean" else np.sum
    return np.array([[reduce(v, dtype=np.float64) if len(v) else uniform for v in values] for values in token_log_p])


def best_threshold(scores: np.ndarray, labels: metrics.Values) -> float:
    """The threshold with the highest Matthews correlation, if scores above it mean class 1. scores, labels [N]

    It lies halfway between two neighbouring scores; of equally good ones it is the lowest. Matthews correlation is
    CoLA's own metric; accuracy would label nearly all sentences acceptable.
    """
    order = np.argsort(scores)
    values, positive = np.asarray(scores)[order], np.asarray(labels, float)[order]
    cuts = np.flatnonzero(np.diff(values)) + 1  # the number of scores below each possible threshold
    if not len(cuts):
        return float(values[0])
    fn, all_positive, N = np.cumsum(positive)[cuts - 1], positive.sum(), len(values)
    tn = cuts - fn
    tp, fp = all_positive - fn, (N - all_positive) - tn
    spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    best = cuts[np.argmax((tp * tn - fp * fn) / np.maximum(spread, 1))]  # the spread is 0 if there is only one class
    return float((values[best - 1] + values[best]) / 2)


def threshold_scores(threshold: float, scores: np.ndarray) -> np.ndarray:
    """Scores of two classes: class 0 gets the threshold, class 1 the sentence's score. [N,1] -> [N,2]"""
    return np.concatenate([np.full_like(scores, threshold), scores], axis=1)


def compute_zero_shot_metrics(task: TaskConfig, labels: metrics.Values, scores: np.ndarray) -> dict[str, float]:
    """The task's metrics, and the number of ties: examples whose highest score two or more classes share. scores [N,C]

    A tie between k classes counts 1/k in accuracy; every other metric takes the first of the tied classes.
    """
    best = scores == scores.max(1, keepdims=True)
    correct = best[np.arange(len(best)), np.asarray(labels, int)] / best.sum(1)
    values = {**metrics.metric_values(task.metrics, labels, best.argmax(1)), "accuracy": float(correct.mean())}
    if len(task.labels) == 2 and not task.choices:  # AUC needs no threshold
        values["roc_auc"] = metrics.roc_auc(labels, scores[:, 1] - scores[:, 0])
    return {**values, "ties": int((best.sum(1) > 1).sum())}


def zero_shot_records(task: TaskConfig, split: Split, scores: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield a record for each example: id, label, prediction, and the score of each label. scores [N,C]"""
    for example, row in zip(split.examples, scores.tolist(), strict=True):
        yield {
            "id": example.id,
            "label": None if example.label is None else task.labels[int(example.label)],
            "prediction": task.labels[row.index(max(row))],
            "scores": {label: round(score, 6) for label, score in zip(task.labels, row, strict=True)},
        }
