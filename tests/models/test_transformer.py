"""The Transformer compared with transformers' OpenAIGPT, its visibility rule with rows computed one by one."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch._dynamo
from torch import Tensor
from transformers import OpenAIGPTLMHeadModel
from worlds import NO_DROPOUT, SHAPE, model_config, peer_config, stir

from gpt1cli.models import attention, kernels
from gpt1cli.models.attention import visibility
from gpt1cli.models.transformer import KVCache, Transformer
from gpt1cli.pretrained.hf_weights import from_published

VOCABULARY = 61


pytestmark = pytest.mark.usefixtures("exact_arithmetic")


@pytest.fixture
def model() -> Transformer:
    """Small, in evaluation mode, every parameter different from its initial value."""
    torch.manual_seed(0)
    model = Transformer(model_config(**SHAPE), VOCABULARY)
    stir(model)
    return model.eval()


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


# --- size and names ---------------------------------------------------------------------------------------------------


def test_base_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = Transformer(model_config("base"), 40_478)
    count = sum(p.numel() for p in model.parameters())
    model.resize_embeddings(model.tokens.num_embeddings + 3)
    assert (count, sum(p.numel() for p in model.parameters())) == (116_534_784, 116_537_088)


def test_tensors_are_registered_once_and_embeddings_are_tied(model):
    names, addresses = list(model.state_dict()), {p.data_ptr() for p in model.state_dict().values()}
    assert names == [name for name, _ in model.named_parameters()]
    assert len(addresses) == len(names) == 2 + 2 * 12
    hidden = torch.randn(3, 5, SHAPE["d_model"])
    torch.testing.assert_close(model.logits(hidden), torch.einsum("btd,vd->btv", hidden, model.tokens.weight))
    torch.testing.assert_close(model.logits(hidden[0, 0]), model.tokens.weight @ hidden[0, 0])
    model.logits(hidden).sum().backward()
    assert model.tokens.weight.grad.any()


def test_initial_weights_biases_and_gains():
    torch.manual_seed(0)
    for name, p in Transformer(model_config(init_std=0.02), 500).named_parameters():
        if p.dim() > 1:
            assert p.std().item() == pytest.approx(0.02, rel=0.05) and abs(p.mean().item()) < 0.001, name
        else:
            assert torch.all(p == (1 if name.endswith("norm.weight") else 0)), name


# --- equality with transformers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peer() -> OpenAIGPTLMHeadModel:
    """transformers' model of the same shape, every parameter random."""
    torch.manual_seed(3)
    peer = OpenAIGPTLMHeadModel(peer_config(VOCABULARY))
    stir(peer)
    return peer.eval()


@pytest.mark.parametrize("keys", ["with prefix and tied head", "bare, with the old buffers"])
def test_hidden_states_and_logits_equal_those_of_transformers(peer, keys):
    published = peer.state_dict()
    if keys.startswith("bare"):
        buffers = {"h.0.attn.bias": torch.ones(1, 1, 20, 20), "h.1.attn.bias": torch.ones(1, 1, 20, 20)}
        published = {**peer.transformer.state_dict(), **buffers, "position_ids": torch.arange(20)}
    model = Transformer(model_config(**SHAPE), VOCABULARY).eval()
    model.load_state_dict(from_published(published))
    row = tokens(3, 20)
    with torch.no_grad():
        hidden, expected = model(row), peer.transformer(row).last_hidden_state
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.logits(hidden), peer(row).logits, rtol=0, atol=1e-5)
        positions = torch.tensor([[4, 4, 0, 19, 7]])
        expected = peer.transformer(row[:1, :5], position_ids=positions).last_hidden_state
        torch.testing.assert_close(model(row[:1, :5], positions), expected, rtol=0, atol=1e-5)


# --- visibility -------------------------------------------------------------------------------------------------------


def test_visibility_equals_three_loops():
    generator = torch.Generator().manual_seed(0)
    document = torch.randint(0, 3, (4, 9), generator=generator)
    branch = torch.randint(0, 3, (4, 9), generator=generator)
    actual = visibility(document, branch)
    assert actual.shape == (4, 1, 9, 9) and actual.dtype == torch.bool
    for b, i, j in itertools.product(range(4), range(9), range(9)):
        same = document[b, i] == document[b, j]
        assert actual[b, 0, i, j] == (j <= i and same and branch[b, j] in (0, branch[b, i]))


@torch.no_grad()
def test_later_tokens_do_not_change_earlier_states(model):
    row = tokens(1, 12)
    before = model(row)
    for t in range(12):
        changed = row.clone()
        changed[0, t] = (row[0, t] + 1) % VOCABULARY
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.isclose(after[:, t:], before[:, t:]).all(-1).any()  # and changes all later states


@torch.no_grad()
def test_row_of_one_document_equals_the_plain_row(model):
    row = tokens(2, 20)
    zeros = torch.zeros_like(row)
    for arguments in ({"document": zeros}, {"branch": zeros}, {"document": zeros + 5, "branch": zeros}):
        torch.testing.assert_close(model(row, **arguments), model(row), rtol=0, atol=1e-5)


