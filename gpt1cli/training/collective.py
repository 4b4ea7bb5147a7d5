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
    """Return the rank of this process; 0 for a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let rank 0 run the block first, so that the others find its results in the cache."""
    if rank():
        dist.barrier()
    yield
    if dist.is_initialized() and not rank():
        dist.barrier()


def broadcast_path(folder: Path) -> Path:
    """Return the path of rank 0 in every process. Processes wait until rank 0 gets here."""
    if world_size() == 1:
        return folder
    paths: list[Any] = [folder]
    dist.broadcast_object_list(paths)
    return paths[0]


def all_reduce_sum(values: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Sum values over all processes; a single process returns its values unchanged."""
    if world_size() == 1:
        return values
    stacked = torch.stack([value.to(device, torch.float64) for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked.float(), strict=True))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is true in any process."""
    return bool(all_reduce_sum({"flag": torch.tensor(flag)}, device)["flag"])


def seed_per_rank(seed: int, step: int) -> None:
    """Give ranks above 0 their own dropout seeds; rank 0 uses the generator that its checkpoint stores."""
    if rank():
        torch.manual_seed(int(np.random.SeedSequence([seed, rank(), step]).generate_state(1, np.uint64)[0] >> 1))


class SingleForward(nn.Module):
    """Wrap a model so that one forward call runs a whole function of it, between FSDP's gathering and reducing."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self.model, *arguments)


class ParallelModel:
    """A model on several processes (DDP or FSDP). Create it, then the optimizer, then wrap the objective."""

    def __init__(self, model: Any, precision: torch.dtype, device: torch.device, shard: bool):
        self.model, self.device, self.sharded = model, device, shard and world_size() > 1
        self.wrapped: nn.Module = SingleForward(model)
        self.precision = torch.float32 if self.sharded else precision  # of the parameters that the optimizer sees
        if self.sharded:
            policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
            mesh = init_device_mesh(device.type, (world_size(),))
            for block in getattr(model, "body", model).blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(self.wrapped, mesh=mesh, mp_policy=policy)

    def wrap_objective(self, objective: Callable[[Any, Any], T]) -> Callable[[Any, Any], T]:
        """Wrap the objective so that backward leaves the mean of all processes' gradients in each process."""
        if world_size() == 1:
            return objective
        if not self.sharded:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.wrapped, device_ids=ids)
        return lambda _, batch: self.wrapped(objective, batch)

    def run_inference(self, function: Callable[[Any], T]) -> T:
        """Call a function of the model, without gradients; all processes take part."""
        return self.wrapped(function) if self.sharded else function(self.model)


def to_local(tensor: Tensor) -> Tensor:
    """Return the shard of a tensor on this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(shard: Tensor, like: Tensor) -> Tensor:
    """Gather a tensor from its shards, sharded as `like`; all processes take part."""
    if not isinstance(like, DTensor) or shard.dim() == 0:
        return shard
    sharded = DTensor.from_local(shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return sharded.full_tensor()


def local_shard(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a full tensor, sharded as `like`."""
    if not isinstance(like, DTensor) or tensor.dim() == 0:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()
