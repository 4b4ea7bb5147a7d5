"""gpt1 search: results, tuned runs, resuming, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from worlds import SMALL, STORY

from gpt1cli.cli.main import main
from gpt1cli.commands import finetune
from gpt1cli.commands import search as command
from gpt1cli.prompts import template_search
from gpt1cli.reporting import collect
from gpt1cli.runs import files

pytestmark = pytest.mark.usefixtures("no_pictures")

QUIET = ("runtime.threads=1", "runtime.progress=none")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a pretraining run, `pre`, and a search for words with it, `words`."""
    root = tmp_path_factory.mktemp("world")
    (root / "story.txt").write_text(STORY * 200)
    words = ["corpus=text", f"corpus.path={root / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=60", "steps=2"]
    words += ["model.n_positions=96", f"cache={root / 'cache'}", f"hydra.run.dir={root / 'pre'}"]
    assert main(["pretrain", *SMALL, *words]) == 0
    assert main(search(root, "words", "pieces=4", "tune=3", "seed=13")) == 0
    return root


def search(root: Path, run: str, *more: str) -> list[str]:
    """A search on four examples per class; the best candidates are trained for two steps."""
    return [
        "search", "task=demo_sentiment", f"init={root / 'pre'}", "shots=4", "steps=2", "eval_every=1", "batch_size=4",
        "limit.test=6", *QUIET, f"cache={root / 'cache'}", f"out={root / 'out'}", f"hydra.run.dir={root / run}", *more,
    ]  # fmt: skip


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# --- results ----------------------------------------------------------------------------------------------------------


def test_best_candidates_are_tuned_ranked_by_validation_and_written(world):
    run = world / "words"
    candidates = files.read_json(run / "candidates.json")["candidates"]
    assert [row["score"] for row in candidates] == sorted((row["score"] for row in candidates), reverse=True)
    scores = {name: result(run / "tuned" / name)["valid"] for name in ("001", "002", "003")}
    order = sorted(scores, key=lambda name: (-scores[name]["accuracy"], scores[name]["loss"]))
    for rank, name in enumerate(order, start=1):
        ranked, candidate = (
            files.read_config(run / place) for place in (f"prompts/{rank:03}.yaml", f"candidates/{name}.yaml")
        )
        assert ranked == candidate and ranked.keys() == {"template", "words"}
        stored = files.read_config(run / "tuned" / name / "config.yaml")
        assert stored["task"]["prompt"]["words"] == candidate["words"] and stored["prompt"].endswith(f"{name}.yaml")
        assert (stored["method"], stored["shots"], stored["seed"], stored["steps"]) == ("prompt", 4, 13, 2)
    assert result(run)["best"] == order[0] and result(run)["valid"] == scores[order[0]]
    assert (run / "best.yaml").read_text() == (run / "prompts" / "001.yaml").read_text()
    page = (run / "report.md").read_text()
    assert "## Prompts for demo_sentiment" in page and f"| 1 | negative: {candidates_word(run)}" in page


def candidates_word(run: Path) -> str:
    return files.read_config(run / "best.yaml")["words"]["negative"]


def test_only_the_weights_of_the_best_run_are_kept(world):
    remaining = [path.parent.name for path in (world / "words" / "tuned").glob("*/checkpoints")]
    assert remaining == [result(world / "words")["best"]]


def test_other_commands_take_the_best_prompt(world):
    best = f"prompt={world / 'words' / 'best.yaml'}"
    same = ["task=demo_sentiment", f"init={world / 'pre'}", best, f"cache={world / 'cache'}", *QUIET]
    words = ["shots=4", "seed=13", "method=prompt", "steps=2", "eval_every=1", "batch_size=4", "limit.test=6"]
    assert main(["finetune", *same, *words, f"hydra.run.dir={world / 'again'}"]) == 0
    tuned = result(world / "words" / "tuned" / result(world / "words")["best"])
    assert result(world / "again")["valid"] == tuned["valid"]
    assert main(["fewshot", *same, "shots=0", "limit.valid=5", f"hydra.run.dir={world / 'asked'}"]) == 0


def test_templates_are_generated_by_the_model_and_tuned(world):
    assert main(search(world, "templates", "what=templates", "beam=6", "length=2", "tune=2", "keep=all")) == 0
    ensemble = [files.read_config(path)["template"] for path in sorted((world / "templates/prompts").iterdir())]
    assert len(set(ensemble)) == 2
    assert all(row.startswith("{text} ") and row.endswith(" {label}") for row in ensemble)
    assert len([*(world / "templates" / "tuned").glob("*/checkpoints")]) == 2
    candidates = files.read_json(world / "templates" / "candidates.json")["candidates"]
    assert candidates[0]["likelihood"] >= candidates[1]["likelihood"]


