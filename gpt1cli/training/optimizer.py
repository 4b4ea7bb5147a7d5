"""AdamW with fp32 master weights and global-norm clipping (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from gpt1cli.config.training import OptimizerConfig
from gpt1cli.training import collective

Moments = tuple[Tensor, Tensor, Tensor]  # steps so far, mean of gradients, mean of their squares


class Optimizer:
    """AdamW over the model's parameters (paper, section 4.1), with global-norm clipping.

    In bf16 the model holds rounded copies of fp32 master weights, which are trained, decayed and saved.
    Deviation: torch's AdamW decays by lr x 0.01; the released code also multiplies the decay by Adam's bias correction,
    and adds epsilon before that correction.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, precision: torch.dtype = torch.float32):
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.low_precision = precision != torch.float32  # whether the model holds rounded copies
        self.masters = {name: collective.to_local(p.detach()) for name, p in self.parameters.items()}
        if self.low_precision:
            self.masters = {name: p.detach().clone().float() for name, p in self.parameters.items()}
            model.to(precision)
        self.accumulated_grads: dict[str, Tensor] = {}  # gradients taken over from the model
        self.moments: dict[str, Moments] = {}
        on_cpu = all(master.device.type == "cpu" for master in self.masters.values())
        decayed = [name for name, master in self.masters.items() if master.dim() > 1]
        undecayed = [name for name, master in self.masters.items() if master.dim() <= 1]  # biases and gains
        # Parameters updated together: on a CPU one at a time; its fp32 gradient stays in cache and is then freed.
        self.groups = [[name] for name in self.masters] if on_cpu else [decayed, undecayed]

    def accumulate(self) -> None:
        """Take over the gradients of a backward pass in bf16; the sum over several micro-batches is fp32."""
        for name, p in self.parameters.items():
            if p.grad is None or not self.low_precision:  # fp32 gradients accumulate in p.grad
                continue
            total = self.accumulated_grads.get(name)
            self.accumulated_grads[name] = p.grad if total is None else total.float().add_(p.grad)
            p.grad = None

    def zero_grad(self) -> None:
        """Discard the gradients of a step that was not finished."""
        self.accumulated_grads.clear()
        for p in self.parameters.values():
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float, count: float | Tensor) -> Tensor:
        """Update the weights with gradients of a loss summed over `count`; return the norm before clipping, []."""
        in_model = {name: collective.to_local(p.grad) for name, p in self.parameters.items() if p.grad is not None}
        gradients = in_model | self.accumulated_grads
        count = count / collective.world_size()  # with several processes, gradients are their mean
        norm = global_norm(gradients.values(), any(isinstance(p, DTensor) for p in self.parameters.values())) / count
        divisor = count / (self.config.clip_norm / (norm + 1e-6)).clamp(
            max=1
        )  # larger than count if the norm is clipped
        for names in self.groups:
            present = [name for name in names if name in gradients]
            self._update(present, [gradients.pop(name).float() for name in present], lr, divisor)
            for name in present:
                self.parameters[name].grad = None
                self.accumulated_grads.pop(name, None)
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
        if self.low_precision:
            torch._foreach_copy_([self.parameters[name].data for name in names], masters)

    def weights(self) -> dict[str, Tensor]:
        """Return the full (unsharded) master weights by name."""
        return {name: collective.full_tensor(master, self.parameters[name]) for name, master in self.masters.items()}

    def state(self) -> dict[str, Tensor]:
        """Return step count and both moments of every parameter, full (unsharded), by name."""
        return {
            f"{name}/{key}": collective.full_tensor(value, self.parameters[name])
            for name, moments in self.moments.items()
            for key, value in zip(("step", "exp_avg", "exp_avg_sq"), moments, strict=True)
        }

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy weights into the masters and the rounded copies of the model."""
        for name, master in self.masters.items():
            master.copy_(collective.local_shard(weights[name], self.parameters[name]))
            if self.low_precision:
                self.parameters[name].copy_(master)

    def restore(self, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Restore weights and optimizer state, as returned by `weights` and `state`."""
        self.set_weights(weights)
        for name, master in self.masters.items():
            if f"{name}/step" in state:
                count, mean, square = (
                    collective.local_shard(state[f"{name}/{key}"], self.parameters[name]).to(master.device, copy=True)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                )
                self.moments[name] = count, mean, square


def global_norm(tensors: Iterable[Tensor], sharded: bool = False) -> Tensor:
    """Compute the Euclidean norm of all elements, []; summed in fp32, in pieces, for any dtype.

    With `sharded` each process holds different elements, and all processes get the norm of all of them. Pieces stay in
    cache and keep precision: torch's norm of 30 million elements at once has an error of 2e-3 on a CPU.
    """
    tensors = list(tensors)
    if tensors[0].is_cuda:
        square = torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float32)).square().sum()
    else:
        pieces = (piece.float() for tensor in tensors for piece in tensor.flatten().split(2**16))
        square = torch.stack([torch.dot(piece, piece) for piece in pieces]).sum()
    return (collective.all_reduce_sum({"": square}, square.device)[""] if sharded else square).sqrt().float()
