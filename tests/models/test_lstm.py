"""The LSTM against torch's own layer, and what it shares with the Transformer: padding, a cache, special rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from worlds import NO_DROPOUT, model_config, optimizer_config, stir

from gpt1cli.models.batch import windows_batch
from gpt1cli.models.create import create_model, parameter_counts
from gpt1cli.models.inference import continuation_log_probabilities, token_log_probabilities
from gpt1cli.models.lstm import LSTM, recurrence, recurrence_plain
from gpt1cli.models.transformer import KVCache
from gpt1cli.training.dry_run import flops_per_token
from gpt1cli.training.objectives.causal import causal_objective
from gpt1cli.training.optimizer import Optimizer

VOCABULARY, U = 61, 24
CONFIG = model_config(d_model=16, n_positions=20, architecture="lstm", lstm_units=U)

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


@pytest.fixture
def model() -> LSTM:
    """Small, every parameter away from its initial value, in evaluation mode."""
    torch.manual_seed(0)
    model = LSTM(CONFIG, VOCABULARY)
    stir(model, 0.3)
    return model.eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


# --- the recurrence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [recurrence_plain, recurrence])
@pytest.mark.parametrize(("T", "B"), [(1, 1), (1, 3), (9, 1), (13, 5)])
def test_values_and_gradients_equal_torch(function, T: int, B: int):
    torch.manual_seed(0)
    layer = nn.LSTM(6, 7)
    x, h, c, weight = torch.randn(T, B, 6), torch.randn(B, 7), torch.randn(B, 7), torch.randn(T, B, 7)

    def output_and_gradients(actual: Tensor, inputs: Tensor) -> list[Tensor]:
        layer.zero_grad()
        (actual * weight).sum().backward()
        return [actual, inputs.grad, *(p.grad.clone() for p in layer.parameters())]

    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs, (last_h, last_c) = layer(theirs, (h[None], c[None]))
    expected = output_and_gradients(outputs, theirs)
    input_weight, recurrent_weight, *biases = layer.parameters()
    actual, state = function(ours, input_weight, recurrent_weight, sum(biases), (h, c))
    torch.testing.assert_close(output_and_gradients(actual, ours), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(state, (last_h[0], last_c[0]))


def test_bf16_sums_the_cell_in_fp32():
    """A unit with open gates adds 1/256 per step: a bf16 cell (8 bits) would stop growing at 1."""
    big, T = 60.0, 1024
    recurrent_weight, bias = torch.zeros(4, 1), torch.tensor([big, big, 1 / 256, big])
    arguments = (part.bfloat16() for part in (torch.zeros(T, 1, 1), torch.zeros(4, 1), recurrent_weight, bias))
    _, (_, cell) = recurrence(*arguments, None)
    assert cell.item() == pytest.approx(T / 256, rel=0.01)


# --- the model --------------------------------------------------------------------------------------------------------


def plain(model: LSTM, rows: Tensor) -> Tensor:
    """Compute hidden states with torch's layer, one row at a time."""
    weights = dict(model.named_parameters())
    states = [model.recurrent(F.embedding(row, weights["tokens.weight"])[:, None])[0][:, 0] for row in rows]
    return torch.stack([F.linear(s, weights["projection.weight"], weights["projection.bias"]) for s in states])


def test_hidden_states_are_one_layer_and_a_projection(model):
    rows = tokens(3, 9)
    torch.testing.assert_close(model(rows), plain(model, rows))
    torch.testing.assert_close(model.logits(model(rows)), plain(model, rows) @ model.tokens.weight.T)


def test_bf16_uses_the_fast_recurrence_with_nearly_equal_results(model):
    rows = tokens(3, 9)
    expected = model(rows)
    torch.testing.assert_close(model.bfloat16()(rows).float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_later_tokens_and_padding_do_not_change_earlier_states(model, dtype):
    model, rows = model.to(dtype), tokens(2, 9)
    hidden = model(rows)
    changed = rows.clone()
    changed[:, 6:] = 0
    other = model(changed, lengths=[6, 6])
    assert torch.equal(hidden[:, :6], other[:, :6]) and not torch.equal(hidden[:, 6:], other[:, 6:])


def test_cached_state_equals_the_whole_row(model):
    row = tokens(1, 9)
    cache, whole = KVCache(capacity=20), model(row)
    parts = [model(part, cache=cache) for part in row.split([4, 1, 4], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert cache.length == 9


def test_prefilled_cache_serves_several_rows(model):
    prefix, continuations = tokens(6).numpy(), [tokens(n + 2).numpy()[2:] for n in (1, 4, 7)]
    actual = continuation_log_probabilities(model, prefix, continuations, None, 4096)
    whole = token_log_probabilities(model, [np.concatenate([prefix, one]) for one in continuations], None, 4096)
    for own, values in zip(actual, whole, strict=True):
        torch.testing.assert_close(torch.tensor(own), torch.tensor(values[5:]))


def test_branches_are_refused(model):
    with pytest.raises(ValueError, match="one sequence per row"):
        model(tokens(1, 4), branch=torch.tensor([[0, 1, 1, 2]]))


def test_initial_weights_follow_the_paper_and_forget_bias_is_one():
    torch.manual_seed(0)
    model = create_model(model_config("mini").as_lstm(), 500)
    assert isinstance(model, LSTM)
    weights = dict(model.named_parameters())
    biases = weights.pop("recurrent.bias_ih_l0").chunk(4)
    assert [bias.unique().tolist() for bias in biases] == [[0], [1], [0], [0]]
    for name, weight in weights.items():
        assert weight.std().item() == pytest.approx(0.02, rel=0.02) if weight.dim() > 1 else not weight.any(), name


@pytest.mark.parametrize("option", ["base", "small", "mini", "tiny"])
def test_parameter_and_flop_counts_equal_torch(option: str):
    config = model_config(option).as_lstm()
    with torch.device("meta"):
        model = create_model(config, 500)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    counts = parameter_counts(config, 500)
    assert sum(counts.values()) == sum(sizes.values())
    assert counts["recurrent"] == sum(size for name, size in sizes.items() if name.startswith("recurrent"))
    multiplied = sum(p.numel() for p in model.parameters() if p.dim() > 1)  # the table as the output's
    assert flops_per_token(config, 500, context=100) == 6 * multiplied


def test_base_has_2048_units():
    assert model_config("base").as_lstm().lstm_units == 2048
    assert dataclasses.replace(model_config("base"), lstm_units=None).as_lstm().lstm_units == 2048


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_model_memorises_a_sequence(precision):
    torch.manual_seed(0)
    model = LSTM(dataclasses.replace(CONFIG, **NO_DROPOUT), VOCABULARY)
    optimizer = Optimizer(model, optimizer_config(), precision)
    batch = windows_batch(tokens(1, 15).repeat(4, 1).numpy())
    for _ in range(300):
        loss = causal_objective(model.train(), batch)
        loss.total.backward()
        optimizer.step(2e-2, loss.count)
    assert loss.total.item() / loss.count < 0.1