def test_the_best_runs_form_an_ensemble(world):
    words = ["pieces=4", "tune=3", "seed=13", "ensemble=2", "limit.test=20", "logger=tensorboard"]
    assert main(search(world, "together", *words)) == 0
    run = world / "together"
    order = sorted(("001", "002", "003"), key=lambda name: validation_score(run / "tuned" / name))
    remaining = {path.parent.name for path in (run / "tuned").glob("*/checkpoints")}
    ensemble = result(run)["ensemble"]
    assert ensemble["runs"] == order[:2] and remaining == {*order[:2]}
    scores = [log_scores(run / "tuned" / name / "predictions" / "test.jsonl") for name in order[:2]]
    rows = read_lines(run / "ensemble" / "predictions" / "test.jsonl")
    labels = [("negative", "positive").index(row["label"]) for row in rows]
    right = [np.argmax(a + b) == label for a, b, label in zip(*scores, labels, strict=True)]
    assert ensemble["test"]["accuracy"] == pytest.approx(np.mean(right)) and len(rows) == 20
    assert ensemble["best_alone"] == result(run / "tuned" / order[0])["test"]
    assert f"| ensemble of the 2 best | {ensemble['test']['accuracy']:.3f} |" in (run / "report.md").read_text()
    assert main(["report", f"runs=[{run / 'ensemble'}]", f"hydra.run.dir={world / 'reported'}"]) == 0
    assert f"{ensemble['test']['accuracy']:.3f}" in (world / "reported" / "report.md").read_text()
    assert run / "ensemble" not in {row.folder for row in collect.find_runs([str(world)])}


def validation_score(run: Path) -> tuple[float, float]:
    valid = result(run)["valid"]
    return -valid["accuracy"], valid["loss"]


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_scores(path: Path) -> list[np.ndarray]:
    """Logits up to a constant per row, from the written probabilities."""
    return [np.log(list(row["scores"].values())) for row in read_lines(path)]


def test_regression_and_user_files_are_searched(world):
    rows = [f"{i / 4},the cat sat {i} times,the dog sat {i * 7 % 20} times" for i in range(21)]
    (world / "rows.csv").write_text("label,text,text_b\n" + "\n".join(rows) + "\n")
    own = ["task=file", "task.kind=similarity", f"task.train={world / 'rows.csv'}", "task.range=[0,5]", "tune=2"]
    (world / "mine.yaml").write_text("template: '{text} or {text_b} {label}'\nwords: {'0': a, '5': t}\n")
    own.append(f"prompt={world / 'mine.yaml'}")
    words = [word for word in search(world, "file", *own) if word != "task=demo_sentiment" and "limit" not in word]
    assert main(words) == 0
    stored = files.read_config(world / "file" / "tuned" / "001" / "config.yaml")
    assert stored["task"]["train"] == str(world / "rows.csv") and stored["task"]["loss"] == "interpolation"
    assert set(files.read_config(world / "file" / "best.yaml")["words"]) == {"0", "5"}
    assert "train pearson" in (world / "file" / "report.md").read_text()


def test_a_report_does_not_list_the_runs_of_a_search(world):
    assert main(["report", f"runs=[{world / 'words' / 'tuned'}]", f"hydra.run.dir={world / 'named'}"]) == 0
    assert "| demo_sentiment | " in (world / "named" / "report.md").read_text()
    folders = {run.folder.name for run in collect.find_runs([str(world)])}
    assert "pre" in folders and not {"001", "002"} & folders


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_search_resumes_and_repeats_nothing(world, monkeypatch, capsys):
    fit, started = finetune.fit, []

    def interrupting(**more):
        started.append(more["run"].name)
        if len(started) == 2:
            raise KeyboardInterrupt
        return fit(**more)

    with monkeypatch.context() as stopped:
        stopped.setattr(finetune, "fit", interrupting)
        assert main(search(world, "stopped", "pieces=4", "tune=3", "seed=13")) == 130
    run = world / "stopped"
    assert f"to continue: gpt1 search resume={run}" in capsys.readouterr().err
    assert started == ["001", "002"] and not (run / "result.json").exists()
    before = (run / "tuned" / "001" / "result.json").stat().st_mtime_ns
    with monkeypatch.context() as watched:
        watched.setattr(command, "search_candidates", None)  # the search is not repeated
        assert main(["search", f"resume={run}"]) == 0
    assert (run / "tuned" / "001" / "result.json").stat().st_mtime_ns == before
    assert (run / "best.yaml").read_text() == (world / "words" / "best.yaml").read_text()
    capsys.readouterr()
    assert main(["search", f"resume={run}"]) == 0
    assert f"{run} is finished: {run / 'best.yaml'}" in capsys.readouterr().out


