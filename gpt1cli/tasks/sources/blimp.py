"""BLiMP: pairs of sentences of which one is grammatical, in 67 subsets of one split (Warstadt et al. 2020)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gpt1cli.config.task import TaskConfig
from gpt1cli.data.hub import ALL, subsets
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources.rows import columns_of


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """The pairs of one subset, or with subset="*" of all; the right choice is always the first."""
    chosen = subsets(task.repo, hub) if task.repo and task.subset == ALL else [task.subset]
    examples = []
    for subset in chosen:
        found = columns_of(dataclasses.replace(task, subset=subset), split, ["UID", *task.choices], hub, cache)
        for i, (phenomenon, *pair) in enumerate(zip(*found[1], strict=True) if found else ()):
            examples.append(Example(f"{phenomenon}-{i}", (), 0, tuple(pair)))
    return examples or None
