"""Generation against transformers: greedy text, and the probabilities that a token is drawn by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import OpenAIGPTLMHeadModel, TemperatureLogitsWarper
from transformers import TopKLogitsWarper as TopK
from transformers import TopPLogitsWarper as TopP
from worlds import SHAPE, model_config, peer_config, stir

from gpt1cli.models.sampling import continued, greedy, probabilities, sampling
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
    """The samples, each a list of its tokens."""
    steps = continued(model, prompt, samples, count, choose, V)
    return [list(sample) for sample in zip(*steps, strict=True)]


@pytest.mark.parametrize("prompt", [[5], [7, 1, 30], list(range(1, 13))])
def test_greedy_text_is_that_of_transformers(model, peer, prompt):
    count = N - len(prompt)
    wanted = peer.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    assert tokens_of(model, prompt, count) == [wanted[0, len(prompt) :].tolist()]


def test_samples_of_one_prompt_are_computed_together_as_alone(model):
    (alone,) = tokens_of(model, [7, 1, 30], 10)
    assert tokens_of(model, [7, 1, 30], 10, samples=3) == [alone] * 3


@pytest.mark.parametrize("length", [3, N - 1, N, N + 1, 3 * N])
@torch.no_grad()
def test_a_full_context_goes_on_from_its_later_half(model, length):
    """Against whole rows without any past: as many tokens as fit; when they are full, the later half of them."""
    written, begin = [(7 * i) % V for i in range(length)], 0
    prompt, wanted = list(written), []
    if length > N:
        begin = length - N // 2
    for _ in range(2 * N):
        if len(written) - begin > N:
            begin = len(written) - N // 2
        logits = model.eval().logits(model(torch.tensor([written[begin:]])))
        wanted.append(logits[0, -1].argmax().item())
        written.append(wanted[-1])
    assert tokens_of(model, prompt, 2 * N) == [wanted]


LOGITS = torch.randn(4, V, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.7, None, None), (1.0, 5, None), (1.0, 1, None), (1.0, 1000, None), (1.3, None, 0.8),
     (1.0, None, 1.0), (1.0, None, 1e-6)],
)  # fmt: skip
def test_probabilities_are_those_of_transformers_warpers(temperature, top_k, top_p):
    logits = TemperatureLogitsWarper(temperature)(None, LOGITS.clone()) if temperature != 1 else LOGITS.clone()
    if top_k:
        logits = TopK(min(top_k, V))(None, logits)
    if top_p:
        logits = TopP(top_p)(None, logits)
    torch.testing.assert_close(probabilities(LOGITS, temperature, top_k, top_p), logits.softmax(-1))


def test_of_top_k_and_top_p_the_smaller_set_is_kept():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(top_k: int, top_p: float) -> list[float]:
        return probabilities(logits, 1.0, top_k, top_p)[0].tolist()

    assert kept(3, 0.6) == pytest.approx([0.625, 0.375, 0, 0])
    assert kept(1, 0.9) == pytest.approx([1, 0, 0, 0])


def test_equal_logits_do_not_let_more_than_k_in():
    assert (probabilities(torch.zeros(1, 9), 1.0, 2, None) > 0).sum() == 2


def test_draws_follow_the_probabilities_and_the_seed():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(20_000, 3)

    def drawn(seed: int) -> Tensor:
        return sampling(1.0, None, None, torch.Generator().manual_seed(seed))(logits)

    assert (torch.bincount(drawn(0)) / 20_000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_samples_differ_and_never_hold_a_special_row(model):
    torch.manual_seed(0)
    larger = Transformer(model_config(**SHAPE), V)
    larger.load_state_dict(model.state_dict())
    larger.append_rows(3)
    with torch.no_grad():
        larger.tokens.weight[V:] *= 1000  # tempting
    choose = sampling(2.0, None, None, torch.Generator().manual_seed(0))
    samples = tokens_of(larger, [5], 15, samples=8, choose=choose)
    assert len(set(map(tuple, samples))) == 8 and max(map(max, samples)) < V
