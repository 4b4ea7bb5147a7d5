"""Examples, and the input transformations that turn their texts into rows of tokens (paper, section 3.3, Figure 1).

A layout is a pure function: token ids of the texts -> the rows that go through the model for one example, each opened
by `_start_` and closed by `_classify_`, whose state the head reads. A text that does not fit loses its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gpt1cli.config.schema import UserError
from gpt1cli.tasks.example import Ids


class Special(NamedTuple):
    """Ids of the tokens that fine-tuning appends to the vocabulary."""

    start: int
    delimiter: int
    classify: int


class Laid(NamedTuple):
    """The rows of one example, the last token of each `_classify_`, and whether a text had to be cut for them.

    The first `shared` tokens are the same in every row, so that they need computing only once.
    """

    rows: list[list[int]]
    cut: bool
    shared: int = 0


Layout = Callable[[Sequence[Ids], Sequence[Ids], Special, int], Laid]  # texts, choices, special, n_positions


def special(vocabulary: int) -> Special:
    """The special ids behind a vocabulary of this size, in the released code's order: 40478, 40479, 40480 for GPT-1."""
    return Special(start=vocabulary, delimiter=vocabulary + 1, classify=vocabulary + 2)


def single(texts: Sequence[Ids], choices: Sequence[Ids], special: Special, n_positions: int) -> Laid:
    """Classification: start, text, classify."""
    (text,), cut = shortened(texts, n_positions - 2)
    return Laid([[special.start, *text, special.classify]], cut)


def pair(texts: Sequence[Ids], choices: Sequence[Ids], special: Special, n_positions: int) -> Laid:
    """Entailment: start, premise, delimiter, hypothesis, classify."""
    (a, b), cut = shortened(texts, n_positions - 3)
    return Laid([[special.start, *a, special.delimiter, *b, special.classify]], cut)


def similarity(texts: Sequence[Ids], choices: Sequence[Ids], special: Special, n_positions: int) -> Laid:
    """Similarity: the pair in both orders, one row each; the head adds the two states."""
    (a, b), cut = shortened(texts, n_positions - 3)
    orders = [[special.start, *one, special.delimiter, *other, special.classify] for one, other in ((a, b), (b, a))]
    return Laid(orders, cut)


def choice(texts: Sequence[Ids], choices: Sequence[Ids], special: Special, n_positions: int) -> Laid:
    """Multiple choice: start, document, question, delimiter, answer, classify; one row for each answer.

    As in the paper nothing stands between document and question. They are cut once, for the longest answer.
    """
    (*context, longest), cut = shortened([*texts, max(choices, key=len)], n_positions - 3)
    prefix = [special.start, *(token for text in context for token in text), special.delimiter]
    return Laid([[*prefix, *answer[: len(longest)], special.classify] for answer in choices], cut, len(prefix))


def pronoun(texts: Sequence[Ids], choices: Sequence[Ids], special: Special, n_positions: int) -> Laid:
    """A pronoun resolved: what stands before it, then a candidate in its place and the rest, as multiple choice."""
    before, after = texts
    return choice([before], [[*candidate, *after] for candidate in choices], special, n_positions)


LAYOUTS: dict[str, Layout] = {
    "single": single,
    "pair": pair,
    "similarity": similarity,
    "choice": choice,
    "pronoun": pronoun,
}


def shortened(texts: Sequence[Sequence[int]], room: int) -> tuple[list[Sequence[int]], bool]:
    """The texts cut at their ends, the longest first, until `room` tokens hold them all; and whether any was cut."""
    if room < len(texts):
        raise UserError(f"n_positions leaves {max(0, room)} tokens for {len(texts)} text(s) beside the special tokens")
    lengths = [len(text) for text in texts]
    while (excess := sum(lengths) - room) > 0:
        longest = lengths.index(max(lengths))
        second = max(lengths[:longest] + lengths[longest + 1 :], default=0)
        lengths[longest] -= max(1, min(excess, lengths[longest] - second))
    cut = lengths != [len(text) for text in texts]
    return [text[:length] for text, length in zip(texts, lengths, strict=True)], cut
