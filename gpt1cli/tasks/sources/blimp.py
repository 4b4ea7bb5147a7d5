"""BLiMP: pairs of a grammatical and an ungrammatical sentence, in 67 subsets of one split (Warstadt et al. 2020)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gpt1cli.config.task import TaskConfig
from gpt1cli.data.hub import ALL_SUBSETS, subset_names
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources.rows import load_columns


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """The pairs of one subset, or of all subsets with subset="*". The first choice is always the right one."""
    subsets = subset_names(task.repo, hub) if task.repo and task.subset == ALL_SUBSETS else [task.subset]
    examples = []
    for subset in subsets:
        loaded = load_columns(dataclasses.replace(task, subset=subset), split, ["UID", *task.choices], hub, cache)
        for i, (phenomenon, *pair) in enumerate(zip(*loaded[1], strict=True) if loaded else ()):
            examples.append(Example(f"{phenomenon}-{i}", (), 0, tuple(pair)))
    return examples or None
