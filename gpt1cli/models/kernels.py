"""Rows without padding, linear layers, dropout, attention, cross entropy: what it takes to be fast, and what is meant.

A plain version, here or torch's own, says what is meant; tests hold the fast ones to it, values and gradients.
Everything that trades clarity for speed lives in this file, so that models/transformer.py stays a ten-minute read.

B batch, H heads, T queries, S keys, C channels of one head, N rows or real tokens, D width, V vocabulary; linear layers
and products: [M,K] by [K,N].
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

CHUNK_ROWS = {"cpu": 1024, "cuda": 8192}  # rows whose logits exist at one time: 1024 x 40,478 in bf16 are 83 MB
VOCABULARY_TILE = 256  # entries whose fp32 exponentials exist at one time on a CPU: 256 x 1024 are 1 MB
FEW_ROWS = 16  # a product with so many rows or fewer takes as long as reading the weights
NEEDLESS_PAIRS = 4000  # of query and key: about what another group of rows costs


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


def _by_torch(x: Tensor) -> bool:
    """Whether torch's own operations are the fast ones: on a GPU, and where torch.compile makes one graph of them."""
    return x.is_cuda or torch.compiler.is_compiling()


# --- rows without their padding ---------------------------------------------------------------------------------------


class Rows:
    """Where the real tokens of padded rows lie: linear layers see those alone, [N,D]; attention sees rows, [B,T,D].

    Padding stands at the right. Without lengths there is none.
    """

    def __init__(self, B: int, T: int, lengths: Sequence[int] | None = None):
        self.B, self.T, self.N = B, T, B * T if lengths is None else sum(lengths)
        self.real: Tensor | None = None  # places of the real tokens in the flattened rows; None: all
        if lengths is not None and self.N < B * T:
            self.real = torch.cat([torch.arange(row * T, row * T + n) for row, n in enumerate(lengths)])

    def pick(self, x: Tensor) -> Tensor:
        """The real tokens. [B,T,...] -> [N,...]"""
        flat = x.flatten(0, 1)
        return flat if self.real is None else flat.index_select(0, self.real)

    def lay(self, x: Tensor) -> Tensor:
        """Real tokens in their rows, zeros at the padding. [N,...] -> [B,T,...]"""
        if self.real is not None:
            x = x.new_zeros(self.B * self.T, *x.shape[1:]).index_copy(0, self.real, x)
        return x.view(self.B, self.T, *x.shape[1:])


def alike(lengths: Sequence[int]) -> Iterator[slice]:
    """Neighbouring rows for attention to take together, so that few of its pairs of query and key are padding."""
    first = 0
    for last in range(1, len(lengths) + 1):
        together = lengths[first : last + 1]
        needless = sum(max(together) ** 2 - n**2 for n in together)
        if last == len(lengths) or needless > NEEDLESS_PAIRS:
            yield slice(first, last)
            first = last


# --- linear layers ----------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight' + bias. x [M,K], weight [N,K], bias [N] -> [M,N]"""
    if _by_torch(x) or x.dtype != torch.bfloat16:
        return F.linear(x, weight, bias)
    if len(x) <= FEW_ROWS and not torch.is_grad_enabled():
        # oneDNN would lay out the weights anew, which are most of what is read: this takes 0.77 of the time, 0.45 for
        # logits
        if len(x) == 1:
            found = torch.mv(weight, x[0])[None]
            return found if bias is None else found + bias
        return (weight @ x.T if bias is None else torch.addmm(bias[:, None], weight, x.T)).T
    if bias is not None and torch.get_num_threads() == 2:
        return _HalvedLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class _HalvedLinear(torch.autograd.Function):
    """Linear whose products keep two threads busy: see _product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight.T).add_(bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _product(gradient, weight), gradient.T @ x, gradient.sum(0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b. [M,K], [K,N] -> [M,N]

    oneDNN hands out a bf16 product of some 1,000 rows in pieces so large that of two threads one idles: all the time
    with 768 columns, a third of it with 2,304. Half of the rows, or of the columns, and then the other half is faster.
    """
    M, N = len(a), b.shape[1]
    if not (700 <= M < 1400 and 700 <= N < 2560):
        return a @ b
    found = a.new_empty(M, N)
    if N < 1024:
        for some, place in zip(a.chunk(2), found.chunk(2), strict=True):
            torch.mm(some, b, out=place)
    else:
        for some, place in zip(b.chunk(2, 1), found.chunk(2, 1), strict=True):
            torch.mm(a, some, out=place)
    return found


