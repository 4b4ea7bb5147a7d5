"""Task losses, summed over examples (paper, equation 4, and their variants for scores)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def class_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(outputs)[label]. outputs [N,L] fp32, labels int64 [N] -> [] (paper, equation 4)."""
    return F.cross_entropy(outputs, labels, reduction="sum")


def soft_f1_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """N x (1 - F1 of class 1), counted in sums of probabilities. outputs [N,2] fp32, labels int64 [N] -> []

    F1 = 2 TP / (predicted + actual positives) of a whole batch: summed over micro-batches it is a different number.
    """
    positive, actual = outputs.softmax(-1)[:, 1], labels.float()
    f1 = 2 * (positive * actual).sum() / (positive.sum() + actual.sum())
    return len(labels) * (1 - f1)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """(output - score)^2. outputs [N,1] fp32, labels float [N] -> []"""
    return F.mse_loss(outputs.squeeze(1), labels.float(), reduction="sum")


def ordinal_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with a target that splits a score between the two integer levels around it. -> []

    outputs [N,L] fp32, one for each level 0..L-1; labels float [N], counted from the lowest level. The expected value
    of the target is the score itself (Tai et al. 2015; the released code's helper for STS-B).
    """
    levels = torch.arange(outputs.shape[1], device=outputs.device)
    targets = (1 - (labels.float()[:, None] - levels).abs()).clamp(min=0)  # [N,L]
    return F.cross_entropy(outputs, targets, reduction="sum")


def interpolation_divergence(outputs: Tensor, shares: Tensor) -> Tensor:
    """KL divergence of the two words' probabilities from (1 - share, share). outputs [N,2] fp32, shares [N] -> []

    For a score between two words: Gao et al. 2021, section 4.1. Their code passes probabilities to a function that
    expects logarithms, which weighs by e^share; this one computes the published formula.
    """
    targets = torch.stack([1 - shares, shares], 1).to(outputs.dtype)  # [N,2]
    return F.kl_div(outputs.log_softmax(-1), targets, reduction="sum")


TaskLoss = Callable[[Tensor, Tensor], Tensor]
TASK_LOSSES: dict[str, TaskLoss] = {
    "cross_entropy": class_cross_entropy,
    "soft_f1": soft_f1_loss,
    "mse": squared_error,
    "ordinal": ordinal_cross_entropy,
}
