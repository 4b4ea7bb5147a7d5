"""Supervised fine-tuning with the auxiliary language-model loss (paper, section 3.2, equations 3 to 5)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gpt1cli.models.batch import Batch
from gpt1cli.models.heads import FineTunedModel
from gpt1cli.training.objectives.causal import Loss, language_model_loss

TaskLoss = Callable[[Tensor, Tensor], Tensor]  # outputs [N,O], labels [N] -> sum over N examples


def supervised_objective(task_loss: TaskLoss, lm_coef: float) -> Callable[[FineTunedModel, Batch], Loss]:
    """Return the objective: task loss + lm_coef x language-model loss of the same rows (paper, equation 5).

    The LM loss is a mean over the tokens of each sequence, then over sequences, as in the released code (equation 1 of
    the paper is a sum). With lm_coef = 0, no vocabulary logits are computed.
    """

    def objective(model: FineTunedModel, batch: Batch) -> Loss:
        assert batch.labels is not None
        hidden = batch.forward(model.body)
        task = task_loss(model.logits(hidden, batch).float(), batch.labels)
        if lm_coef == 0:
            return Loss(task, batch.count)
        lm = language_model_loss(hidden, model.body.tokens.weight, batch)
        return Loss(task + lm_coef * lm, batch.count, {"task_loss": task.detach(), "lm_loss": lm.detach()})

    return objective
