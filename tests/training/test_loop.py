"""The training loop: what it writes and when, how it stops, and that resumed runs reach equal weights."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import NO_DROPOUT

from gpt1cli.config.model import Finetuning, ModelConfig, Pretraining
from gpt1cli.config.schema import UserError
from gpt1cli.config.training import OptimizerConfig
from gpt1cli.models.batch import windows_batch
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained import load
from gpt1cli.runs import files, signals
from gpt1cli.runs import folder as runs_folder
from gpt1cli.runs.console import Progress
from gpt1cli.text import bpe
from gpt1cli.text.windows import random_windows
from gpt1cli.training import checkpoint
from gpt1cli.training.loop import LoopConfig, fit
from gpt1cli.training.objectives.causal import Loss, causal_objective
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.schedules import cosine
from gpt1cli.training.state import TrainingState

SMALL = ModelConfig("small", 1, 16, 2, 32, 16, 0.1, 0.1, 0.1, 1e-5, 0.02, Pretraining(4, 16, 1e-3, 2), Finetuning(1e-3))
ADAMW = OptimizerConfig("adamw", 0.9, 0.999, 1e-8, 0.01, 1.0)
TOKENS = np.random.default_rng(0).integers(0, 30, 500).astype(np.uint16)
VOCABULARY = bpe.train({"abcdefghij": 3, "klmnopqrst": 2}, merges=9)
STEPS = 12


class Killed(BaseException):
    """Simulates SIGKILL: nothing after it runs."""


def train(
    folder: Path, precision=torch.float32, steps=STEPS, objective=causal_objective, evaluate=None, save=None, split=2
):
    """Train for `steps` steps in the folder, resumed from its checkpoint; return optimizer and final state."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    model = Transformer(SMALL, 30)
    optimizer = Optimizer(model, ADAMW, precision)
    state = checkpoint.resume(folder, optimizer) or TrainingState()
    runs_folder.truncate_metrics(folder / "metrics.jsonl", state.step if state.step else -1)

    def batches(step, halvings):
        windows = random_windows(TOKENS, 16, 4, 0, step)
        return [windows_batch(part) for part in np.array_split(windows, min(4, split << halvings))]

    write = functools.partial(
        checkpoint.save, folder, optimizer=optimizer, description={}, vocabulary=VOCABULARY, keep=(3,)
    )
    with Progress(folder, steps, "none", state.step) as progress:
        state = fit(
            model, objective, batches, optimizer, lambda step: 1e-2 * cosine(step, STEPS, 2),
            evaluate or (lambda: ({"loss": 1.0}, -1.0)), save or write,
            LoopConfig(steps, 5, eval_every=4, checkpoint_every=2, keep_checkpoints=(3,), evaluate_first=True),
            state, folder, functools.partial(files.append_jsonl, folder / "metrics.jsonl"), progress,
        )  # fmt: skip
    return optimizer, state


def weights(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    return {name: master.detach().clone() for name, master in optimizer.masters.items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_metrics_are_written_at_their_intervals(tmp_path):
    train(tmp_path)
    lines = files.read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == [5, 10, 12]
    assert [line["step"] for line in lines if line["split"] == "valid"] == [0, 4, 8, 12]
    assert all(
        {"loss", "lr", "tokens_per_second", "seconds"} <= line.keys() for line in lines if line["split"] == "train"
    )


def test_logged_loss_is_the_mean_since_the_last_line(tmp_path):
    losses = []

    def recorded(model, batch):
        loss = causal_objective(model, batch)
        losses.append((loss.total.item(), loss.count))
        return loss

    train(tmp_path, objective=recorded)
    line = next(line for line in files.read_jsonl(tmp_path / "metrics.jsonl") if line["split"] == "train")
    means = [sum(t for t, _ in losses[i : i + 2]) / sum(c for _, c in losses[i : i + 2]) for i in range(0, 10, 2)]
    assert line["loss"] == pytest.approx(np.mean(means), rel=1e-6)


def test_last_best_and_kept_checkpoints_stay(tmp_path):
    scores = iter([0.0, 5.0, 1.0, 2.0])  # best at the second validation, step 4
    train(tmp_path, evaluate=lambda: ({"loss": 0.0}, next(scores)))
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["12", "3", "4", "best", "last"]
    assert os.readlink(folder / "last") == "12" and os.readlink(folder / "best") == "4"


def test_best_link_is_restored_after_a_kill_between_the_links(tmp_path):
    original, scores = checkpoint._replace_link, iter([0.0, 5.0, 1.0, 2.0])

    def dying(link, step):
        if link.name == "best" and step == 4:
            raise Killed
        original(link, step)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(checkpoint, "_replace_link", dying)
        train(tmp_path, evaluate=lambda: ({"loss": 0.0}, next(scores)))
    train(tmp_path, evaluate=lambda: ({"loss": 0.0}, next(scores)))
    assert os.readlink(tmp_path / "checkpoints" / "best") == "4"


def test_signal_late_in_a_step_stops_after_the_next_step(tmp_path):
    """The signal arrives after the decision whether to save: no unsaved step may be reported as saved."""
    progress_update = Progress.update

    def interrupted(self, step, **values):
        progress_update(self, step, **values)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Progress, "update", interrupted)
        train(tmp_path)
    assert os.readlink(tmp_path / "checkpoints" / "last") == "6"


def test_signal_after_the_last_step_is_not_lost(tmp_path):
    """In the last validation: nothing after the training is started, nor the next cell of a study."""
    validations = []

    def interrupted():
        validations.append(1)
        if len(validations) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 0.0}, 0.0

    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, evaluate=interrupted)
    assert stopped.value.code == 143
    assert os.readlink(tmp_path / "checkpoints" / "last") == "12"
    assert train(tmp_path)[1].step == 12


