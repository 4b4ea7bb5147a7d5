"""What is minimised: (model, batch) -> a summed loss, what it is divided by, and its parts.

Sums, not means: the loop adds up micro-batches and divides once, so that the split of an update never shows.
"""

from __future__ import annotations

from collections.abc import Callable

from gpt1cli.models.batch import Batch
from gpt1cli.models.heads import Tuned
from gpt1cli.tasks.losses import TaskLoss
from gpt1cli.training.objectives.causal import Loss, language_model_loss

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
