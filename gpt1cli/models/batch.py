"""Batches: packed rows of tokens with targets, loss weights, and the positions where heads read.

B rows, T tokens of a row, N items of K sequences each, S targets with a loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gpt1cli.models.transformer import KVCache

Ids = np.ndarray  # int32, one dimension


class ScoredSpan(NamedTuple):
    """The tokens at the end of each sequence of an item that a prompt scores: label words and what follows them."""

    counts: tuple[int, ...]  # scored tokens of each sequence
    trailing: int  # how many of them follow the label words
    correct: int | None = None  # index of the sequence with the correct words; None: unknown


@dataclass(frozen=True)
class Item:
    """One example as input to the model: K sequences that share a prefix, and the label (None: to be predicted).

    Sequence k is prefix + continuations[k]. Classification has one sequence, similarity both orders of the two texts,
    multiple choice one sequence for each answer, a prompt one for the words of each label.
    """

    prefix: Ids
    continuations: tuple[Ids, ...]
    label: int | float | None = None
    scored_span: ScoredSpan | None = None

    @classmethod
    def from_sequences(
        cls,
        rows: Sequence[Sequence[int]],
        label: int | float | None = None,
        shared: int = 0,
        scored_span: ScoredSpan | None = None,
    ) -> Item:
        """Build an item from whole sequences whose first `shared` tokens are equal.

        The prefix ends one token early: the last shared token starts every branch, so each position has one target.
        """
        sequences = [np.asarray(row, dtype=np.int32) for row in rows]
        P = max(0, shared - 1) if len(rows) > 1 else 0
        return cls(sequences[0][:P], tuple(sequence[P:] for sequence in sequences), label, scored_span)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row of this item: one row with branches if the sequences share a prefix, else K rows."""
        lengths = [len(continuation) for continuation in self.continuations]
        return [len(self.prefix) + sum(lengths)] if len(self.prefix) else lengths

    @property
    def row_length(self) -> int:
        """Tokens of the item's longest row."""
        return max(self.lengths)

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def unshared(self) -> Item:
        """Return the same sequences without a shared prefix: the plain form, which computes it once per sequence."""
        sequences = tuple(np.concatenate([self.prefix, continuation]) for continuation in self.continuations)
        return dataclasses.replace(self, prefix=self.prefix[:0], continuations=sequences)


@dataclass(frozen=True)
class Batch:
    """Rows of equal length, ready for the model. Padding is at the right, where no token sees it, and has weight 0."""

    tokens: Tensor  # [B,T] int64
    targets: Tensor  # [B,T] int64: the token to predict at each position
    weights: Tensor  # [B,T] float: weight of each target in the language-model loss; 0 if there is no target
    count: int  # what the loss is divided by: targets in pretraining, examples in fine-tuning
    real_tokens: int  # tokens without padding
    positions: Tensor | None = None  # [B,T] int64; None counts from 0
    document: Tensor | None = None  # [B,T] int64; None: one document per row
    branch: Tensor | None = None  # [B,T] int64; None: no branches
    lengths: tuple[int, ...] | None = None  # tokens of each row without padding; None: no padding
    loss_positions: Tensor | None = None  # [S] int64: the flattened targets with a weight above 0; None: all
    read_at: Tensor | None = None  # [N,K] int64: flattened position of `_classify_`, the last token of each sequence
    labels: Tensor | None = None  # [N] int64 classes, or float32 scores
    scored_counts: Tensor | None = None  # [N,K] int64: tokens that are scored at the end of each sequence

    def forward(self, model: Callable[..., Tensor], cache: KVCache | None = None) -> Tensor:
        """Run the model on the rows, which follow the cached tokens if a cache is given: hidden states [B,T,D]."""
        if cache is None:
            return model(self.tokens, self.positions, self.document, self.branch, lengths=self.lengths)
        positions = None if self.positions is None else self.positions + cache.length
        return model(self.tokens, positions, self.document, self.branch, cache=cache)

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy the batch to pinned memory, from which a GPU copies while it computes."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **changed)


def windows_batch(windows: np.ndarray) -> Batch:
    """Make a batch of windows of T+1 contiguous tokens, [B,T+1]: every token is predicted from those before it."""
    tokens = torch.from_numpy(windows.astype(np.int64))
    B, T = tokens.shape[0], tokens.shape[1] - 1
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        weights=torch.ones(B, T),
        count=B * T,
        real_tokens=B * T,
    )


