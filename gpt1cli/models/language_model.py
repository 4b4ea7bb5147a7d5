"""What every architecture has: one table of tokens, for input and output.

D width, V vocabulary rows.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from gpt1cli.config.model import ModelConfig
from gpt1cli.models.kernels import linear


class LanguageModel(nn.Module):
    """Tokens to hidden states [B,T,D], by a subclass; `logits` turns those into scores with the input's own table."""

    branches: ClassVar[bool]  # whether a row may hold one prefix and several continuations of it

    def __init__(self, config: ModelConfig, vocabulary: int):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(vocabulary, config.d_model)

    def initialise(self) -> None:
        """Section 4.1: N(0, 0.02); biases 0, gains 1."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=self.config.init_std)
            elif "bias" in name:
                nn.init.zeros_(parameter)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: hidden [..., D] -> [..., V]. The output table is the input table."""
        return linear(hidden.reshape(-1, hidden.shape[-1]), self.tokens.weight).view(*hidden.shape[:-1], -1)

    def configure(self, config: ModelConfig) -> None:
        """Take the dropout rates of another configuration of the same shape."""
        self.config = config

    def append_rows(self, count: int) -> None:
        """Append fresh N(0, 0.02) rows to the token table: the special tokens of fine-tuning."""
        old = self.tokens.weight.detach()
        fresh = torch.empty(count, old.shape[1], dtype=old.dtype, device=old.device).normal_(std=self.config.init_std)
        self.tokens = nn.Embedding.from_pretrained(torch.cat([old, fresh]), freeze=False)

    def keep_rows(self, count: int) -> None:
        """Keep the first rows of the token table: those of the vocabulary, without special tokens."""
        self.tokens = nn.Embedding.from_pretrained(self.tokens.weight.detach()[:count].clone(), freeze=False)
