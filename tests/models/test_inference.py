"""Inference compared with transformers' loss and with rows computed one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import OpenAIGPTLMHeadModel
from worlds import SHAPE, item, model_config, peer_config, stir, tokens_of

from gpt1cli.models.batch import Item
from gpt1cli.models.heads import Classifier
from gpt1cli.models.inference import (
    continuation_log_probabilities,
    head_outputs,
    mean_token_loss,
    suffix_log_probabilities,
    token_log_probabilities,
)
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained.hf_weights import from_published

V, T = 37, 12
WINDOWS = np.random.default_rng(0).integers(0, V, (7, T + 1)).astype(np.uint16)


pytestmark = pytest.mark.usefixtures("exact_arithmetic")


@pytest.fixture
def model() -> Classifier:
    """With dropout everywhere and in training mode: scoring must turn it off."""
    torch.manual_seed(0)
    model = Classifier(Transformer(model_config(**SHAPE), V), 4, head_dropout=0.5)
    stir(model)
    return model.train()


@pytest.mark.parametrize("token_budget", [1, 3 * (T + 1), 10_000])
def test_mean_token_loss_equals_transformers(model, token_budget):
    torch.manual_seed(1)
    peer = OpenAIGPTLMHeadModel(peer_config(V)).eval()
    stir(peer)
    model.body.load_state_dict(from_published(peer.state_dict()))
    windows = torch.tensor(WINDOWS.astype(np.int64))
    expected = peer(windows, labels=windows).loss.item()  # shifted inside: twelve targets per window
    assert mean_token_loss(model.body, WINDOWS, token_budget) == pytest.approx(expected, rel=1e-5)


def test_loss_of_a_uniform_model_is_log_vocabulary_size(model):
    with torch.no_grad():
        model.body.tokens.weight.zero_()
    assert mean_token_loss(model.body, WINDOWS, 100) == pytest.approx(np.log(V))


LENGTHS = [3, 12, 5, 3, 9, 20, 4, 2, 8]
ITEMS = [item(np.random.default_rng(n).integers(0, V, n).tolist()) for n in LENGTHS]


@pytest.mark.parametrize("micro_batch, token_budget", [(1, 0), (4, 0), (None, 1), (None, 30), (None, 10_000)])
def test_outputs_are_in_the_order_of_the_items(model, micro_batch, token_budget):
    scores = head_outputs(model, ITEMS, micro_batch, token_budget)
    assert scores.shape == (9, 4) and scores.dtype == np.float32
    model.eval()
    for one, actual in zip(ITEMS, scores, strict=True):
        state = model.body(torch.tensor([tokens_of(one)]))[0, -1]
        expected = model.head(state).detach().numpy()
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_outputs_of_a_bf16_model_are_fp32(model):
    expected = head_outputs(model, ITEMS, None, 100)
    actual = head_outputs(model.to(torch.bfloat16), ITEMS, None, 100)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=0.1)


def test_inference_is_deterministic_and_leaves_no_gradients(model):
    first = head_outputs(model, ITEMS, None, 100), mean_token_loss(model.body, WINDOWS, 100)
    again = head_outputs(model, ITEMS, None, 100), mean_token_loss(model.body, WINDOWS, 100)
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]
    assert all(p.grad is None for p in model.parameters())


# --- log-probabilities of tokens --------------------------------------------------------------------------------------


def whole_row(body: Transformer, row: list[int]) -> list[float]:
    """Compute log p(token | tokens before) of one row in one forward pass."""
    with torch.no_grad():
        log_p = body.eval().logits(body(torch.tensor([row])))[0].log_softmax(-1)
    return [log_p[i, token].item() for i, token in enumerate(row[1:])]


@pytest.mark.parametrize(("micro_batch", "token_budget"), [(None, 1), (None, 30), (None, 10_000), (2, 1)])
def test_token_scores_equal_single_rows_for_all_lengths(model, micro_batch, token_budget):
    rows = [np.arange(n, dtype=np.int32) * 5 % V for n in (4, 0, 1, 20, 2, 13, 20)]
    actual = token_log_probabilities(model.body, rows, micro_batch, token_budget)
    assert [len(values) for values in actual] == [3, 0, 0, 19, 1, 12, 19]
    for row, values in zip(rows, actual, strict=True):
        assert values.tolist() == pytest.approx(whole_row(model.body, row.tolist()) if len(row) else [], abs=1e-5)


@pytest.mark.parametrize("length", [21, 30, 31, 47])
def test_long_sequence_is_scored_in_windows_with_half_context(model, length):
    """With 20 positions: tokens 1-19 in the first window, 20-29 after 10-19, 30-39 after 20-29, ..."""
    row = [(7 * i) % V for i in range(length)]
    expected = whole_row(model.body, row[:20])
    for start in range(10, length - 10, 10):
        expected += whole_row(model.body, row[start : start + 20])[9:]
    (actual,) = token_log_probabilities(model.body, [np.array(row, np.int32)], None, 100)
    assert len(actual) == length - 1
    assert actual.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("prefix", [[3], [9, 1], list(range(12))])
@pytest.mark.parametrize("token_budget", [1, 10_000])
def test_continuations_of_a_cached_prefix_equal_whole_rows(model, prefix, token_budget):
    continuations = [[5], [6, 7, 8], [], [1, 2, 3, 4, 5, 6, 7, 8], [5]]
    arrays = [np.array(continuation, np.int32) for continuation in continuations]
    actual = continuation_log_probabilities(model.body, np.array(prefix, np.int32), arrays, None, token_budget)
    for continuation, values in zip(continuations, actual, strict=True):
        expected = whole_row(model.body, prefix + continuation)[len(prefix) - 1 :]
        assert values.tolist() == pytest.approx(expected, abs=1e-5)
    assert continuation_log_probabilities(model.body, np.array(prefix, np.int32), [], None, token_budget) == []


def test_too_long_continuation_is_refused(model):
    prefix, continuation = np.arange(12, dtype=np.int32), np.arange(10, dtype=np.int32)
    assert len(continuation_log_probabilities(model.body, prefix, [continuation[:9]], None, 100)[0]) == 9
    with pytest.raises(ValueError, match=r"prefix of 12 tokens.*n_positions=20"):
        continuation_log_probabilities(model.body, prefix, [continuation], None, 100)
    with pytest.raises(ValueError, match="prefix of 0 tokens"):
        continuation_log_probabilities(model.body, prefix[:0], [continuation], None, 100)


# --- suffixes of branches ---------------------------------------------------------------------------------------------

CONTEXTS = [[3], [9, 1], [], [4, 4, 8, 15, 16, 23], [7, 7, 7]]
CONTINUATIONS = [[[5], [6, 8, 1]], [[1, 2, 3, 4], [1]], [[0, 1], [2, 0, 5]], [[9], [8]], [[2, 2], [2, 2]]]
COUNTS = [[1, 3], [4, 0], [1, 2], [1, 1], [1, 2]]  # scored tokens at the end of each sequence


@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize(("micro_batch", "token_budget"), [(None, 1), (None, 30), (None, 10_000), (2, 1)])
def test_suffixes_after_a_shared_context_equal_whole_rows(model, branches, micro_batch, token_budget):
    rows = [
        [context + continuation for continuation in both] for context, both in zip(CONTEXTS, CONTINUATIONS, strict=True)
    ]
    items = [Item.from_sequences(both, None, len(context)) for both, context in zip(rows, CONTEXTS, strict=True)]
    items = items if branches else [item.unshared() for item in items]
    assert {item.row_count for item in items} == ({1, 2} if branches else {2})
    actual = suffix_log_probabilities(model.body, items, COUNTS, V, micro_batch, token_budget)
    for both, counts, values in zip(rows, COUNTS, actual, strict=True):
        for row, count, array in zip(both, counts, values, strict=True):
            expected = whole_row(model.body, row)
            assert array.tolist() == pytest.approx(expected[len(expected) - count :], abs=1e-5)


def test_special_rows_get_no_probability(model):
    row = [1, 2, 3, 4]
    (actual,) = suffix_log_probabilities(model.body, [Item.from_sequences([row])], [[3]], V - 3, None, 100)
    with torch.no_grad():
        log_p = model.body(torch.tensor([row]))[0] @ model.body.tokens.weight[: V - 3].T
    expected = log_p.log_softmax(-1)[[0, 1, 2], row[1:]].tolist()
    assert actual[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_scores_of_a_bf16_model_are_computed_in_fp32(model):
    body, rows = model.body.to(torch.bfloat16), [[3, word] for word in range(V)]
    (actual,) = suffix_log_probabilities(body, [Item.from_sequences(rows, None, 1)], [[1] * V], V, None, 100)
    with torch.no_grad():
        logits = body(torch.tensor(rows))[:, 0].float() @ body.tokens.weight.float().T
    expected = logits.log_softmax(-1).diagonal()
    assert np.concatenate(actual).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
