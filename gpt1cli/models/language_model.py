"""The part that all architectures share: one token embedding for input and output.

B rows, T tokens of a row, D width, V vocabulary rows.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from gpt1cli.config.model import ModelConfig
from gpt1cli.models.kernels import linear


class LanguageModel(nn.Module):
    """A subclass maps tokens [B,T] to hidden states [B,T,D]; `logits` maps those to scores with the input embedding."""

    branches: ClassVar[bool]  # whether a row may hold a prefix and several continuations

    def __init__(self, config: ModelConfig, vocabulary: int):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(vocabulary, config.d_model)

    def initialise(self) -> None:
        """Initialise the weights from N(0, 0.02), biases with 0, gains with 1 (paper, section 4.1)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=self.config.init_std)
            elif "bias" in name:
                nn.init.zeros_(parameter)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the scores of the next token: hidden [..., D] -> [..., V]. Output and input share one embedding."""
        return linear(hidden.reshape(-1, hidden.shape[-1]), self.tokens.weight).view(*hidden.shape[:-1], -1)

    def configure(self, config: ModelConfig) -> None:
        """Use the dropout rates of another configuration of the same shape."""
        self.config = config

    def resize_embeddings(self, rows: int) -> None:
        """Keep the first rows of the token embedding, or append N(0, 0.02) rows: special tokens of fine-tuning."""
        old = self.tokens.weight.detach()
        if rows <= len(old):
            self.tokens = nn.Embedding.from_pretrained(old[:rows].clone(), freeze=False)
            return
        shape = rows - len(old), old.shape[1]
        fresh = torch.empty(shape, dtype=old.dtype, device=old.device).normal_(std=self.config.init_std)
        self.tokens = nn.Embedding.from_pretrained(torch.cat([old, fresh]), freeze=False)
