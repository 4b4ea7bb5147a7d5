"""The classifier reads the state at `_classify_`, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small import NO_DROPOUT, SHAPE, exact, model_config, stir

from gpt1cli.batches import Row, rows_batch
from gpt1cli.models.heads import Classifier
from gpt1cli.models.transformer import Transformer

LABELS, D = 3, SHAPE["d_model"]
ROWS = [Row([30, 1, 2, 3, 4, 5, 32], 0), Row([30, 6, 32], 2), Row([30, 7, 8, 32], 1)]


@pytest.fixture(autouse=True, scope="module")
def exact_arithmetic() -> Iterator[None]:
    with exact():
        yield


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), 33), LABELS, head_dropout=0.5)
    stir(model)
    return model.eval()


def test_the_state_at_the_end_of_each_row_is_read(model):
    hidden = torch.randn(4, 6, D)
    ends = [0, 5, 2, 4]
    found = model.classify(hidden, torch.tensor(ends))
    for b, end in enumerate(ends):
        wanted = model.head.weight @ hidden[b, end] + model.head.bias
        torch.testing.assert_close(found[b], wanted)


def test_only_the_state_at_the_end_gets_a_gradient(model):
    hidden = torch.randn(3, 5, D, requires_grad=True)
    model.classify(hidden, torch.tensor([4, 0, 2])).sum().backward()
    assert hidden.grad.any(-1).nonzero().tolist() == [[0, 4], [1, 0], [2, 2]]


@torch.no_grad()
def test_scores_of_a_batch_equal_those_of_each_row_alone_whatever_the_padding(model):
    batch = rows_batch(ROWS)
    scores = model.classify(model.body(batch.tokens), batch.ends)
    for row, found in zip(ROWS, scores, strict=True):
        alone = model.body(torch.tensor([row.tokens]))[0, -1]
        torch.testing.assert_close(found, model.head(alone), rtol=0, atol=1e-5)
    other = torch.where(torch.arange(7) > batch.ends[:, None], 17, batch.tokens)
    assert not torch.equal(other, batch.tokens)
    assert torch.equal(model.classify(model.body(other), batch.ends), scores)


def test_a_fresh_head_is_normal_without_bias():
    torch.manual_seed(0)
    head = Classifier(Transformer(model_config(init_std=0.02), 9), 60, 0.1).head
    assert head.weight.shape == (60, 128) and not head.bias.any()
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_dropout_lies_before_the_layer_and_acts_in_training_alone(model):
    hidden, ends = torch.ones(2000, 1, D), torch.zeros(2000, dtype=torch.int64)
    torch.nn.init.ones_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    assert torch.equal(model.classify(hidden, ends), torch.full((2000, LABELS), float(D)))
    torch.manual_seed(1)
    kept = model.train().classify(hidden, ends) / 2  # how many of the D ones are left in each row
    assert torch.equal(kept, kept.round()) and torch.equal(kept[:, 0], kept[:, 1])  # the same units for every label
    assert kept.mean().item() == pytest.approx(D / 2, abs=5 * (D / 4 / 2000) ** 0.5)


def test_gradients_repeat_bit_for_bit(model):
    batch = rows_batch(ROWS * 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []
        for _ in range(2):
            torch.manual_seed(3)
            model.train().zero_grad()
            model.classify(model.body(batch.tokens), batch.ends).pow(2).sum().backward()
            seen.append([p.grad.clone() for p in model.parameters()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_no_parameter_is_registered_twice(model):
    names = list(model.state_dict())
    assert names == [name for name, _ in model.named_parameters()]
    assert {"head.weight", "head.bias", "body.tokens.weight"} <= set(names)
