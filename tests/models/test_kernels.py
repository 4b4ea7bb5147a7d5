"""The fast kernels compared with the plain ones and with torch, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpt1cli.models import attention as models_attention
from gpt1cli.models import kernels
from gpt1cli.models.attention import attention, attention_plain
from gpt1cli.models.kernels import (
    Rows,
    cross_entropy,
    cross_entropy_plain,
    dropout,
    length_groups,
    linear,
    log_probabilities,
)

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative distance between two tensors."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()


# --- rows without padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[5, 3, 1], [1], [1, 1, 7], [4, 4], [2, 0, 3]])
def test_unpad_and_pad_are_inverse_with_gradients(lengths):
    B, T = len(lengths), max(lengths)
    x = torch.randn(B, T, 3, requires_grad=True)
    rows = Rows(B, T, lengths)
    unpadded = rows.unpad(x)
    assert torch.equal(unpadded, torch.cat([x[row, :n] for row, n in enumerate(lengths)])) and len(unpadded) == rows.N
    padded = rows.pad(unpadded)
    real = torch.arange(T) < torch.tensor(lengths)[:, None]
    assert torch.equal(padded, x * real[:, :, None])
    upstream = torch.randn_like(padded)
    padded.backward(upstream)
    assert torch.equal(x.grad, upstream * real[:, :, None])


def test_without_lengths_every_token_is_real():
    x = torch.randn(2, 3, 4)
    rows = Rows(2, 3)
    assert rows.N == 6 and torch.equal(rows.unpad(x), x.flatten(0, 1)) and torch.equal(rows.pad(rows.unpad(x)), x)


def test_length_groups_by_hand():
    """80 x 80 - 49 x 49 = 3,999 wasted pairs are accepted, 80 x 80 - 48 x 48 = 4,096 are not."""
    assert list(length_groups([80, 49])) == [slice(0, 2)]
    assert list(length_groups([80, 48])) == [slice(0, 1), slice(1, 2)]
    assert list(length_groups([48, 80])) == [slice(0, 1), slice(1, 2)]
    assert list(length_groups([80, 79, 30, 29, 1, 1])) == [slice(0, 2), slice(2, 6)]
    assert list(length_groups([500])) == [slice(0, 1)] and list(length_groups([9] * 40)) == [slice(0, 40)]


# --- linear layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("M", [1, 3, 699, 700, 1023, 1399, 1400])
@pytest.mark.parametrize("N", [5, 768, 1201])
def test_halved_linear_equals_torch(M, N):
    x, weight, bias = torch.randn(M, 4), torch.randn(N, 4), torch.randn(N)
    upstream = torch.randn(M, N)

    def outcome(function, dtype: torch.dtype) -> list[Tensor]:
        inputs = [t.to(dtype, copy=True).requires_grad_() for t in (x, weight, bias)]
        value = function(*inputs)
        value.backward(upstream.to(dtype))
        return [value.detach(), *(t.grad for t in inputs)]

    expected = outcome(F.linear, torch.float32)
    for actual, right in zip(outcome(kernels._HalvedLinear.apply, torch.float32), expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-4, atol=1e-4)
    torch.set_num_threads(2)
    try:
        for actual, right in zip(outcome(linear, torch.bfloat16), expected, strict=True):
            assert actual.dtype == torch.bfloat16 and relative(actual, right) < 0.01
    finally:
        torch.set_num_threads(1)


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.02, 0.1, 0.25, 0.5, 0.9])
def test_dropout_rate_and_independence_of_the_lanes(p):
    n = 100_000
    dropped = (dropout(torch.ones(n, 4), p) == 0).double()
    for lane in range(4):
        assert dropped[:, lane].mean() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))
        both = (dropped[:, lane] * dropped[:, (lane + 1) % 4]).mean()
        assert both == pytest.approx(p * p, abs=5 * math.sqrt(p * p * (1 - p * p) / n))  # lanes are independent


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 5, 7), (0, 4)])
def test_dropout_keeps_shape_input_and_scale(shape):
    x = torch.randn(shape) + 10
    before = x.clone()
    y = dropout(x, 0.3)
    assert y.shape == x.shape
    assert torch.equal(x, before)
    torch.testing.assert_close(y[y != 0], x[y != 0] / 0.7)


def test_dropout_preserves_the_mean():
    n, p = 400_000, 0.3
    assert dropout(torch.ones(n), p).mean().item() == pytest.approx(1, abs=5 * math.sqrt(p / (1 - p) / n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_gradients_use_the_same_mask(dtype):
    x = torch.ones(501, dtype=dtype, requires_grad=True)
    y = dropout(x, 0.4)
    upstream = torch.randn(501, dtype=dtype)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, upstream * y.detach())
    assert torch.equal(x.grad == 0, y == 0)


def test_dropout_with_extreme_rates():
    x = torch.randn(10_000)
    assert dropout(x, 0.0) is x
    assert (dropout(x, 0.999_999) != 0).sum() <= 5  # p is rounded to a multiple of 1/32,768


def test_dropout_depends_on_the_seed_and_masks_differ():
    torch.manual_seed(5)
    first, second = dropout(torch.ones(1000), 0.5), dropout(torch.ones(1000), 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(torch.ones(1000), 0.5), first)
    assert not torch.equal(first, second)


# --- attention --------------------------------------------------------------------------------------------------------


def rule(document: list[int], branch: list[int]) -> Tensor:
    """The visibility rule as three loops. -> bool [1,1,T,T]"""
    T = len(document)
    seen = [[j <= i and document[i] == document[j] and branch[j] in (0, branch[i]) for j in range(T)] for i in range(T)]
    return torch.tensor(seen)[None, None]


VISIBLE = {  # name -> (rows, queries, visible)
    "causal": (2, 9, None),
    "one token": (3, 1, None),
    "one token with a mask": (3, 1, torch.ones(3, 1, 1, 1, dtype=torch.bool)),
    "documents and padding": (2, 11, rule([0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1], [0] * 11)),
    "each token a document": (1, 5, rule([0, 1, 2, 3, 4], [0] * 5)),
    "branches": (2, 13, rule([0] * 10 + [1] * 3, [0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 0, 1, 2])),
    "another rule in each row": (2, 4, torch.cat([rule([0] * 4, [0, 1, 1, 2]), rule([0, 0, 1, 1], [0] * 4)])),
    "kept keys before the queries": (2, 4, torch.ones(4, 7, dtype=torch.bool).tril(3)[None, None]),
}


def queries(rows: int, T: int, visible: Tensor | None, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Random q, k, v that require gradients, and a random upstream gradient."""
    S = T if visible is None else visible.shape[-1]
    q_k_v = [torch.randn(rows, 3, length, 5, dtype=dtype, requires_grad=True) for length in (T, S, S)]
    return q_k_v, torch.randn(rows, 3, T, 5, dtype=dtype)


