"""Adam with decoupled weight decay on fp32 masters, and the learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpt1cli.config import OptimizerConfig

# --- schedules: step -> factor of the highest learning rate -----------------------------------------------------------


def cosine(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then half a cosine to 0 over the rest (paper, section 4.1, pretraining)."""
    if step < warmup:
        return min(1.0, (step + 1) / max(1.0, warmup))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def linear(step: int, total: int, warmup: float) -> float:
    """min(1, (step+1)/max(1, warmup)) x (1 - step/total): the decay holds in the warm-up too, as in the released code.

    The released code counts warm-up from 0, so that its first update moves nothing; here the first update counts.
    """
    return min(1.0, (step + 1) / max(1.0, warmup)) * (1 - step / total)


def constant(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then 1."""
    return min(1.0, (step + 1) / max(1, warmup))


SCHEDULES: dict[str, Callable[[int, int, float], float]] = {"cosine": cosine, "linear": linear, "constant": constant}


# --- the optimizer ----------------------------------------------------------------------------------------------------


class Optimizer:
    """AdamW over the model's parameters (paper, section 4.1), with global-norm clipping.

    In bf16 the model holds rounded copies, and the fp32 masters here are what is learned, clipped, decayed and saved.
    Deviation from the released code: torch's AdamW decays by lr x 0.01 alone, while the released one also multiplies
    the decay by Adam's bias correction, and adds epsilon before that correction.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, precision: torch.dtype = torch.float32):
        parameters = dict(model.named_parameters())
        if precision == torch.float32:
            self.masters = parameters
        else:
            self.masters = {name: nn.Parameter(p.detach().clone().float()) for name, p in parameters.items()}
            model.to(precision)
        self.rounded: list[Tensor] = [*parameters.values()] if precision != torch.float32 else []
        self.clip_norm = config.clip_norm
        decayed = [p for p in self.masters.values() if p.dim() > 1]
        spared = [p for p in self.masters.values() if p.dim() <= 1]  # biases and gains
        self.adamw = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}],
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    def accumulate(self) -> None:
        """Move the gradients of one backward pass into the masters; in fp32 they are already there."""
        for master, rounded in zip(self.masters.values(), self.rounded, strict=False):
            if rounded.grad is not None:
                master.grad = rounded.grad.float() if master.grad is None else master.grad.add_(rounded.grad)
                rounded.grad = None

    def step(self, lr: float, count: float) -> Tensor:
        """One update from gradients of a loss summed over `count` things; the gradient's norm before clipping, [] ."""
        masters = list(self.masters.values())
        for master in masters:
            if master.grad is not None:
                master.grad.mul_(1 / count)
        norm = nn.utils.clip_grad_norm_(masters, self.clip_norm)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if self.rounded:
            with torch.no_grad():
                torch._foreach_copy_(self.rounded, [*self.masters.values()])
        return norm

    def state(self) -> dict[str, Tensor]:
        """Both moments and the update count of every parameter, by name."""
        tensors = {}
        for name, master in self.masters.items():
            for key, value in self.adamw.state.get(master, {}).items():
                tensors[f"{name}/{key}"] = value
        return tensors

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Put weights into the masters and the model's rounded copies."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(weights[name])
            if self.rounded:
                torch._foreach_copy_(self.rounded, [*self.masters.values()])

    def restore(self, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Put back the weights and the moments, as `state` gave them."""
        self.set_weights(weights)
        for name, master in self.masters.items():
            if f"{name}/step" in state:
                self.adamw.state[master] = {
                    key: state[f"{name}/{key}"].to(master.device, copy=True)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
