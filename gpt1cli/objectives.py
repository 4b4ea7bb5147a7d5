"""What is minimised: (model, batch) -> a summed loss, what it is divided by, and its parts.

Sums, not means: the loop adds up micro-batches and divides once, so that the split of an update never shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from gpt1cli.models.batch import Batch
from gpt1cli.models.heads import Tuned
from gpt1cli.models.kernels import cross_entropy
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.tasks.losses import TaskLoss


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
