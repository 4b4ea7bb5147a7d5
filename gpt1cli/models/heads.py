"""What fine-tuning puts on top of the Transformer: one linear layer (paper, section 3.2, equation 3), or nothing.

B rows, T tokens, D width, V vocabulary rows, N items of K sequences each, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1cli.config.task import TaskConfig
from gpt1cli.models.kernels import dropout
from gpt1cli.models.language_model import LanguageModel

if TYPE_CHECKING:
    from gpt1cli.models.batch import Batch


class Classifier(nn.Module):
    """A Transformer and a linear layer on the hidden states at `_classify_`.

    With choice=True each of an item's sequences gets one score; else their states are added and get `outputs` values.
    """

    def __init__(self, body: LanguageModel, outputs: int, head_dropout: float, choice: bool = False):
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.d_model, 1 if choice else outputs)
        self.head_dropout = head_dropout
        self.choice = choice
        nn.init.normal_(self.head.weight, std=body.config.init_std)
        nn.init.zeros_(self.head.bias)

    def answer(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Values of each item of a batch, [N,outputs], or [N,K] of a choice; fp32."""
        assert batch.ends is not None
        return self.classify(hidden, batch.ends)

    def classify(self, hidden: Tensor, ends: Tensor) -> Tensor:
        """Values of each item. hidden [B,T,D]; ends [N,K]: where `_classify_` lies in the flattened rows.

        -> [N,K] scores of the answers with choice=True, else [N,outputs]; fp32.
        """
        N, K = ends.shape
        # NOTE: index_select, not hidden[rows, ends]: the gradient of fancy indexing is not deterministic on a CPU.
        states = hidden.flatten(0, 1).index_select(0, ends.flatten()).view(N, K, -1)  # [N,K,D]
        if not self.choice:
            states = states.sum(1, keepdim=True)  # [N,1,D]
        if self.training and self.head_dropout:  # the same units for every answer, as in the released code
            states = states * dropout(torch.ones_like(states[:, :1]), self.head_dropout)
        # In fp32 whatever the body's arithmetic: bf16 has 128 values between 1 and 2, and scores would come in ties.
        values = F.linear(states.float(), self.head.weight.float(), self.head.bias.float())  # [N,K,1] or [N,1,outputs]
        return values.squeeze(2) if self.choice else values.squeeze(1)


class Prompted(nn.Module):
    """A language model that answers by what it would go on with: no head, no parameter beside its own (LM-BFF).

    The score of a label is the log-probability of its words and of what follows them, given what stands before; of
    alternatives the sum of their probabilities counts.
    """

    def __init__(self, body: LanguageModel, alternatives: Sequence[int], normalise: str):
        super().__init__()
        self.body = body
        self.alternatives = list(alternatives)  # how many of an item's sequences each label has; none: one each
        self.normalise = normalise

    @classmethod
    def of(cls, body: LanguageModel, task: TaskConfig) -> Prompted:
        """For the prompt of a task."""
        alternatives = [] if task.choices else [len(task.prompt.alternatives(label)) for label in task.answers]
        return cls(body, alternatives, task.prompt.normalise)

    def answer(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The score of every label for each item of a batch. hidden [B,T,D] -> [N,L], fp32."""
        assert batch.ends is not None and batch.asked is not None
        N, K = batch.ends.shape
        ends, counts = batch.ends.flatten(), batch.asked.flatten()  # [N K]
        owner = torch.arange(N * K, device=counts.device).repeat_interleave(counts)  # [S], the sequence of each token
        places = torch.arange(len(owner), device=counts.device) + (ends - counts.cumsum(0))[owner]  # S tokens follow
        table = self.body.tokens.weight.float()  # in fp32 whatever the body's arithmetic, as above
        logits = F.linear(hidden.flatten(0, 1).index_select(0, places).float(), table)  # [S,V]
        targets = batch.tokens.flatten()[places + 1]
        each = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)  # [S]
        totals = each.new_zeros(N * K).index_add(0, owner, each)
        if self.normalise == "mean":
            totals = totals / counts.clamp(min=1)
        totals = torch.where(counts > 0, totals, -math.log(len(table)))  # nothing to score: as if nothing were known
        scores = totals.view(N, K)
        if not self.alternatives:
            return scores
        return torch.stack([own.logsumexp(1) for own in scores.split(self.alternatives, 1)], 1)


Tuned = Classifier | Prompted
