"""Device, precision and threads of a run, and the torch settings that depend on them."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from gpt1cli.config.schema import UserError
from gpt1cli.config.training import RuntimeConfig
from gpt1cli.models.kernels import tune_allocator
from gpt1cli.training import collective

SLOW_BF16 = "warning: this hardware has no fast bf16; runtime.precision=fp32 is faster here"
TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}  # tokens per micro-batch, if runtime.micro_batch is not set


@dataclass(frozen=True)
class Machine:
    """The device and precision of a run."""

    device: torch.device
    precision: torch.dtype
    threads: int
    micro_batch: int | None
    compile: bool
    warnings: tuple[str, ...] = ()

    @property
    def token_budget(self) -> int:
        """Tokens per micro-batch, if runtime.micro_batch is not set."""
        return TOKEN_BUDGET[self.device.type]

    def micro_batch_rows(self, tokens: int) -> int:
        """Return how many sequences of `tokens` tokens fit into a micro-batch."""
        return self.micro_batch or max(1, self.token_budget // tokens)

    def describe(self) -> dict[str, str | int]:
        """Return the entries of environment.json."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        precision = str(self.precision).removeprefix("torch.")
        return {"device": name, "precision": precision, "threads": self.threads, "devices": collective.world_size()}

    def __str__(self) -> str:
        about = self.describe()
        count = f"{about['devices']} x " if collective.world_size() > 1 else ""
        return f"{count}{about['device']}, {about['precision']}, {about['threads']} thread{'s' * (self.threads > 1)}"


def setup_device(config: RuntimeConfig, seed: int) -> Machine:
    """Choose the device; set threads, precision and seed. Raises UserError for device=cuda without a CUDA device."""
    tune_allocator()
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise UserError(
            "runtime.device=cuda: torch finds no CUDA device on this machine; use runtime.device=cpu or auto"
        )
    device = torch.device("cpu")
    if has_cuda and config.device != "cpu":
        device = torch.device("cuda", torch.cuda.current_device())
    if config.threads:
        torch.set_num_threads(config.threads)
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(config.precision)
    if precision is None:
        precision = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    # TF32 on CUDA, unless precision=fp32 was set.
    # NOTE: "medium" on a CPU would multiply in bf16 if the hardware can: a relative error of 2e-3 instead of 4e-7, and
    # the loss would depend on the split into micro-batches.
    exact = device.type == "cpu" or config.precision == "fp32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # from an earlier run in this process
    torch.manual_seed(seed)
    warnings = (SLOW_BF16,) if config.precision == "bf16" and not has_fast_bf16(device) else ()
    return Machine(device, precision, torch.get_num_threads(), config.micro_batch, config.compile, warnings)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices faster than fp32 matrices."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: on the GPU, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
