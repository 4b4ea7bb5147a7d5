"""Task losses, summed over examples (paper, equation 4, and their variants for scores)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_of_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(outputs)[label]. outputs [N,L] fp32, labels int64 [N] -> [] (paper, equation 4)."""
    return F.cross_entropy(outputs, labels, reduction="sum")


def soft_f1(outputs: Tensor, labels: Tensor) -> Tensor:
    """N x (1 - F1 of class 1), its counts being sums of probabilities. outputs [N,2] fp32, labels int64 [N] -> []

    F1 = 2 TP / (predicted + actual positives) belongs to a whole batch: the sum over its parts is another number.
    """
    positive, actual = outputs.softmax(-1)[:, 1], labels.float()
    f1 = 2 * (positive * actual).sum() / (positive.sum() + actual.sum())
    return len(labels) * (1 - f1)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """(output - score)^2. outputs [N,1] fp32, labels float [N] -> []"""
    return F.mse_loss(outputs.squeeze(1), labels.float(), reduction="sum")


def ordinal(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with a score shared out between the two whole levels around it. -> []

    outputs [N,L] fp32, one for each level 0..L-1; labels float [N], counted from the lowest level. The mean of such a
    target is the score itself (Tai et al. 2015; the released code's helper for STS-B).
    """
    levels = torch.arange(outputs.shape[1], device=outputs.device)
    targets = (1 - (labels.float()[:, None] - levels).abs()).clamp(min=0)  # [N,L]
    return F.cross_entropy(outputs, targets, reduction="sum")


def interpolation(outputs: Tensor, shares: Tensor) -> Tensor:
    """KL divergence of the two words' probabilities from (1 - share, share). outputs [N,2] fp32, shares [N] -> []

    A score between the two: Gao et al. 2021, section 4.1. Their code hands probabilities to a divergence that takes
    logarithms, and so weighs by e to the share; this one is the formula's.
    """
    targets = torch.stack([1 - shares, shares], 1).to(outputs.dtype)  # [N,2]
    return F.kl_div(outputs.log_softmax(-1), targets, reduction="sum")


TaskLoss = Callable[[Tensor, Tensor], Tensor]
TASK_LOSSES: dict[str, TaskLoss] = {
    "cross_entropy": cross_entropy_of_classes,
    "soft_f1": soft_f1,
    "mse": squared_error,
    "ordinal": ordinal,
}
