"""One labelled example, and the examples of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled item: its texts in the order of the input, the answers to choose from where it is a question.

    The label is the index of its class or of the right answer, or a score; None: unknown.
    """

    id: str
    texts: tuple[str, ...]
    label: int | float | None
    choices: tuple[str, ...] = ()


Ids = Sequence[int]


class Loaded(NamedTuple):
    """The examples of a split that are used, and how many were dropped because they have no label."""

    examples: list[Example]
    dropped: int
