"""What a model says, without gradients: predictions of classes and log-probabilities of tokens.

N sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from gpt1cli.models.batch import Ids, Item, by_length, items_batch, windows_batch
from gpt1cli.models.heads import Tuned
from gpt1cli.models.kernels import log_probabilities
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import Past


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights lie."""
    return next(model.parameters()).device


@torch.no_grad()
def mean_token_loss(model: LanguageModel, windows: np.ndarray, token_budget: int) -> float:
    """Mean -log p(token), in nats, over windows of T+1 contiguous tokens [N,T+1]: the logarithm of token perplexity."""
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
    """log p(token | all before it) of every token but the first, for each sequence: arrays [T-1], fp32.

    Of a sequence longer than n_positions each window's later half is scored, behind the half that came before.
    """
    limit, rows = model.config.n_positions, []  # (sequence, first token of the window, first token that it scores)
    for number, sequence in enumerate(sequences):
        for start in range(0, max(1, len(sequence) - limit + limit // 2), max(1, limit // 2)):
            rows.append((number, start, 1 if start == 0 else start + limit - limit // 2))
    found = [np.empty(max(0, len(sequence) - 1), np.float32) for sequence in sequences]
    windows = [sequences[number][start : start + limit] for number, start, _ in rows]
    scored = _ends_scored(model, windows, [first - start for _, start, first in rows], None, micro_batch, token_budget)
    for (number, _, first), values in zip(rows, scored, strict=True):
        found[number][first - 1 : first - 1 + len(values)] = values
    return found


def log_probabilities_behind(
    model: LanguageModel, prefix: Ids, endings: Sequence[Ids], micro_batch: int | None, token_budget: int
) -> list[np.ndarray]:
    """log p(token | prefix, all before it) of every token of each ending: arrays [T], fp32.

    The prefix is read once, and its keys and values are kept; its last token opens every ending. ValueError where
    they exceed n_positions.
    """
    if len(prefix) + max(map(len, endings), default=0) > model.config.n_positions + 1 or not len(prefix):
        raise ValueError(f"a prefix of {len(prefix)} tokens and its endings do not fit {model.config.n_positions}")
    past = read(model, prefix[:-1]) if len(prefix) > 1 else None
    rows = [np.concatenate([prefix[-1:], ending]) for ending in endings]
    return _ends_scored(model, rows, [1] * len(rows), past, micro_batch, token_budget)


@torch.inference_mode()
def next_log_probabilities(
    model: LanguageModel,
    sequences: Sequence[Sequence[int]],
    vocabulary: int,
    micro_batch: int | None,
    token_budget: int,
) -> np.ndarray:
    """log p(piece | sequence) of every piece that may come next: [N,V], fp32. The sequences are not empty."""
    model.eval()
    items, table = [Item.of([sequence]) for sequence in sequences], model.tokens.weight[:vocabulary].float()
    found = np.empty((len(items), vocabulary), np.float32)
    for group in by_length(items, micro_batch, token_budget):
        batch = items_batch([items[i] for i in group]).to(device_of(model))
        assert batch.ends is not None
        hidden = batch.through(model).flatten(0, 1)[batch.ends.flatten()]  # [B,D]
        found[group] = (hidden.float() @ table.T).log_softmax(-1).cpu().numpy()
    return found


@torch.inference_mode()
def read(model: LanguageModel, tokens: Sequence[int] | Ids) -> Past:
    """What the model keeps of tokens that it has read, for rows that follow them."""
    past = Past(capacity=len(tokens))
    model.eval()(torch.tensor(np.asarray(tokens, np.int64)[None], device=device_of(model)), past=past)
    past.growing = False
    return past


@torch.inference_mode()
def _ends_scored(
    model: LanguageModel,
    rows: Sequence[Ids],
    firsts: Sequence[int],
    past: Past | None,
    micro_batch: int | None,
    token_budget: int,
) -> list[np.ndarray]:
    """Log-probabilities of the tokens of each row from `firsts` on; rows of like length are computed together."""
    model.eval()
    found: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
    order = sorted((i for i in range(len(rows)) if len(rows[i]) > firsts[i]), key=lambda i: -len(rows[i]))
    while order:
        longest = len(rows[order[0]])
        size = micro_batch or max(1, token_budget // longest)
        group, order = order[:size], order[size:]
        laid = np.zeros((len(group), longest), np.int64)
        counts = np.zeros(laid.shape, bool)
        for line, mask, i in zip(laid, counts, group, strict=True):
            line[: len(rows[i])] = rows[i]
            mask[firsts[i] : len(rows[i])] = True
        tokens, targets = torch.from_numpy(laid).to(device_of(model)), torch.from_numpy(counts[:, 1:])
        hidden = model(tokens[:, :-1], past=past, lengths=[len(rows[i]) - 1 for i in group])[targets.to(tokens.device)]
        values = log_probabilities(hidden, model.tokens.weight, tokens[:, 1:][targets.to(tokens.device)]).cpu().numpy()
        pieces = np.split(values, np.cumsum(counts.sum(1))[:-1])
        for i, piece in zip(group, pieces, strict=True):
            found[i] = piece
    return found


@torch.no_grad()
def ending_log_probabilities(
    model: LanguageModel,
    items: Sequence[Item],
    counts: Sequence[Sequence[int]],
    vocabulary: int,
    micro_batch: int | None,
    token_budget: int,
    past: Past | None = None,
) -> list[list[np.ndarray]]:
    """log p(token | all before it) of the last counts[n][k] tokens of item n's sequence k: arrays [counts[n][k]], fp32.

    A count leaves out the shared prefix and its last token. `vocabulary` entries can come next: of a fine-tuned model
    the special rows cannot. Before every item stands what is kept of the `past`.
    """
    model.eval()
    found: list[list[np.ndarray]] = [[]] * len(items)
    table = model.tokens.weight[:vocabulary].float()  # in bf16 scores would come in ties, as in heads.py
    for group in by_length(items, micro_batch, token_budget, 0 if past is None else past.length):
        batch = items_batch([items[i] for i in group]).to(device_of(model))
        assert batch.ends is not None
        lengths = [count for i in group for count in counts[i]]
        ends = zip(batch.ends.flatten().tolist(), lengths, strict=True)
        places = torch.cat([torch.arange(end - length, end) for end, length in ends]).to(table.device)
        hidden, targets = batch.through(model, past).flatten(0, 1)[places], batch.tokens.flatten()[places + 1]
        values = log_probabilities(hidden.float(), table, targets).cpu().numpy()
        pieces = iter(np.split(values, np.cumsum(lengths)[:-1]))
        for i in group:
            found[i] = list(itertools.islice(pieces, len(counts[i])))
    return found


@torch.no_grad()
def mean_states(
    model: LanguageModel, sequences: Sequence[Sequence[int]], micro_batch: int | None, token_budget: int
) -> np.ndarray:
    """The mean of the last hidden states over the tokens of each sequence, cut to n_positions: [N,D], fp32."""
    model.eval()
    items = [Item.of([sequence[: model.config.n_positions]]) for sequence in sequences]
    found = np.zeros((len(items), model.config.d_model), np.float32)
    filled = [i for i in range(len(items)) if items[i].width]
    for group in by_length([items[i] for i in filled], micro_batch, token_budget):
        batch = items_batch([items[filled[i]] for i in group]).to(device_of(model))
        assert batch.lengths is not None
        for i, states, length in zip(group, batch.through(model).float(), batch.lengths, strict=True):
            found[filled[i]] = states[:length].mean(0).cpu().numpy()
    return found


@torch.no_grad()
def head_outputs(model: Tuned, items: Sequence[Item], micro_batch: int | None, token_budget: int) -> np.ndarray:
    """What a head, or the words of a prompt, give for every item: [N,outputs], or [N,K] of a choice; fp32."""
    model.eval()
    outputs: list[np.ndarray] = [np.empty(0)] * len(items)
    for group in by_length(items, micro_batch, token_budget):
        batch = items_batch([items[i] for i in group]).to(device_of(model))
        hidden = batch.through(model.body)
        for i, values in zip(group, model.answer(hidden, batch).float().cpu().numpy(), strict=True):
            outputs[i] = values
    return np.stack(outputs)
