"""The classifier reads the state at `_classify_`, and nothing else."""

from __future__ import annotations

import pytest
import torch
from worlds import NO_DROPOUT, SHAPE, item, model_config, stir, tokens_of

from gpt1cli.models.batch import Asked, Item, items_batch
from gpt1cli.models.heads import Classifier, Prompted
from gpt1cli.models.transformer import Transformer

LABELS, D = 3, SHAPE["d_model"]
ROWS = [item([30, 1, 2, 3, 4, 5, 32], 0), item([30, 6, 32], 2), item([30, 7, 8, 32], 1)]


pytestmark = pytest.mark.usefixtures("exact_arithmetic")


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), 33), LABELS, head_dropout=0.5)
    stir(model)
    return model.eval()


def test_the_state_at_the_end_of_each_row_is_read(model):
    hidden = torch.randn(4, 6, D)
    ends = [0, 5, 2, 4]
    found = model.classify(hidden, torch.tensor([[6 * b + end] for b, end in enumerate(ends)]))
    for b, end in enumerate(ends):
        wanted = model.head.weight @ hidden[b, end] + model.head.bias
        torch.testing.assert_close(found[b], wanted)


def test_only_the_state_at_the_end_gets_a_gradient(model):
    hidden = torch.randn(3, 5, D, requires_grad=True)
    model.classify(hidden, torch.tensor([[4], [5 + 0], [10 + 2]])).sum().backward()
    assert hidden.grad.any(-1).nonzero().tolist() == [[0, 4], [1, 0], [2, 2]]


@torch.no_grad()
def test_scores_of_a_batch_equal_those_of_each_row_alone_whatever_the_padding(model):
    batch = items_batch(ROWS)
    scores = model.classify(model.body(batch.tokens), batch.ends)
    for row, found in zip(ROWS, scores, strict=True):
        alone = model.body(torch.tensor([tokens_of(row)]))[0, -1]
        torch.testing.assert_close(found, model.head(alone), rtol=0, atol=1e-5)
    other = torch.where(torch.arange(7) > batch.ends % 7, 17, batch.tokens)
    assert not torch.equal(other, batch.tokens)
    assert torch.equal(model.classify(model.body(other), batch.ends), scores)


def test_a_fresh_head_is_normal_without_bias():
    torch.manual_seed(0)
    head = Classifier(Transformer(model_config(init_std=0.02), 9), 60, 0.1).head
    assert head.weight.shape == (60, 128) and not head.bias.any()
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_dropout_lies_before_the_layer_and_acts_in_training_alone(model):
    hidden, ends = torch.ones(2000, 1, D), torch.arange(2000)[:, None]
    torch.nn.init.ones_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    assert torch.equal(model.classify(hidden, ends), torch.full((2000, LABELS), float(D)))
    torch.manual_seed(1)
    kept = model.train().classify(hidden, ends) / 2  # how many of the D ones are left in each row
    assert torch.equal(kept, kept.round()) and torch.equal(kept[:, 0], kept[:, 1])  # the same units for every label
    assert kept.mean().item() == pytest.approx(D / 2, abs=5 * (D / 4 / 2000) ** 0.5)


def test_gradients_repeat_bit_for_bit(model):
    batch = items_batch(ROWS * 40)
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


# --- several sequences ------------------------------------------------------------------------------------------------


def test_the_states_of_a_pair_are_added_before_the_layer(model):
    hidden, ends = torch.randn(4, 6, D), torch.tensor([[3, 6 + 1], [12 + 5, 18 + 0]])
    found = model.classify(hidden, ends)
    for n, (a, b) in enumerate((((0, 3), (1, 1)), ((2, 5), (3, 0)))):
        torch.testing.assert_close(found[n], model.head.weight @ (hidden[a] + hidden[b]) + model.head.bias)


@pytest.fixture
def chooser() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), 33), 4, head_dropout=0.5, choice=True)
    stir(model)
    return model.eval()


