"""Input transformations: from an example's texts to rows of tokens (paper, section 3.3, Figure 1).

A layout is a pure function: token ids of the texts -> the rows that the model reads for one example. Each row begins
with `_start_` and ends with `_classify_`, whose hidden state the head reads. A text that does not fit loses its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gpt1cli.config.schema import UserError
from gpt1cli.tasks.example import TokenIds


class SpecialTokens(NamedTuple):
    """Ids of the special tokens that fine-tuning appends to the vocabulary."""

    start: int
    delimiter: int
    classify: int


class InputRows(NamedTuple):
    """The rows of one example, each ending with `_classify_`, and whether a text was truncated.

    The first `shared` tokens are the same in every row, so they are computed only once.
    """

    rows: list[list[int]]
    truncated: bool
    shared: int = 0


# texts, choices, special, n_positions
Layout = Callable[[Sequence[TokenIds], Sequence[TokenIds], SpecialTokens, int], InputRows]


def special_tokens(vocabulary: int) -> SpecialTokens:
    """The special ids after a vocabulary of this size, in the released code's order: 40478, 40479, 40480 for GPT-1."""
    return SpecialTokens(start=vocabulary, delimiter=vocabulary + 1, classify=vocabulary + 2)


def truncate(texts: Sequence[Sequence[int]], room: int) -> tuple[list[Sequence[int]], bool]:
    """Truncate texts at their ends, the longest first, to `room` tokens in all; also returns whether any was truncated.

    Raises UserError if there is not one token for each text.
    """
    if room < len(texts):
        raise UserError(
            f"n_positions is too small: {max(0, room)} tokens remain for {len(texts)} text(s) after the special tokens"
        )
    lengths = [len(text) for text in texts]
    while (excess := sum(lengths) - room) > 0:
        longest = lengths.index(max(lengths))
        second = max(lengths[:longest] + lengths[longest + 1 :], default=0)
        lengths[longest] -= max(1, min(excess, lengths[longest] - second))
    truncated = lengths != [len(text) for text in texts]
    return [text[:length] for text, length in zip(texts, lengths, strict=True)], truncated


def single(
    texts: Sequence[TokenIds], choices: Sequence[TokenIds], special: SpecialTokens, n_positions: int
) -> InputRows:
    """Classification: start, text, classify."""
    (text,), truncated = truncate(texts, n_positions - 2)
    return InputRows([[special.start, *text, special.classify]], truncated)


def pair(texts: Sequence[TokenIds], choices: Sequence[TokenIds], special: SpecialTokens, n_positions: int) -> InputRows:
    """Entailment: start, premise, delimiter, hypothesis, classify."""
    (a, b), truncated = truncate(texts, n_positions - 3)
    return InputRows([[special.start, *a, special.delimiter, *b, special.classify]], truncated)


def similarity(
    texts: Sequence[TokenIds], choices: Sequence[TokenIds], special: SpecialTokens, n_positions: int
) -> InputRows:
    """Similarity: the pair in both orders, one row each; the head adds the two hidden states."""
    (a, b), truncated = truncate(texts, n_positions - 3)
    orders = [[special.start, *one, special.delimiter, *other, special.classify] for one, other in ((a, b), (b, a))]
    return InputRows(orders, truncated)


def choice(
    texts: Sequence[TokenIds], choices: Sequence[TokenIds], special: SpecialTokens, n_positions: int
) -> InputRows:
    """Multiple choice: start, document, question, delimiter, answer, classify; one row for each answer.

    As in the paper, nothing separates document and question. They are truncated once, to fit the longest answer.
    """
    (*context, longest), truncated = truncate([*texts, max(choices, key=len)], n_positions - 3)
    prefix = [special.start, *(token for text in context for token in text), special.delimiter]
    return InputRows(
        [[*prefix, *answer[: len(longest)], special.classify] for answer in choices], truncated, len(prefix)
    )


def pronoun(
    texts: Sequence[TokenIds], choices: Sequence[TokenIds], special: SpecialTokens, n_positions: int
) -> InputRows:
    """Pronoun resolution as multiple choice: the text before the pronoun, then a candidate and the text after it."""
    before, after = texts
    return choice([before], [[*candidate, *after] for candidate in choices], special, n_positions)


LAYOUTS: dict[str, Layout] = {
    "single": single,
    "pair": pair,
    "similarity": similarity,
    "choice": choice,
    "pronoun": pronoun,
}
