"""Runs on two processes: losses equal to one process, sharded or not, and one message if a process fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import item

from gpt1cli.cli.main import main
from gpt1cli.config.schema import UserError
from gpt1cli.models.batch import items_batch, windows_batch
from gpt1cli.pretrained.load import read_tensors
from gpt1cli.runs import files, record
from gpt1cli.training import collective, processes
from gpt1cli.training.epochs import rank_shard
from gpt1cli.training.objectives.causal import Loss

EXACT = [f"model.{kind}_dropout=0" for kind in ("embedding", "attention", "residual")] + ["runtime.precision=fp32"]
# of five sequences one process gets three, the other two; with micro_batch=2 one gets no row in the last micro-batch
PRETRAIN = "pretrain model=tiny corpus=demo batch_size=5 runtime.micro_batch=2 context=32 log_every=1".split()
STEPS = ["steps=20", "eval_every=10", "eval_tokens=4096", "runtime.progress=none", "runtime.threads=1"]


def run(folder: Path, *words: str) -> Path:
    """Run a command and return its folder."""
    assert main([*words, f"hydra.run.dir={folder}"]) == 0
    return folder


def lines(folder: Path, split: str) -> list[dict]:
    """Return the metrics of one split."""
    return [line for line in files.read_jsonl(folder / "metrics.jsonl") if line["split"] == split]


def assert_equal_metrics(actual: Path, expected: Path) -> None:
    """Compare losses and gradient norms of every step, and validation losses, within 1e-5."""
    for split, keys in (("train", ("loss", "gradient_norm")), ("valid", ("loss",))):
        a, b = lines(actual, split), lines(expected, split)
        assert [line["step"] for line in a] == [line["step"] for line in b] and len(a) > 1
        for key in keys:
            assert [line[key] for line in a] == pytest.approx([line[key] for line in b], abs=1e-5)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """Twenty steps on one device."""
    return run(tmp_path_factory.mktemp("one") / "run", *PRETRAIN, *STEPS, *EXACT)


@pytest.mark.parametrize("shard", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_two_processes_equal_one_and_one_resumes_their_checkpoint(one, tmp_path, shard):
    two = [*PRETRAIN, *STEPS, *EXACT, "runtime.devices=2", f"runtime.shard={shard}"]
    actual = run(tmp_path / "two", *two)
    assert_equal_metrics(actual, one)
    alone = json.loads((one / "result.json").read_text())
    together = json.loads((actual / "result.json").read_text())
    assert together["tokens"] == alone["tokens"] == 20 * 5 * 32
    assert record.read_environment(actual)["devices"] == 2

    weights, optimizer_state = (read_tensors(actual / "checkpoints" / "last" / f"{name}.safetensors")
                        for name in ("model", "training"))  # fmt: skip
    for name, weight in read_tensors(one / "checkpoints" / "last" / "model.safetensors").items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-4)
        assert optimizer_state[f"{name}/exp_avg"].shape == weight.shape and optimizer_state[f"{name}/step"] == 20

    assert main(["pretrain", "steps=23", f"resume={actual}", "runtime.devices=1", "runtime.shard=false"]) == 0
    assert lines(actual, "train")[-1]["step"] == 23


def test_user_error_is_reported_once(tmp_path, capfd):
    (tmp_path / "text.txt").write_text("Too short.\n")
    words = ["pretrain", "model=tiny", "corpus=text", f"corpus.path={tmp_path}", "tokenizer=demo", "steps=2"]
    assert main([*words, "runtime.devices=2", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    error = capfd.readouterr().err
    assert error.count("too small") == 1 and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrain corpus=demo model=tiny batch_size=2 runtime.devices=3", "runtime.devices=3 exceeds batch_size=2"),
        ("doctor runtime.devices=2", "for training: remove them"),
        ("finetune task=mrpc init=none task.loss=soft_f1 runtime.devices=2", "runtime.devices=2 would split"),
        ("pretrain corpus=demo model=tiny runtime.shard=true", "add runtime.devices="),
    ],
)
def test_settings_that_cannot_run_on_several_devices_are_refused(words, message, capsys):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrain corpus=demo model=tiny runtime.devices=2", "has started 3 processes: remove runtime.devices"),
        ("-m pretrain corpus=demo model=tiny,mini", "torchrun is only for one run of gpt1 pretrain or gpt1 finetune"),
        ("doctor", "torchrun is only for one run of gpt1 pretrain or gpt1 finetune"),
        ("pretrain corpus=demo model=tiny batch_size=2", "runtime.devices=3 exceeds batch_size=2"),
        ("finetune task=mrpc init=none task.loss=soft_f1", "runtime.devices=3 would split"),
        ("pretrain corpus=demo model=tiny dry_run=true", "dry_run=true measures one device"),
    ],
)
def test_settings_that_torchrun_cannot_start_are_refused(words, message, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


# --- shards -----------------------------------------------------------------------------------------------------------


def shards(monkeypatch, rows, make_batch, size: int) -> list:
    monkeypatch.setattr(collective, "world_size", lambda: size)
    actual = []
    for rank in range(size):
        monkeypatch.setattr(collective, "rank", lambda rank=rank: rank)
        actual.append(rank_shard(rows, make_batch))
    return actual


def test_rows_are_split_and_a_process_without_rows_counts_nothing(monkeypatch):
    windows = np.arange(10, dtype=np.uint16).reshape(5, 2)
    actual = shards(monkeypatch, windows, windows_batch, 3)
    assert [batch.tokens.flatten().tolist() for batch in actual] == [[0, 6], [2, 8], [4]]
    actual = shards(monkeypatch, [item([1, 2, 3], 0), item([4, 5], 1)], items_batch, 3)
    assert [(batch.count, batch.real_tokens) for batch in actual] == [(1, 3), (1, 2), (0, 0)]


def test_zeroed_loss_has_zero_gradient():
    x = torch.tensor(3.0, requires_grad=True)
    loss = Loss(x * 2, 5, {"lm_loss": x.detach()}).zeroed()
    loss.total.backward()
    assert (loss.total.item(), loss.count, loss.parts["lm_loss"].item(), x.grad.item()) == (0, 0, 0, 0)


# --- errors and signals -----------------------------------------------------------------------------------------------


def test_the_cause_is_reported_first():
    """A user error before a kill, a kill before the failures it caused, a stop signal if nothing failed."""
    fault = ("fault", "rank 0: connection lost", "trace")
    with pytest.raises(UserError, match="no such file"):
        processes._raise_outcome([2, -9], [fault, ("input", "no such file", "")], Path("run"))
    with pytest.raises(processes.RankFailed, match=r"rank 1 of 2 was ended by SIGKILL.*resume=run"):
        processes._raise_outcome([1, -9], [fault], Path("run"))
    with pytest.raises(processes.RankFailed, match="rank 0: connection lost") as error:
        processes._raise_outcome([1, None], [fault], Path("run"))
    assert error.value.__notes__ == ["trace"]
    with pytest.raises(SystemExit) as stop:
        processes._raise_outcome([143, 143], [], Path("run"))
    assert stop.value.code == 143
    processes._raise_outcome([0, 0], [], Path("run"))


def started(folder: Path, *words: str, steps: int = 5000) -> subprocess.Popen:
    """Start a long run on two processes and return it after its first checkpoint."""
    command = [sys.executable, "-m", "gpt1cli", *PRETRAIN, f"steps={steps}", "checkpoint_every=10", *words]
    process = subprocess.Popen([*command, "runtime.devices=2", f"hydra.run.dir={folder}"], stderr=subprocess.PIPE)
    for _ in range(600):
        if (folder / "checkpoints" / "last").exists():
            return process
        time.sleep(0.2)
    process.kill()
    raise AssertionError("no checkpoint in two minutes")


def ranks(process: subprocess.Popen) -> list[int]:
    """Return the process ids of the ranks, in order."""
    command = ["ps", "-ww", "--ppid", str(process.pid), "-o", "pid=", "-o", "args="]
    actual = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    pids = sorted(int(line.split()[0]) for line in actual if "spawn_main" in line)
    assert len(pids) == 2
    return pids


def have_ended(pids: list[int]) -> bool:
    """Whether the processes end within ten seconds."""
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_ends_all_with_one_message_and_the_run_can_resume(tmp_path, victim, capsys):
    process = started(tmp_path / "run", "runtime.progress=none", steps=300)
    actual = ranks(process)
    os.kill(actual[victim], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.decode().count("\n") == 1 and f"rank {victim} of 2 was ended by SIGKILL" in error.decode()
    assert not any(Path(f"/proc/{pid}").exists() for pid in actual)
    assert not (tmp_path / "run" / "result.json").exists()
    assert main(["pretrain", f"resume={tmp_path / 'run'}", "runtime.devices=1"]) == 0
    assert [line["step"] for line in lines(tmp_path / "run", "train")] == [*range(1, 301)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_saves_a_checkpoint(tmp_path, number):
    process = started(tmp_path / "run", "runtime.progress=plain")
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number and not error
    last = files.read_json(tmp_path / "run" / "checkpoints" / "last" / "state.json")["step"]
    assert last == lines(tmp_path / "run", "train")[-1]["step"]


@pytest.mark.slow
def test_killing_the_main_process_ends_all_ranks(tmp_path):
    process = started(tmp_path / "run", "runtime.progress=none")
    actual = ranks(process)
    process.kill()
    process.communicate()
    assert have_ended(actual), "a rank outlived the run"


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_processes_resume_a_run_of_one(one, tmp_path, shard):
    expected, actual = tmp_path / "expected", tmp_path / "actual"
    for folder, *words in ((expected, "runtime.devices=1"), (actual, "runtime.devices=2", f"runtime.shard={shard}")):
        shutil.copytree(one, folder, symlinks=True)
        assert main(["pretrain", "steps=26", f"resume={folder}", *words]) == 0
    assert_equal_metrics(actual, expected)
    assert lines(actual, "train")[-1]["step"] == 26


@pytest.mark.slow
def test_torchrun_starts_the_same_run(one, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    words = [*PRETRAIN, *STEPS, *EXACT, f"hydra.run.dir={tmp_path / 'run'}"]
    subprocess.run([*launcher, "-m", "gpt1cli", *words], check=True, timeout=200, capture_output=True)
    assert_equal_metrics(tmp_path / "run", one)
    assert record.read_environment(tmp_path / "run")["devices"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
def test_fine_tuning_on_two_processes_equals_one(one, tmp_path, shard):
    words = ["finetune", "task=demo_entailment", f"init={one}", "epochs=1", "batch_size=5", *EXACT, "head_dropout=0"]
    words += ["limit.train=52", "limit.valid=20", "limit.test=20", "runtime.progress=none", "runtime.threads=1"]
    expected = run(tmp_path / "one", *words, "log_every=1")
    actual = run(tmp_path / "two", *words, "log_every=1", "runtime.devices=2", f"runtime.shard={shard}")
    for a, b in zip(lines(actual, "train"), lines(expected, "train"), strict=True):
        assert (a["loss"], a["lm_loss"]) == pytest.approx((b["loss"], b["lm_loss"]), abs=1e-5)
    for a, b in zip(*(files.read_jsonl(run / "predictions" / "test.jsonl") for run in (actual, expected)), strict=True):
        assert (a["id"], a["prediction"]) == (b["id"], b["prediction"])
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-4)
