"""Attention over packed rows and branches: the visibility rule, a plain version and a fast one for CPUs.

B rows, H heads, T queries, S keys, C channels of one head.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1cli.models.kernels import _prefer_torch, _random_signs, dropout

QUERY_CHUNK = 128  # queries whose attention weights exist at the same time on a CPU
MASK_VALUE = -1e30  # finite, so that the softmax of a row with no visible key is defined


def visibility(document: Tensor, branch: Tensor) -> Tensor:
    """Return whether token i sees token j: j <= i, same document, branch[j] in (0, branch[i]). [B,T] -> bool [B,1,T,T]

    One rule for a plain row (all zeros), several examples packed in one row (documents), and a prefix shared by k
    continuations (branch 0 is the prefix, branches 1..k are the continuations).
    """
    T = document.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=document.device).tril()
    same_document = document[:, :, None] == document[:, None, :]
    prefix_or_own = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (causal & same_document & prefix_or_own)[:, None]


def attention_plain(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, p: float) -> Tensor:
    """Compute softmax(q k' / sqrt(C)) v over the visible keys.

    q [B,H,T,C], k and v [B,H,S,C], visible bool [B or 1,1,T,S] -> [B,H,T,C]; p is the dropout rate of the weights.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [B,H,T,S]
    weights = scores.masked_fill(~visible, MASK_VALUE).softmax(-1)
    return dropout(weights, p) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    """Like attention_plain, but faster; visible=None is the plain causal rule (a single query sees every key).

    The queries are the last T of the S tokens; no token sees a later one.
    """
    if _prefer_torch(q) or (q.dtype == torch.float32 and p == 0):
        causal = visible is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=p, is_causal=causal)
    B, H, T, C = q.shape
    S = k.shape[2]
    mask = None if visible is None else _additive_mask(visible, q.dtype)  # [B or 1,1,T,S]
    q, k, v = (q * C**-0.5).reshape(B * H, T, C), k.reshape(B * H, S, C), v.reshape(B * H, S, C)
    return _BlockAttention.apply(q, k, v, mask, p).view(B, H, T, C)


class _BlockAttention(torch.autograd.Function):
    """Attention of QUERY_CHUNK queries at a time; keys after the last query of a chunk are not computed.

    On a CPU, in bf16 or with dropout, batched products with an additive mask are faster than torch's fused kernel.
    q [N,T,C], already scaled, k and v [N,S,C], mask [B or 1,1,T,S] or None (plain causal) -> [N,T,C]; N = B x H.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
        T, cached = q.shape[1], k.shape[1] - q.shape[1]
        output, saved = v.new_empty(len(q), T, v.shape[2]), []
        for start in range(0, T, QUERY_CHUNK):
            end = min(start + QUERY_CHUNK, T)
            keys = cached + end  # up to the last query
            if T == 1:  # the keys as they are: transposed keys would be copied for every generated token
                scores = torch.bmm(k, q.transpose(1, 2)).transpose(1, 2)  # [N,1,S]
            else:
                scores = torch.bmm(q[:, start:end], k[:, :keys].transpose(1, 2))  # [N,end-start,keys]
            if mask is None:
                scores[:, :, cached + start :] += _causal_mask(end - start, q.dtype)
            else:
                chunk_mask = mask[:, :, start:end, :keys]
                scores.view(len(chunk_mask), -1, *scores.shape[1:]).add_(chunk_mask)
            weights = scores.softmax(-1)
            if p:
                _mark_dropped(weights, p)
            output[:, start:end] = torch.bmm(_zero_dropped(weights) if p else weights, v[:, :keys])
            saved.append(weights)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.p = p
        return output.mul_(1 / (1 - p)) if p else output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *saved = ctx.saved_tensors
        gradient = gradient / (1 - ctx.p) if ctx.p else gradient.contiguous()
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        start = 0
        for weights in saved:
            end, keys = start + weights.shape[1], weights.shape[2]
            d_output = gradient[:, start:end]
            d_v[:, :keys] += torch.bmm((_zero_dropped(weights) if ctx.p else weights).transpose(1, 2), d_output)
            d_weights = torch.bmm(d_output, v[:, :keys].transpose(1, 2))
            if ctx.p:
                d_weights = torch.ops.aten.threshold_backward(d_weights, weights, 0)  # zero if dropped
                weights = _clear_marks(weights)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :keys])
            d_k[:, :keys] += torch.bmm(d_scores.transpose(1, 2), q[:, start:end])
            start = end
        return d_q, d_k, d_v, None, None


# Attention weights are never negative: the sign bit marks dropped weights, so that no mask has to be stored.
# In bf16, integer operations replace clamp_min and abs at a third of the time.


def _mark_dropped(weights: Tensor, p: float) -> None:
    """Set the sign bit of each weight with probability p."""
    signs = _random_signs(weights.shape, p)
    if weights.dtype == torch.bfloat16:
        weights.view(torch.int16).bitwise_or_(signs.bitwise_and_(-(2**15)))
    else:
        weights.copysign_(signs + 0.5)


def _zero_dropped(weights: Tensor) -> Tensor:
    """Return the weights with zeros for the dropped ones."""
    if weights.dtype == torch.bfloat16:
        return weights.view(torch.int16).clamp_min(0).view(torch.bfloat16)
    return weights.clamp_min(0)


def _clear_marks(weights: Tensor) -> Tensor:
    """Return the weights before dropout."""
    if weights.dtype == torch.bfloat16:
        return (weights.view(torch.int16) & 0x7FFF).view(torch.bfloat16)
    return weights.abs()


def _additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, MASK_VALUE)


@functools.lru_cache(maxsize=64)
def _causal_mask(T: int, dtype: torch.dtype) -> Tensor:
    return _additive_mask(torch.ones(T, T, dtype=torch.bool).tril(), dtype)
