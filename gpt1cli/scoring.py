"""What a model says, without gradients: predictions of classes and log-probabilities of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from gpt1cli.batches import Item, by_length, items_batch, windows_batch
from gpt1cli.kernels import log_probabilities
from gpt1cli.models.heads import Classifier
from gpt1cli.models.transformer import Transformer


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights lie."""
    return next(model.parameters()).device


@torch.no_grad()
def mean_token_loss(model: Transformer, windows: np.ndarray, token_budget: int) -> float:
    """Mean -log p(token), in nats, over windows of T+1 contiguous tokens [N,T+1]: the logarithm of token perplexity."""
    model.eval()
    total, size = 0.0, max(1, token_budget // windows.shape[1])
    for start in range(0, len(windows), size):
        batch = windows_batch(windows[start : start + size]).to(device_of(model))
        hidden = model(batch.tokens).flatten(0, 1)
        total -= log_probabilities(hidden, model.tokens.weight, batch.targets.flatten()).double().sum().item()
    return total / (windows.shape[0] * (windows.shape[1] - 1))


@torch.no_grad()
def head_outputs(model: Classifier, items: Sequence[Item], micro_batch: int | None, token_budget: int) -> np.ndarray:
    """What the head gives for every item, in the order of the items: [N,outputs], or [N,K] of a choice; fp32."""
    model.eval()
    outputs: list[np.ndarray] = [np.empty(0)] * len(items)
    for group in by_length(items, micro_batch, token_budget):
        batch = items_batch([items[i] for i in group]).to(device_of(model))
        assert batch.ends is not None
        hidden = model.body(batch.tokens, batch.positions, batch.document, batch.branch)
        for i, values in zip(group, model.classify(hidden, batch.ends).float().cpu().numpy(), strict=True):
            outputs[i] = values
    return np.stack(outputs)
