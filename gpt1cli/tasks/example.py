"""One labelled example, and the examples of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled example: its texts in the order of the input, and the answers to choose from (multiple choice).

    The label is the index of a class or of the right answer, or a score; None if it is unknown.
    """

    id: str
    texts: tuple[str, ...]
    label: int | float | None
    choices: tuple[str, ...] = ()


class LabelledSplit(NamedTuple):
    """The labelled examples of a split, and how many rows were skipped because they have no label."""

    examples: list[Example]
    unlabelled: int