def outcome(function, q_k_v: list[Tensor], visible: Tensor | None, p: float, upstream: Tensor) -> list[Tensor]:
    """Value and gradients, with the same dropout mask every time."""
    torch.manual_seed(1)
    inputs = [x.detach().clone().requires_grad_() for x in q_k_v]
    value = function(*inputs, visible, p)
    value.backward(upstream)
    return [value.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("case", VISIBLE)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_equals_attention_plain(case, p):
    rows, T, visible = VISIBLE[case]
    q_k_v, upstream = queries(rows, T, visible, torch.float32)
    plain_visible = torch.ones(T, T, dtype=torch.bool).tril()[None, None] if visible is None else visible
    fast = outcome(attention, q_k_v, visible, p, upstream)
    plain = outcome(attention_plain, q_k_v, plain_visible, p, upstream)
    for actual, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("case", VISIBLE)
def test_bf16_attention_is_near_fp32(case):
    rows, T, visible = VISIBLE[case]
    q_k_v, upstream = queries(rows, T, visible, torch.bfloat16)
    plain_visible = torch.ones(T, T, dtype=torch.bool).tril()[None, None] if visible is None else visible
    fast = outcome(attention, q_k_v, visible, 0.0, upstream)
    plain = outcome(attention_plain, [x.float() for x in q_k_v], plain_visible, 0.0, upstream.float())
    for actual, expected in zip(fast, plain, strict=True):
        assert actual.dtype == torch.bfloat16
        assert relative(actual, expected) < 0.02 or expected.norm() < 1e-6  # one token: the scores have no gradient


@pytest.mark.parametrize("case", VISIBLE)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_query_chunks_equals_attention_plain(monkeypatch, case, p, dtype):
    """One-hot values return the weights and so show the dropout mask, which the plain version then uses too."""
    monkeypatch.setattr(models_attention, "QUERY_CHUNK", 3)
    rows, T, visible = VISIBLE[case]
    (q, k, v), upstream = queries(rows, T, visible, dtype)
    S, N = k.shape[2], rows * 3
    mask = None if visible is None else models_attention._additive_mask(visible, dtype)

    def fast(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
        torch.manual_seed(1)
        q, k, v = ((x * scale).reshape(N, x.shape[2], -1) for x, scale in ((q, 5**-0.5), (k, 1), (v, 1)))
        return models_attention._BlockAttention.apply(q, k, v, mask, p).view(rows, 3, T, -1)

    shown = fast(q.detach(), k.detach(), torch.eye(S, dtype=dtype).expand(rows, 3, S, S))  # [rows,3,T,S]
    plain_visible = torch.ones(T, T, dtype=torch.bool).tril()[None, None] if visible is None else visible
    seen = plain_visible.expand_as(shown)
    assert not shown[~seen].any()
    if p and seen.sum() > 20:
        assert 0 < (shown[seen] == 0).sum() < seen.sum()

    def plain(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
        scores = (q @ k.transpose(2, 3) / math.sqrt(5)).masked_fill(~seen, -math.inf)
        return (scores.softmax(-1) * (shown != 0) / (1 - p)) @ v

    actual = outcome(fast, [q, k, v], visible, p, upstream)
    expected = outcome(plain, [x.float() for x in (q, k, v)], visible, p, upstream.float())
    for a, b in zip(actual, expected, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
        else:
            assert relative(a, b) < 0.02 or (a - b).abs().max() < 0.02


def test_attention_by_hand():
    """Two keys whose scores differ by ln 3: the weights are 1/4 and 3/4."""
    q, k = torch.tensor([[0.0], [math.log(3)]]), torch.tensor([[0.0], [1.0]])
    v = torch.tensor([[4.0], [8.0]])
    for function in (attention, attention_plain):
        visible = torch.ones(2, 2, dtype=torch.bool).tril()[None, None]
        actual = function(q[None, None], k[None, None], v[None, None], visible, 0.0).flatten()
        assert actual.tolist() == pytest.approx([4.0, 7.0])


# --- cross entropy ----------------------------------------------------------------------------------------------------


def loss_inputs(N: int, V: int = 11, D: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """hidden, table, targets, weights; every third weight is zero."""
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    table = torch.randn(V, D, dtype=dtype, requires_grad=True)
    return hidden, table, torch.randint(0, V, (N,)), torch.rand(N) * (torch.arange(N) % 3 != 1)


def by_torch(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy((hidden @ table.T).float(), targets, reduction="none") * weights).sum()


def value_and_gradients(function, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> list[Tensor]:
    hidden, table = (x.detach().clone().requires_grad_() for x in (hidden, table))
    loss = function(hidden, table, targets, weights)
    (0.7 * loss).backward()  # an upstream scale, as lm_coef
    return [loss.detach(), hidden.grad, table.grad]


@pytest.mark.parametrize("N", [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("reference", [cross_entropy_plain, by_torch])
def test_chunked_cross_entropy_equals_the_plain_version(monkeypatch, N, reference):
    monkeypatch.setitem(kernels.CHUNK_ROWS, "cpu", 8)
    inputs = loss_inputs(N)
    for actual, expected in zip(
        value_and_gradients(cross_entropy, *inputs), value_and_gradients(reference, *inputs), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("N", [1, 8, 21])
def test_cross_entropy_and_log_probabilities_without_gradients(monkeypatch, N):
    monkeypatch.setitem(kernels.CHUNK_ROWS, "cpu", 8)
    hidden, table, targets, weights = loss_inputs(N)
    with torch.no_grad():
        loss, actual = cross_entropy(hidden, table, targets, weights), log_probabilities(hidden, table, targets)
    torch.testing.assert_close(loss, by_torch(hidden, table, targets, weights).detach(), rtol=1e-5, atol=1e-6)
    expected = torch.distributions.Categorical(logits=(hidden @ table.T).detach()).log_prob(targets)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert actual.shape == (N,) and not actual.requires_grad and not loss.requires_grad


def test_cross_entropy_without_rows_is_zero():
    inputs = loss_inputs(0)
    loss, d_hidden, d_table = value_and_gradients(cross_entropy, *inputs)
    assert loss == 0 and d_hidden.shape == (0, 6) and not d_table.any()
    with torch.no_grad():
        assert cross_entropy(*inputs) == 0
        assert log_probabilities(*inputs[:3]).shape == (0,)


def test_row_with_weight_zero_has_no_effect():
    hidden, table, targets, weights = loss_inputs(9)
    loss, d_hidden, _ = value_and_gradients(cross_entropy, hidden, table, targets, weights)
    assert d_hidden[weights > 0].any(1).all() and not d_hidden[weights == 0].any()
    changed = torch.where((weights == 0)[:, None], hidden + 3, hidden)
    torch.testing.assert_close(cross_entropy(changed, table, targets, weights), loss)


def test_bf16_cross_entropy_is_near_fp32():
    inputs = loss_inputs(700, V=301, D=16, dtype=torch.bfloat16)
    expected = value_and_gradients(by_torch, *(x.float() if x.is_floating_point() else x for x in inputs))
    actual = value_and_gradients(cross_entropy, *inputs)
    assert actual[0].dtype == torch.float32 and actual[1].dtype == actual[2].dtype == torch.bfloat16
    assert [relative(a, b) < 0.02 for a, b in zip(actual, expected, strict=True)] == [True] * 3


def test_large_logits_do_not_overflow():
    hidden, table = torch.tensor([[300.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss, d_hidden, _ = value_and_gradients(cross_entropy, hidden, table, torch.tensor([1]), torch.ones(1))
    assert loss.item() == pytest.approx(600) and d_hidden.item() == pytest.approx(0.7 * 2)


class LargestTensor(TorchDispatchMode):
    """Record the largest number of elements that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        actual = function(*args, **(kwargs or {}))
        for tensor in actual if isinstance(actual, (tuple, list)) else [actual]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return actual


def test_at_most_one_chunk_of_logits_exists_at_a_time(monkeypatch):
    monkeypatch.setitem(kernels.CHUNK_ROWS, "cpu", 8)
    N, V, D = 50, 40, 4
    inputs = loss_inputs(N, V, D)

    def largest(function) -> int:
        with LargestTensor() as watch:
            function()
        return watch.elements

    assert largest(lambda: value_and_gradients(cross_entropy, *inputs)) == 8 * V
    with torch.no_grad():
        assert largest(lambda: cross_entropy(*inputs)) == 8 * V
        assert largest(lambda: log_probabilities(*inputs[:3])) == 8 * V
    assert largest(lambda: value_and_gradients(cross_entropy_plain, *inputs)) == N * V  # checks the watch itself


# --- GPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_kernels_equal_plain_cpu_versions():
    for case, (rows, T, visible) in VISIBLE.items():
        q_k_v, upstream = queries(rows, T, visible, torch.float32)
        plain_visible = torch.ones(T, T, dtype=torch.bool).tril()[None, None] if visible is None else visible
        expected = outcome(attention_plain, q_k_v, plain_visible, 0.0, upstream)
        on_gpu = None if visible is None else visible.cuda()
        actual = outcome(attention, [x.cuda() for x in q_k_v], on_gpu, 0.0, upstream.cuda())
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5, msg=case)
    inputs = loss_inputs(700, V=301, D=16)
    expected = value_and_gradients(cross_entropy_plain, *inputs)
    for a, b in zip(value_and_gradients(cross_entropy, *(x.cuda() for x in inputs)), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
    kept = dropout(torch.ones(400_000, device="cuda"), 0.3)
    assert (kept == 0).double().mean().item() == pytest.approx(0.3, abs=0.004)
