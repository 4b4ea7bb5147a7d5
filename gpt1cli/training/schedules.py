"""Learning-rate schedules: pure functions (step, total steps, warm-up steps) -> factor of the peak learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then half a cosine to 0 over the rest (paper, section 4.1, pretraining)."""
    if step < warmup:
        return min(1.0, (step + 1) / max(1.0, warmup))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def linear(step: int, total: int, warmup: float) -> float:
    """min(1, (step+1)/max(1, warmup)) x (1 - step/total): decay also applies during warm-up, as in the released code.

    Deviation: the released code starts warm-up at 0, so that its first step changes nothing.
    """
    return min(1.0, (step + 1) / max(1.0, warmup)) * (1 - step / total)


def constant(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then 1."""
    return min(1.0, (step + 1) / max(1, warmup))


SCHEDULES: dict[str, Callable[[int, int, float], float]] = {"cosine": cosine, "linear": linear, "constant": constant}
