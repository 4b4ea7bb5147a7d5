"""Examples to batches: what goes through the model together, as a pure function of the update's number.

Nothing here remembers a position: the batch of update `step` follows from (seed, step) alone, so a resumed run goes on
with the very batches it would have seen.

B rows, T tokens of the longest row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}  # tokens computed at a time, where runtime.micro_batch does not say


@dataclass(frozen=True)
class Row:
    """One input sequence, its special tokens included, and the class it belongs to (None: to be predicted)."""

    tokens: list[int]
    label: int | None = None


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
    ends: Tensor | None = None  # [B] int64: position of `_classify_`
    labels: Tensor | None = None  # [B] int64

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


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


def rows_batch(rows: Sequence[Row]) -> Batch:
    """Rows, padded at the right; a row's n targets weigh 1/n each, so that the loss is a sum of means per sequence."""
    B, T = len(rows), max(len(row.tokens) for row in rows)
    tokens = torch.zeros(B, T, dtype=torch.int64)
    targets, weights = torch.zeros_like(tokens), torch.zeros(B, T)
    for i, row in enumerate(rows):
        n = len(row.tokens)
        tokens[i, :n] = torch.tensor(row.tokens)
        targets[i, : n - 1] = tokens[i, 1:n]
        weights[i, : n - 1] = 1 / max(1, n - 1)
    labels = [row.label for row in rows]
    return Batch(
        tokens=tokens,
        targets=targets,
        weights=weights,
        count=B,
        real_tokens=sum(len(row.tokens) for row in rows),
        ends=torch.tensor([len(row.tokens) - 1 for row in rows]),
        labels=None if None in labels else torch.tensor(labels),
    )


def by_length(rows: Sequence[Row], micro_batch: int | None, token_budget: int) -> Iterator[list[int]]:
    """Indices of the rows in groups of like length, longest first: micro_batch each, or as many as the budget holds."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
    while order:
        size = micro_batch or max(1, token_budget // len(rows[order[0]].tokens))
        yield order[:size]
        order = order[size:]


@dataclass(frozen=True)
class Epochs:
    """Labelled rows in a fresh order each epoch; the call gives the micro-batches of one update.

    The last batch of an epoch may be smaller: no example is lost (the released code drops it).
    """

    rows: Sequence[Row]
    batch_size: int
    seed: int
    micro_batch: int | None
    token_budget: int

    @property
    def updates(self) -> int:
        """Updates in one epoch."""
        return -(-len(self.rows) // self.batch_size)

    def __call__(self, step: int) -> list[Batch]:
        epoch, position = divmod(step, self.updates)
        order = _shuffled(len(self.rows), self.seed, epoch)
        chosen = [self.rows[i] for i in order[position * self.batch_size : (position + 1) * self.batch_size]]
        groups = by_length(chosen, self.micro_batch, self.token_budget)
        return [rows_batch([chosen[i] for i in group]) for group in groups]


@functools.lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
