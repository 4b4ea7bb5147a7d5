"""Rows without padding, linear layers, dropout, attention, cross entropy: what it takes to be fast, and what is meant.

A plain version, here or torch's own, says what is meant; tests hold the fast ones to it, values and gradients.
Everything that trades clarity for speed lives in this file, so that models/transformer.py stays a ten-minute read.

B batch, H heads, T queries, S keys, C channels of one head, N rows or real tokens, D width, V vocabulary; linear layers
and products: [M,K] by [K,N].
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ROWS = {"cpu": 1024, "cuda": 8192}  # rows whose logits exist at one time: 1024 x 40,478 in bf16 are 83 MB
VOCABULARY_TILE = 256  # entries whose fp32 exponentials exist at one time on a CPU: 256 x 1024 are 1 MB
QUERIES = 128  # queries whose attention weights exist at one time on a CPU
FEW_ROWS = 16  # a product with so many rows or fewer takes as long as reading the weights
NEEDLESS_PAIRS = 4000  # of query and key: about what another group of rows costs
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


# Attention weights are never below zero: the sign bit marks those that are dropped, and no mask has to be kept.
# In bf16 integers do what clamp_min and abs would, at a third of the time.


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


# --- recurrence -------------------------------------------------------------------------------------------------------

State = tuple[Tensor, Tensor]  # output and cell, [B,U] each


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
        _exponentials(h, table, t)[2]
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        if len(h)
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