# --- dropout ----------------------------------------------------------------------------------------------------------


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p and scale the rest by 1/(1-p); p = 0 returns x itself."""
    if p == 0:
        return x
    return F.dropout(x, p) if _by_torch(x) else _WordDropout.apply(x, p)


def _signs(shape: torch.Size, p: float) -> Tensor:
    """int16, below zero with probability p (to 1/32768): 15 of 16 bits of whole 64-bit random words.

    Drawing words and comparing in 16-bit integers is ten times cheaper than bernoulli_, and a generator with a small
    state draws them twice as fast as torch's, which gives its seed: a checkpoint keeps torch's state and no other.
    """
    n = shape.numel()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw((n + 3) // 4)
    bits = torch.from_numpy(words.view(np.int16))[:n].view(shape)
    return bits.bitwise_and_(0x7FFF).sub_(min(round(p * 2**15), 2**15 - 1))


class _WordDropout(torch.autograd.Function):
    """Dropout as a bitwise `and` with masks of ones and zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = _signs(x.shape, p).bitwise_right_shift_(15).bitwise_not_()  # all ones where kept, zero where dropped
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        return _masked(x, kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _masked(gradient, kept).mul_(ctx.scale), None


def _masked(x: Tensor, kept: Tensor) -> Tensor:
    if x.dtype == torch.bfloat16:
        return (x.view(torch.int16) & kept).view(torch.bfloat16)
    return x * kept.neg()  # 1 or 0


# --- attention --------------------------------------------------------------------------------------------------------


# Attention weights are never below zero: the sign bit marks those that are dropped, and no mask has to be kept.
# In bf16 integers do what clamp_min and abs would, at a third of the time.


# --- recurrence -------------------------------------------------------------------------------------------------------


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
    chunk = CHUNK_ROWS[hidden.device.type]
    found = [
        _exponentials(h, table, t)[2] for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True) if len(h)
    ]
    return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)


def _exponentials(hidden: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logit - the row's largest) [V,N], their sums [N], and the targets' log-probabilities [N]; both in fp32.

    The vocabulary comes first: on a CPU table @ hidden' takes half the time of hidden @ table', and so does the product
    of the backward pass; on a GPU rows in memory are then N or D long, and V, 40,478, needs no padding to be aligned.
    Sums are made in fp32 from a tile of the vocabulary at a time, which stays in cache.
    """
    logits = table @ hidden.T  # [V,N]
    largest = logits.amax(0).float()
    chosen = logits[targets, torch.arange(len(targets), device=targets.device)].float()
    sums = torch.zeros_like(largest)
    for tile in logits.split(len(table) if logits.is_cuda else VOCABULARY_TILE):
        exponentials = tile.float().sub_(largest).exp_()
        sums += exponentials.sum(0)
        tile.copy_(exponentials)
    return logits, sums, chosen - largest - sums.log()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy and its gradients chunk by chunk; logits of a chunk are freed before the next one is computed.

    d loss / d logits = weight x (exponentials / sum - one-hot): the one-hot goes into the exponentials, while
    weight / sum, one number a row, scales what is N x D instead of what is N x V.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_table: Tensor | None = None  # as soon as there is a second chunk a sum in fp32
        chunk = CHUNK_ROWS[hidden.device.type]
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            h, t, w = hidden[rows], targets[rows], weights[rows].float()
            errors, sums, log_p = _exponentials(h, table, t)
            loss -= (log_p * w).sum()
            # NOTE: not scatter_, which copies all of the errors, twice
            errors[t, torch.arange(len(t), device=t.device)] = (log_p.expm1() * sums).to(errors.dtype)
            scale = (w / sums)[:, None]
            d_hidden[rows] = _product(errors.T, table) * scale
            part = errors @ (h * scale).to(h.dtype)
            del errors  # before the next chunk's
            d_table = part if d_table is None else d_table.float().add_(part)
        d_table = torch.zeros_like(table) if d_table is None else d_table.to(table.dtype)
        ctx.save_for_backward(d_hidden, d_table)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_table = ctx.saved_tensors
        if not scale.is_cuda and scale == 1:  # as in pretraining
            return d_hidden, d_table, None, None
        return d_hidden * scale.to(d_hidden.dtype), d_table * scale.to(d_table.dtype), None, None
