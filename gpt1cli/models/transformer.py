"""The Transformer decoder of GPT-1: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training".

Post-norm blocks as in Vaswani et al. 2017 and the released code, learned positions, tanh-GELU, tied input and output
embedding, no norm after the last block. With norm=pre it is that of GPT-2 (Radford et al. 2019, "Language Models are
Unsupervised Multitask Learners", section 2.3): the norms move to the input of each part, one is added after the last
block. The model knows rows of tokens and one visibility rule; nothing about tasks.

B batch, T tokens of a row, N tokens that are no padding, D width, H heads, F feed-forward width, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1cli.config.model import ModelConfig
from gpt1cli.models.attention import attention, visibility
from gpt1cli.models.kernels import Rows, alike, dropout, linear
from gpt1cli.models.language_model import LanguageModel


class Past:
    """What the model has read before a row: keys and values of every block, which all tokens that follow see.

    As long as it is `growing`, each forward pass adds its own, up to `capacity` tokens (generation). After that it is
    only read, and a past of one row serves any number of rows (prompts behind the same demonstrations).
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0  # S, the tokens held
        self.growing = True
        self.held: dict[int, tuple[Tensor, Tensor]] = {}  # block -> keys and values, [B,H,capacity,C] each

    def before(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A row's keys and values with those held in front of them. [B,H,T,C] each -> [B,H,S+T,C] each"""
        S, T = self.length, k.shape[2]
        if not self.growing:
            held_k, held_v = (held[:, :, :S].expand(len(k), -1, -1, -1) for held in self.held[block])
            return torch.cat([held_k, k], 2), torch.cat([held_v, v], 2)
        if block not in self.held:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.held[block] = k.new_empty(shape), v.new_empty(shape)
        held_k, held_v = self.held[block]
        held_k[:, :, S : S + T], held_v[:, :, S : S + T] = k, v
        return held_k[:, :, : S + T], held_v[:, :, : S + T]

    def repeat(self, rows: int) -> None:
        """Hold the one row's past once for each of so many rows."""
        self.held = {block: (k.repeat(rows, 1, 1, 1), v.repeat(rows, 1, 1, 1)) for block, (k, v) in self.held.items()}


class Linear(nn.Linear):
    """x W' + b, [N,in] -> [N,out], as fast as the machine has it."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


Group = tuple[Rows, Tensor | None]  # rows that attend together, and who sees whom there: bool [B,1,T,S]; None: causal


class Block(nn.Module):
    """Attention, then two linear layers around a GELU; each part adds what it finds to its input.

    The norm comes after the sum (post), or at the input of the part, so that the sums themselves run through all blocks
    untouched (pre).
    """

    def __init__(self, config: ModelConfig, number: int):
        super().__init__()
        D, F_ = config.d_model, config.d_ff
        self.config, self.number = config, number
        self.query_key_value = Linear(D, 3 * D)
        self.attention_output = Linear(D, D)
        self.attention_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.expand = Linear(D, F_)
        self.contract = Linear(F_, D)
        self.feed_forward_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, groups: Sequence[Group], past: Past | None = None) -> Tensor:
        """[N,D] -> [N,D]: the real tokens of all rows, one after the other."""
        if self.config.norm == "pre":
            x = x + self.attention(self.attention_norm(x), groups, past)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x + self.attention(x, groups, past))
        return self.feed_forward_norm(x + self.feed_forward(x))

    def attention(self, x: Tensor, groups: Sequence[Group], past: Past | None) -> Tensor:
        """[N,D] -> [N,D]"""
        parts = self.query_key_value(x).split([rows.N for rows, _ in groups])  # [N,3D], group by group
        mixed = torch.cat([self.attend(part, *group, past) for part, group in zip(parts, groups, strict=True)])
        return dropout(self.attention_output(mixed), self.config.residual_dropout if self.training else 0.0)

    def feed_forward(self, x: Tensor) -> Tensor:
        """[N,D] -> [N,D]"""
        raised = F.gelu(self.expand(x), approximate="tanh")  # [N,F]
        return dropout(self.contract(raised), self.config.residual_dropout if self.training else 0.0)

    def attend(self, x: Tensor, rows: Rows, visible: Tensor | None, past: Past | None) -> Tensor:
        """Attention of one group of rows: [N,3D] -> [N,D]."""
        p = self.config.attention_dropout if self.training else 0.0
        q, k, v = rows.lay(x).unflatten(2, (3, self.config.n_head, -1)).permute(2, 0, 3, 1, 4)  # [B,H,T,D/H] each
        if past is not None:
            k, v = past.before(self.number, k, v)  # [B,H,S+T,D/H] each
        return rows.pick(attention(q, k, v, visible, p).transpose(1, 2).flatten(2))


def _group(lengths: Sequence[int], visible: Tensor | None) -> Group:
    T = max(lengths)
    return Rows(len(lengths), T, lengths), None if visible is None else visible[:, :, :T, :T]


class Transformer(LanguageModel):
    """Tokens to hidden states through all blocks."""

    branches = True

    def __init__(self, config: ModelConfig, vocabulary: int):
        super().__init__(config, vocabulary)
        self.positions = nn.Embedding(config.n_positions, config.d_model)
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.n_layer))
        pre = config.norm == "pre"
        self.final_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps) if pre else nn.Identity()
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """As in GPT-1; with norm=pre what 2 n_layer parts add begins smaller by their number's root (GPT-2, 2.3)."""
        super().initialise()
        if self.config.norm == "pre":
            for name, parameter in self.named_parameters():
                if name.endswith(("attention_output.weight", "contract.weight")):
                    parameter.mul_((2 * self.config.n_layer) ** -0.5)

    def configure(self, config: ModelConfig) -> None:
        """Take the dropout rates of another configuration of the same shape."""
        super().configure(config)
        for block in self.blocks:
            block.config = config  # type: ignore[assignment]

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        document: Tensor | None = None,
        branch: Tensor | None = None,
        past: Past | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states of the last block. Tensors [B,T] -> [B,T,D].

        Without positions they count from 0, or on from the past; without document and branch the row is one plain
        causal sequence. `lengths`, the tokens of each row, tells what is padding at the right: it may then be left out
        of the computation, and its states be zero.
        """
        (B, T), S = tokens.shape, 0 if past is None else past.length
        if past is not None or tokens.is_cuda or torch.compiler.is_compiling():  # there one shape for all pays more
            lengths = None
        if positions is None:
            positions = torch.arange(S, S + T, device=tokens.device).expand_as(tokens)
        visible = None
        if document is not None or branch is not None or (S and T > 1):
            zeros = torch.zeros_like(tokens)
            visible = visibility(zeros if document is None else document, zeros if branch is None else branch)
            visible = F.pad(visible, (S, 0), value=True)  # [B,1,T,S+T]: the past is seen by all

        rows, groups = Rows(B, T, lengths), [(Rows(B, T), visible)]
        if lengths is not None:
            groups = [_group(lengths[part], None if visible is None else visible[part]) for part in alike(lengths)]
        x = self.tokens(rows.pick(tokens)) + self.positions(rows.pick(positions))  # [N,D]
        # Dropout on the sum, once per occurrence; the released code drops entries of the embedding matrix itself.
        x = dropout(x, self.config.embedding_dropout if self.training else 0.0)
        for block in self.blocks:
            x = block(x, groups, past)
        if past is not None and past.growing:
            past.length += T
        return rows.lay(self.final_norm(x))
