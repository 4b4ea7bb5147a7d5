"""Labelled examples as batch items: token rows, labels, what was truncated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from gpt1cli.config.task import TaskConfig
from gpt1cli.models.batch import Item
from gpt1cli.tasks.example import Example, Ids
from gpt1cli.tasks.layouts import LAYOUTS, special
from gpt1cli.text.bpe import Tokenizer

TOGETHER = 1024  # examples whose texts go to the tokenizer at a time


def items_of(
    task: TaskConfig, examples: Sequence[Example], vocabulary: Tokenizer, n_positions: int, branches: bool
) -> tuple[list[Item], int]:
    """Examples as items for a head, of which no position exceeds n_positions, and how many were cut for that.

    A model without branches gets every sequence in a row of its own.
    """
    arrange, items, cuts = LAYOUTS[task.layout], [], 0
    for example, texts, choices in encoded(examples, vocabulary):
        laid = arrange(texts, choices, special(len(vocabulary)), n_positions)
        items.append(Item.of(laid.rows, example.label, laid.shared if branches else 0))
        cuts += laid.cut
    return items, cuts


def encoded(
    examples: Sequence[Example], vocabulary: Tokenizer
) -> Iterator[tuple[Example, Sequence[Ids], Sequence[Ids]]]:
    """Each example with the token ids of its texts and of its choices, every text tokenised by itself.

    As they stand behind one another: with byte-level pieces a blank comes before each.
    """
    for start in range(0, len(examples), TOGETHER):
        some = examples[start : start + TOGETHER]
        ids = iter(
            vocabulary.encode_batch(vocabulary.running(text) for each in some for text in (*each.texts, *each.choices))
        )
        for example in some:
            texts, choices = (list(itertools.islice(ids, len(given))) for given in (example.texts, example.choices))
            yield example, texts, choices
