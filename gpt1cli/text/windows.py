"""Windows of a token shard: drawn at random for training, spread evenly for validation."""

from __future__ import annotations

import numpy as np

from gpt1cli.text.corpus import Shards


def unigram_loss(shards: Shards, vocabulary: int, limit: int = 10_000_000) -> float:
    """Mean -log p of the validation tokens, in nats, by the training tokens' frequencies (add one; `limit` of each)."""
    counts = np.bincount(shards.train[:limit], minlength=vocabulary) + 1
    return float(-np.log(counts / counts.sum())[shards.valid[:limit]].mean())


def random_windows(tokens: np.ndarray, context: int, count: int, seed: int, step: int) -> np.ndarray:
    """Windows of context+1 contiguous tokens at random places, a function of (seed, step) alone: [count,context+1]."""
    starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - context, size=count)
    return np.stack([tokens[start : start + context + 1] for start in starts])


def spread_windows(tokens: np.ndarray, context: int, limit: int) -> np.ndarray:
    """Windows of context+1 tokens side by side, or evenly spread where they exceed `limit` tokens: [N,context+1]."""
    starts = np.arange(0, len(tokens) - context, context)
    if len(starts) * context > limit:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // context)).astype(int)]
    return np.stack([tokens[start : start + context + 1] for start in starts])
