"""The LSTM that the paper sets beside the Transformer (section 5, Table 5): one layer, 2048 units at the paper's size.

The paper says no more of it. Here the output is projected to the width of the embedding, so that both share one table;
dropout stands on the embeddings and on the recurrent layer's output; the forget gate's bias begins at 1 (Jozefowicz et
al. 2015, "An Empirical Exploration of Recurrent Network Architectures").

B batch, T tokens of a row, D width, U units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gpt1cli.config.model import ModelConfig
from gpt1cli.kernels import dropout, recurrence
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import Linear, Past


class LSTM(LanguageModel):
    """Tokens to hidden states, from left to right; the order of the tokens is all it knows of their positions."""

    branches = False

    def __init__(self, config: ModelConfig, vocabulary: int):
        super().__init__(config, vocabulary)
        assert config.lstm_units is not None
        self.recurrent = nn.LSTM(config.d_model, config.lstm_units)
        self.projection = Linear(config.lstm_units, config.d_model)
        self.initialise()
        _, forget, _, _ = dict(self.recurrent.named_parameters())["bias_ih_l0"].detach().chunk(4)
        nn.init.ones_(forget)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        document: Tensor | None = None,
        branch: Tensor | None = None,
        past: Past | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states. tokens [B,T] -> [B,T,D]

        Positions say nothing to it, and padding at the right is read after everything else. ValueError for documents
        and branches: a row is one sequence.
        """
        if document is not None or branch is not None:
            raise ValueError("an LSTM reads plain rows: lay the sequences apart")
        x = dropout(self.tokens(tokens.T), self.config.embedding_dropout if self.training else 0.0)  # [T,B,D]
        found, state = self._read(x, self._before(past, len(tokens)))  # [T,B,U]
        if past is not None and past.growing:
            past.held[0] = (state[0][:, None, None], state[1][:, None, None])  # [B,1,1,U] each
            past.length += tokens.shape[1]
        found = dropout(found, self.config.residual_dropout if self.training else 0.0)
        return self.projection(found.flatten(0, 1)).view(*x.shape).transpose(0, 1)

    def _before(self, past: Past | None, rows: int) -> tuple[Tensor, Tensor] | None:
        """Output and cell after what has been read before, [rows,U] each; None: nothing has."""
        if past is None or not past.length:
            return None
        h, c = (held[:, 0, 0].expand(rows, -1) for held in past.held[0])
        return h, c

    def _read(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The outputs of all steps and the state after the last. x [T,B,D] -> [T,B,U], ([B,U], [B,U])"""
        layer = self.recurrent
        if x.is_cuda or x.dtype != torch.bfloat16:
            layer.flatten_parameters()  # one piece of memory is what cuDNN wants; nothing happens elsewhere
            found, (h, c) = layer(x, None if state is None else (state[0][None], state[1][None]))
            return found, (h[0], c[0])
        into, across, *biases = layer.parameters()
        return recurrence(x, into, across, biases[0] + biases[1], state)
