"""Supervised fine-tuning with the auxiliary language-model loss (paper, section 3.2, equations 3 to 5)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gpt1cli.models.batch import Batch
from gpt1cli.models.heads import Tuned
from gpt1cli.training.objectives.causal import Loss, language_model_loss

TaskLoss = Callable[[Tensor, Tensor], Tensor]  # outputs [N,O], labels [N] -> the sum over N examples


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
