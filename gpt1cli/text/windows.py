"""Windows of a token shard: random ones for training, evenly spread ones for validation."""

from __future__ import annotations

import numpy as np

from gpt1cli.text.corpus import Shards


def unigram_loss(shards: Shards, vocabulary_size: int, limit: int = 10_000_000) -> float:
    """Return the mean -log p of the validation tokens, in nats, under the training frequencies plus one.

    At most `limit` tokens of each split are counted.
    """
    counts = np.bincount(shards.train[:limit], minlength=vocabulary_size) + 1
    return float(-np.log(counts / counts.sum())[shards.valid[:limit]].mean())


def random_windows(tokens: np.ndarray, context: int, count: int, seed: int, step: int) -> np.ndarray:
    """Return windows of context+1 tokens at random positions, which depend on (seed, step) only: [count,context+1]."""
    starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - context, size=count)
    return np.stack([tokens[start : start + context + 1] for start in starts])


def spread_windows(tokens: np.ndarray, context: int, limit: int) -> np.ndarray:
    """Return windows of context+1 tokens, adjacent, or evenly spread if over `limit` tokens: [N,context+1]."""
    starts = np.arange(0, len(tokens) - context, context)
    if len(starts) * context > limit:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // context)).astype(int)]
    return np.stack([tokens[start : start + context + 1] for start in starts])
