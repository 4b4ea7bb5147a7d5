"""Examples to batches: what goes through the model together, as a pure function of the update's number.

Nothing here remembers a position: the batch of update `step` follows from (seed, step) alone, so a resumed run goes on
with the very batches it would have seen.

B rows, T tokens of the longest row, N items of K sequences each; a row holds one sequence, or a whole item's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.models.batch import Batch, Item, by_length, items_batch
from gpt1cli.training import collective

if TYPE_CHECKING:
    pass


R = TypeVar("R", list[Item], np.ndarray)


def portion(rows: R, laid: Callable[[R], Batch]) -> Batch:
    """The batch of this process's share of the rows. Where they are fewer than the processes, one that counts nothing:
    every process has to take part in every backward pass.
    """
    share = rows[collective.rank() :: collective.size()]
    return laid(share) if len(share) else dataclasses.replace(laid(rows[:1]), count=0, real_tokens=0)


@dataclass(frozen=True)
class Epochs:
    """Labelled items in a fresh order each epoch; the call gives the micro-batches of one update.

    The last batch of an epoch may be smaller: no example is lost (the released code drops it). With `whole` an update
    is one micro-batch, for a loss that is no sum over examples; UserError where memory ran out on it.
    """

    items: Sequence[Item]
    batch_size: int
    seed: int
    micro_batch: int | None
    token_budget: int
    whole: bool = False
    anew: Callable[[Sequence[int], int], Sequence[Item]] | None = None  # items of these places, made for one update

    @property
    def updates(self) -> int:
        """Updates in one epoch."""
        return -(-len(self.items) // self.batch_size)

    def __call__(self, step: int, halvings: int = 0) -> list[Batch]:
        epoch, position = divmod(step, self.updates)
        order = _shuffled(len(self.items), self.seed, epoch)
        places = order[position * self.batch_size : (position + 1) * self.batch_size].tolist()
        chosen = self.anew(places, step) if self.anew else [self.items[i] for i in places]
        if self.whole and halvings:
            raise UserError("the loss is that of a whole batch, which cannot be halved: name a smaller batch_size=")
        if self.whole:
            return [items_batch(chosen)]
        together = collective.size()
        micro_batch = self.micro_batch and max(1, self.micro_batch >> halvings) * together
        groups = by_length(chosen, micro_batch, (self.token_budget >> halvings) * together)
        return [portion([chosen[i] for i in group], items_batch) for group in groups]


@functools.lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


Source = Callable[[int, int], Iterable[Batch]]


def ahead(batches: Source, steps: int) -> Source:
    """The same batches, those of the next update prepared on another thread, in pinned memory, while a GPU computes."""
    pool = ThreadPoolExecutor(1)
    waiting: dict[tuple[int, int], Future[list[Batch]]] = {}

    def prepared(step: int, halvings: int) -> list[Batch]:
        return [batch.pinned() for batch in batches(step, halvings)]

    def next_ones(step: int, halvings: int) -> list[Batch]:
        found = waiting.pop((step, halvings), None) or pool.submit(prepared, step, halvings)
        waiting.clear()
        if step + 1 < steps:
            waiting[step + 1, halvings] = pool.submit(prepared, step + 1, halvings)
        return found.result()

    return next_ones
