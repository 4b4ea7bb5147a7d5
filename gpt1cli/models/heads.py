"""What fine-tuning puts on top of the Transformer: one linear layer (paper, section 3.2, equation 3).

B rows, T tokens, D width, N items of K sequences each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1cli.kernels import dropout
from gpt1cli.models.language_model import LanguageModel


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
