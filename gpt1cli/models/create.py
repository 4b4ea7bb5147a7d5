"""Create a model from its configuration and count its parameters."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path

from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, display
from gpt1cli.models import ARCHITECTURES
from gpt1cli.models.language_model import LanguageModel

CGROUP = Path("/sys/fs/cgroup")  # memory limits of a container


def create_model(config: ModelConfig, vocabulary: int) -> LanguageModel:
    """Create a model with fresh weights. Raises UserError if it does not fit into memory."""
    count, (total, _) = sum(parameter_counts(config, vocabulary).values()), memory_sizes()
    if 4 * count <= total:
        try:
            module, _, name = ARCHITECTURES[config.architecture].partition(":")
            model: LanguageModel = getattr(importlib.import_module(module), name)(config, vocabulary)
            return model
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
    raise UserError(
        f"model={display(config.name)} is too large: {count:,} parameters take {4 * count / 1e9:,.1f} GB in fp32, and"
        f" this machine has {total / 1e9:,.1f} GB of memory. Use a smaller model"
    )


def parameter_counts(config: ModelConfig, vocabulary: int, outputs: int = 0) -> dict[str, int]:
    """Count the parameters of each part: 116,534,784 in total for base with the published vocabulary."""
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


def memory_sizes() -> tuple[float, float]:
    """Return total and free memory in bytes, within the limits of a container."""
    total = free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024  # kB
    with contextlib.suppress(OSError, ValueError):
        limit, used = (float((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        total, free = min(total, limit), min(free, limit - used)
    return total, free
