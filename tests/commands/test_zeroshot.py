"""gpt1 zeroshot on the command line with runs of a few steps; scores recomputed token by token."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from sklearn.metrics import matthews_corrcoef, roc_auc_score

import gpt1cli
from gpt1cli.cli.main import main
from gpt1cli.data import demo_world
from gpt1cli.runs import files

pytestmark = pytest.mark.usefixtures("no_pictures")

QUIET = ("runtime.threads=1", "runtime.progress=none", "runtime.precision=fp32")
LIMITS = ("limit.train=30", "limit.valid=12", "limit.test=10")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two pretraining runs of six steps: `a`, and `b`, an LSTM with fewer positions and another tokenizer."""
    root = tmp_path_factory.mktemp("runs")
    (root / "text").mkdir()
    (root / "text" / "stories.txt").write_text("\n\n".join(demo_world.documents(count=60)))
    words = ["corpus=text", f"corpus.path={root / 'text'}", "tokenizer=bpe", f"cache={root / 'cache'}", "model=tiny"]
    words += ["steps=6", "lr=0.01", "keep_checkpoints=[2,4]", "eval_every=6", "checkpoint_every=6"]
    words += ["model.n_layer=1", "model.d_model=16", "model.n_head=2", "model.d_ff=64"]
    for name, merges, positions, more in (
        ("a", 300, 128, []),
        ("b", 100, 64, ["model.architecture=lstm", "model.lstm_units=24"]),
    ):
        more = [*more, f"tokenizer.merges={merges}", f"model.n_positions={positions}"]
        more += [f"model.pretraining.context={positions}", f"hydra.run.dir={root / name}"]
        assert main(["pretrain", *words, *more, *QUIET]) == 0
    return root


def zeroshot(into: Path, *words: str, command: str = "zeroshot") -> int:
    return main([command, *LIMITS, *QUIET, *words, f"hydra.run.dir={into}"])


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def predictions(run: Path, split: str = "valid") -> list[dict]:
    return files.read_jsonl(run / "predictions" / f"{split}.jsonl")


def log_p(init: Path, texts: Sequence[str], scored: int = 1, positions: int = 128) -> list[float]:
    """log p(token | tokens before it) of the texts from index `scored` on, as one row truncated at its start."""
    model, tokenizer = gpt1cli.load(init)
    parts = [tokenizer.encode(text) for text in texts]
    ids = [token for part in parts for token in part][-positions:]
    with torch.no_grad():
        log_p = model.logits(model(torch.tensor([ids])))[0].log_softmax(-1)
    values = [log_p[i, token].item() for i, token in enumerate(ids[1:])]
    return values[-sum(map(len, parts[scored:])) :] if scored else values


def examples(task: str, split: str = "valid") -> dict[str, dict]:
    return {example["id"]: example for example in demo_world.examples(task, split)}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- each rule --------------------------------------------------------------------------------------------------------


def test_words_after_the_cue(runs, tmp_path):
    assert zeroshot(tmp_path / "run", "task=demo_sentiment", f"init={runs / 'a'}") == 0
    lines, known = predictions(tmp_path / "run"), examples("demo_sentiment")
    for line in lines:
        text = known[line["id"]]["text"]
        for label, word in (("negative", "terrible"), ("positive", "great")):
            expected = mean(log_p(runs / "a", [text, "all in all it was", word], 2))
            assert line["scores"][label] == pytest.approx(expected, abs=1e-4)
        assert (line["label"], line["prediction"]) == (
            known[line["id"]]["label"], max(line["scores"], key=line["scores"].__getitem__),
        )  # fmt: skip
    result = result_of(tmp_path / "run")
    assert result["valid"]["accuracy"] == pytest.approx(mean([line["label"] == line["prediction"] for line in lines]))
    margins = [line["scores"]["positive"] - line["scores"]["negative"] for line in lines]
    assert result["valid"]["roc_auc"] == roc_auc_score([line["label"] == "positive" for line in lines], margins)
    assert (result["status"], result["command"], result["step"]) == ("finished", "zeroshot", 6)
    assert result["examples"] == {"valid": 12, "test": 10} and result["valid"]["ties"] == 0
    assert "accuracy" in (tmp_path / "run" / "report.md").read_text()


