"""Inference without gradients: log-probabilities of tokens, hidden states, and outputs of fine-tuned models.

B rows, T tokens of a row, N sequences or items of K sequences each, D width, V vocabulary rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from gpt1cli.models.batch import Ids, Item, group_by_length, items_batch, windows_batch
from gpt1cli.models.heads import FineTunedModel
from gpt1cli.models.kernels import log_probabilities
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import KVCache


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's weights."""
    return next(model.parameters()).device


@torch.no_grad()
def mean_token_loss(model: LanguageModel, windows: np.ndarray, token_budget: int) -> float:
    """Compute the mean -log p(token) in nats over windows of T+1 contiguous tokens, [N,T+1]: log of the perplexity."""
    model.eval()
    total, size = 0.0, max(1, token_budget // windows.shape[1])
    for start in range(0, len(windows), size):
        batch = windows_batch(windows[start : start + size]).to(device_of(model))
        hidden = model(batch.tokens).flatten(0, 1)
        total -= log_probabilities(hidden, model.tokens.weight, batch.targets.flatten()).double().sum().item()
    return total / (windows.shape[0] * (windows.shape[1] - 1))


def token_log_probabilities(
    model: LanguageModel, sequences: Sequence[Ids], micro_batch: int | None, token_budget: int
) -> list[np.ndarray]:
    """Compute log p(token | tokens before) of all tokens except the first, for each sequence: arrays [T-1], fp32.

    A sequence longer than n_positions is read in overlapping windows, each of which scores its second half.
    """
    limit, spans = model.config.n_positions, []  # (sequence, first token of the window, first token it scores)
    for number, sequence in enumerate(sequences):
        for start in range(0, max(1, len(sequence) - limit + limit // 2), max(1, limit // 2)):
            spans.append((number, start, 1 if start == 0 else start + limit - limit // 2))
    scores = [np.empty(max(0, len(sequence) - 1), np.float32) for sequence in sequences]
    windows = [sequences[number][start : start + limit] for number, start, _ in spans]
    firsts = [first - start for _, start, first in spans]
    window_scores = _score_row_ends(model, windows, firsts, None, micro_batch, token_budget)
    for (number, _, first), values in zip(spans, window_scores, strict=True):
        scores[number][first - 1 : first - 1 + len(values)] = values
    return scores


def continuation_log_probabilities(
    model: LanguageModel, prefix: Ids, continuations: Sequence[Ids], micro_batch: int | None, token_budget: int
) -> list[np.ndarray]:
    """Compute log p(token | prefix, tokens before) of all tokens of each continuation: arrays [T], fp32.

    The prefix is read once into a KVCache; its last token starts every row. Raises ValueError if the prefix is empty
    or a sequence exceeds n_positions.
    """
    longest, limit = max(map(len, continuations), default=0), model.config.n_positions
    if len(prefix) + longest > limit + 1 or not len(prefix):
        raise ValueError(f"prefix of {len(prefix)} tokens, longest continuation of {longest}, n_positions={limit}")
    cache = prefill(model, prefix[:-1]) if len(prefix) > 1 else None
    rows = [np.concatenate([prefix[-1:], continuation]) for continuation in continuations]
    return _score_row_ends(model, rows, [1] * len(rows), cache, micro_batch, token_budget)


@torch.inference_mode()
def next_log_probabilities(
    model: LanguageModel,
    sequences: Sequence[Sequence[int]],
    vocabulary: int,
    micro_batch: int | None,
    token_budget: int,
) -> np.ndarray:
    """Compute log p(token | sequence) of every possible next token: [N,V], fp32. No sequence may be empty."""
    model.eval()
    items, table = [Item.from_sequences([sequence]) for sequence in sequences], model.tokens.weight[:vocabulary].float()
    scores = np.empty((len(items), vocabulary), np.float32)
    for group in group_by_length(items, micro_batch, token_budget):
        batch = items_batch([items[i] for i in group]).to(device_of(model))
        assert batch.read_at is not None
        hidden = batch.forward(model).flatten(0, 1)[batch.read_at.flatten()]  # [B,D]
        scores[group] = (hidden.float() @ table.T).log_softmax(-1).cpu().numpy()
    return scores


@torch.inference_mode()
def prefill(model: LanguageModel, tokens: Sequence[int] | Ids) -> KVCache:
    """Read tokens into a KVCache, for rows that follow them."""
    cache = KVCache(capacity=len(tokens))
    model.eval()(torch.tensor(np.asarray(tokens, np.int64)[None], device=device_of(model)), cache=cache)
    cache.appending = False
    return cache


@torch.inference_mode()
def _score_row_ends(
    model: LanguageModel,
    rows: Sequence[Ids],
    firsts: Sequence[int],
    cache: KVCache | None,
    micro_batch: int | None,
    token_budget: int,
) -> list[np.ndarray]:
    """Compute log-probabilities of the tokens of each row from `firsts` on; rows of similar length share a batch."""
    model.eval()
    scores: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
    order = sorted((i for i in range(len(rows)) if len(rows[i]) > firsts[i]), key=lambda i: -len(rows[i]))
    while order:
        longest = len(rows[order[0]])
        size = micro_batch or max(1, token_budget // longest)
        group, order = order[:size], order[size:]
        padded = np.zeros((len(group), longest), np.int64)
        scored = np.zeros(padded.shape, bool)
        for line, mask, i in zip(padded, scored, group, strict=True):
            line[: len(rows[i])] = rows[i]
            mask[firsts[i] : len(rows[i])] = True
        tokens, targets = torch.from_numpy(padded).to(device_of(model)), torch.from_numpy(scored[:, 1:])
        hidden = model(tokens[:, :-1], cache=cache, lengths=[len(rows[i]) - 1 for i in group])[
            targets.to(tokens.device)
        ]
        values = log_probabilities(hidden, model.tokens.weight, tokens[:, 1:][targets.to(tokens.device)]).cpu().numpy()
        row_scores = np.split(values, np.cumsum(scored.sum(1))[:-1])
        for i, own in zip(group, row_scores, strict=True):
            scores[i] = own
    return scores


@torch.no_grad()
def suffix_log_probabilities(
    model: LanguageModel,
    items: Sequence[Item],
    counts: Sequence[Sequence[int]],
    vocabulary: int,
    micro_batch: int | None,
    token_budget: int,
    cache: KVCache | None = None,
) -> list[list[np.ndarray]]:
    """Compute log p(token | tokens before) of the last counts[n][k] tokens of sequence k of item n.

    Returns arrays [counts[n][k]] in fp32. A count may not reach the shared prefix or its last token. Only the first
    `vocabulary` tokens can come next, not the special rows of a fine-tuned model. Every item follows the cached tokens.
    """
    model.eval()
    scores: list[list[np.ndarray]] = [[]] * len(items)
    table = model.tokens.weight[:vocabulary].float()  # in bf16 scores would be tied, as in heads.py
    for group in group_by_length(items, micro_batch, token_budget, 0 if cache is None else cache.length):
        batch = items_batch([items[i] for i in group]).to(device_of(model))
        assert batch.read_at is not None
        lengths = [count for i in group for count in counts[i]]
        ends = zip(batch.read_at.flatten().tolist(), lengths, strict=True)
        positions = torch.cat([torch.arange(end - length, end) for end, length in ends]).to(table.device)
        hidden, targets = batch.forward(model, cache).flatten(0, 1)[positions], batch.tokens.flatten()[positions + 1]
        values = log_probabilities(hidden.float(), table, targets).cpu().numpy()
        sequence_scores = iter(np.split(values, np.cumsum(lengths)[:-1]))
        for i in group:
            scores[i] = list(itertools.islice(sequence_scores, len(counts[i])))
    return scores


@torch.no_grad()
def mean_states(
    model: LanguageModel, sequences: Sequence[Sequence[int]], micro_batch: int | None, token_budget: int
) -> np.ndarray:
    """Compute the mean last hidden state of each sequence, truncated to n_positions: [N,D], fp32."""
    model.eval()
    items = [Item.from_sequences([sequence[: model.config.n_positions]]) for sequence in sequences]
    means = np.zeros((len(items), model.config.d_model), np.float32)
    filled = [i for i in range(len(items)) if items[i].row_length]
    for group in group_by_length([items[i] for i in filled], micro_batch, token_budget):
        batch = items_batch([items[filled[i]] for i in group]).to(device_of(model))
        assert batch.lengths is not None
        for i, states, length in zip(group, batch.forward(model).float(), batch.lengths, strict=True):
            means[filled[i]] = states[:length].mean(0).cpu().numpy()
    return means


@torch.no_grad()
def head_outputs(
    model: FineTunedModel, items: Sequence[Item], micro_batch: int | None, token_budget: int
) -> np.ndarray:
    """Compute the outputs of a fine-tuned model for every item: [N,outputs], or [N,K] of a multiple choice; fp32."""
    model.eval()
    outputs: list[np.ndarray] = [np.empty(0)] * len(items)
    for group in group_by_length(items, micro_batch, token_budget):
        batch = items_batch([items[i] for i in group]).to(device_of(model))
        hidden = batch.forward(model.body)
        for i, values in zip(group, model.logits(hidden, batch).float().cpu().numpy(), strict=True):
            outputs[i] = values
    return np.stack(outputs)
