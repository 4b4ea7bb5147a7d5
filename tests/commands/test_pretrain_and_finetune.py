"""Whole runs on the command line, small enough for a laptop: their files and their repeatability."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from worlds import SMALL, STORY

import gpt1cli
from gpt1cli.cli.main import main
from gpt1cli.runs import files

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a text and a pretraining run on it, `run`."""
    root = tmp_path_factory.mktemp("world")
    (root / "story.txt").write_text(STORY * 200)
    assert main(pretrain(root, "run", "steps=6", "eval_every=3")) == 0
    return root


def pretrain(root: Path, run: str, *more: str) -> list[str]:
    return [
        "pretrain", *SMALL, "corpus=text", f"corpus.path={root / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30",
        f"cache={root / 'cache'}", f"hydra.run.dir={root / run}", *more,
    ]  # fmt: skip


def finetune(root: Path, run: str, *more: str) -> list[str]:
    length = () if any(word.startswith("steps=") for word in more) else ("epochs=2",)
    return [
        "finetune", "task=demo_sentiment", f"init={root / 'run'}", "limit.train=12", "limit.valid=8", "limit.test=9",
        "batch_size=4", "runtime.threads=1", "runtime.progress=none",
        f"cache={root / 'cache'}", f"hydra.run.dir={root / run}", *length, *more,
    ]  # fmt: skip


def weights(run: Path, link: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / link / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_pretraining_writes_the_whole_run_folder(world):
    run = world / "run"
    actual = {path.name for path in run.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "plots", "report.md", ".hydra"} <= actual
    assert {"run.log", "result.json"} <= actual and "error.txt" not in actual
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["command"], result["steps"]) == ("finished", "pretrain", 6)
    assert result["tokens"] == 6 * 4 * 32
    lines = files.read_jsonl(run / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "valid"] == [0, 3, 6]
    assert all(
        line["perplexity"] == pytest.approx(math.exp(line["loss"])) for line in lines if line["split"] == "valid"
    )
    environment = json.loads((run / "environment.json").read_text())
    assert environment["threads"] == 1 and environment["command_line"][0] == "pretrain"


def test_weights_depend_on_the_seed_and_are_repeatable(world):
    assert main(pretrain(world, "again", "steps=6", "eval_every=3")) == 0
    assert same(weights(world / "run"), weights(world / "again"))
    assert main(pretrain(world, "other", "steps=6", "eval_every=3", "seed=1")) == 0
    assert not same(weights(world / "run"), weights(world / "other"))


def test_config_repeats_a_run(world):
    assert main(["pretrain", f"config={world / 'run' / 'config.yaml'}", f"hydra.run.dir={world / 'repeated'}"]) == 0
    assert same(weights(world / "run"), weights(world / "repeated"))


