"""The classifier reads only the state at `_classify_`; prompts score the words of each label."""

from __future__ import annotations

import pytest
import torch
from worlds import NO_DROPOUT, SHAPE, item, model_config, stir, tokens_of

from gpt1cli.models.batch import Item, ScoredSpan, items_batch
from gpt1cli.models.heads import Classifier, PromptedLM
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


def test_classifier_reads_the_state_at_read_at(model):
    hidden = torch.randn(4, 6, D)
    ends = [0, 5, 2, 4]
    actual = model.classify(hidden, torch.tensor([[6 * b + end] for b, end in enumerate(ends)]))
    for b, end in enumerate(ends):
        expected = model.head.weight @ hidden[b, end] + model.head.bias
        torch.testing.assert_close(actual[b], expected)


def test_only_the_state_at_read_at_gets_a_gradient(model):
    hidden = torch.randn(3, 5, D, requires_grad=True)
    model.classify(hidden, torch.tensor([[4], [5 + 0], [10 + 2]])).sum().backward()
    assert hidden.grad.any(-1).nonzero().tolist() == [[0, 4], [1, 0], [2, 2]]


@torch.no_grad()
def test_batch_scores_equal_single_rows_for_any_padding(model):
    batch = items_batch(ROWS)
    scores = model.classify(model.body(batch.tokens), batch.read_at)
    for row, actual in zip(ROWS, scores, strict=True):
        alone = model.body(torch.tensor([tokens_of(row)]))[0, -1]
        torch.testing.assert_close(actual, model.head(alone), rtol=0, atol=1e-5)
    other = torch.where(torch.arange(7) > batch.read_at % 7, 17, batch.tokens)
    assert not torch.equal(other, batch.tokens)
    assert torch.equal(model.classify(model.body(other), batch.read_at), scores)


def test_initial_head_is_normal_with_zero_bias():
    torch.manual_seed(0)
    head = Classifier(Transformer(model_config(init_std=0.02), 9), 60, 0.1).head
    assert head.weight.shape == (60, 128) and not head.bias.any()
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_head_dropout_is_before_the_layer_and_only_in_training(model):
    hidden, ends = torch.ones(2000, 1, D), torch.arange(2000)[:, None]
    torch.nn.init.ones_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    assert torch.equal(model.classify(hidden, ends), torch.full((2000, LABELS), float(D)))
    torch.manual_seed(1)
    kept = model.train().classify(hidden, ends) / 2  # number of kept units in each row
    assert torch.equal(kept, kept.round()) and torch.equal(kept[:, 0], kept[:, 1])  # the same units for every label
    assert kept.mean().item() == pytest.approx(D / 2, abs=5 * (D / 4 / 2000) ** 0.5)


def test_gradients_are_deterministic(model):
    batch = items_batch(ROWS * 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []
        for _ in range(2):
            torch.manual_seed(3)
            model.train().zero_grad()
            model.classify(model.body(batch.tokens), batch.read_at).pow(2).sum().backward()
            seen.append([p.grad.clone() for p in model.parameters()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_each_parameter_is_registered_once(model):
    names = list(model.state_dict())
    assert names == [name for name, _ in model.named_parameters()]
    assert {"head.weight", "head.bias", "body.tokens.weight"} <= set(names)


# --- several sequences ------------------------------------------------------------------------------------------------


def test_states_of_a_pair_are_added_before_the_layer(model):
    hidden, ends = torch.randn(4, 6, D), torch.tensor([[3, 6 + 1], [12 + 5, 18 + 0]])
    actual = model.classify(hidden, ends)
    for n, (a, b) in enumerate((((0, 3), (1, 1)), ((2, 5), (3, 0)))):
        torch.testing.assert_close(actual[n], model.head.weight @ (hidden[a] + hidden[b]) + model.head.bias)


@pytest.fixture
def chooser() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), 33), 4, head_dropout=0.5, choice=True)
    stir(model)
    return model.eval()


def test_each_choice_gets_one_score_from_the_same_layer(chooser):
    hidden, ends = torch.randn(1, 9, D), torch.tensor([[2, 5, 8]])
    (actual,) = chooser.classify(hidden, ends)
    assert chooser.head.weight.shape == (1, D)
    expected = [chooser.head.weight[0] @ hidden[0, end] + chooser.head.bias[0] for end in (2, 5, 8)]
    torch.testing.assert_close(actual, torch.stack(expected))


