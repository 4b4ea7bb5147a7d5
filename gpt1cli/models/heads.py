"""What fine-tuning puts on top of the Transformer: one linear layer (paper, section 3.2, equation 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt1cli.kernels import dropout
from gpt1cli.models.transformer import Transformer


class Classifier(nn.Module):
    """A Transformer and a linear layer on the hidden state at `_classify_`.

    B rows, T tokens, D width, L labels.
    """

    def __init__(self, body: Transformer, labels: int, head_dropout: float):
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.d_model, labels)
        self.head_dropout = head_dropout
        nn.init.normal_(self.head.weight, std=body.config.init_std)
        nn.init.zeros_(self.head.bias)

    def classify(self, hidden: Tensor, ends: Tensor) -> Tensor:
        """Scores of the labels. hidden [B,T,D], ends [B] the position of `_classify_` in each row -> [B,L]."""
        B, T, D = hidden.shape
        rows = ends + T * torch.arange(B, device=ends.device)
        # NOTE: index_select, not hidden[range(B), ends]: the gradient of fancy indexing is not deterministic on a CPU.
        states = hidden.reshape(B * T, D).index_select(0, rows)
        return self.head(dropout(states, self.head_dropout if self.training else 0.0))
