"""Adam with decoupled weight decay on fp32 masters, and the learning-rate schedules as pure functions of the step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from gpt1cli.config.training import OptimizerConfig
from gpt1cli.training import collective

# --- schedules: step -> factor of the highest learning rate -----------------------------------------------------------


# --- the optimizer ----------------------------------------------------------------------------------------------------


Moments = tuple[Tensor, Tensor, Tensor]  # updates so far, mean of gradients, mean of their squares


class Optimizer:
    """AdamW over the model's parameters (paper, section 4.1), with global-norm clipping.

    In bf16 the model holds rounded copies, and the fp32 masters here are what is learned, decayed and saved.
    Deviation from the released code: torch's AdamW decays by lr x 0.01 alone, while the released one also multiplies
    the decay by Adam's bias correction, and adds epsilon before that correction.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, precision: torch.dtype = torch.float32):
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.rounds = precision != torch.float32  # whether the model holds copies
        self.masters = {name: collective.local(p.detach()) for name, p in self.parameters.items()}
        if self.rounds:
            self.masters = {name: p.detach().clone().float() for name, p in self.parameters.items()}
            model.to(precision)
        self.sums: dict[str, Tensor] = {}  # gradients of an update that the model does not hold any more
        self.moments: dict[str, Moments] = {}
        on_cpu = all(master.device.type == "cpu" for master in self.masters.values())
        decayed = [name for name, master in self.masters.items() if master.dim() > 1]
        spared = [name for name, master in self.masters.items() if master.dim() <= 1]  # biases and gains
        # What is updated at once: on a CPU one parameter, so that its gradient in fp32 stays in cache and is forgotten.
        self.groups = [[name] for name in self.masters] if on_cpu else [decayed, spared]

    def accumulate(self) -> None:
        """Take over the gradients of a backward pass in bf16; of several passes in one update the sum is fp32."""
        for name, p in self.parameters.items():
            if p.grad is None or not self.rounds:  # in fp32 they add up where they are
                continue
            held = self.sums.get(name)
            self.sums[name] = p.grad if held is None else held.float().add_(p.grad)
            p.grad = None

    def forget(self) -> None:
        """Drop the gradients of an update that was not finished."""
        self.sums.clear()
        for p in self.parameters.values():
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float, count: float | Tensor) -> Tensor:
        """One update from gradients of a loss summed over `count` things; the gradient's norm before clipping, [] ."""
        held = {name: collective.local(p.grad) for name, p in self.parameters.items() if p.grad is not None}
        gradients = held | self.sums
        count = count / collective.size()  # several processes leave the mean of their gradients
        norm = norm_of(gradients.values(), any(isinstance(p, DTensor) for p in self.parameters.values())) / count
        divisor = count / (self.config.clip_norm / (norm + 1e-6)).clamp(max=1)  # count, and more where it is clipped
        for names in self.groups:
            present = [name for name in names if name in gradients]
            self._update(present, [gradients.pop(name).float() for name in present], lr, divisor)
            for name in present:
                self.parameters[name].grad = None
                self.sums.pop(name, None)
        return norm

    def _update(self, names: list[str], gradients: list[Tensor], lr: float, divisor: Tensor) -> None:
        if not names:
            return
        masters = [self.masters[name] for name in names]
        for name, master in zip(names, masters, strict=True):
            if name not in self.moments:
                count = torch.zeros((), dtype=torch.float32, device=master.device)
                self.moments[name] = count, torch.zeros_like(master), torch.zeros_like(master)
        counts, means, squares = zip(*(self.moments[name] for name in names), strict=True)
        adamw(
            masters, gradients, list(means), list(squares), [], list(counts),
            lr=lr, beta1=self.config.beta1, beta2=self.config.beta2, eps=self.config.eps,
            weight_decay=self.config.weight_decay if masters[0].dim() > 1 else 0.0,
            amsgrad=False, maximize=False, fused=True, grad_scale=divisor,
        )  # fmt: skip
        if self.rounds:
            torch._foreach_copy_([self.parameters[name].data for name in names], masters)

    def weights(self) -> dict[str, Tensor]:
        """The masters, whole, by name."""
        return {name: collective.gathered(master, self.parameters[name]) for name, master in self.masters.items()}

    def state(self) -> dict[str, Tensor]:
        """Both moments and the update count of every parameter, whole, by name."""
        return {
            f"{name}/{key}": collective.gathered(value, self.parameters[name])
            for name, moments in self.moments.items()
            for key, value in zip(("step", "exp_avg", "exp_avg_sq"), moments, strict=True)
        }

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Put weights into the masters and the model's rounded copies."""
        for name, master in self.masters.items():
            master.copy_(collective.cut(weights[name], self.parameters[name]))
            if self.rounds:
                self.parameters[name].copy_(master)

    def restore(self, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Put back the weights and the moments, as `state` gave them."""
        self.set_weights(weights)
        for name, master in self.masters.items():
            if f"{name}/step" in state:
                count, mean, square = (
                    collective.cut(state[f"{name}/{key}"], self.parameters[name]).to(master.device, copy=True)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                )
                self.moments[name] = count, mean, square


def norm_of(tensors: Iterable[Tensor], sharded: bool = False) -> Tensor:
    """The Euclidean norm of all elements together, []; summed in fp32, piece by piece, whatever their type.

    With `sharded` each process holds other elements, and all get the norm of the whole.

    Pieces stay in cache, and a sum of few terms keeps its digits: torch's norm of 30 million elements at once is off
    by 2e-3 on a CPU.
    """
    tensors = list(tensors)
    if tensors[0].is_cuda:
        square = torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float32)).square().sum()
    else:
        pieces = (piece.float() for tensor in tensors for piece in tensor.flatten().split(2**16))
        square = torch.stack([torch.dot(piece, piece) for piece in pieces]).sum()
    return (collective.summed({"": square}, square.device)[""] if sharded else square).sqrt().float()
