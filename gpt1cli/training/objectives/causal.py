"""Next-token prediction (paper, section 3.1, equation 1), and the loss type that all objectives return.

Losses are sums, not means: the loop adds up micro-batches and divides once, so the split of a step into micro-batches
does not change the result.

B rows, T tokens of a row, D width, V vocabulary rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gpt1cli.models.batch import Batch
from gpt1cli.models.kernels import cross_entropy
from gpt1cli.models.language_model import LanguageModel


@dataclass(frozen=True)
class Loss:
    """A loss and its parts, each summed over `count` targets or examples."""

    total: Tensor
    count: int
    parts: dict[str, Tensor] = field(default_factory=dict)

    def zeroed(self) -> Loss:
        """Return a zero loss with count 0 and zero gradients."""
        return Loss(self.total * 0, 0, {name: part * 0 for name, part in self.parts.items()})


def language_model_loss(hidden: Tensor, table: Tensor, batch: Batch) -> Tensor:
    """Compute the weighted sum of -log p(target) (paper, equation 1). hidden [B,T,D], table [V,D] -> []"""
    states, targets, weights = hidden.flatten(0, 1), batch.targets.flatten(), batch.weights.flatten()
    if batch.loss_positions is not None:  # no logits for positions without a target, such as padding
        states, targets, weights = (x.index_select(0, batch.loss_positions) for x in (states, targets, weights))
    return cross_entropy(states, table, targets, weights)


def causal_objective(model: LanguageModel, batch: Batch) -> Loss:
    """Compute the pretraining loss: predict the next token at every position (paper, equation 1)."""
    hidden = batch.forward(model)
    return Loss(language_model_loss(hidden, model.tokens.weight, batch), batch.count)
