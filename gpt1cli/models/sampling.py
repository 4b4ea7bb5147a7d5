"""Generate text: one token at a time, with the keys and values of earlier tokens in a KVCache.

B samples, T tokens, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gpt1cli.models.inference import device_of
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import KVCache

ChooseToken = Callable[[Tensor], Tensor]  # logits [B,V] -> next token of each sample [B]


def greedy(logits: Tensor) -> Tensor:
    """Choose the most likely token. [B,V] -> [B]"""
    return logits.argmax(-1)


def sampler(temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator) -> ChooseToken:
    """Return a function that samples a token from `sampling_probabilities`."""

    def choose(logits: Tensor) -> Tensor:
        return torch.multinomial(
            sampling_probabilities(logits, temperature, top_k, top_p), 1, generator=generator
        ).squeeze(1)

    return choose


def sampling_probabilities(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Compute softmax(logits / temperature), truncated and rescaled to sum 1. [B,V] -> [B,V], fp32

    top_k keeps the k most likely tokens (Fan et al. 2018); top_p keeps the smallest set of tokens with a total
    probability of at least p (nucleus sampling, Holtzman et al. 2020). With both, the smaller set is kept.
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_p is not None:
        ranked = ranked.where(ranked.cumsum(-1) - ranked < top_p, 0)  # more likely tokens have less than top_p in total
    if top_k is not None:
        ranked[:, top_k:] = 0
    kept = torch.zeros_like(probabilities).scatter_(-1, order, ranked)
    return kept / kept.sum(-1, keepdim=True)


@torch.inference_mode()
def generate_tokens(
    model: LanguageModel, prompt: Sequence[int], samples: int, tokens: int, choose: ChooseToken, vocabulary: int
) -> Iterator[list[int]]:
    """Yield the next token of each sample, `tokens` times; special rows beyond the vocabulary are never chosen.

    When all positions are used, the second half of the context is read again. A prompt longer than n_positions is
    truncated to its last n_positions / 2 tokens.
    """
    model.eval()
    device, limit = device_of(model), model.config.n_positions
    sequences = torch.tensor([prompt], device=device)  # [1,T], then [B,T]
    cache: KVCache | None = None
    for _ in range(tokens):
        if cache is None or cache.length == limit:
            cache = KVCache(capacity=limit)
            unread = sequences if sequences.shape[1] <= limit else sequences[:, -(limit // 2) :]
        logits = model.logits(model(unread, cache=cache)[:, -1])[:, :vocabulary]  # [1 or B,V]
        if len(logits) < samples:  # the samples share the prompt, which is read once
            cache.repeat(samples)
            logits, sequences = logits.expand(samples, -1), sequences.expand(samples, -1)
        chosen = choose(logits)
        yield chosen.tolist()
        unread = chosen[:, None]
        sequences = torch.cat([sequences, unread], 1)