def test_choices_share_the_head_dropout_mask(chooser):
    """As in the released code: one dropout mask for all answers."""
    hidden, ends = torch.ones(500, 3, D), torch.arange(1500).view(500, 3)
    scores = chooser.train().classify(hidden, ends)
    assert torch.equal(scores[:, 0], scores[:, 1]) and torch.equal(scores[:, 0], scores[:, 2])
    assert len(scores[:, 0].unique()) > 10


@torch.no_grad()
def test_scores_with_a_shared_prefix_equal_whole_rows(chooser):
    items = [
        Item.from_sequences([[30, *range(1, n), 31, *answer, 32] for answer in ([5], [6, 7, 8], [9])], 0, shared=n + 1)
        for n in (9, 2, 5)
    ]
    shared, separate = (items_batch(some) for some in (items, [item.unshared() for item in items]))
    actual, expected = (
        chooser.classify(chooser.body(b.tokens, b.positions, b.document, b.branch), b.read_at)
        for b in (shared, separate)
    )
    assert len(shared.tokens) == 3 and len(separate.tokens) == 9
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_scores_of_a_bf16_model_are_fp32(chooser):
    """bf16 has 128 values between 1 and 2: different scores would be rounded to ties."""
    hidden = torch.randn(1, 400, D).bfloat16()
    actual = chooser.bfloat16().classify(hidden, torch.arange(400)[None])
    assert actual.dtype == torch.float32 and len(actual.unique()) == 400 > len(actual.bfloat16().unique())


# --- label words ------------------------------------------------------------------------------------------------------

NEXT = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]])
A, B, C, D4 = range(4)


class Bigrams(torch.nn.Module):
    """p(next token | token) is NEXT; the embedding is the identity, so that hidden states are logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding.from_pretrained(torch.eye(4))

    def forward(self, tokens, *_, lengths):
        return NEXT.log()[tokens]


def prompt(before: list[int], words: list[list[int]], after: list[int]) -> Item:
    scored_span = ScoredSpan(tuple(len(word) + len(after) for word in words), len(after))
    return Item.from_sequences([[*before, *word, *after] for word in words], None, len(before), scored_span)


def label_probabilities(
    items: list[Item], alternatives: tuple[int, ...] = (), normalise: str = "sum"
) -> list[list[float]]:
    """Return the probability of each label: exp(score)."""
    model, batch = PromptedLM(Bigrams(), alternatives, normalise), items_batch(items)
    return model.logits(batch.forward(model.body), batch).exp().tolist()


def test_label_score_is_the_probability_of_words_and_trailing_tokens():
    last = prompt([B, A], [[C], [D4]], [])  # p(c | a), p(d | a): the next-token rule
    assert label_probabilities([last]) == [pytest.approx([0.3, 0.4])]
    middle = prompt([A], [[B], [C]], [D4, A])  # a b d a: 0.2 x 0.25 x 0.4; a c d a: 0.3 x 0.1 x 0.4
    assert label_probabilities([middle]) == [pytest.approx([0.02, 0.012])]
    three = prompt([C], [[A, D4, B], [B]], [])  # c a d b: 0.7 x 0.4 x 0.3; c b: 0.1
    assert label_probabilities([three]) == [pytest.approx([0.084, 0.1])]
    assert label_probabilities([three], normalise="mean") == [pytest.approx([0.084 ** (1 / 3), 0.1])]
    assert label_probabilities([middle, last]) == [pytest.approx([0.02, 0.012]), pytest.approx([0.3, 0.4])]
    assert label_probabilities([middle.unshared(), three.unshared()]) == label_probabilities(
        [middle]
    ) + label_probabilities([three])


def test_probabilities_of_alternative_words_are_added():
    words = prompt([A], [[A], [B, C], [D4]], [])  # 0.1; 0.2 x 0.25; 0.4
    assert label_probabilities([words], (2, 1)) == [pytest.approx([0.15, 0.4])]
    assert label_probabilities([words], (1, 2)) == [pytest.approx([0.1, 0.45])]


def test_prompted_model_has_no_new_parameters():
    body = Transformer(model_config(**SHAPE, **NO_DROPOUT), 33)
    model = PromptedLM(body, [1, 1], "sum")
    assert [name for name, _ in model.named_parameters()] == [f"body.{name}" for name, _ in body.named_parameters()]
