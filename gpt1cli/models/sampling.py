"""Text from a language model: one token after the other, behind the keys and values of what stands before.

B samples, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gpt1cli.models.inference import device_of
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import Past

Choice = Callable[[Tensor], Tensor]  # logits [B,V] -> the next token of each sample [B]


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token. [B,V] -> [B]"""
    return logits.argmax(-1)


def sampling(temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator) -> Choice:
    """A token drawn by its probability, as `probabilities` shapes it."""

    def choose(logits: Tensor) -> Tensor:
        return torch.multinomial(probabilities(logits, temperature, top_k, top_p), 1, generator=generator).squeeze(1)

    return choose


def probabilities(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """softmax(logits / temperature), cut to its head and scaled to 1 again. [B,V] -> [B,V], fp32

    top_k keeps the k likeliest tokens (Fan et al. 2018), top_p the fewest likeliest that hold at least this
    probability together (Holtzman et al. 2020); of both the smaller set.
    """
    found = (logits.float() / temperature).softmax(-1)
    ranked, order = found.sort(dim=-1, descending=True, stable=True)
    if top_p is not None:
        ranked = ranked.where(ranked.cumsum(-1) - ranked < top_p, 0)  # what is likelier holds less than top_p
    if top_k is not None:
        ranked[:, top_k:] = 0
    kept = torch.zeros_like(found).scatter_(-1, order, ranked)
    return kept / kept.sum(-1, keepdim=True)


@torch.inference_mode()
def continued(
    model: LanguageModel, prompt: Sequence[int], samples: int, tokens: int, choose: Choice, vocabulary: int
) -> Iterator[list[int]]:
    """The next token of each sample, `tokens` times; special rows beyond the vocabulary are never chosen.

    When all positions are taken, the later half of the context is read anew, and so is the end of a longer prompt.
    """
    model.eval()
    device, limit = device_of(model), model.config.n_positions
    written = torch.tensor([prompt], device=device)  # [1,T], then [B,T]
    past: Past | None = None
    for _ in range(tokens):
        if past is None or past.length == limit:
            past = Past(capacity=limit)
            unread = written if written.shape[1] <= limit else written[:, -(limit // 2) :]
        logits = model.logits(model(unread, past=past)[:, -1])[:, :vocabulary]  # [1 or B,V]
        if len(logits) < samples:  # all samples share the prompt, which is read once
            past.repeat(samples)
            logits, written = logits.expand(samples, -1), written.expand(samples, -1)
        chosen = choose(logits)
        yield chosen.tolist()
        unread = chosen[:, None]
        written = torch.cat([written, unread], 1)
