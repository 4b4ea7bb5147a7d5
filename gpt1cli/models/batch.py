"""Batches: packed rows of tokens with targets, weights, and the places where heads read.

B rows, T tokens in a row, N scored positions.
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
    from gpt1cli.models.transformer import Past

Ids = np.ndarray  # int32, one dimension


class Asked(NamedTuple):
    """What a prompt asks of an item: which tokens at the end of each of its sequences are scored."""

    scored: tuple[int, ...]  # how many: the words for a label, and what follows them
    after: int  # how many follow
    right: int | None = None  # the sequence that holds the right words


@dataclass(frozen=True)
class Item:
    """One example as the model sees it: K sequences that share a prefix, and the label (None: to be predicted).

    Sequence k is prefix + tails[k]. A classification has one, a similarity its two orders, a question one per answer,
    a prompt one for the words of each label.
    """

    prefix: Ids
    tails: tuple[Ids, ...]
    label: int | float | None = None
    asked: Asked | None = None

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        label: int | float | None = None,
        shared: int = 0,
        asked: Asked | None = None,
    ) -> Item:
        """From whole sequences whose first `shared` tokens are the same.

        The prefix ends one token early: the last shared one opens every branch, so that each place has one target.
        """
        sequences = [np.asarray(row, dtype=np.int32) for row in rows]
        kept = max(0, shared - 1) if len(rows) > 1 else 0
        return cls(sequences[0][:kept], tuple(sequence[kept:] for sequence in sequences), label, asked)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row it takes: one, with the sequences as branches, where they share a prefix."""
        tails = [len(tail) for tail in self.tails]
        return [len(self.prefix) + sum(tails)] if len(self.prefix) else tails

    @property
    def width(self) -> int:
        """Tokens of its row, or of the longest of its rows."""
        return max(self.lengths)

    @property
    def height(self) -> int:
        """Rows it takes."""
        return len(self.lengths)

    def apart(self) -> Item:
        """The same sequences without sharing: the plain form, which computes the prefix once for each."""
        whole = tuple(np.concatenate([self.prefix, tail]) for tail in self.tails)
        return dataclasses.replace(self, prefix=self.prefix[:0], tails=whole)


@dataclass(frozen=True)
class Batch:
    """Rows of equal length, ready for the model. Padding has weight 0 and lies to the right, where no token sees it."""

    tokens: Tensor  # [B,T] int64
    targets: Tensor  # [B,T] int64: the token to predict at each position
    weights: Tensor  # [B,T] float: what each target counts in the language-model loss; 0 where there is none
    count: int  # what the loss is divided by: targets in pretraining, examples in fine-tuning
    real_tokens: int  # tokens that are no padding
    positions: Tensor | None = None  # [B,T] int64; None counts from 0
    document: Tensor | None = None  # [B,T] int64; None: one document a row
    branch: Tensor | None = None  # [B,T] int64; None: no branches
    lengths: tuple[int, ...] | None = None  # tokens of each row that are no padding; None: all
    scored: Tensor | None = None  # [S] int64: which of the flattened targets weigh something; None: all
    ends: Tensor | None = None  # [N,K] int64: where the `_classify_` of item n's sequence k lies in the flattened rows
    labels: Tensor | None = None  # [N] int64 classes, or float32 scores
    asked: Tensor | None = None  # [N,K] int64: how many tokens before its end, and with it, each sequence is scored on

    def through(self, model: Callable[..., Tensor], past: Past | None = None) -> Tensor:
        """What a Transformer makes of the rows, behind what is kept of a past: hidden states, [B,T,D]."""
        if past is None:
            return model(self.tokens, self.positions, self.document, self.branch, lengths=self.lengths)
        positions = None if self.positions is None else self.positions + past.length
        return model(self.tokens, positions, self.document, self.branch, past=past)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU copies from while it computes."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **changed)


def windows_batch(windows: np.ndarray) -> Batch:
    """Windows of T+1 contiguous tokens [B,T+1] -> a batch that predicts each token from those before it."""
    tokens = torch.from_numpy(windows.astype(np.int64))
    B, T = tokens.shape[0], tokens.shape[1] - 1
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        weights=torch.ones(B, T),
        count=B * T,
        real_tokens=B * T,
    )


