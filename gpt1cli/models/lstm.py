"""The LSTM that the paper sets beside the Transformer (section 5, Table 5): one layer, 2048 units at the paper's size.

The paper says no more of it. Here the output is projected to the width of the embedding, so that both share one table;
dropout stands on the embeddings and on the recurrent layer's output; the forget gate's bias begins at 1 (Jozefowicz et
al. 2015, "An Empirical Exploration of Recurrent Network Architectures").

B batch, T tokens of a row, D width, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gpt1cli.config.model import ModelConfig
from gpt1cli.models.kernels import dropout, linear
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import Linear, Past

State = tuple[Tensor, Tensor]  # output and cell, [B,U] each


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


def recurrence_plain(
    x: Tensor, into: Tensor, across: Tensor, bias: Tensor, state: State | None
) -> tuple[Tensor, State]:
    """One LSTM layer, step by step (Hochreiter and Schmidhuber 1997, with forget gates).

    x [T,B,D], into [4U,D], across [4U,U], bias [4U]; gates in torch's order, input, forget, cell, output.
    -> the outputs [T,B,U], and the state after the last step.
    """
    h, c = state or (x.new_zeros(x.shape[1], across.shape[1]),) * 2
    found = []
    for step in x:
        i, f, n, o = (step @ into.T + bias + h @ across.T).chunk(4, 1)  # [B,U] each
        c = f.sigmoid() * c + i.sigmoid() * n.tanh()
        h = o.sigmoid() * c.tanh()
        found.append(h)
    return torch.stack(found), (h, c)


def recurrence(x: Tensor, into: Tensor, across: Tensor, bias: Tensor, state: State | None) -> tuple[Tensor, State]:
    """recurrence_plain on a CPU, in bf16 2.4 times as fast as torch's own; the state before has no gradient."""
    (T, B, _), U = x.shape, across.shape[1]
    gates = linear(x.flatten(0, 1), into, bias).view(T, B, 4 * U).transpose(1, 2)  # [T,4U,B]: each gate is one piece
    h, c = (x.new_zeros(U, B) for _ in range(2)) if state is None else (part.T for part in state)
    found, last = _Recurrence.apply(gates, across, h, c.float())
    return found.transpose(1, 2), (found[-1].T, last.T)


class _Recurrence(torch.autograd.Function):
    """The steps of an LSTM: what can be computed for all of them at once is not computed step by step.

    gates [T,4U,B] before what comes from the step before, across [4U,U], h and c [U,B] -> outputs [T,U,B], cell [U,B].
    The cell is fp32 whatever the arithmetic: it is a sum over all steps.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, across: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        T, U = len(gates), len(h)
        opened = gates.new_empty(gates.shape)  # after sigmoid and tanh
        cells, found = c.new_empty(T + 1, *c.shape), h.new_empty(T + 1, *h.shape)
        cells[0], found[0] = c, h
        for t in range(T):
            g = torch.addmm(gates[t], across, found[t]).float()  # [4U,B]
            g[: 2 * U].sigmoid_(), g[2 * U : 3 * U].tanh_(), g[3 * U :].sigmoid_()
            i, f, n, o = g.view(4, U, -1)
            torch.addcmul(i * n, f, cells[t], out=cells[t + 1])
            found[t + 1] = o * cells[t + 1].tanh()
            opened[t] = g
        ctx.save_for_backward(across, opened, cells, found)
        last = cells[-1]
        ctx.mark_non_differentiable(last)
        return found[1:], last

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        across, opened, cells, found = ctx.saved_tensors
        T, U, B = gradient.shape
        i, f, n, o = opened.float().view(T, 4, U, B).unbind(1)
        squashed = cells[1:].tanh()
        # d gate before its sigmoid or tanh / d cell, for the first three; / d output for the last
        slopes = torch.stack([n * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - n * n)], 1)  # [T,3,U,B]
        to_gate, to_cell = squashed * o * (1 - o), o * (1 - squashed * squashed)  # [T,U,B]
        back = across.T.contiguous()  # [U,4U]
        d_gates = torch.empty_like(opened)
        d_c = torch.zeros_like(cells[0])
        d_h = gradient[-1].float()
        for t in reversed(range(T)):
            d_c.addcmul_(d_h, to_cell[t])
            step = d_gates[t].view(4, U, B)
            step[:3] = slopes[t] * d_c
            step[3] = to_gate[t] * d_h
            d_c *= f[t]
            if t:
                d_h = torch.addmm(gradient[t - 1], back, d_gates[t]).float()
        d_across = d_gates.transpose(0, 1).flatten(1) @ found[:-1].transpose(1, 2).flatten(0, 1)  # [4U,TB] [TB,U]
        return d_gates, d_across, None, None
