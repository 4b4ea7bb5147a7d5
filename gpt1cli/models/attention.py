"""Attention over packed rows and branches: the visibility rule, a plain version, and a fast one for CPUs.

B batch, H heads, T queries, S keys, C channels of one head.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt1cli.models.kernels import _by_torch, _signs, dropout

QUERIES = 128  # queries whose attention weights exist at one time on a CPU
MASKED = -1e30  # a finite "minus infinity": a row that sees nothing still has a softmax


def attention_plain(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, p: float) -> Tensor:
    """softmax(q k' / sqrt(C)) v over the visible keys.

    q [B,H,T,C], k and v [B,H,S,C], visible bool [B or 1,1,T,S] -> [B,H,T,C]; p is the dropout of the weights.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [B,H,T,S]
    weights = scores.masked_fill(~visible, MASKED).softmax(-1)
    return dropout(weights, p) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    """attention_plain, fast; visible=None is the plain causal rule, by which a single query sees every key.

    Queries are the last T of the S tokens, and no rule lets a token see a later one.
    """
    if _by_torch(q) or (q.dtype == torch.float32 and p == 0):
        causal = visible is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=p, is_causal=causal)
    B, H, T, C = q.shape
    S = k.shape[2]
    mask = None if visible is None else _additive(visible, q.dtype)  # [B or 1,1,T,S]
    q, k, v = (q * C**-0.5).reshape(B * H, T, C), k.reshape(B * H, S, C), v.reshape(B * H, S, C)
    return _BlockAttention.apply(q, k, v, mask, p).view(B, H, T, C)


class _BlockAttention(torch.autograd.Function):
    """Attention of QUERIES queries at a time to the keys up to their last: what none of them sees is not computed.

    On a CPU, in bf16 or with dropout, batched products with the mask as the added matrix beat torch's fused kernel.
    q [N,T,C], already scaled, k and v [N,S,C], mask [B or 1,1,T,S] or None (plain causal) -> [N,T,C]; N = B x H.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
        T, before = q.shape[1], k.shape[1] - q.shape[1]
        mixed, kept = v.new_empty(len(q), T, v.shape[2]), []
        for start in range(0, T, QUERIES):
            end = min(start + QUERIES, T)
            seen = before + end
            if T == 1:  # keys in their place: transposed they would be copied for every token that is generated
                scores = torch.bmm(k, q.transpose(1, 2)).transpose(1, 2)  # [N,1,S]
            else:
                scores = torch.bmm(q[:, start:end], k[:, :seen].transpose(1, 2))  # [N,end-start,seen]
            if mask is None:
                scores[:, :, before + start :] += _causal_mask(end - start, q.dtype)
            else:
                part = mask[:, :, start:end, :seen]
                scores.view(len(part), -1, *scores.shape[1:]).add_(part)
            weights = scores.softmax(-1)
            if p:
                _mark(weights, p)
            mixed[:, start:end] = torch.bmm(_unmarked(weights) if p else weights, v[:, :seen])
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.p, ctx.before = p, before
        return mixed.mul_(1 / (1 - p)) if p else mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        gradient = gradient / (1 - ctx.p) if ctx.p else gradient.contiguous()
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        start = 0
        for weights in kept:
            end, seen = start + weights.shape[1], weights.shape[2]
            d_mixed = gradient[:, start:end]
            d_v[:, :seen] += torch.bmm((_unmarked(weights) if ctx.p else weights).transpose(1, 2), d_mixed)
            d_weights = torch.bmm(d_mixed, v[:, :seen].transpose(1, 2))
            if ctx.p:
                d_weights = torch.ops.aten.threshold_backward(d_weights, weights, 0)  # zero where dropped
                weights = _absolute(weights)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :seen])
            d_k[:, :seen] += torch.bmm(d_scores.transpose(1, 2), q[:, start:end])
            start = end
        return d_q, d_k, d_v, None, None


def _mark(weights: Tensor, p: float) -> None:
    signs = _signs(weights.shape, p)
    if weights.dtype == torch.bfloat16:
        weights.view(torch.int16).bitwise_or_(signs.bitwise_and_(-(2**15)))
    else:
        weights.copysign_(signs + 0.5)


def _unmarked(weights: Tensor) -> Tensor:
    """Zero where dropped."""
    if weights.dtype == torch.bfloat16:
        return weights.view(torch.int16).clamp_min(0).view(torch.bfloat16)
    return weights.clamp_min(0)


def _absolute(weights: Tensor) -> Tensor:
    """As they were before dropout."""
    if weights.dtype == torch.bfloat16:
        return (weights.view(torch.int16) & 0x7FFF).view(torch.bfloat16)
    return weights.abs()


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, MASKED)


@functools.lru_cache(maxsize=64)
def _causal_mask(T: int, dtype: torch.dtype) -> Tensor:
    return _additive(torch.ones(T, T, dtype=torch.bool).tril(), dtype)


def visibility(document: Tensor, branch: Tensor) -> Tensor:
    """Which token i sees which j: j <= i, same document, on the trunk or on i's own branch. [B,T] -> bool [B,1,T,T].

    One rule for a plain row (all zeros), several examples packed in one row (documents), and one prefix shared by k
    continuations (branch 0 the prefix, 1..k the continuations).
    """
    T = document.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=document.device).tril()
    same_document = document[:, :, None] == document[:, None, :]
    trunk_or_own = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (causal & same_document & trunk_or_own)[:, None]
