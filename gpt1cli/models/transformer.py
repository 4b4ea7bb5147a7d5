"""The Transformer decoder of GPT-1: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training".

Post-norm blocks as in Vaswani et al. 2017 and the released code, learned positions, tanh-GELU, tied input and output
embedding, no norm after the last block. With norm=pre it is the decoder of GPT-2 (Radford et al. 2019, "Language Models
are Unsupervised Multitask Learners", section 2.3): the norms move to the input of each sublayer, and one is added after
the last block. The model knows rows of tokens and one visibility rule, and nothing about tasks.

B rows, T tokens of a row, S cached tokens, N tokens without padding, D width, H heads, C = D/H channels of one head,
F feed-forward width, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1cli.config.model import ModelConfig
from gpt1cli.models.attention import attention, visibility
from gpt1cli.models.kernels import Rows, dropout, length_groups, linear
from gpt1cli.models.language_model import LanguageModel


class KVCache:
    """Keys and values of the tokens before a row, for every block; all later tokens see them.

    While `appending` is true, each forward pass adds its own tokens, up to `capacity` (generation). Then the cache is
    only read, and a cache of one row serves any number of rows (prompts after the same demonstrations).
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0  # S, cached tokens
        self.appending = True
        self.tensors: dict[int, tuple[Tensor, Tensor]] = {}  # block -> keys and values, [B,H,capacity,C] each

    def extend(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the cached keys and values before those of a row. [B,H,T,C] each -> [B,H,S+T,C] each"""
        S, T = self.length, k.shape[2]
        if not self.appending:
            cached_k, cached_v = (cached[:, :, :S].expand(len(k), -1, -1, -1) for cached in self.tensors[block])
            return torch.cat([cached_k, k], 2), torch.cat([cached_v, v], 2)
        if block not in self.tensors:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.tensors[block] = k.new_empty(shape), v.new_empty(shape)
        cached_k, cached_v = self.tensors[block]
        cached_k[:, :, S : S + T], cached_v[:, :, S : S + T] = k, v
        return cached_k[:, :, : S + T], cached_v[:, :, : S + T]

    def repeat(self, rows: int) -> None:
        """Copy the cache of one row for each of `rows` rows."""
        self.tensors = {
            block: (k.repeat(rows, 1, 1, 1), v.repeat(rows, 1, 1, 1)) for block, (k, v) in self.tensors.items()
        }


class Linear(nn.Linear):
    """Linear layer with the fast kernel: x W' + b. [N,in] -> [N,out]"""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


Group = tuple[Rows, Tensor | None]  # rows that attend together, their visibility: bool [B,1,T,S+T]; None: causal


class Block(nn.Module):
    """Attention, then two linear layers with a GELU between them; each sublayer adds its output to its input.

    The norm comes after the sum (post) or at the input of the sublayer, so that the sums pass all blocks unchanged
    (pre).
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

    def forward(self, x: Tensor, groups: Sequence[Group], cache: KVCache | None = None) -> Tensor:
        """[N,D] -> [N,D]: the real tokens of all rows, concatenated."""
        if self.config.norm == "pre":
            x = x + self.attention(self.attention_norm(x), groups, cache)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x + self.attention(x, groups, cache))
        return self.feed_forward_norm(x + self.feed_forward(x))

    def attention(self, x: Tensor, groups: Sequence[Group], cache: KVCache | None) -> Tensor:
        """[N,D] -> [N,D]"""
        parts = self.query_key_value(x).split([rows.N for rows, _ in groups])  # [N,3D], split by group
        attended = torch.cat([self.attend(part, *group, cache) for part, group in zip(parts, groups, strict=True)])
        return dropout(self.attention_output(attended), self.config.residual_dropout if self.training else 0.0)

    def feed_forward(self, x: Tensor) -> Tensor:
        """[N,D] -> [N,D]"""
        expanded = F.gelu(self.expand(x), approximate="tanh")  # [N,F]
        return dropout(self.contract(expanded), self.config.residual_dropout if self.training else 0.0)

    def attend(self, x: Tensor, rows: Rows, visible: Tensor | None, cache: KVCache | None) -> Tensor:
        """Compute attention within one group of rows: [N,3D] -> [N,D]."""
        p = self.config.attention_dropout if self.training else 0.0
        q, k, v = rows.pad(x).unflatten(2, (3, self.config.n_head, -1)).permute(2, 0, 3, 1, 4)  # [B,H,T,C] each
        if cache is not None:
            k, v = cache.extend(self.number, k, v)  # [B,H,S+T,C] each
        return rows.unpad(attention(q, k, v, visible, p).transpose(1, 2).flatten(2))


def _make_group(lengths: Sequence[int], visible: Tensor | None) -> Group:
    T = max(lengths)
    return Rows(len(lengths), T, lengths), None if visible is None else visible[:, :, :T, :T]


class Transformer(LanguageModel):
    """Tokens to hidden states: embeddings, then all blocks."""

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
        """Initialise as GPT-1; with norm=pre, output weights are scaled by 1/sqrt(2 n_layer) (GPT-2, section 2.3)."""
        super().initialise()
        if self.config.norm == "pre":
            for name, parameter in self.named_parameters():
                if name.endswith(("attention_output.weight", "contract.weight")):
                    parameter.mul_((2 * self.config.n_layer) ** -0.5)

    def configure(self, config: ModelConfig) -> None:
        """Use the dropout rates of another configuration of the same shape."""
        super().configure(config)
        for block in self.blocks:
            block.config = config  # type: ignore[assignment]

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        document: Tensor | None = None,
        branch: Tensor | None = None,
        cache: KVCache | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Compute the hidden states of the last block. Tensors [B,T] -> [B,T,D].

        Without positions, they count from 0, or from the length of the cache. Without document and branch, the row is
        one causal sequence. `lengths`, the tokens of each row, marks the padding at the right: it may then be skipped,
        and its states are zero.
        """
        (B, T), S = tokens.shape, 0 if cache is None else cache.length
        if cache is not None or tokens.is_cuda or torch.compiler.is_compiling():  # one fixed shape is faster there
            lengths = None
        if positions is None:
            positions = torch.arange(S, S + T, device=tokens.device).expand_as(tokens)
        visible = None
        if document is not None or branch is not None or (S and T > 1):
            zeros = torch.zeros_like(tokens)
            visible = visibility(zeros if document is None else document, zeros if branch is None else branch)
            visible = F.pad(visible, (S, 0), value=True)  # [B,1,T,S+T]: all tokens see the cache

        rows, groups = Rows(B, T, lengths), [(Rows(B, T), visible)]
        if lengths is not None:
            groups = [
                _make_group(lengths[part], None if visible is None else visible[part])
                for part in length_groups(lengths)
            ]
        x = self.tokens(rows.unpad(tokens)) + self.positions(rows.unpad(positions))  # [N,D]
        # Deviation: dropout on the sum, per token; the released code drops entries of the embedding matrix itself.
        x = dropout(x, self.config.embedding_dropout if self.training else 0.0)
        for block in self.blocks:
            x = block(x, groups, cache)
        if cache is not None and cache.appending:
            cache.length += T
        return rows.pad(self.final_norm(x))