def test_a_finished_run_resumes_with_more_steps(world, capsys):
    command = ("eval_every=3", "schedule=constant", "warmup_steps=0")
    assert main(pretrain(world, "whole", "steps=8", *command)) == 0
    assert main(pretrain(world, "part", "steps=5", *command)) == 0
    assert main(["pretrain", f"resume={world / 'part'}", "steps=8"]) == 0
    assert same(weights(world / "whole"), weights(world / "part"))
    assert main(["pretrain", f"resume={world / 'part'}"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_run_of_epochs_resumes(world):
    assert main(pretrain(world, "epochs", "epochs=1")) == 0
    steps = json.loads((world / "epochs" / "result.json").read_text())["steps"]
    assert main(["pretrain", f"resume={world / 'epochs'}", f"steps={steps + 2}"]) == 0
    assert (
        f"steps was {steps} when the run started, and is {steps + 2} now" in (world / "epochs" / "run.log").read_text()
    )
    assert json.loads((world / "epochs" / "result.json").read_text())["steps"] == steps + 2


def test_resuming_with_another_text_is_refused(world, capsys):
    (world / "moving.txt").write_text(STORY * 200)
    command = pretrain(world, "moved", f"corpus.path={world / 'moving.txt'}", "steps=2", "schedule=constant")
    assert main(command) == 0
    (world / "moving.txt").write_text(STORY * 200 + "and the bird flew away .\n" * 9)
    before = weights(world / "moved")
    assert main(["pretrain", f"resume={world / 'moved'}", "steps=4"]) == 2
    assert "corpus changed since the run started" in capsys.readouterr().err
    assert same(before, weights(world / "moved")) and (world / "moved" / "result.json").exists()


def test_epochs_are_counted_in_windows_of_training_tokens(world):
    assert main(pretrain(world, "epoch", "epochs=1")) == 0
    meta = json.loads(next((world / "cache" / "corpora").glob("*/meta.json")).read_text())
    assert json.loads((world / "epoch" / "result.json").read_text())["steps"] == meta["train_tokens"] // (4 * 32)


def test_a_corpus_smaller_than_one_window_is_refused(world, capsys):
    (world / "short.txt").write_text("the cat sat .")
    assert main(pretrain(world, "short", f"corpus.path={world / 'short.txt'}")) == 2
    assert "too small" in capsys.readouterr().err


def test_finetuning_writes_predictions_that_match_its_metrics(world):
    assert main(finetune(world, "tuned")) == 0
    result = json.loads((world / "tuned" / "result.json").read_text())
    assert result["examples"] == {"train": 12, "valid": 8, "test": 9} and result["steps"] == 6
    for split in ("valid", "test"):
        rows = files.read_jsonl(world / "tuned" / "predictions" / f"{split}.jsonl")
        labels, predictions = [row["label"] for row in rows], [row["prediction"] for row in rows]
        assert result[split]["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
        assert all(max(row["scores"], key=row["scores"].get) == row["prediction"] for row in rows)
        assert all(sum(row["scores"].values()) == pytest.approx(1, abs=1e-5) for row in rows)


def test_the_best_checkpoint_is_the_one_scored(world):
    assert main(finetune(world, "scored", "lr=0.05")) == 0
    valid = [line for line in files.read_jsonl(world / "scored" / "metrics.jsonl") if line["split"] == "valid"]
    result = json.loads((world / "scored" / "result.json").read_text())
    best = max(valid, key=lambda line: (line["accuracy"], -line["step"]))
    assert result["best_step"] == best["step"]
    assert result["valid"]["accuracy"] == best["accuracy"]
    assert result["valid"]["loss"] == pytest.approx(best["loss"], rel=1e-6)


def test_transferred_weights(world):
    """Special rows and head are new; embeddings and layers come from init, all, some or none."""
    start = weights(world / "run", "best")
    still = ("steps=1", "lr=1e-30", "optimizer.weight_decay=0")
    cases = {"all": ("transfer_layers=all",), "one": ("transfer_layers=1",), "none": ("pretrained=false",)}
    for name, more in cases.items():
        assert main(finetune(world, f"transfer-{name}", *still, *more)) == 0
    vocabulary = len(start["tokens.weight"])
    transferred = {
        name: {
            key: torch.equal(tuned[f"body.{key}"][:vocabulary], start[key])
            for key in ("tokens.weight", "blocks.0.expand.weight", "blocks.1.expand.weight")
        }
        for name in cases
        for tuned in [weights(world / f"transfer-{name}")]
    }
    assert list(transferred["all"].values()) == [True, True, True]
    assert list(transferred["one"].values()) == [True, True, False]
    assert list(transferred["none"].values()) == [False, False, False]
    assert len(weights(world / "transfer-all")["body.tokens.weight"]) == vocabulary + 3


def test_ablations_change_what_they_claim(world):
    for ablation, aux_lm, pretrained in (("full", 1, 1), ("no_aux_lm", 0, 1), ("no_pretrain", 1, 0)):
        assert main(finetune(world, ablation, f"ablation={ablation}", "steps=1", "log_every=1")) == 0
        line = next(x for x in files.read_jsonl(world / ablation / "metrics.jsonl") if x["split"] == "train")
        assert ("lm_loss" in line) == bool(aux_lm)
        assert files.read_config(world / ablation / "config.yaml")["pretrained"] == bool(pretrained)


def test_a_sweep_and_its_report(world, capsys):
    sweep = [word for word in finetune(world, "x", "steps=1") if not word.startswith("hydra.run.dir")]
    assert main(["-m", *sweep, "pretrained=true,false", "seed=0,1", f"hydra.sweep.dir={world / 'sweep'}"]) == 0
    capsys.readouterr()
    assert main(["report", f"runs=[{world / 'sweep'}]", f"hydra.run.dir={world / 'report'}"]) == 0
    page = (world / "report" / "report.md").read_text()
    lines = [line.split(" | ") for line in page.splitlines()]
    ours = {line[0].removeprefix("| "): line[1] for line in lines if line[0].endswith(": ours")}
    assert ours.keys() == {"Transformer w/ aux LM (full): ours", "Transformer w/o pre-training: ours"}
    scores = [
        json.loads((world / "sweep" / job / "result.json").read_text())["test"]["accuracy"]
        for job in ("0", "1")  # pretrained=true, seeds 0 and 1
    ]
    assert ours["Transformer w/ aux LM (full): ours"].startswith(f"{50 * sum(scores):.1f} ± ")
    assert "| 0, 1 |" in page  # seeds shared by the variants


def test_a_dry_run_of_pretraining_plans_and_trains_nothing(world, capsys):
    described = ("plan.tflops=1e-6", "plan.memory_gb=1", "plan.devices=2")
    assert main(pretrain(world, "dry", "epochs=2", "dry_run=true", *described)) == 0
    output, actual = capsys.readouterr().out, {path.name for path in (world / "dry").iterdir()}
    assert "device-hours" in output and "dry run: nothing was trained" in output
    assert {"plan.json", "result.json", "config.yaml"} <= actual and not {"checkpoints", "metrics.jsonl"} & actual
    result = json.loads((world / "dry" / "result.json").read_text())
    assert (result["status"], result["command"], result["dry_run"]) == ("finished", "pretrain", True)

    plan = json.loads((world / "dry" / "plan.json").read_text())
    assert plan["parameters"]["all"] == sum(tensor.numel() for tensor in weights(world / "run").values())
    assert main(pretrain(world, "to-compare", "epochs=2")) == 0
    trained = json.loads((world / "to-compare" / "result.json").read_text())
    assert (plan["updates"], plan["tokens"]) == (trained["steps"], trained["tokens"])
    here, there = plan["here"], plan["described"]
    assert here["hours"] == pytest.approx(here["seconds_per_update"] * plan["updates"] / 3600)
    assert here["peak_memory_bytes"] > here["gradients_and_activations_bytes"] >= 0
    assert there["hours"] == pytest.approx(plan["flops"] / 2e6 / 3600)
    assert (there["micro_batch"], there["fits"], there["largest_micro_batch"]) == (2, True, 2)


def test_a_dry_run_times_four_passes_of_a_long_step(world, capsys):
    words = ("epochs=2", "dry_run=true", "batch_size=8", "runtime.micro_batch=1", "runtime.progress=plain")
    assert main(pretrain(world, "long", *words)) == 0
    output = capsys.readouterr().out
    assert "timing 50.0% of 3 steps" in output and "pass 12/12" in output
    plan = json.loads((world / "long" / "plan.json").read_text())
    here = plan["here"]
    assert here["hours"] == pytest.approx(here["seconds_per_update"] * plan["updates"] / 3600)


def test_a_plan_for_a_number_of_tokens_reads_no_text(world, monkeypatch):
    monkeypatch.setattr("gpt1cli.text.documents.find_corpus", lambda *_: pytest.fail("the corpus was looked for"))
    (world / "nothing").mkdir()
    words = ("dry_run=true", "plan.tokens=1e6", "epochs=3")
    run = ["pretrain", *SMALL, f"hub={world / 'nothing'}", f"hydra.run.dir={world / 'imagined'}", *words]
    assert main(run) == 0
    plan = json.loads((world / "imagined" / "plan.json").read_text())
    assert plan["updates"] == 3 * (10**6 // (4 * 32)) and plan["parameters"]["tokens"] == 40_478 * 16


def test_a_dry_run_of_fine_tuning_counts_its_examples(world):
    assert main(finetune(world, "dry-tuned", "epochs=2", "dry_run=true")) == 0
    assert main(finetune(world, "tuned-to-compare", "epochs=2")) == 0
    actual = {path.name for path in (world / "dry-tuned").iterdir()}
    assert {"plan.json", "result.json"} <= actual and not {"checkpoints", "metrics.jsonl", "predictions"} & actual
    plan = json.loads((world / "dry-tuned" / "plan.json").read_text())
    trained = json.loads((world / "tuned-to-compare" / "result.json").read_text())
    assert (plan["updates"], plan["tokens"]) == (trained["steps"], trained["tokens"])
    tensors = weights(world / "tuned-to-compare")
    assert plan["parameters"]["all"] == sum(tensor.numel() for tensor in tensors.values())
    assert plan["described"] is None


def test_dry_runs_are_not_results(world, capsys):
    assert main(pretrain(world, "dry-alone", "steps=2", "dry_run=true")) == 0
    assert main(["report", f"runs=[{world / 'dry-alone'}]", f"hydra.run.dir={world / 'no-report'}"]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert main(["pretrain", f"resume={world / 'dry-alone'}"]) == 2
    assert "dry_run=true cannot continue a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("plan.tflops=100",), "plan.tflops=100.0: only for a dry run; add dry_run=true"),
        (("dry_run=true", "plan.devices=4"), "plan.devices=4 needs a description of one device: add plan.tflops"),
        (("dry_run=true", "plan.tflops=1", "plan.devices=5"), "plan.devices=5 exceeds batch_size=4"),
        (("dry_run=true", "plan.tokens=0"), "plan.tokens=0 is refused: it must be at least 1"),
    ],
)
def test_an_invalid_plan_is_refused(world, capsys, words, fragment):
    assert main(pretrain(world, "senseless", "steps=2", *words)) == 2
    assert fragment in capsys.readouterr().err and not (world / "senseless").exists()


def test_finetuning_refuses_plan_tokens(world, capsys):
    assert main(finetune(world, "senseless", "dry_run=true", "plan.tokens=1e6")) == 2
    assert "plan.tokens=1000000.0 is only for pretraining" in capsys.readouterr().err


def test_a_loss_that_explodes_ends_with_status_1(world, capsys):
    assert main(pretrain(world, "exploding", "steps=50", "lr=1e30", "warmup_steps=0", "log_every=1")) == 1
    error = capsys.readouterr().err
    assert "at step" in error and "error.txt" in error
    assert (world / "exploding" / "error.txt").exists() and not (world / "exploding" / "result.json").exists()


def test_load_from_python(world):
    before = torch.get_rng_state()
    model, tokenizer = gpt1cli.load(world / "run")
    assert torch.equal(torch.get_rng_state(), before)
    ids = tokenizer.encode("the cat sat on the mat")
    assert tokenizer.decode(ids) == "the cat sat on the mat"
    hidden = model(torch.tensor([ids]))
    assert hidden.shape == (1, len(ids), 16) and hidden.dtype == torch.float32 and not model.training
    assert model.logits(hidden).shape == (1, len(ids), len(tokenizer))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # about twenty process starts
def test_killed_at_twenty_random_moments_and_resumed_each_time(world):
    """SIGKILL at any moment: the weights equal those of an undisturbed run."""
    command = ("steps=1500", "eval_every=50", "checkpoint_every=7", "log_every=3")
    assert main(pretrain(world, "undisturbed", *command)) == 0
    chance, kills, run = random.Random(0), 0, world / "killed"
    words = pretrain(world, "killed", *command)
    while not (run / "result.json").exists():
        process = subprocess.Popen([sys.executable, "-m", "gpt1cli", *words], stdout=subprocess.DEVNULL)
        if kills < 20:
            deadline = time.monotonic() + 120  # the clock starts after training started or resumed
            metrics = run / "metrics.jsonl"
            before = metrics.stat().st_mtime_ns if metrics.exists() else 0
            while time.monotonic() < deadline and process.poll() is None:
                if metrics.exists() and metrics.stat().st_mtime_ns != before:
                    break
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.15))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
        words = ["pretrain", f"resume={run}", f"cache={world / 'cache'}"] if (run / "config.yaml").exists() else words
    assert kills == 20
    assert same(weights(world / "undisturbed"), weights(run))
    assert same(
        load_file(world / "undisturbed" / "checkpoints" / "last" / "training.safetensors"),
        load_file(run / "checkpoints" / "last" / "training.safetensors"),
    )
