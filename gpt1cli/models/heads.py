"""Output layers of fine-tuning: one linear layer on the Transformer (paper, section 3.2, equation 3), or none.

B rows, T tokens of a row, D width, V vocabulary rows, N items of K sequences each, L labels, S scored tokens.
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

    With choice=True each sequence of an item gets one score; else the states of its sequences are added and get
    `outputs` values.
    """

    def __init__(self, body: LanguageModel, outputs: int, head_dropout: float, choice: bool = False):
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.d_model, 1 if choice else outputs)
        self.head_dropout = head_dropout
        self.choice = choice
        nn.init.normal_(self.head.weight, std=body.config.init_std)
        nn.init.zeros_(self.head.bias)

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Compute the outputs of each item: [N,outputs], or [N,K] with choice=True; fp32."""
        assert batch.read_at is not None
        return self.classify(hidden, batch.read_at)

    def classify(self, hidden: Tensor, read_at: Tensor) -> Tensor:
        """Compute the outputs of each item. hidden [B,T,D]; read_at [N,K]: position of `_classify_` in the flat rows.

        Returns the scores of the answers [N,K] with choice=True, else [N,outputs]; fp32.
        """
        N, K = read_at.shape
        # NOTE: index_select, not hidden[rows, ends]: the gradient of advanced indexing is not deterministic on a CPU.
        states = hidden.flatten(0, 1).index_select(0, read_at.flatten()).view(N, K, -1)  # [N,K,D]
        if not self.choice:
            states = states.sum(1, keepdim=True)  # [N,1,D]
        if self.training and self.head_dropout:  # the same units for every answer (released code)
            states = states * dropout(torch.ones_like(states[:, :1]), self.head_dropout)
        # Always in fp32: bf16 has only 128 values between 1 and 2, so that scores would be tied.
        values = F.linear(states.float(), self.head.weight.float(), self.head.bias.float())  # [N,K,1] or [N,1,outputs]
        return values.squeeze(2) if self.choice else values.squeeze(1)


class PromptedLM(nn.Module):
    """A language model that scores labels by their words: no head, no new parameters (LM-BFF).

    The score of a label is the log-probability of its words and of the tokens after them, given the tokens before.
    Alternative words of one label are scored by the sum of their probabilities.
    """

    def __init__(self, body: LanguageModel, alternatives: Sequence[int], normalise: str):
        super().__init__()
        self.body = body
        self.alternatives = list(alternatives)  # sequences of each label; empty: one each
        self.normalise = normalise

    @classmethod
    def from_task(cls, body: LanguageModel, task: TaskConfig) -> PromptedLM:
        """Build the model for the prompt of a task."""
        alternatives = [] if task.choices else [len(task.prompt.alternatives(label)) for label in task.answer_labels]
        return cls(body, alternatives, task.prompt.normalise)

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Compute the score of every label for each item. hidden [B,T,D] -> [N,L], fp32."""
        assert batch.read_at is not None and batch.scored_counts is not None
        N, K = batch.read_at.shape
        read_at, counts = batch.read_at.flatten(), batch.scored_counts.flatten()  # [NK]
        owner = torch.arange(N * K, device=counts.device).repeat_interleave(counts)  # [S], sequence of each token
        # NOTE: the position before each scored token, where the model predicts it
        positions = torch.arange(len(owner), device=counts.device) + (read_at - counts.cumsum(0))[owner]  # [S]
        table = self.body.tokens.weight.float()  # always in fp32, as above
        logits = F.linear(hidden.flatten(0, 1).index_select(0, positions).float(), table)  # [S,V]
        targets = batch.tokens.flatten()[positions + 1]
        token_scores = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)  # [S]
        totals = token_scores.new_zeros(N * K).index_add(0, owner, token_scores)
        if self.normalise == "mean":
            totals = totals / counts.clamp(min=1)
        totals = torch.where(counts > 0, totals, -math.log(len(table)))  # no scored token: uniform
        scores = totals.view(N, K)
        if not self.alternatives:
            return scores
        return torch.stack([own.logsumexp(1) for own in scores.split(self.alternatives, 1)], 1)


FineTunedModel = Classifier | PromptedLM
