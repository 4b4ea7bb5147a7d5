"""Labelled examples as batch items: token rows, labels, and how many examples were truncated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from gpt1cli.config.task import TaskConfig
from gpt1cli.models.batch import Item
from gpt1cli.tasks.example import Example, TokenIds
from gpt1cli.tasks.layouts import LAYOUTS, special_tokens
from gpt1cli.text.bpe import Tokenizer

EXAMPLES_PER_CALL = 1024  # tokenised at a time


def tokenize_examples(
    examples: Sequence[Example], vocabulary: Tokenizer
) -> Iterator[tuple[Example, Sequence[TokenIds], Sequence[TokenIds]]]:
    """Yields each example with the token ids of its texts and of its choices. Every text is tokenised on its own.

    The texts follow one another in the input: a byte-level tokenizer gets a blank before each.
    """
    for start in range(0, len(examples), EXAMPLES_PER_CALL):
        chunk = examples[start : start + EXAMPLES_PER_CALL]
        ids = iter(
            vocabulary.encode_batch(
                vocabulary.with_leading_space(text) for example in chunk for text in (*example.texts, *example.choices)
            )
        )
        for example in chunk:
            texts, choices = (list(itertools.islice(ids, len(strings))) for strings in (example.texts, example.choices))
            yield example, texts, choices


def encode_examples(
    task: TaskConfig, examples: Sequence[Example], vocabulary: Tokenizer, n_positions: int, branches: bool
) -> tuple[list[Item], int]:
    """Examples as items of at most n_positions positions for a model with a head, and how many were truncated for that.

    If the model has no branches, every sequence gets a row of its own.
    """
    layout, items, truncated = LAYOUTS[task.layout], [], 0
    for example, texts, choices in tokenize_examples(examples, vocabulary):
        packed = layout(texts, choices, special_tokens(len(vocabulary)), n_positions)
        items.append(Item.from_sequences(packed.rows, example.label, packed.shared if branches else 0))
        truncated += packed.truncated
    return items, truncated
