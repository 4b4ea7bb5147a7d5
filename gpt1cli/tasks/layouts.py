"""Examples, and the input transformations that turn their texts into rows of tokens (paper, section 3.3, Figure 1).

A layout is a pure function: token ids of the texts -> the rows that go through the model for one example, each opened
by `_start_` and closed by `_classify_`, whose state the head reads. A text that does not fit loses its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpt1cli.config import InputError


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled item: its texts in the order of the input, and the index of its class (None: unknown)."""

    id: str
    texts: tuple[str, ...]
    label: int | None


class Special(NamedTuple):
    """Ids of the tokens that fine-tuning appends to the vocabulary."""

    start: int
    delimiter: int
    classify: int


class Laid(NamedTuple):
    """The rows of one example, the last token of each `_classify_`, and whether a text had to be cut for them."""

    rows: list[list[int]]
    cut: bool


Layout = Callable[[Sequence[Sequence[int]], Special, int], Laid]


def special(vocabulary: int) -> Special:
    """The special ids behind a vocabulary of this size, in the released code's order: 40478, 40479, 40480 for GPT-1."""
    return Special(start=vocabulary, delimiter=vocabulary + 1, classify=vocabulary + 2)


def single(texts: Sequence[Sequence[int]], special: Special, n_positions: int) -> Laid:
    """Classification: start, text, classify."""
    (text,), cut = shortened(texts, n_positions - 2)
    return Laid([[special.start, *text, special.classify]], cut)


def pair(texts: Sequence[Sequence[int]], special: Special, n_positions: int) -> Laid:
    """Entailment: start, premise, delimiter, hypothesis, classify."""
    (a, b), cut = shortened(texts, n_positions - 3)
    return Laid([[special.start, *a, special.delimiter, *b, special.classify]], cut)


LAYOUTS: dict[str, Layout] = {"single": single, "pair": pair}


def shortened(texts: Sequence[Sequence[int]], room: int) -> tuple[list[Sequence[int]], bool]:
    """The texts cut at their ends, the longest first, until `room` tokens hold them all; and whether any was cut."""
    if room < len(texts):
        raise InputError(f"n_positions leaves {max(0, room)} tokens for {len(texts)} text(s) beside the special tokens")
    lengths = [len(text) for text in texts]
    while (excess := sum(lengths) - room) > 0:
        longest = lengths.index(max(lengths))
        second = max(lengths[:longest] + lengths[longest + 1 :], default=0)
        lengths[longest] -= max(1, min(excess, lengths[longest] - second))
    cut = lengths != [len(text) for text in texts]
    return [text[:length] for text, length in zip(texts, lengths, strict=True)], cut
