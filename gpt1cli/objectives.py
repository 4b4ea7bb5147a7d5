"""What is minimised: (model, batch) -> a summed loss, what it is divided by, and its parts.

Sums, not means: the loop adds up micro-batches and divides once, so that the split of an update never shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1cli.models.batch import Batch
from gpt1cli.models.heads import Tuned
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


# --- fine-tuning: the task's own loss, summed over items --------------------------------------------------------------


def cross_entropy_of_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(outputs)[label]. outputs [N,L] fp32, labels int64 [N] -> [] (paper, equation 4)."""
    return F.cross_entropy(outputs, labels, reduction="sum")


def soft_f1(outputs: Tensor, labels: Tensor) -> Tensor:
    """N x (1 - F1 of class 1), its counts being sums of probabilities. outputs [N,2] fp32, labels int64 [N] -> []

    F1 = 2 TP / (predicted + actual positives) belongs to a whole batch: the sum over its parts is another number.
    """
    positive, actual = outputs.softmax(-1)[:, 1], labels.float()
    f1 = 2 * (positive * actual).sum() / (positive.sum() + actual.sum())
    return len(labels) * (1 - f1)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """(output - score)^2. outputs [N,1] fp32, labels float [N] -> []"""
    return F.mse_loss(outputs.squeeze(1), labels.float(), reduction="sum")


def ordinal(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with a score shared out between the two whole levels around it. -> []

    outputs [N,L] fp32, one for each level 0..L-1; labels float [N], counted from the lowest level. The mean of such a
    target is the score itself (Tai et al. 2015; the released code's helper for STS-B).
    """
    levels = torch.arange(outputs.shape[1], device=outputs.device)
    targets = (1 - (labels.float()[:, None] - levels).abs()).clamp(min=0)  # [N,L]
    return F.cross_entropy(outputs, targets, reduction="sum")


def interpolation(outputs: Tensor, shares: Tensor) -> Tensor:
    """KL divergence of the two words' probabilities from (1 - share, share). outputs [N,2] fp32, shares [N] -> []

    A score between the two: Gao et al. 2021, section 4.1. Their code hands probabilities to a divergence that takes
    logarithms, and so weighs by e to the share; this one is the formula's.
    """
    targets = torch.stack([1 - shares, shares], 1).to(outputs.dtype)  # [N,2]
    return F.kl_div(outputs.log_softmax(-1), targets, reduction="sum")


TaskLoss = Callable[[Tensor, Tensor], Tensor]
TASK_LOSSES: dict[str, TaskLoss] = {
    "cross_entropy": cross_entropy_of_classes,
    "soft_f1": soft_f1,
    "mse": squared_error,
    "ordinal": ordinal,
}


def fine_tuning(task_loss: TaskLoss, lm_coef: float) -> Callable[[Tuned, Batch], Loss]:
    """The task's loss + lm_coef x the language-model loss of the same rows (paper, equation 5).

    The LM loss is a mean per sequence, then over sequences, as in the released code (the paper's equation 1 is a sum);
    lm_coef = 0 computes no logits over the vocabulary.
    """

    def objective(model: Tuned, batch: Batch) -> Loss:
        assert batch.labels is not None
        hidden = batch.through(model.body)
        task = task_loss(model.answer(hidden, batch).float(), batch.labels)
        if lm_coef == 0:
            return Loss(task, batch.count)
        lm = language_model_loss(hidden, model.body.tokens.weight, batch)
        return Loss(task + lm_coef * lm, batch.count, {"task_loss": task.detach(), "lm_loss": lm.detach()})

    return objective
