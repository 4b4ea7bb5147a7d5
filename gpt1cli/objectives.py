"""What is minimised: (model, batch) -> a summed loss, what it is divided by, and its parts.

Sums, not means: the loop adds up micro-batches and divides once, so that the split of an update never shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from gpt1cli.batches import Batch
from gpt1cli.kernels import cross_entropy
from gpt1cli.models.heads import Classifier
from gpt1cli.models.transformer import Transformer


@dataclass(frozen=True)
class Loss:
    """A loss summed over `count` things; the parts are summed over the same."""

    total: Tensor
    count: int
    parts: dict[str, Tensor] = field(default_factory=dict)


def language_model_loss(hidden: Tensor, table: Tensor, batch: Batch) -> Tensor:
    """Weighted sum of -log p(target) over a batch's targets. hidden [B,T,D], table [V,D] -> [] (paper, equation 1)."""
    weights = batch.weights.flatten()
    scored = weights.nonzero().squeeze(1)
    states = hidden.flatten(0, 1)
    if len(scored) < len(weights):  # padding has no target: its logits are never computed
        states = states.index_select(0, scored)
    return cross_entropy(states, table, batch.targets.flatten()[scored], weights[scored])


def language_modelling(model: Transformer, batch: Batch) -> Loss:
    """Pretraining: the next token of every position (paper, equation 1)."""
    hidden = model(batch.tokens, batch.positions, batch.document, batch.branch)
    return Loss(language_model_loss(hidden, model.tokens.weight, batch), batch.count)


def classification(lm_coef: float) -> Callable[[Classifier, Batch], Loss]:
    """Fine-tuning: cross entropy of the label + lm_coef x language-model loss of the same rows (paper, equations 4, 5).

    The LM loss is a mean per sequence, then over sequences, as in the released code (the paper's equation 1 is a sum);
    lm_coef = 0 computes no logits over the vocabulary.
    """

    def objective(model: Classifier, batch: Batch) -> Loss:
        assert batch.ends is not None and batch.labels is not None
        hidden = model.body(batch.tokens, batch.positions, batch.document, batch.branch)
        task = F.cross_entropy(model.classify(hidden, batch.ends).float(), batch.labels, reduction="sum")
        if lm_coef == 0:
            return Loss(task, batch.count)
        lm = language_model_loss(hidden, model.body.tokens.weight, batch)
        return Loss(task + lm_coef * lm, batch.count, {"task_loss": task.detach(), "lm_loss": lm.detach()})

    return objective
