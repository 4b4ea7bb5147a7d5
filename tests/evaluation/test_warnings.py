"""Warnings: when they are printed, and that a run prints each once."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
from runs import task_config
from worlds import SMALL

from gpt1cli.cli.main import main
from gpt1cli.commands import fewshot
from gpt1cli.config.schema import build
from gpt1cli.config.task import TaskConfig
from gpt1cli.evaluation import warnings
from gpt1cli.training import device, loop


@pytest.mark.parametrize(
    ("losses", "warned_at"),
    [
        ([3, 2, 1], []),
        ([3, 2, 2.5, 2], []),
        ([3, 2, 2.1, 2.2], [3]),
        ([3, 2, 2.1, 2.2, 2.3, 2.4], [3]),
        ([3, 2, 2.1, 2.2, 1, 2, 3], [3]),  # once
        ([1, 2, 2, 3], []),  # an equal loss is no rise
    ],
)
def test_a_rising_loss_warns_once(losses, warned_at):
    seen = [(step, float(loss)) for step, loss in enumerate(losses)]
    assert [n for n in range(len(seen)) if loop.warn_overfitting(seen[: n + 1])] == warned_at


def test_a_rising_loss_names_the_step_of_the_minimum():
    warning = loop.warn_overfitting([(0, 9.0), (1000, 2.0), (2000, 2.5), (3000, 3.0)])
    assert warning and "since step 1,000, from 2.0000 to 3.0000" in warning


@pytest.mark.parametrize(
    ("truncated", "examples", "warns"), [(0, 0, False), (4, 9, False), (5, 10, True), (10, 10, True)]
)
def test_truncation_of_half_the_examples_warns(truncated, examples, warns):
    warning = warnings.warn_truncation("train", truncated, examples, 512)
    assert bool(warning) == warns and (not warns or f"{truncated} of {examples} examples of train" in warning)


@pytest.mark.parametrize(
    ("predicted", "true", "fragment"),
    [
        ([0, 1, 2], [0, 0, 0], ""),
        ([1, 1, 1], [0, 1, 2], "all 3 predictions on valid are b"),
        ([1, 1, 1], [1, 1, 1], ""),  # there is no other label
        ([0, 1] * 5, [0, 1, 2, 2, 2, 2, 0, 1, 0, 1], ""),  # four examples: may be chance
        ([0, 1] * 5, [0, 1, 2, 2, 2, 2, 2, 1, 0, 1], "never predicted on valid: c (5 examples)"),
    ],
)
def test_labels_that_are_never_predicted(predicted, true, fragment):
    warning = warnings.warn_collapse("valid", ["a", "b", "c"], predicted, true)
    assert fragment in warning if fragment else warning is None


def records(labels: str, predictions: str) -> list[dict[str, str]]:
    return [{"label": true, "prediction": predicted} for true, predicted in zip(labels, predictions, strict=True)]


def test_one_label_for_every_query_warns_without_training():
    task = build(TaskConfig, {**task_config("demo_sentiment"), "labels": ["a", "b"]})
    assert "all 3 predictions on valid are b: the label words decide" in warnings.zero_shot_collapse_warning(
        task, "valid", records("aab", "bbb")
    )
    assert warnings.zero_shot_collapse_warning(task, "valid", records("aab", "abb")) is None
    assert warnings.zero_shot_collapse_warning(task, "test", [{"label": None, "prediction": "a"}] * 3) is None
    warning = fewshot.constant_label_warning(task, "valid", records("abab" * 3, "aabb" + "bbbb" + "aaaa"), 3)
    assert "2 of 3 draws" in warning and "query of valid" in warning and "content_free=nothing" in warning
    assert fewshot.constant_label_warning(task, "valid", records("abab", "aaab"), 1) is None
    assert fewshot.constant_label_warning(task, "valid", records("aaaa", "aaaa"), 1) is None  # there is no other label


def test_constant_scores_warn():
    true = np.array([0.0, 1, 2, 3, 4, 5])
    assert "about 2.500" in warnings.warn_constant("valid", np.full(6, 2.5), true)
    assert warnings.warn_constant("valid", true / 100, true) is None  # a small range, but not constant
    assert warnings.warn_constant("valid", np.full(6, 2.5), np.full(6, 2.5)) is None


def test_a_run_prints_each_warning_once(tmp_path, capsys, monkeypatch):
    """Long texts with random labels; at this learning rate the model memorises them, and the validation loss rises."""
    monkeypatch.setattr(device, "has_fast_bf16", lambda _: False)
    words = [f"word{n} " * 40 for n in range(24)]
    for split, labels in (("train", "ab"), ("valid", "ba")):
        pandas.DataFrame({"text": words, "label": list(labels * 12)}).to_csv(tmp_path / f"{split}.csv", index=False)
    files = [f"task.{split}={tmp_path / split}.csv" for split in ("train", "valid")]
    own = [f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}", "init=none", "tokenizer=demo", "lr=5e-3"]
    words = [word for word in SMALL if not word.startswith("model.pretraining")] + ["model.pretraining.context=32"]
    assert main(["finetune", "task=file", "task.kind=classification", *files, *words, *own, "epochs=6",
                 "model.embedding_dropout=0", "runtime.precision=bf16", "runtime.progress=plain"]) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    printed = [line for line in lines if line.startswith("warning")]
    for part in ("since step", "24 of 24 examples of train", "24 of 24 examples of valid", "no fast bf16"):
        assert sum(part in line for line in printed) == 1, (part, printed)
