"""Create a model from its configuration, and count its parameters."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path

from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, display
from gpt1cli.models import ARCHITECTURES
from gpt1cli.models.language_model import LanguageModel

CGROUP = Path("/sys/fs/cgroup")  # what a container may use


def fresh(config: ModelConfig, vocabulary: int) -> LanguageModel:
    """A model of the configuration's architecture and shape, with fresh weights. UserError without room for it."""
    count, (total, _) = sum(parameters(config, vocabulary).values()), sizes_of_memory()
    if 4 * count <= total:
        try:
            module, _, name = ARCHITECTURES[config.architecture].partition(":")
            model: LanguageModel = getattr(importlib.import_module(module), name)(config, vocabulary)
            return model
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
    told = f"{count:,} parameters, {4 * count / 1e9:,.1f} GB in fp32 alone, and this machine has {total / 1e9:,.1f} GB"
    raise UserError(f"model={display(config.name)} is too large: {told}; a smaller model fits")


def parameters(config: ModelConfig, vocabulary: int, outputs: int = 0) -> dict[str, int]:
    """Learned numbers by part: 116,534,784 in all for base with the published vocabulary."""
    D, F = config.d_model, config.d_ff
    if config.architecture == "lstm":
        U = config.lstm_units or 0
        recurrent = 4 * U * (D + U + 2)  # two matrices, two biases
        return {"tokens": vocabulary * D, "recurrent": recurrent, "projection": (U + 1) * D, "head": outputs * (D + 1)}
    block = 4 * D * D + 2 * D * F + 9 * D + F  # matrices; biases 3D, D, F and D; two norms of 2D
    final = {"final_norm": 2 * D} if config.norm == "pre" else {}
    return {
        "tokens": vocabulary * D,
        "positions": config.n_positions * D,
        "blocks": config.n_layer * block,
        **final,
        "head": outputs * (D + 1),
    }


def sizes_of_memory() -> tuple[float, float]:
    """Bytes in all and bytes free, or what a container leaves of them."""
    total = free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024  # kB
    with contextlib.suppress(OSError, ValueError):
        limit, used = (float((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        total, free = min(total, limit), min(free, limit - used)
    return total, free
