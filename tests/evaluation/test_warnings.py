"""Warnings: when each is told, and that a run tells it once."""

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
from gpt1cli.evaluation import warnings as evaluation_warnings
from gpt1cli.training import device, loop


@pytest.mark.parametrize(
    ("losses", "told_at"),
    [
        ([3, 2, 1], []),
        ([3, 2, 2.5, 2], []),
        ([3, 2, 2.1, 2.2], [3]),
        ([3, 2, 2.1, 2.2, 2.3, 2.4], [3]),
        ([3, 2, 2.1, 2.2, 1, 2, 3], [3]),  # once
        ([1, 2, 2, 3], []),  # as high as before is no rise
    ],
)
def test_a_rising_loss_is_told_once(losses, told_at):
    seen = [(step, float(loss)) for step, loss in enumerate(losses)]
    assert [n for n in range(len(seen)) if loop.rising(seen[: n + 1])] == told_at


def test_a_rising_loss_names_where_it_was_lowest():
    told = loop.rising([(0, 9.0), (1000, 2.0), (2000, 2.5), (3000, 3.0)])
    assert told and "since step 1,000, from 2.0000 to 3.0000" in told


@pytest.mark.parametrize(("cut", "examples", "told"), [(0, 0, False), (4, 9, False), (5, 10, True), (10, 10, True)])
def test_half_of_the_examples_cut_is_told(cut, examples, told):
    found = warnings.half_cut("train", cut, examples, 512)
    assert bool(found) == told and (not told or f"{cut} of {examples} examples of train" in found)


@pytest.mark.parametrize(
    ("predicted", "true", "told"),
    [
        ([0, 1, 2], [0, 0, 0], ""),
        ([1, 1, 1], [0, 1, 2], "all 3 predictions on valid are b"),
        ([1, 1, 1], [1, 1, 1], ""),  # nothing else to be found
        ([0, 1] * 5, [0, 1, 2, 2, 2, 2, 0, 1, 0, 1], ""),  # four: by chance
        ([0, 1] * 5, [0, 1, 2, 2, 2, 2, 2, 1, 0, 1], "never predicted on valid, though there are such examples: c (5)"),
    ],
)
def test_labels_that_are_never_given(predicted, true, told):
    found = warnings.one_sided("valid", ["a", "b", "c"], predicted, true)
    assert told in found if told else found is None


def answers(labels: str, predictions: str) -> list[dict[str, str]]:
    return [{"label": one, "prediction": said} for one, said in zip(labels, predictions, strict=True)]


def test_one_answer_to_every_query_is_told_of_a_model_that_is_not_trained():
    task = build(TaskConfig, {**task_config("demo_sentiment"), "labels": ["a", "b"]})
    assert "all 3 predictions on valid are b: its words alone decide" in evaluation_warnings.zero_shot_collapse_warning(
        task, "valid", answers("aab", "bbb")
    )
    assert evaluation_warnings.zero_shot_collapse_warning(task, "valid", answers("aab", "abb")) is None
    assert (
        evaluation_warnings.zero_shot_collapse_warning(task, "test", [{"label": None, "prediction": "a"}] * 3) is None
    )
    told = fewshot.doubt(task, "valid", answers("abab" * 3, "aabb" + "bbbb" + "aaaa"), 3)
    assert "one label answers every query of valid with 2 of 3 draws" in told
    assert fewshot.doubt(task, "valid", answers("abab", "aaab"), 1) is None
    assert fewshot.doubt(task, "valid", answers("aaaa", "aaaa"), 1) is None  # there is nothing else to be found


def test_scores_that_hardly_differ():
    true = np.array([0.0, 1, 2, 3, 4, 5])
    assert "about 2.500" in warnings.constant("valid", np.full(6, 2.5), true)
    assert warnings.constant("valid", true / 100, true) is None  # far too flat, and yet they follow
    assert warnings.constant("valid", np.full(6, 2.5), np.full(6, 2.5)) is None


def test_a_run_tells_each_once(tmp_path, capsys, monkeypatch):
    """Long texts with labels that are chance, five epochs of which at a rate that learns them by heart."""
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
    warned = [line for line in lines if line.startswith("warning")]
    for part in ("rises since step", "24 of 24 examples of train", "24 of 24 examples of valid", "not speed up bf16"):
        assert sum(part in line for line in warned) == 1, (part, warned)
