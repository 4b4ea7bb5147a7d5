"""Generation compared with transformers: greedy text and sampling probabilities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import OpenAIGPTLMHeadModel, TemperatureLogitsWarper
from transformers import TopKLogitsWarper as TopK
from transformers import TopPLogitsWarper as TopP
from worlds import SHAPE, model_config, peer_config, stir

from gpt1cli.models.sampling import generate_tokens, greedy, sampler, sampling_probabilities
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained.hf_weights import from_published

V, N = 61, SHAPE["n_positions"]


pytestmark = pytest.mark.usefixtures("exact_arithmetic")


@pytest.fixture(scope="module")
def peer() -> OpenAIGPTLMHeadModel:
    torch.manual_seed(3)
    peer = OpenAIGPTLMHeadModel(peer_config(V))
    stir(peer, 0.3)
    return peer.eval()


@pytest.fixture(scope="module")
def model(peer) -> Transformer:
    model = Transformer(model_config(**SHAPE), V)
    model.load_state_dict(from_published(peer.state_dict()))
    return model


def tokens_of(model: Transformer, prompt: list[int], count: int, samples: int = 1, choose=greedy) -> list[list[int]]:
    """Return each sample as a list of tokens."""
    steps = generate_tokens(model, prompt, samples, count, choose, V)
    return [list(sample) for sample in zip(*steps, strict=True)]


@pytest.mark.parametrize("prompt", [[5], [7, 1, 30], list(range(1, 13))])
def test_greedy_text_equals_transformers(model, peer, prompt):
    count = N - len(prompt)
    expected = peer.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    assert tokens_of(model, prompt, count) == [expected[0, len(prompt) :].tolist()]


def test_batched_samples_equal_a_single_sample(model):
    (alone,) = tokens_of(model, [7, 1, 30], 10)
    assert tokens_of(model, [7, 1, 30], 10, samples=3) == [alone] * 3


@pytest.mark.parametrize("length", [3, N - 1, N, N + 1, 3 * N])
@torch.no_grad()
def test_full_context_continues_from_its_second_half(model, length):
    """Compared with whole rows without a cache: all tokens that fit; when full, the second half of them."""
    sequence, start = [(7 * i) % V for i in range(length)], 0
    prompt, expected = list(sequence), []
    if length > N:
        start = length - N // 2
    for _ in range(2 * N):
        if len(sequence) - start > N:
            start = len(sequence) - N // 2
        logits = model.eval().logits(model(torch.tensor([sequence[start:]])))
        expected.append(logits[0, -1].argmax().item())
        sequence.append(expected[-1])
    assert tokens_of(model, prompt, 2 * N) == [expected]


LOGITS = torch.randn(4, V, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.7, None, None), (1.0, 5, None), (1.0, 1, None), (1.0, 1000, None), (1.3, None, 0.8),
     (1.0, None, 1.0), (1.0, None, 1e-6)],
)  # fmt: skip
def test_sampling_probabilities_equal_transformers_warpers(temperature, top_k, top_p):
    logits = TemperatureLogitsWarper(temperature)(None, LOGITS.clone()) if temperature != 1 else LOGITS.clone()
    if top_k:
        logits = TopK(min(top_k, V))(None, logits)
    if top_p:
        logits = TopP(top_p)(None, logits)
    torch.testing.assert_close(sampling_probabilities(LOGITS, temperature, top_k, top_p), logits.softmax(-1))


def test_top_k_with_top_p_keeps_the_smaller_set():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(top_k: int, top_p: float) -> list[float]:
        return sampling_probabilities(logits, 1.0, top_k, top_p)[0].tolist()

    assert kept(3, 0.6) == pytest.approx([0.625, 0.375, 0, 0])
    assert kept(1, 0.9) == pytest.approx([1, 0, 0, 0])


def test_top_k_keeps_k_of_equal_logits():
    assert (sampling_probabilities(torch.zeros(1, 9), 1.0, 2, None) > 0).sum() == 2


def test_samples_follow_the_probabilities_and_the_seed():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(20_000, 3)

    def sample(seed: int) -> Tensor:
        return sampler(1.0, None, None, torch.Generator().manual_seed(seed))(logits)

    assert (torch.bincount(sample(0)) / 20_000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))


def test_samples_differ_and_contain_no_special_row(model):
    torch.manual_seed(0)
    larger = Transformer(model_config(**SHAPE), V)
    larger.load_state_dict(model.state_dict())
    larger.resize_embeddings(larger.tokens.num_embeddings + 3)
    with torch.no_grad():
        larger.tokens.weight[V:] *= 1000  # would win if allowed
    choose = sampler(2.0, None, None, torch.Generator().manual_seed(0))
    samples = tokens_of(larger, [5], 15, samples=8, choose=choose)
    assert len(set(map(tuple, samples))) == 8 and max(map(max, samples)) < V
