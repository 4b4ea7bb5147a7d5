"""Fast kernels: rows without padding, linear layers, dropout, cross entropy.

Each fast version computes the same as a plain one, here or in torch; tests compare values and gradients. Code that
trades clarity for speed is here and in attention.py, so that models/transformer.py stays a ten-minute read.

B rows, T tokens of a row, N rows or tokens without padding, D width, V vocabulary rows; linear layers and products:
[M,K] by [K,N].
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ROWS = {"cpu": 1024, "cuda": 8192}  # rows whose logits exist at the same time: 1024 x 40,478 in bf16 are 83 MB
VOCABULARY_TILE = 256  # tokens whose fp32 exponentials exist at the same time on a CPU: 256 x 1024 are 1 MB
FEW_ROWS = 16  # up to so many rows, a product takes as long as reading the weights
MAX_WASTED_PAIRS = 4000  # pairs of query and key: about the cost of one more group of rows


def tune_allocator() -> None:
    """Stop glibc from returning freed memory at every step: page faults cost up to half of a CPU step."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # glibc's malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 256 * 2**20)


def _prefer_torch(x: Tensor) -> bool:
    """Whether torch's own operations are faster: on a GPU, and under torch.compile."""
    return x.is_cuda or torch.compiler.is_compiling()


# --- rows without padding ---------------------------------------------------------------------------------------------


class Rows:
    """Indices of the real tokens of padded rows: linear layers get only those, [N,D]; attention gets rows, [B,T,D].

    Padding is at the right. Without lengths there is no padding.
    """

    def __init__(self, B: int, T: int, lengths: Sequence[int] | None = None):
        self.B, self.T, self.N = B, T, B * T if lengths is None else sum(lengths)
        self.token_indices: Tensor | None = None  # of the real tokens in the flattened rows; None: all
        if lengths is not None and self.N < B * T:
            self.token_indices = torch.cat([torch.arange(row * T, row * T + n) for row, n in enumerate(lengths)])

    def unpad(self, x: Tensor) -> Tensor:
        """Select the real tokens. [B,T,...] -> [N,...]"""
        flat = x.flatten(0, 1)
        return flat if self.token_indices is None else flat.index_select(0, self.token_indices)

    def pad(self, x: Tensor) -> Tensor:
        """Put the real tokens into rows, with zeros as padding. [N,...] -> [B,T,...]"""
        if self.token_indices is not None:
            x = x.new_zeros(self.B * self.T, *x.shape[1:]).index_copy(0, self.token_indices, x)
        return x.view(self.B, self.T, *x.shape[1:])


def length_groups(lengths: Sequence[int]) -> Iterator[slice]:
    """Yield groups of neighbouring rows that attention computes together, with few padded pairs of query and key."""
    first = 0
    for last in range(1, len(lengths) + 1):
        group = lengths[first : last + 1]
        wasted = sum(max(group) ** 2 - n**2 for n in group)
        if last == len(lengths) or wasted > MAX_WASTED_PAIRS:
            yield slice(first, last)
            first = last


# --- linear layers ----------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x weight' + bias. x [M,K], weight [N,K], bias [N] -> [M,N]"""
    if _prefer_torch(x) or x.dtype != torch.bfloat16:
        return F.linear(x, weight, bias)
    if len(x) <= FEW_ROWS and not torch.is_grad_enabled():
        # oneDNN would reorder the weights, which are most of the memory traffic: this takes 0.77 of its time, 0.45 for
        # logits
        if len(x) == 1:
            product = torch.mv(weight, x[0])[None]
            return product if bias is None else product + bias
        return (weight @ x.T if bias is None else torch.addmm(bias[:, None], weight, x.T)).T
    if bias is not None and torch.get_num_threads() == 2:
        return _HalvedLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class _HalvedLinear(torch.autograd.Function):
    """Linear layer whose products keep two threads busy: see _matmul."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _matmul(x, weight.T).add_(bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _matmul(gradient, weight), gradient.T @ x, gradient.sum(0)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply a and b. [M,K], [K,N] -> [M,N]

    oneDNN splits a bf16 product of about 1,000 rows into tiles so large that one of two threads is idle: all the time
    with 768 columns, a third of it with 2,304. Computing one half of the rows or columns after the other is faster.
    """
    M, N = len(a), b.shape[1]
    if not (700 <= M < 1400 and 700 <= N < 2560):
        return a @ b
    product = a.new_empty(M, N)
    if N < 1024:
        for half, out in zip(a.chunk(2), product.chunk(2), strict=True):
            torch.mm(half, b, out=out)
    else:
        for half, out in zip(b.chunk(2, 1), product.chunk(2, 1), strict=True):
            torch.mm(a, half, out=out)
    return product


# --- dropout ----------------------------------------------------------------------------------------------------------


def dropout(x: Tensor, p: float) -> Tensor:
    """Set each element to zero with probability p and scale the others by 1/(1-p); p = 0 returns x itself."""
    if p == 0:
        return x
    return F.dropout(x, p) if _prefer_torch(x) else _WordDropout.apply(x, p)