def test_acceptability_uses_the_threshold_of_the_training_split(runs, tmp_path):
    words = ("task=demo_acceptability", f"init={runs / 'a'}", "task.metrics=[matthews_correlation]")
    assert zeroshot(tmp_path / "run", *words, "task.zeroshot.normalise=sum", "task.zeroshot.opening=.") == 0
    lines, known, result = predictions(tmp_path / "run"), examples("demo_acceptability"), result_of(tmp_path / "run")
    for line in lines:
        expected = sum(log_p(runs / "a", [".", known[line["id"]]["text"]]))
        assert line["scores"]["acceptable"] == pytest.approx(expected, abs=1e-3)
        assert line["scores"]["unacceptable"] == pytest.approx(result["threshold"], abs=1e-6)
    labels = [line["label"] == "acceptable" for line in lines]
    likely = [line["scores"]["acceptable"] > result["threshold"] for line in lines]
    assert result["valid"]["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, likely))
    assert zeroshot(tmp_path / "other", *words) == 0
    (first, *_), threshold = predictions(tmp_path / "other"), result_of(tmp_path / "other")["threshold"]
    expected = mean(log_p(runs / "a", [known[first["id"]]["text"]], 0))  # the mean, without the first token
    assert first["scores"] == {
        "unacceptable": pytest.approx(threshold),
        "acceptable": pytest.approx(expected, abs=1e-4),
    }


def test_answers_after_a_context_truncated_at_its_start(runs, tmp_path):
    assert zeroshot(tmp_path / "run", "task=demo_choice", f"init={runs / 'b'}") == 0
    _, tokenizer = gpt1cli.load(runs / "b")
    known, truncated = examples("demo_choice"), 0
    for line in predictions(tmp_path / "run"):
        context, answers = known[line["id"]]["context"], known[line["id"]]["choices"]
        lengths = [len(tokenizer.encode(answer)) for answer in answers]
        truncated += len(tokenizer.encode(context)) + max(lengths) > 64
        # both follow the same context, truncated for the longer one
        room = 64 - max(lengths)
        expected = [mean(log_p(runs / "b", [context, a], 1, room + n)) for a, n in zip(answers, lengths, strict=True)]
        assert [line["scores"][label] for label in ("0", "1")] == pytest.approx(expected, abs=1e-4)
    assert 0 < truncated == result_of(tmp_path / "run")["cut"]["valid"] < 12


def test_the_text_after_each_candidate_is_scored(runs, tmp_path):
    assert zeroshot(tmp_path / "run", "task=demo_pronoun", f"init={runs / 'a'}", command="zero-shot") == 0
    known = examples("demo_pronoun")
    for line in predictions(tmp_path / "run"):
        before, after = known[line["id"]]["before"], known[line["id"]]["after"]
        expected = [mean(log_p(runs / "a", [before, name, after], 2)) for name in known[line["id"]]["candidates"]]
        assert [line["scores"][label] for label in ("0", "1")] == pytest.approx(expected, abs=1e-4)


# --- checkpoints and figures ------------------------------------------------------------------------------------------


def points(run: Path) -> list[dict[str, str]]:
    with (run / "plots" / "zeroshot.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_kept_checkpoint_is_a_point_of_the_curve(runs, tmp_path):
    words = ("task=demo_sentiment", "task.zeroshot.reference=0.9", f"init={runs / 'a'}", "checkpoint=all")
    assert zeroshot(tmp_path / "run", *words) == 0
    lines = [line for line in files.read_jsonl(tmp_path / "run" / "metrics.jsonl") if line["split"] == "valid"]
    assert [line["step"] for line in lines] == [2, 4, 6]
    actual = points(tmp_path / "run")
    assert [(point["label"], point["architecture"], int(point["step"])) for point in actual] == [
        ("a", "transformer", step) for step in (2, 4, 6)
    ]
    expected = [(line["accuracy"] - 0.5) / (0.9 - 0.5) for line in lines]
    assert [float(point["value"]) for point in actual] == pytest.approx(expected)
    result = result_of(tmp_path / "run")
    assert (result["checkpoints"], result["step"]) == (3, 6)
    assert result["valid"]["accuracy"] == lines[-1]["accuracy"] and len(predictions(tmp_path / "run")) == 12
    assert "](plots/zeroshot.png)" in (tmp_path / "run" / "report.md").read_text()
    assert zeroshot(tmp_path / "one", "task=demo_sentiment", f"init={runs / 'a'}", "checkpoint=4") == 0
    alone = result_of(tmp_path / "one")
    assert alone["step"] == 4 and alone["valid"]["accuracy"] == lines[1]["accuracy"]
    assert not list((tmp_path / "one" / "plots").glob("zeroshot.*"))


def test_runs_with_different_tokenizers_share_a_figure(runs, tmp_path):
    both = f"runs=[{runs / 'a'},{runs / 'b'}]"
    assert zeroshot(tmp_path / "run", "task=demo_pronoun", both, "checkpoint=last") == 0
    actual, result = points(tmp_path / "run"), result_of(tmp_path / "run")
    assert [(point["label"], point["architecture"]) for point in actual] == [
        ("a", "transformer"), ("b", "lstm"),
    ]  # fmt: skip
    for point, name in zip(actual, "ab", strict=True):  # the plain score if there is no reference
        assert float(point["value"]) == result["runs"][str(runs / name)]["valid"]["accuracy"]
        assert zeroshot(tmp_path / name, "task=demo_pronoun", f"init={runs / name}") == 0
        alone, together = predictions(tmp_path / name), predictions(tmp_path / "run")
        assert [line["scores"] for line in alone] == [
            line["scores"] for line in together if line["init"] == str(runs / name)
        ]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["task=mnli", "init=openai"], "task=mnli has no task.zeroshot.rule; tasks that have one: blimp, cola, demo_a"),
        (["task=demo_pronoun"], "init=none: random weights predict nothing useful; name a run folder, or init=openai"),
        (["task=demo_pronoun", "init=RUN/a", "runs=[RUN/b]"], "use only one of them"),
        (["task=demo_pronoun", "runs=[RUN/b,RUN/b]"], "runs: duplicate RUN/b"),
        (
            ["task=demo_pronoun", "init=RUN/a", "checkpoint=5"],
            "checkpoints/5: no such checkpoint; available: 2, 4, 6, best, last",
        ),
        (["task=demo_pronoun", "init=RUN/a/checkpoints/2", "checkpoint=all"], "is not a run folder with checkpoints"),
        (["task=demo_pronoun", "init=RUN/a", "checkpoint=first"], "expected int or one of best, last, all"),
        (["task=demo_pronoun", "init=RUN/a", "task.zeroshot.cue=so"], "task.zeroshot.cue=so: only for rule=answer"),
    ],
)
def test_invalid_zero_shot_settings_are_refused(runs, tmp_path, capsys, words, fragment):
    words = [word.replace("RUN", str(runs)) for word in words]
    assert zeroshot(tmp_path / "run", *words) == 2
    assert fragment.replace("RUN", str(runs)) in capsys.readouterr().err and not (tmp_path / "run").exists()


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("task", ["winograd", "sst2", "cola", "race", "story_cloze"])
def test_tasks_of_the_papers_are_predicted(test_hub, runs, tmp_path, task):
    words = (f"task={task}", f"init={runs / 'a'}", f"hub={test_hub}", f"cache={runs / 'cache'}")
    assert zeroshot(tmp_path / "run", *words, "limit.valid=6", "limit.test=6") == 0
    result = result_of(tmp_path / "run")
    split = "test" if task == "winograd" else "valid"
    assert result["examples"][split] == 6 and 0 <= result[split]["accuracy"] <= 1
    assert ("threshold" in result) == (task == "cola")