@torch.no_grad()
def test_packed_documents_equal_separate_rows_for_any_padding(model):
    lengths, padding = [3, 7, 1, 4], 5
    row = tokens(1, sum(lengths) + padding)
    document = torch.repeat_interleave(torch.arange(5), torch.tensor([*lengths, padding]))[None]
    positions = torch.cat([torch.arange(n) for n in [*lengths, padding]])[None]
    packed = model(row, positions, document)
    chunks = row[:, : sum(lengths)].split(lengths, 1)
    separate = torch.cat([model(chunk) for chunk in chunks], 1)
    torch.testing.assert_close(packed[:, : sum(lengths)], separate, rtol=0, atol=1e-5)
    assert packed.isfinite().all()
    other = torch.cat([row[:, : sum(lengths)], tokens(1, padding, seed=2)], 1)
    assert torch.equal(model(other, positions, document)[:, : sum(lengths)], packed[:, : sum(lengths)])


def test_prefix_with_branches_equals_separate_rows(model):
    prefix, branches, padding = 6, [3, 1, 5], 2
    row = tokens(1, prefix + sum(branches) + padding)
    branch = torch.cat([torch.full((n,), k) for k, n in enumerate([prefix, *branches, padding])])[None]
    branch[0, -padding:] = 0
    document = torch.tensor([0] * (prefix + sum(branches)) + [1] * padding)[None]
    positions = torch.cat([torch.arange(prefix), *(prefix + torch.arange(n) for n in branches), torch.arange(padding)])
    shared = model(row, positions[None], document, branch)
    tails = shared[:, prefix : prefix + sum(branches)].split(branches, 1)
    continuations = row[:, prefix : prefix + sum(branches)].split(branches, 1)
    separate = [model(torch.cat([row[:, :prefix], one], 1)) for one in continuations]
    for tail, whole in zip(tails, separate, strict=True):
        torch.testing.assert_close(shared[:, :prefix], whole[:, :prefix], rtol=0, atol=1e-5)
        torch.testing.assert_close(tail, whole[:, prefix:], rtol=0, atol=1e-5)

    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(sum(tail.pow(3).sum() for tail in tails), parameters)
    theirs = torch.autograd.grad(sum(whole[:, prefix:].pow(3).sum() for whole in separate), parameters)
    for name, actual, expected in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item(), msg=name)