class _PackedRow(NamedTuple):
    """One row before padding; every array has one value per token."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    read_at: list[int]  # position of the last token of each sequence


def _pack_item(item: Item) -> Iterator[_PackedRow]:
    """Yield the rows of an item: one row with prefix and branches, or one row per sequence."""
    weights = _loss_weights(item)
    if len(item.prefix):
        yield _pack_row(item.prefix, item.continuations, weights)
    else:
        for continuation, own in zip(item.continuations, weights, strict=True):
            yield _pack_row(item.prefix, [continuation], [own])


def _loss_weights(item: Item) -> list[np.ndarray]:
    """Return the language-model loss weight at each position of each sequence; the last position has no target.

    The n targets of a sequence weigh 1/n each, and the K sequences of an item 1/K each (DESIGN.md). In a prompt only
    the correct sequence counts, and in it all targets except the label words.
    """
    P, weights = len(item.prefix), []
    for k, continuation in enumerate(item.continuations):
        counted = np.arange(P + len(continuation), 0, -1) > 1
        if item.scored_span is not None:
            last = len(counted) - 1
            counted[last - item.scored_span.counts[k] : last - item.scored_span.trailing] = False
            counted &= k == item.scored_span.correct
        sequences = 1 if item.scored_span is not None else len(item.continuations)
        weights.append(counted / (sequences * max(1, counted.sum())))
    return weights


def _pack_row(prefix: Ids, continuations: Sequence[Ids], weights: Sequence[np.ndarray]) -> _PackedRow:
    """Pack one row. A target in the shared prefix belongs to every sequence: its weight is the sum over them."""
    P, none = len(prefix), np.zeros(1, dtype=np.int32)
    lengths = [len(continuation) for continuation in continuations]
    return _PackedRow(
        tokens=np.concatenate([prefix, *continuations]),
        targets=np.concatenate(
            [prefix[1:], continuations[0][: min(1, P)], *(np.append(one[1:], none) for one in continuations)]
        ),
        weights=np.concatenate([np.sum([own[:P] for own in weights], axis=0), *(own[P:] for own in weights)]),
        positions=np.concatenate([np.arange(P), *(P + np.arange(length) for length in lengths)]),
        branch=np.repeat(np.arange(len(lengths) + 1), [P, *lengths]) if P else np.zeros(lengths[0], int),
        read_at=list(P + np.cumsum(lengths) - 1),
    )


def items_batch(items: Sequence[Item]) -> Batch:
    """Pack items into rows, padded at the right.

    The loss is a sum over items of means over sequences of means over tokens.
    """
    rows = [row for item in items for row in _pack_item(item)]
    T = max(len(row.tokens) for row in rows)
    branched = any(len(item.prefix) for item in items)

    def pad(arrays: Sequence[np.ndarray], dtype: type, fill: int = 0) -> Tensor:
        padded: np.ndarray = np.full((len(rows), T), fill, dtype=dtype)
        for line, array in zip(padded, arrays, strict=True):
            line[: len(array)] = array
        return torch.from_numpy(padded)  # [B,T]

    weights = pad([row.weights for row in rows], np.float32)
    read_at = [i * T + position for i, row in enumerate(rows) for position in row.read_at]
    labels = [item.label for item in items]
    scored_counts = [item.scored_span.counts for item in items if item.scored_span]
    return Batch(
        tokens=pad([row.tokens for row in rows], np.int64),
        targets=pad([row.targets for row in rows], np.int64),
        weights=weights,
        count=len(items),
        real_tokens=sum(len(row.tokens) for row in rows),
        positions=pad([row.positions for row in rows], np.int64) if branched else None,
        document=pad([row.branch * 0 for row in rows], np.int64, fill=1) if branched else None,  # padding: its own
        branch=pad([row.branch for row in rows], np.int64) if branched else None,
        lengths=tuple(len(row.tokens) for row in rows),
        loss_positions=weights.flatten().nonzero().squeeze(1),
        read_at=torch.tensor(read_at).view(len(items), -1),
        labels=None if None in labels else torch.tensor(labels),
        scored_counts=torch.tensor(scored_counts) if items[0].scored_span else None,
    )


def group_by_length(
    items: Sequence[Item], micro_batch: int | None, token_budget: int, past_length: int = 0
) -> Iterator[list[int]]:
    """Yield item indices in groups of similar length, longest first: micro_batch items each, or as the budget allows.

    The `past_length` tokens that every row also attends to count against the token budget.
    """
    order = sorted(range(len(items)), key=lambda i: -items[i].row_length)
    while order:
        longest = items[order[0]]
        size = micro_batch or max(1, token_budget // ((longest.row_length + past_length) * longest.row_count))
        yield order[:size]
        order = order[size:]
