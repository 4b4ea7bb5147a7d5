"""Folders of finished fine-tuning runs, written by hand: what `gpt1 report` reads, without any training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from worlds import read

from gpt1cli.cli.hydra_loader import Composer
from gpt1cli.cli.resolve import compose
from gpt1cli.config.commands import SweepsConfig
from gpt1cli.config.schema import build
from gpt1cli.config.task import TaskConfig
from gpt1cli.reporting.collect import Finished, find_runs


def task_config(task: str) -> dict[str, Any]:
    """A task of conf/ as a run's config.yaml holds it."""
    content = read(f"task/{task}.yaml")
    return dataclasses.asdict(build(TaskConfig, content.get("task", content)))


def write_run(
    folder: Path,
    task: str,
    scores: Mapping[str, Mapping[str, float]],
    predictions: Mapping[str, Sequence[tuple[str, Any, Any]]] | None = None,
    examples: Mapping[str, int] | None = None,
    **changes: Any,
) -> Path:
    """A run of a task with these metrics by split, and predictions by split: id, label, prediction."""
    config = {
        "seed": 0, "name": task, "init": "openai", "model": read("model/base.yaml"), "task": task_config(task),
        "ablation": {"name": "full", "overrides": []}, "pretrained": True, "transfer_layers": "all", "aux_lm": True,
        "lm_coef": 0.5, "lr": 6.25e-5, "epochs": 3, "limit": {"train": None, "valid": None, "test": None},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes))
    result = {"status": "finished", "command": "finetune", "name": task, "examples": dict(examples or {}), **scores}
    (folder / "result.json").write_text(json.dumps(result))
    for split, lines in (predictions or {}).items():
        (folder / "predictions").mkdir(exist_ok=True)
        text = "".join(json.dumps(dict(zip(("id", "label", "prediction"), x, strict=True))) + "\n" for x in lines)
        (folder / "predictions" / f"{split}.jsonl").write_text(text)
    return folder


def found(root: Path) -> list[Finished]:
    """The runs below a folder."""
    return find_runs([str(root)])


def planned(*words: str) -> SweepsConfig:
    composer = Composer("ablation")
    built = compose(composer, composer.check(list(words))).config
    assert isinstance(built, SweepsConfig)
    return built