def test_a_failed_run_stops_the_search_and_is_retried(world, monkeypatch, capsys):
    def failing(**more):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as broken:
        broken.setattr(finetune, "fit", failing)
        assert main(search(world, "failed", "pieces=4", "tune=2")) == 1
    assert "out of luck" in capsys.readouterr().err and not (world / "failed" / "tuned" / "002").exists()
    assert main(["search", f"resume={world / 'failed'}"]) == 0


@pytest.mark.slow
def test_a_search_killed_several_times_gives_the_same_result(world):
    words = [*search(world, "killed", "pieces=4", "tune=4", "seed=13"), "steps=40"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(*more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "gpt1cli", *more], env=environment, stdout=subprocess.DEVNULL)

    undisturbed, killed = world / "undisturbed", world / "killed"
    began = time.monotonic()
    assert start(*words[:-1], "steps=40", f"hydra.run.dir={undisturbed}").wait() == 0
    whole = time.monotonic() - began
    for share in (0.6, 0.7, 0.8):
        started = (killed / "config.yaml").exists()
        process = start(*(["search", f"resume={killed}"] if started else words))
        time.sleep(whole * share)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("search", f"resume={killed}").wait() == 0
    for name in ("best.yaml", "candidates.json", "prompts/004.yaml"):
        assert (killed / name).read_text() == (undisturbed / name).read_text()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["task=demo_choice"], "what=words: task=demo_choice uses its choices as words; use what=templates"),
        (["generator=t5", "what=templates"], "generator=t5 and t5=null: generator=t5 and t5=NAME need each other"),
        (["t5=some/t5"], "generator=model and t5=some/t5: generator=t5 and t5=NAME need each other"),
        (["generator=t5", "t5=some/t5"], "generator=t5 generates templates: use what=templates"),
        (["init=none"], "init=none: random weights predict nothing useful"),
        (["task.prompt.template={text} it"], "task.prompt.template={text} it: it has 0 {label}, but needs exactly one"),
        (["task.prompt.content_free=nothing"], "content_free calibrates an untrained model"),
        (["method=head"], "method=head: gpt1 search sets this key for its runs"),
        (["what=word"], "expected one of words, templates; did you mean words?"),
        (["shots=0"], "shots=0 is refused: it must be at least 1"),
        (["shots=400"], "the training split has too few ("),
        (["tune=0"], "tune=0 is refused"),
        (["tune=3", "ensemble=4"], "ensemble=4 exceeds tune=3"),
        (["ensemble=1"], "ensemble=1 is refused: it must be at least 2"),
        (["lrr=3"], "lrr: no such key; did you mean lr?"),
        (["lr=-1"], "lr=-1 is refused: it must be above 0"),
        (["dry_run=true"], "dry_run=true: this estimates one run, and a search has many"),
        (["limit.train=5"], "shots=4 sets the size of train and valid: remove limit.train"),
        (
            ["what=templates", "length=95"],
            "length=95 does not fit the model's n_positions=96: use a length of 94 or less",
        ),
        (["task=winograd", "what=templates"], "task=winograd has no train split to search on; its splits: test"),
        (["seed=4294967296"], "seed=4294967296: with shots=K the seed must be below 2**32"),
    ],
)
def test_invalid_searches_are_refused(world, tmp_path, capsys, words, fragment):
    assert main([*search(world, "refused", *words), f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert fragment in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_missing_t5_is_refused_before_the_search_starts(world, tmp_path, capsys):
    words = ["what=templates", "generator=t5", "t5=some/t5", f"hub={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(search(world, "none", *words)) == 2
    assert "t5=some/t5: folder not found" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_templates_of_a_t5_are_ranked_like_others(world, monkeypatch):
    texts = ["{text} it was {label}", "{text} a {label} one"]
    monkeypatch.setattr(template_search, "check_t5", lambda *_: None)
    monkeypatch.setattr(template_search, "generate_templates_with_t5", lambda *_: texts)
    words = ["what=templates", "generator=t5", "t5=some/t5", "tune=2"]
    assert main(search(world, "t5", *words)) == 0
    ensemble = [files.read_config(path)["template"] for path in sorted((world / "t5" / "prompts").iterdir())]
    assert sorted(ensemble) == sorted(texts)
