"""Batches of labelled examples as a pure function of the step.

There is no stored position: the batch of a step depends only on (seed, step), so a resumed run continues with exactly
the batches it would have seen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.models.batch import Batch, Item, group_by_length, items_batch
from gpt1cli.training import collective

R = TypeVar("R", list[Item], np.ndarray)


def rank_shard(rows: R, make_batch: Callable[[R], Batch]) -> Batch:
    """Make the batch of this process's share of the rows.

    A process without rows gets a batch that counts nothing, because all processes take part in every backward pass.
    """
    share = rows[collective.rank() :: collective.world_size()]
    return make_batch(share) if len(share) else dataclasses.replace(make_batch(rows[:1]), count=0, real_tokens=0)


@dataclass(frozen=True)
class Epochs:
    """Labelled items, reshuffled each epoch; calling it returns the micro-batches of one step.

    The last batch of an epoch may be smaller, so that no example is skipped (the released code skips it). With
    `full_batches` a step is one micro-batch, for a loss that is not a sum over examples; then UserError is raised if
    memory runs out.
    """

    items: Sequence[Item]
    batch_size: int
    seed: int
    micro_batch: int | None
    token_budget: int
    full_batches: bool = False
    resample: Callable[[Sequence[int], int], Sequence[Item]] | None = (
        None  # (indices, step) -> items made for that step
    )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        return -(-len(self.items) // self.batch_size)

    def __call__(self, step: int, halvings: int = 0) -> list[Batch]:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _shuffled_order(len(self.items), self.seed, epoch)
        indices = order[position * self.batch_size : (position + 1) * self.batch_size].tolist()
        items = self.resample(indices, step) if self.resample else [self.items[i] for i in indices]
        if self.full_batches and halvings:
            raise UserError("out of memory: this loss needs the full batch at once; use a smaller batch_size=")
        if self.full_batches:
            return [items_batch(items)]
        processes = collective.world_size()
        micro_batch = self.micro_batch and max(1, self.micro_batch >> halvings) * processes
        groups = group_by_length(items, micro_batch, (self.token_budget >> halvings) * processes)
        return [rank_shard([items[i] for i in group], items_batch) for group in groups]


@functools.lru_cache(maxsize=2)
def _shuffled_order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


BatchSource = Callable[[int, int], Iterable[Batch]]


def prefetch(batches: BatchSource, steps: int) -> BatchSource:
    """Return the same batches; those of the next step are prepared in another thread, in pinned memory."""
    pool = ThreadPoolExecutor(1)
    pending: dict[tuple[int, int], Future[list[Batch]]] = {}

    def prepare(step: int, halvings: int) -> list[Batch]:
        return [batch.pin_memory() for batch in batches(step, halvings)]

    def next_batches(step: int, halvings: int) -> list[Batch]:
        future = pending.pop((step, halvings), None) or pool.submit(prepare, step, halvings)
        pending.clear()
        if step + 1 < steps:
            pending[step + 1, halvings] = pool.submit(prepare, step + 1, halvings)
        return future.result()

    return next_batches
