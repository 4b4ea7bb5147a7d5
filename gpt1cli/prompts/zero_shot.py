"""Tasks put to a language model as it is, without training (paper, section 5): what is scored, and what that answers.

A rule is a pure function of an example's texts and choices, as token ids. It says what is read before, which endings
are compared, and how many tokens of each are only read as well. An example's score for an ending is the mean or the
sum of the log-probabilities of its other tokens.

 - `sentence`: the whole text, against a threshold from the training split (acceptability; the paper says of its
   threshold only that there is one)
 - `answer`: each choice, or the word of each label, behind the texts and the cue (questions; sentiment, where the cue
   is "very")
 - `rest`: what follows the pronoun, with each candidate in the pronoun's place

The pretrained model has no start token. So the first token of a text that nothing precedes has no log-probability: it
is left out, unless the task names an `opening` to stand before it.

Texts are tokenised apart and joined as ids, as in fine-tuning. No byte pair crosses the end of a word, so the ids are
those of the joined text, but where a rule for words looks across the border, as that for "mr" and "." does. Byte-level
vocabularies write a word with the blank before it: there each text, cue and word begins with one.

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
from gpt1cli.tasks.encode import encoded
from gpt1cli.tasks.example import Ids
from gpt1cli.tasks.splits import Split, load_examples
from gpt1cli.text.bpe import Tokenizer


class Question(NamedTuple):
    """Endings to compare behind one context; the first `given` tokens of each are read, and not scored."""

    context: Ids
    endings: Sequence[Ids]
    given: Sequence[int]


def sentence(texts: Sequence[Ids], choices: Sequence[Ids]) -> Question:
    """The text itself."""
    return Question([], texts, [0])


def answer(texts: Sequence[Ids], choices: Sequence[Ids]) -> Question:
    """Each choice behind all texts."""
    return Question([token for text in texts for token in text], choices, [0] * len(choices))


def rest(texts: Sequence[Ids], choices: Sequence[Ids]) -> Question:
    """What stands behind the pronoun, given each candidate in its place."""
    before, after = texts
    return Question(before, [[*choice, *after] for choice in choices], [len(choice) for choice in choices])


RULES: dict[str, Callable[[Sequence[Ids], Sequence[Ids]], Question]] = {
    "sentence": sentence,
    "answer": answer,
    "rest": rest,
}


class Laid(NamedTuple):
    """A question as sequences that fit the model, how many tokens at the end of each are scored, and what was cut."""

    rows: list[list[int]]
    scored: list[int]
    shared: int  # tokens at the beginning that are the same in all rows
    cut: bool


def lay(question: Question, n_positions: int) -> Laid:
    """Context and ending, for each ending. A context that does not fit loses its beginning: what stands next to the
    answer says most about it. UserError where an ending alone does not fit: no answer is cut.
    """
    context, endings, given = question
    room = n_positions - max(map(len, endings))
    if room < min(1, len(context)):
        raise UserError(f"n_positions={n_positions} leaves no room before an ending of {n_positions - room} tokens")
    kept = context[max(0, len(context) - room) :]
    first = 0 if kept else 1  # of an ending that can be scored
    scored = [max(0, len(ending) - max(read, first)) for ending, read in zip(endings, given, strict=True)]
    return Laid([[*kept, *ending] for ending in endings], scored, len(kept), len(kept) < len(context))


@dataclass(frozen=True)
class Probes:
    """A split as items, and how many tokens at the end of each of their sequences are scored."""

    split: Split
    scored: Sequence[Sequence[int]]


def load_probes(
    config: ZeroshotConfig, name: str, vocabulary: Tokenizer, n_positions: int, branches: bool
) -> Probes | None:
    """A split of the task as its rule puts it to a model, in plain rows without branches; None: no such split."""
    loaded = load_examples(config, name)
    if loaded is None:
        return None
    examples, dropped = loaded
    zeroshot = config.task.zeroshot
    assert zeroshot.rule is not None
    cue, opening, *words = vocabulary.encode_batch(
        map(vocabulary.running, [zeroshot.cue, zeroshot.opening, *zeroshot.words])
    )
    items, scored, cuts = [], [], 0
    for example, texts, choices in encoded(examples, vocabulary):
        question = RULES[zeroshot.rule]([*texts, cue] if cue else texts, choices or words)
        laid = lay(question._replace(context=question.context or opening), n_positions)
        items.append(Item.of(laid.rows, example.label, laid.shared if branches else 0))
        scored.append(laid.scored)
        cuts += laid.cut
    return Probes(Split(examples, items, cuts, dropped), scored)


# --- log-probabilities -> scores -> answers ---------------------------------------------------------------------------


def likelihoods(found: Sequence[Sequence[np.ndarray]], normalise: str, vocabulary: int) -> np.ndarray:
    """The mean or the sum of each ending's log-probabilities: N x K arrays -> [N,K].

    Where there is nothing to score it is that of one token to a model that knows nothing.
    """
    nothing = -math.log(vocabulary)
    reduce: Callable[..., np.floating] = np.mean if normalise == "mean" else np.sum
    return np.array([[reduce(v, dtype=np.float64) if len(v) else nothing for v in values] for values in found])


def best_threshold(likelihoods: np.ndarray, labels: metrics.Values) -> float:
    """The threshold with the highest Matthews correlation, for class 1 above it: halfway between two neighbours. [N]

    Of equals the lowest. Matthews correlation is CoLA's own metric, and accuracy would call nearly all acceptable.
    """
    order = np.argsort(likelihoods)
    values, positive = np.asarray(likelihoods)[order], np.asarray(labels, float)[order]
    cuts = np.flatnonzero(np.diff(values)) + 1  # so many are below the threshold
    if not len(cuts):
        return float(values[0])
    fn, all_positive, N = np.cumsum(positive)[cuts - 1], positive.sum(), len(values)
    tn = cuts - fn
    tp, fp = all_positive - fn, (N - all_positive) - tn
    spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    best = cuts[np.argmax((tp * tn - fp * fn) / np.maximum(spread, 1))]  # a spread of 0: one class only
    return float((values[best - 1] + values[best]) / 2)


def against(threshold: float, likelihoods: np.ndarray) -> np.ndarray:
    """Scores of two classes: class 0 has the threshold, class 1 the likelihood. [N,1] -> [N,2]"""
    return np.concatenate([np.full_like(likelihoods, threshold), likelihoods], axis=1)


def measured(task: TaskConfig, labels: metrics.Values, scores: np.ndarray) -> dict[str, float]:
    """The task's metrics, and how many examples are tied: two classes or more share the highest score. scores [N,C]

    In accuracy a tied example counts half (of three classes tied a third); any other metric takes the first of them.
    """
    best = scores == scores.max(1, keepdims=True)
    right = best[np.arange(len(best)), np.asarray(labels, int)] / best.sum(1)
    found = {**metrics.score(task.metrics, labels, best.argmax(1)), "accuracy": float(right.mean())}
    if len(task.labels) == 2 and not task.choices:  # which needs no threshold
        found["roc_auc"] = metrics.roc_auc(labels, scores[:, 1] - scores[:, 0])
    return {**found, "ties": int((best.sum(1) > 1).sum())}


def predictions(task: TaskConfig, split: Split, scores: np.ndarray) -> Iterator[dict[str, Any]]:
    """For each example id, label, prediction, and the score of each label. scores [N,C]"""
    for example, row in zip(split.examples, scores.tolist(), strict=True):
        yield {
            "id": example.id,
            "label": None if example.label is None else task.labels[int(example.label)],
            "prediction": task.labels[row.index(max(row))],
            "scores": {label: round(score, 6) for label, score in zip(task.labels, row, strict=True)},
        }
