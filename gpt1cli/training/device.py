"""Where a run is computed: device, arithmetic, threads, and the settings of torch that a command may touch."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from gpt1cli.config.schema import UserError
from gpt1cli.config.training import RuntimeConfig
from gpt1cli.models.kernels import keep_memory
from gpt1cli.training import collective

SLOW_BF16 = "warning: this hardware does not speed up bf16: runtime.precision=fp32 is faster here"
TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}  # tokens computed at a time, where runtime.micro_batch does not say


@dataclass(frozen=True)
class Machine:
    """The device and the arithmetic that a run got."""

    device: torch.device
    precision: torch.dtype
    threads: int
    micro_batch: int | None
    compile: bool
    warnings: tuple[str, ...] = ()

    @property
    def token_budget(self) -> int:
        """Tokens computed at a time where runtime.micro_batch does not say."""
        return TOKEN_BUDGET[self.device.type]

    def rows(self, tokens: int) -> int:
        """Sequences of that many tokens computed at a time."""
        return self.micro_batch or max(1, self.token_budget // tokens)

    def describe(self) -> dict[str, str | int]:
        """For environment.json."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        precision = str(self.precision).removeprefix("torch.")
        return {"device": name, "precision": precision, "threads": self.threads, "devices": collective.size()}

    def __str__(self) -> str:
        found = self.describe()
        together = f"{found['devices']} x " if collective.size() > 1 else ""
        return f"{together}{found['device']}, {found['precision']}, {found['threads']} thread{'s' * (self.threads > 1)}"


def start(config: RuntimeConfig, seed: int) -> Machine:
    """Choose the device, set threads, arithmetic and seed. UserError where the machine lacks what was asked for."""
    keep_memory()
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise UserError("runtime.device=cuda: torch sees no CUDA device here; use runtime.device=cpu or auto")
    device = torch.device("cpu")
    if has_cuda and config.device != "cpu":
        device = torch.device("cuda", torch.cuda.current_device())
    if config.threads:
        torch.set_num_threads(config.threads)
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(config.precision)
    if precision is None:
        precision = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    # TF32 on CUDA, unless fp32 was named.
    # NOTE: "medium" on a CPU would multiply in bf16 where the hardware can, a relative error of 2e-3
    # instead of 4e-7, and the split of micro-batches would show in the loss.
    exact = device.type == "cpu" or config.precision == "fp32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of an earlier run in this process
    torch.manual_seed(seed)
    warnings = (SLOW_BF16,) if config.precision == "bf16" and not has_fast_bf16(device) else ()
    return Machine(device, precision, torch.get_num_threads(), config.micro_batch, config.compile, warnings)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held: on the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
