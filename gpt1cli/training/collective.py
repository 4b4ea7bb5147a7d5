"""Collective operations across processes (DDP, FSDP); with a single process each is the identity."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes do this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Rank 0 goes first: what it prepares in the cache, the others find there."""
    if rank():
        dist.barrier()
    yield
    if dist.is_initialized() and not rank():
        dist.barrier()


def home(folder: Path) -> Path:
    """The run folder, which is rank 0's. The others come back from here when rank 0 has come, too."""
    if size() == 1:
        return folder
    told: list[Any] = [folder]
    dist.broadcast_object_list(told)
    return told[0]


def summed(values: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The sums over all processes; one process keeps its values as they are."""
    if size() == 1:
        return values
    stacked = torch.stack([value.to(device, torch.float64) for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked.float(), strict=True))


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether any process says yes."""
    return bool(summed({"flag": torch.tensor(flag)}, device)["flag"])


def seed_apart(seed: int, step: int) -> None:
    """Ranks above 0 draw dropout masks of their own; rank 0 has the generator that its checkpoint keeps."""
    if rank():
        torch.manual_seed(int(np.random.SeedSequence([seed, rank(), step]).generate_state(1, np.uint64)[0] >> 1))


class Whole(nn.Module):
    """A model behind a single forward: whatever is done with it between gathering and reducing is one function."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self.model, *arguments)


class Team:
    """How a model is shared among the processes. Make it, then the optimizer, then ask for the objective."""

    def __init__(self, model: Any, precision: torch.dtype, device: torch.device, shard: bool):
        self.model, self.device, self.sharded = model, device, shard and size() > 1
        self.whole: nn.Module = Whole(model)
        self.precision = torch.float32 if self.sharded else precision  # of the parameters that the optimizer sees
        if self.sharded:
            policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
            mesh = init_device_mesh(device.type, (size(),))
            for block in getattr(model, "body", model).blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(self.whole, mesh=mesh, mp_policy=policy)

    def spread(self, objective: Callable[[Any, Any], T]) -> Callable[[Any, Any], T]:
        """The objective, such that backward leaves in every process the mean of all processes' gradients."""
        if size() == 1:
            return objective
        if not self.sharded:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.whole = DistributedDataParallel(self.whole, device_ids=ids)
        return lambda _, batch: self.whole(objective, batch)

    def read(self, function: Callable[[Any], T]) -> T:
        """What a function makes of the model, without gradients; all processes take part."""
        return self.whole(function) if self.sharded else function(self.model)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which each process holds a part, cut up as `like` is; all processes take part."""
    if not isinstance(like, DTensor) or part.dim() == 0:
        return part
    cut = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return cut.full_tensor()


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut up as `like` is."""
    if not isinstance(like, DTensor) or whole.dim() == 0:
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()