class _Row(NamedTuple):
    """One row before padding, all arrays of its length but the last."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    ends: list[int]  # the last token of each of its sequences


def _rows(item: Item) -> Iterator[_Row]:
    """The rows of an item: one with all its sequences behind their prefix, or one for each."""
    weights = _weights(item)
    if len(item.prefix):
        yield _row(item.prefix, item.tails, weights)
    else:
        for tail, own in zip(item.tails, weights, strict=True):
            yield _row(item.prefix, [tail], [own])


def _weights(item: Item) -> list[np.ndarray]:
    """What the target at each place of each sequence counts in the language-model loss; that of the last place nothing.

    A sequence's n targets weigh 1/n each, and its K sequences 1/K each (DESIGN.md). Of a prompt the right sequence
    counts alone, and there all targets but the words of the label.
    """
    P, found = len(item.prefix), []
    for k, tail in enumerate(item.tails):
        counted = np.arange(P + len(tail), 0, -1) > 1
        if item.asked is not None:
            last = len(counted) - 1
            counted[last - item.asked.scored[k] : last - item.asked.after] = False
            counted &= k == item.asked.right
        share = 1 if item.asked is not None else len(item.tails)
        found.append(counted / (share * max(1, counted.sum())))
    return found


def _row(prefix: Ids, tails: Sequence[Ids], weights: Sequence[np.ndarray]) -> _Row:
    """A target in the shared prefix is one of every sequence, and weighs the sum of what it weighs in each."""
    P, none = len(prefix), np.zeros(1, dtype=np.int32)
    return _Row(
        tokens=np.concatenate([prefix, *tails]),
        targets=np.concatenate([prefix[1:], tails[0][: min(1, P)], *(np.append(tail[1:], none) for tail in tails)]),
        weights=np.concatenate([np.sum([own[:P] for own in weights], axis=0), *(own[P:] for own in weights)]),
        positions=np.concatenate([np.arange(P), *(P + np.arange(len(tail)) for tail in tails)]),
        branch=np.repeat(np.arange(len(tails) + 1), [P, *map(len, tails)]) if P else np.zeros(len(tails[0]), int),
        ends=list(P + np.cumsum([len(tail) for tail in tails]) - 1),
    )


def items_batch(items: Sequence[Item]) -> Batch:
    """Items laid in rows, padded at the right; the loss is a sum over items of means over sequences of token means."""
    rows = [row for item in items for row in _rows(item)]
    T = max(len(row.tokens) for row in rows)
    branched = any(len(item.prefix) for item in items)

    def padded(arrays: Sequence[np.ndarray], dtype: type, fill: int = 0) -> Tensor:
        laid: np.ndarray = np.full((len(rows), T), fill, dtype=dtype)
        for line, array in zip(laid, arrays, strict=True):
            line[: len(array)] = array
        return torch.from_numpy(laid)  # [B,T]

    weights = padded([row.weights for row in rows], np.float32)
    ends = [i * T + end for i, row in enumerate(rows) for end in row.ends]
    labels = [item.label for item in items]
    return Batch(
        tokens=padded([row.tokens for row in rows], np.int64),
        targets=padded([row.targets for row in rows], np.int64),
        weights=weights,
        count=len(items),
        real_tokens=sum(len(row.tokens) for row in rows),
        positions=padded([row.positions for row in rows], np.int64) if branched else None,
        document=padded([row.branch * 0 for row in rows], np.int64, fill=1) if branched else None,  # padding: its own
        branch=padded([row.branch for row in rows], np.int64) if branched else None,
        lengths=tuple(len(row.tokens) for row in rows),
        scored=weights.flatten().nonzero().squeeze(1),
        ends=torch.tensor(ends).view(len(items), -1),
        labels=None if None in labels else torch.tensor(labels),
        asked=torch.tensor([item.asked.scored for item in items if item.asked]) if items[0].asked else None,
    )


def by_length(
    items: Sequence[Item], micro_batch: int | None, token_budget: int, before: int = 0
) -> Iterator[list[int]]:
    """Indices of the items in groups of like length, longest first: micro_batch each, or what the budget holds.

    `before` tokens that every row attends to besides its own take room too.
    """
    order = sorted(range(len(items)), key=lambda i: -items[i].width)
    while order:
        longest = items[order[0]]
        size = micro_batch or max(1, token_budget // ((longest.width + before) * longest.height))
        yield order[:size]
        order = order[size:]
