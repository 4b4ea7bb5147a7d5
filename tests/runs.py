"""Folders of finished fine-tuning runs, written without training: the input of `gpt1 report`."""

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
from gpt1cli.reporting.collect import FinishedRun, find_runs


def task_config(task: str) -> dict[str, Any]:
    """A task of conf/ as in a run's config.yaml."""
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
    """Write a run of a task with metrics by split, and predictions by split: id, label, prediction."""
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


def runs_below(root: Path) -> list[FinishedRun]:
    """The finished runs below a folder."""
    return find_runs([str(root)])


def compose_sweeps(*words: str) -> SweepsConfig:
    """The configuration of `gpt1 sweeps WORDS`."""
    composer = Composer("ablation")
    config = compose(composer, composer.check_overrides(list(words))).config
    assert isinstance(config, SweepsConfig)
    return config