def _random_signs(shape: torch.Size, p: float) -> Tensor:
    """Draw int16 numbers that are negative with probability p (to 1/32768): 15 of 16 bits of random 64-bit words.

    Drawing words and comparing 16-bit integers is ten times cheaper than bernoulli_. A generator with a small state
    draws them twice as fast as torch's, which gives its seed: a checkpoint only has to store torch's state.
    """
    n = shape.numel()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw((n + 3) // 4)
    bits = torch.from_numpy(words.view(np.int16))[:n].view(shape)
    return bits.bitwise_and_(0x7FFF).sub_(min(round(p * 2**15), 2**15 - 1))


class _WordDropout(torch.autograd.Function):
    """Dropout as a bitwise `and` with masks of only ones or only zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = _random_signs(x.shape, p).bitwise_right_shift_(15).bitwise_not_()  # all ones if kept, zero if dropped
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        return _apply_mask(x, kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _apply_mask(gradient, kept).mul_(ctx.scale), None


def _apply_mask(x: Tensor, kept: Tensor) -> Tensor:
    if x.dtype == torch.bfloat16:
        return (x.view(torch.int16) & kept).view(torch.bfloat16)
    return x * kept.neg()  # 1 or 0


# --- cross entropy over the vocabulary --------------------------------------------------------------------------------


def cross_entropy_plain(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Compute the sum over rows of weight x -log softmax(hidden table')[target].

    hidden [N,D], table [V,D], targets int64 [N], weights [N] -> []
    """
    log_probabilities = F.log_softmax((hidden @ table.T).float(), dim=-1)  # [N,V]
    return -(log_probabilities.gather(1, targets[:, None]).squeeze(1) * weights).sum()


def cross_entropy(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Like cross_entropy_plain, with at most CHUNK_ROWS x V logits in memory; the forward pass computes gradients."""
    if torch.is_grad_enabled():
        return _ChunkedCrossEntropy.apply(hidden, table, targets, weights)
    return -(log_probabilities(hidden, table, targets) * weights).sum()


def log_probabilities(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Compute log softmax(hidden table')[target] of every row in fp32, chunk by chunk, without gradients. -> [N]"""
    chunk = CHUNK_ROWS[hidden.device.type]
    chunks = [
        _exponentials(h, table, t)[2] for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True) if len(h)
    ]
    return torch.cat(chunks) if chunks else hidden.new_zeros(0, dtype=torch.float32)


def _exponentials(hidden: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute exp(logit - largest of its row) [V,N], their sums [N] and the targets' log-probabilities [N] (fp32).

    The vocabulary is the first dimension: on a CPU table @ hidden' takes half the time of hidden @ table', and so does
    the product of the backward pass; on a GPU rows in memory then have length N or D, so V = 40,478 needs no padding to
    be aligned. Sums are computed in fp32 for one tile of the vocabulary at a time, which stays in cache.
    """
    logits = table @ hidden.T  # [V,N]
    largest = logits.amax(0).float()
    target_logits = logits[targets, torch.arange(len(targets), device=targets.device)].float()
    sums = torch.zeros_like(largest)
    for tile in logits.split(len(table) if logits.is_cuda else VOCABULARY_TILE):
        exponentials = tile.float().sub_(largest).exp_()
        sums += exponentials.sum(0)
        tile.copy_(exponentials)
    return logits, sums, target_logits - largest - sums.log()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy and its gradients chunk by chunk; the logits of a chunk are freed before the next chunk.

    d loss / d logits = weight x (exponentials / sum - one-hot): the one-hot is subtracted from the exponentials, and
    weight / sum, one number per row, scales the N x D product instead of the N x V exponentials.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_table: Tensor | None = None  # summed in fp32 from the second chunk on
        chunk = CHUNK_ROWS[hidden.device.type]
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            h, t, w = hidden[rows], targets[rows], weights[rows].float()
            errors, sums, log_p = _exponentials(h, table, t)
            loss -= (log_p * w).sum()
            # NOTE: not scatter_, which copies all errors twice
            errors[t, torch.arange(len(t), device=t.device)] = (log_p.expm1() * sums).to(errors.dtype)
            scale = (w / sums)[:, None]
            d_hidden[rows] = _matmul(errors.T, table) * scale
            d_chunk = errors @ (h * scale).to(h.dtype)
            del errors  # frees the memory for the next chunk
            d_table = d_chunk if d_table is None else d_table.float().add_(d_chunk)
        d_table = torch.zeros_like(table) if d_table is None else d_table.to(table.dtype)
        ctx.save_for_backward(d_hidden, d_table)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_table = ctx.saved_tensors
        if not scale.is_cuda and scale == 1:  # as in pretraining
            return d_hidden, d_table, None, None
        return d_hidden * scale.to(d_hidden.dtype), d_table * scale.to(d_table.dtype), None, None