def test_resumed_run_refuses_fewer_steps(tmp_path):
    train(tmp_path, steps=8)
    with pytest.raises(UserError, match=r"steps=4: .* done 8 steps.* larger steps="):
        train(tmp_path, steps=4)


def test_seconds_count_only_training_steps(tmp_path, monkeypatch):
    """With a fake clock: 50 seconds per validation, one second per micro-batch."""
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def slow():
        clock[0] += 50.0
        return {"loss": 1.0}, -1.0

    def working(model, batch):
        clock[0] += 1.0
        return causal_objective(model, batch)

    _, state = train(tmp_path, evaluate=slow, objective=working)
    assert state.seconds == STEPS * 2  # two micro-batches per step, one second each


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("killed_at", [1, pytest.param(2, marks=pytest.mark.slow), 3, 5])
def test_resumed_run_reaches_equal_weights(tmp_path, precision, killed_at):
    whole, state = train(tmp_path / "whole", precision)
    saves = []

    def kill_after(state):
        saves.append(state.step)
        if len(saves) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        original = checkpoint.save

        def save_then_kill(*arguments, **keywords):
            original(*arguments, **keywords)
            kill_after(keywords.get("state") or arguments[1])

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(checkpoint, "save", save_then_kill)
            train(tmp_path / "killed", precision)
    resumed, resumed_state = train(tmp_path / "killed", precision)
    assert equal(weights(whole), weights(resumed))
    assert equal(whole.state(), resumed.state())
    assert (resumed_state.step, resumed_state.tokens) == (state.step, state.tokens)
    keep = ("step", "split", "loss", "lr")
    lines = [
        [{k: line[k] for k in keep if k in line} for line in files.read_jsonl(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "killed")
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("victim", ["save_file", "_replace_link", "_fsync", "_remove_checkpoint"])
def test_kill_while_writing_a_checkpoint(tmp_path, victim):
    whole, _ = train(tmp_path / "whole")
    for nth in (1, 2, 5):
        calls = []
        with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
            original = getattr(checkpoint, victim)

            def dying(*arguments, nth=nth, calls=calls, original=original):
                calls.append(1)
                if len(calls) == nth:
                    raise Killed
                return original(*arguments)

            patched.setattr(checkpoint, victim, dying)
            train(tmp_path / "killed")
    resumed, _ = train(tmp_path / "killed")
    assert equal(weights(whole), weights(resumed))
    leftovers = [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir() if path.name.startswith(".")]
    assert not leftovers


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)])
def test_signal_saves_a_checkpoint_and_stops(tmp_path, number, status):
    whole, _ = train(tmp_path / "whole")

    def stopping(model, batch, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 9:  # in step 5, without a scheduled checkpoint
            os.kill(os.getpid(), number)
        return causal_objective(model, batch)

    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "stopped", objective=stopping)
    assert stopped.value.code == status
    assert os.readlink(tmp_path / "stopped" / "checkpoints" / "last") == "5"
    resumed, _ = train(tmp_path / "stopped")
    assert equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("sent", [[signal.SIGUSR2], [signal.SIGUSR2] * 2, [signal.SIGTERM, signal.SIGUSR2]])