@pytest.mark.parametrize("chunks", [[12], [5, 7], [1] * 12, [4, 1, 6, 1]])
@torch.no_grad()
def test_row_read_in_chunks_with_a_cache_equals_the_whole_row(model, chunks):
    row, cache = tokens(3, 12), KVCache(capacity=12)
    states = torch.cat([model(chunk, cache=cache) for chunk in row.split(chunks, 1)], 1)
    assert cache.length == 12
    torch.testing.assert_close(states, model(row), rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_and_branches_after_a_cached_row_equal_whole_rows(model):
    """Demonstrations are read once, then several queries with several continuations; the cache does not change."""
    prefix, cache = tokens(1, 7), KVCache(capacity=7)
    model(prefix, cache=cache)
    cache.appending = False
    queries, lengths = tokens(4, 8, seed=2), [3, 4, 1]
    branch = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(4, -1)
    places = 7 + torch.cat([torch.arange(3), 3 + torch.arange(4), 3 + torch.arange(1)])
    shared = model(queries, places.expand(4, -1), branch=branch, cache=cache)
    shared_part, *continuations = queries.split(lengths, 1)
    for continuation, actual in zip(continuations, shared.split(lengths, 1)[1:], strict=True):
        whole = model(torch.cat([prefix.expand(4, -1), shared_part, continuation], 1))
        torch.testing.assert_close(actual, whole[:, 10:], rtol=0, atol=1e-5)
    assert cache.length == 7
    torch.testing.assert_close(model(queries[:, :3], cache=cache), shared[:, :3], rtol=0, atol=1e-5)


@torch.no_grad()
def test_n_positions_limits_positions_not_row_length(model):
    row = tokens(1, 30)
    branch = torch.tensor([[0] * 10 + [1] * 10 + [2] * 10])
    positions = torch.cat([torch.arange(20), torch.arange(10, 20)])[None]
    assert model(row, positions, branch=branch).shape == (1, 30, SHAPE["d_model"])
    with pytest.raises(IndexError):
        model(row)


# --- rows, dropout, determinism ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_resized_embeddings_keep_old_rows_and_append_new_ones(model):
    row = tokens(2, 9)
    table, states = model.tokens.weight.clone(), model(row)
    torch.manual_seed(0)
    model.resize_embeddings(model.tokens.num_embeddings + 400)
    assert model.tokens.weight.requires_grad and model.tokens.num_embeddings == VOCABULARY + 400
    assert torch.equal(model.tokens.weight[:VOCABULARY], table) and torch.equal(model(row), states)
    assert model.tokens.weight[VOCABULARY:].std().item() == pytest.approx(0.02, rel=0.05)
    assert model.logits(states).shape == (2, 9, VOCABULARY + 400)


@pytest.mark.parametrize("rate", NO_DROPOUT)
def test_dropout_rates_act_only_in_training_and_can_be_changed(model, rate):
    row = tokens(2, 20)
    without = model(row)
    model.configure(dataclasses.replace(model.config, **NO_DROPOUT, name="none"))
    assert torch.equal(model.train()(row), without)
    model.configure(dataclasses.replace(model.config, **{rate: 0.5}))
    assert not torch.allclose(model(row), without, atol=1e-2)
    assert torch.equal(model.eval()(row), without)


def test_dropout_on_embeddings_and_three_times_per_block(model, monkeypatch):
    calls, random_signs = [], kernels._random_signs

    def record(shape: torch.Size, p: float) -> Tensor:
        calls.append((shape.numel(), p))
        return random_signs(shape, p)

    monkeypatch.setattr(kernels, "_random_signs", record)
    monkeypatch.setattr(attention, "_random_signs", record)
    rates = {"embedding_dropout": 0.1, "attention_dropout": 0.2, "residual_dropout": 0.3}
    model.configure(dataclasses.replace(model.config, **rates))
    model.train()(tokens(2, 20))
    states, attention_weights = 2 * 20 * SHAPE["d_model"], 2 * SHAPE["n_head"] * 20 * 20
    block = [(attention_weights, 0.2), (states, 0.3), (states, 0.3)]
    assert calls == [(states, 0.1), *block, *block]


@pytest.mark.parametrize("lengths", [[20, 3, 1], [1, 1, 20], [7, 20, 7]])
@pytest.mark.parametrize("branched", [False, True])
def test_padding_changes_no_state_and_no_gradient(model, monkeypatch, lengths, branched):
    monkeypatch.setattr(kernels, "MAX_WASTED_PAIRS", 30)  # otherwise such short rows would form one group
    row, real = tokens(3, 20), torch.arange(20) < torch.tensor(lengths)[:, None]
    branch = (torch.arange(20) // 2).clamp(max=4).expand(3, 20) if branched else None  # in short rows some are empty
    document = (~real).long() if branched else None
    upstream = torch.randn(3, 20, SHAPE["d_model"]) * real[:, :, None]
    seen = []
    for given in (None, lengths):
        hidden = model(row, None, document, branch, lengths=given)
        gradients = torch.autograd.grad((hidden * upstream).sum(), list(model.parameters()))
        seen.append([hidden.detach() * real[:, :, None], *gradients])
        assert given is None or not hidden[~real].any()
    for actual, expected in zip(*seen, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compiled_model_is_one_graph_compiled_once_with_equal_results():
    torch.manual_seed(0)
    config = model_config(**SHAPE, **NO_DROPOUT)
    model, compiled = Transformer(config, VOCABULARY).train(), Transformer(config, VOCABULARY).train()
    compiled.load_state_dict(model.state_dict())
    compiled.compile(fullgraph=True)  # a graph break is an error
    for _ in range(3):
        row, seen = tokens(3, 20), []
        for one in (model, compiled):
            one.zero_grad()
            hidden = one(row, lengths=[20, 5, 1])
            hidden[:, 0].sum().backward()
            seen.append([hidden[:, 0].detach(), *(p.grad for p in one.parameters())])
        for actual, expected in zip(*seen, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_forward_and_backward_are_deterministic():
    torch.manual_seed(0)
    model = Transformer(model_config(n_layer=1), VOCABULARY).train()
    row = tokens(8, 64)
    document = (torch.arange(64) // 20).expand(8, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []
        for _ in range(2):
            torch.manual_seed(7)
            model.zero_grad()
            (model(row).pow(3).sum() + model(row, document=document).pow(3).sum()).backward()
            seen.append([p.grad.clone() for p in model.parameters()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@torch.no_grad()
def test_bf16_states_are_near_fp32(model):
    row = tokens(4, 20)
    expected = model(row)
    actual = model.to(torch.bfloat16)(row)
    assert actual.dtype == torch.bfloat16
    assert ((actual.float() - expected).norm() / expected.norm()).item() < 0.03


# --- torch.compile ----------------------------------------------------------------------------------------------------


def test_compiling_keeps_parameter_names(model):
    names = list(model.state_dict())
    model.compile()
    assert list(model.state_dict()) == names and not any("_orig_mod" in name for name in names)


@pytest.mark.slow
def test_compiled_model_computes_equal_results():
    torch.manual_seed(0)
    model = Transformer(model_config(**SHAPE | {"n_layer": 1}), VOCABULARY).eval()
    row, branch = tokens(2, 12), torch.tensor([[0] * 6 + [1] * 3 + [2] * 3] * 2)

    def outcomes() -> list[Tensor]:
        hidden = model(row)
        (gradient,) = torch.autograd.grad(hidden.pow(3).sum(), model.tokens.weight)
        return [hidden.detach(), gradient, model(row, branch=branch).detach()]

    plain = outcomes()
    model.compile()
    for actual, expected in zip(outcomes(), plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(model.train()(row), model(row))  # every call draws its own dropout
