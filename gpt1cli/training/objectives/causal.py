"""Next-token prediction (paper, section 3.1, equation 1), and the summed loss that every objective returns.

Losses are sums, not means: the loop adds up micro-batches and divides once, so the split of a step into micro-batches
never changes the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gpt1cli.models.batch import Batch
from gpt1cli.models.kernels import cross_entropy
from gpt1cli.models.language_model import LanguageModel


@dataclass(frozen=True)
class Loss:
    """A loss summed over `count` things; the parts are summed over the same."""

    total: Tensor
    count: int
    parts: dict[str, Tensor] = field(default_factory=dict)

    def uncounted(self) -> Loss:
        """Zero over nothing, with a gradient of zero."""
        return Loss(self.total * 0, 0, {name: part * 0 for name, part in self.parts.items()})


def language_model_loss(hidden: Tensor, table: Tensor, batch: Batch) -> Tensor:
    """Weighted sum of -log p(target) over a batch's targets. hidden [B,T,D], table [V,D] -> [] (paper, equation 1)."""
    states, targets, weights = hidden.flatten(0, 1), batch.targets.flatten(), batch.weights.flatten()
    if batch.scored is not None:  # padding has no target: its logits are never computed
        states, targets, weights = (x.index_select(0, batch.scored) for x in (states, targets, weights))
    return cross_entropy(states, table, targets, weights)


def language_modelling(model: LanguageModel, batch: Batch) -> Loss:
    """Pretraining: the next token of every position (paper, equation 1)."""
    hidden = batch.through(model)
    return Loss(language_model_loss(hidden, model.tokens.weight, batch), batch.count)
