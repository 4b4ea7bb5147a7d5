"""Attention, dropout and cross entropy, each written twice: the plain version and the fast one side by side.

The plain versions say what is meant; tests hold the fast ones to them, values and gradients. Everything that trades
clarity for speed lives in this file, so that models/transformer.py stays a ten-minute read.

B batch, H heads, T queries, S keys, C channels of one head, N rows, D width, V vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ROWS = 512  # rows whose logits exist at one time: 512 x 40,478 in fp32 is 83 MB
MASKED = -1e30  # a finite "minus infinity": a row that sees nothing still has a softmax


def keep_memory() -> None:
    """Stop glibc from giving freed memory back at every step: page faults cost up to half of a CPU step."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # glibc's malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 256 * 2**20)


# --- dropout ----------------------------------------------------------------------------------------------------------


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p and scale the rest by 1/(1-p); p = 0 returns x itself."""
    if p == 0:
        return x
    return F.dropout(x, p) if x.is_cuda else _WordDropout.apply(x, p)


class _WordDropout(torch.autograd.Function):
    """Dropout whose mask is 16 bits an element, cut from whole 64-bit random words: ten times cheaper than bernoulli_.

    The probability is exact to 1/65536. NOTE: `random_()` without bounds leaves the sign bit zero, which would bias
    every fourth mask; the full range of int64 has to be asked for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over -32768..32767
        dropped = bits < min(round(p * 65536), 65535) - 32768  # 32768 is no int16: it would wrap and drop nothing
        ctx.save_for_backward(dropped)
        ctx.scale = 1 / (1 - p)
        return x.masked_fill(dropped, 0).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (dropped,) = ctx.saved_tensors
        return gradient.masked_fill(dropped, 0).mul_(ctx.scale), None


# --- attention --------------------------------------------------------------------------------------------------------


def attention_plain(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, p: float) -> Tensor:
    """softmax(q k' / sqrt(C)) v over the visible keys.

    q [B,H,T,C], k and v [B,H,S,C], visible bool [B or 1,1,T,S] -> [B,H,T,C]; p is the dropout of the weights.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [B,H,T,S]
    weights = scores.masked_fill(~visible, MASKED).softmax(-1)
    return dropout(weights, p) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    """attention_plain, fast; visible=None is the plain causal rule, by which a single query sees every key."""
    if q.is_cuda or (q.dtype == torch.float32 and p == 0):
        causal = visible is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=p, is_causal=causal)
    # On a CPU, in bf16 or with dropout, one batched product with the mask as the added matrix beats the fused kernel.
    B, H, T, C = q.shape
    S = k.shape[2]
    if visible is None:
        mask = _causal_mask(T, q.dtype).expand(B * H, T, S)
    else:
        mask = _additive(visible, q.dtype).expand(B, H, T, S).reshape(B * H, T, S)
    q = (q * C**-0.5).reshape(B * H, T, C)
    scores = torch.baddbmm(mask, q, k.reshape(B * H, S, C).transpose(1, 2))  # [B*H,T,S]
    return torch.bmm(dropout(scores.softmax(-1), p), v.reshape(B * H, S, C)).view(B, H, T, C)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, MASKED)


@functools.lru_cache(maxsize=64)
def _causal_mask(T: int, dtype: torch.dtype) -> Tensor:
    return _additive(torch.ones(T, T, dtype=torch.bool).tril(), dtype)


# --- cross entropy over the vocabulary --------------------------------------------------------------------------------


def cross_entropy_plain(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over rows of weight x -log softmax(hidden table')[target].

    hidden [N,D], table [V,D], targets int64 [N], weights [N] -> []
    """
    log_probabilities = F.log_softmax((hidden @ table.T).float(), dim=-1)  # [N,V]
    return -(log_probabilities.gather(1, targets[:, None]).squeeze(1) * weights).sum()


def cross_entropy(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """cross_entropy_plain, never holding more than CHUNK_ROWS x V logits: the gradients are made on the way forward."""
    if torch.is_grad_enabled():
        return _ChunkedCrossEntropy.apply(hidden, table, targets, weights)
    return -(log_probabilities(hidden, table, targets) * weights).sum()


def log_probabilities(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden table')[target] of every row, in fp32, chunk by chunk, without gradients. -> [N]"""
    found = [
        F.log_softmax(F.linear(h, table).float(), dim=-1).gather(1, t[:, None]).squeeze(1)
        for h, t in zip(hidden.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True)
    ]
    return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy and its gradients chunk by chunk; logits of a chunk are freed before the next one is computed."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_table = torch.zeros_like(table, dtype=torch.float32)
        for start in range(0, len(hidden), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            h, t, w = hidden[rows], targets[rows, None], weights[rows, None].float()
            log_p = F.log_softmax(F.linear(h, table).float(), dim=-1)  # [rows,V]
            loss -= (log_p.gather(1, t) * w).sum()
            gradient = log_p.exp_()  # d loss / d logits = weight x (p - one-hot)
            gradient.scatter_add_(1, t, torch.full_like(w, -1.0))
            gradient = gradient.mul_(w).to(table.dtype)
            torch.mm(gradient, table, out=d_hidden[rows])
            d_table += gradient.T @ h
        ctx.save_for_backward(d_hidden, d_table.to(table.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_table = ctx.saved_tensors
        return d_hidden * scale.to(d_hidden.dtype), d_table * scale.to(d_table.dtype), None, None