def test_each_answer_gets_one_score_from_the_same_layer(chooser):
    hidden, ends = torch.randn(1, 9, D), torch.tensor([[2, 5, 8]])
    (found,) = chooser.classify(hidden, ends)
    assert chooser.head.weight.shape == (1, D)
    wanted = [chooser.head.weight[0] @ hidden[0, end] + chooser.head.bias[0] for end in (2, 5, 8)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_answers_of_a_question_lose_the_same_units(chooser):
    """As in the released code, whose noise has one row for all answers."""
    hidden, ends = torch.ones(500, 3, D), torch.arange(1500).view(500, 3)
    scores = chooser.train().classify(hidden, ends)
    assert torch.equal(scores[:, 0], scores[:, 1]) and torch.equal(scores[:, 0], scores[:, 2])
    assert len(scores[:, 0].unique()) > 10


@torch.no_grad()
def test_scores_behind_a_shared_prefix_equal_those_of_whole_rows(chooser):
    items = [
        Item.of([[30, *range(1, n), 31, *answer, 32] for answer in ([5], [6, 7, 8], [9])], 0, shared=n + 1)
        for n in (9, 2, 5)
    ]
    together, apart = (items_batch(made) for made in (items, [item.apart() for item in items]))
    found, wanted = (
        chooser.classify(chooser.body(b.tokens, b.positions, b.document, b.branch), b.ends) for b in (together, apart)
    )
    assert len(together.tokens) == 3 and len(apart.tokens) == 9
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_scores_of_a_bf16_model_are_finer_than_bf16(chooser):
    """bf16 has 128 values between 1 and 2: scores would be equal in pairs, and their ranks be ties."""
    hidden = torch.randn(1, 400, D).bfloat16()
    found = chooser.bfloat16().classify(hidden, torch.arange(400)[None])
    assert found.dtype == torch.float32 and len(found.unique()) == 400 > len(found.bfloat16().unique())


# --- words that answer ------------------------------------------------------------------------------------------------

NEXT = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]])
A, B, C, D4 = range(4)


class Bigrams(torch.nn.Module):
    """p(next token | this one) is NEXT; its table is the identity, so that its states are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding.from_pretrained(torch.eye(4))

    def forward(self, tokens, *_, lengths):
        return NEXT.log()[tokens]


def prompt(before: list[int], words: list[list[int]], after: list[int]) -> Item:
    asked = Asked(tuple(len(word) + len(after) for word in words), len(after))
    return Item.of([[*before, *word, *after] for word in words], None, len(before), asked)


def answered(items: list[Item], alternatives: tuple[int, ...] = (), normalise: str = "sum") -> list[list[float]]:
    """The probability that a label gets: e to its score."""
    model, batch = Prompted(Bigrams(), alternatives, normalise), items_batch(items)
    return model.answer(batch.through(model.body), batch).exp().tolist()


def test_a_label_scores_the_probability_of_its_words_and_of_what_follows_them():
    last = prompt([B, A], [[C], [D4]], [])  # p(c | a), p(d | a): the next-token rule
    assert answered([last]) == [pytest.approx([0.3, 0.4])]
    middle = prompt([A], [[B], [C]], [D4, A])  # a b d a: 0.2 x 0.25 x 0.4; a c d a: 0.3 x 0.1 x 0.4
    assert answered([middle]) == [pytest.approx([0.02, 0.012])]
    three = prompt([C], [[A, D4, B], [B]], [])  # c a d b: 0.7 x 0.4 x 0.3; c b: 0.1
    assert answered([three]) == [pytest.approx([0.084, 0.1])]
    assert answered([three], normalise="mean") == [pytest.approx([0.084 ** (1 / 3), 0.1])]
    assert answered([middle, last]) == [pytest.approx([0.02, 0.012]), pytest.approx([0.3, 0.4])]
    assert answered([middle.apart(), three.apart()]) == answered([middle]) + answered([three])


def test_alternatives_of_a_label_add_their_probabilities_up():
    words = prompt([A], [[A], [B, C], [D4]], [])  # 0.1; 0.2 x 0.25; 0.4
    assert answered([words], (2, 1)) == [pytest.approx([0.15, 0.4])]
    assert answered([words], (1, 2)) == [pytest.approx([0.1, 0.45])]


def test_words_that_answer_bring_no_parameters():
    body = Transformer(model_config(**SHAPE, **NO_DROPOUT), 33)
    model = Prompted(body, [1, 1], "sum")
    assert [name for name, _ in model.named_parameters()] == [f"body.{name}" for name, _ in body.named_parameters()]