def test_preemption_handler_is_called_after_the_checkpoint(tmp_path, sent):
    """Like submitit, which requeues its job and exits; Slurm may send SIGTERM first."""
    calls = []

    def requeue(number, _):
        calls.append((number, os.readlink(tmp_path / "checkpoints" / "last")))
        raise SystemExit(144)

    def stopping(model, batch, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 9:  # in step 5, without a scheduled checkpoint
            for number in sent:
                os.kill(os.getpid(), number)
        return causal_objective(model, batch)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as stopped:
            train(tmp_path, objective=stopping)
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert stopped.value.code == 144 and calls == [(signal.SIGUSR2, "5")]


def test_slurm_job_waits_after_the_checkpoint_to_be_ended_by_slurm(monkeypatch):
    waited = []
    monkeypatch.setattr(signals.time, "sleep", waited.append)
    for executor, seconds in (("local", []), ("slurm", [signals.SLURM_GRACE_SECONDS])):
        monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
        with pytest.raises(SystemExit):
            signals.exit_after_signal(signal.SIGTERM)
        assert waited == seconds


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, bad):
    def exploding(model, batch, calls=[]):  # noqa: B006
        calls.append(1)
        loss = causal_objective(model, batch)
        return Loss(loss.total * bad, loss.count) if len(calls) == 2 * 6 + 1 else loss  # step 7

    with pytest.raises(FloatingPointError, match="at step 7"):
        train(tmp_path, objective=exploding)
    assert os.readlink(tmp_path / "checkpoints" / "last") == "6"
    good = load.read_tensors(tmp_path / "checkpoints" / "last" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in good.values())


def test_loss_does_not_depend_on_the_micro_batch_split(tmp_path, monkeypatch):
    no_dropout = dataclasses.replace(SMALL, embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    monkeypatch.setitem(globals(), "SMALL", no_dropout)
    curves = []
    for split in (1, 2, 4):
        train(tmp_path / str(split), split=split)
        curves.append(
            [li["loss"] for li in files.read_jsonl(tmp_path / str(split) / "metrics.jsonl") if li["split"] == "train"]
        )
    assert curves[0] == pytest.approx(curves[1], abs=1e-5) and curves[0] == pytest.approx(curves[2], abs=1e-5)


def test_more_steps_continue_a_finished_run(tmp_path):
    train(tmp_path, steps=6)
    _, state = train(tmp_path, steps=12)
    assert state.step == 12


def test_checkpoint_files(tmp_path):
    train(tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints" / "last").iterdir()}
    assert names == {
        "model.safetensors",
        "training.safetensors",
        "state.json",
        "config.json",
        "vocab.json",
        "merges.txt",
        "checksums.json",
    }


class LimitedMemory:
    """The pretraining objective on a device with memory for `rows` rows; records the sizes that were tried."""

    def __init__(self, rows: int, error: Exception) -> None:
        self.rows, self.error, self.tried = rows, error, []

    def __call__(self, model, batch) -> Loss:
        self.tried.append(len(batch.tokens))
        if len(batch.tokens) > self.rows:
            raise self.error
        return causal_objective(model, batch)


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you"),
]


@pytest.mark.parametrize("error", MEMORY_ERRORS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_out_of_memory_halves_the_micro_batch_with_equal_results(tmp_path, monkeypatch, precision, error):
    monkeypatch.setattr(sys.modules[__name__], "SMALL", dataclasses.replace(SMALL, **NO_DROPOUT))
    expected, _ = train(tmp_path / "expected", precision, split=4)
    limited = LimitedMemory(1, error)
    actual, state = train(tmp_path / "actual", precision, objective=limited, split=1)
    assert limited.tried[:6] == [4, 2, 1, 1, 1, 1] and set(limited.tried[6:]) == {1}
    assert equal(weights(actual), weights(expected)) and state.halvings == 2
    log = (tmp_path / "actual" / "run.log").read_text()
    assert [len(re.findall(rf"out of memory.* {rows} x 16 tokens", log)) for rows in (4, 2, 1)] == [1, 1, 0]


def test_resumed_run_keeps_the_halved_micro_batch(tmp_path):
    limited = LimitedMemory(2, MEMORY_ERRORS[0])
    train(tmp_path, objective=limited, split=1, steps=5)
    tried = len(limited.tried)
    train(tmp_path, objective=limited, split=1, steps=8)
    assert limited.tried[tried:] == [2, 2] * 3


def test_single_row_out_of_memory_is_a_user_error(tmp_path):
    with pytest.raises(
        UserError, match=r"out of memory .* 1 x 16 tokens: use runtime\.precision=bf16, a smaller model"
    ):
        train(tmp_path, objective=LimitedMemory(0, MEMORY_ERRORS[0]), split=1)
    with pytest.raises(RuntimeError, match="something else"):
        train(tmp_path / "other", objective=LimitedMemory(0, RuntimeError("something else")), split=1)
