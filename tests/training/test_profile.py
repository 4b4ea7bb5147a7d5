"""The profiled steps of a dry run, their metrics, and the plan for a target machine."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from worlds import SHAPE, model_config, optimizer_config

from gpt1cli.cli.hydra_loader import Composer
from gpt1cli.cli.resolve import compose
from gpt1cli.config.commands import PretrainConfig
from gpt1cli.config.schema import UserError
from gpt1cli.models.batch import Batch, windows_batch
from gpt1cli.models.transformer import Transformer
from gpt1cli.training import dry_run
from gpt1cli.training.device import Machine
from gpt1cli.training.dry_run import TrainingCost, profile_metrics, profile_steps, target_plan
from gpt1cli.training.objectives.causal import Loss, causal_objective
from gpt1cli.training.optimizer import Optimizer

V = 300


def cost(**changes: object) -> TrainingCost:
    """Return the cost of base as trained in the paper: 64 x 512 tokens per step."""
    settings = {"model": model_config("base"), "vocabulary": 40_478, "outputs": 0, "logits": True, "steps": 10}
    settings |= {"tokens": 327_680, "context": 512, "batch_size": 64, "longest_row": 512}
    return TrainingCost(**(settings | changes))  # type: ignore[arg-type]


def windows(rows: int, context: int) -> Batch:
    return windows_batch(np.random.default_rng(0).integers(0, V, (rows, context + 1)))


# --- profiling --------------------------------------------------------------------------------------------------------


def test_profile_times_all_steps_except_the_first_and_changes_no_weight(monkeypatch):
    model = Transformer(model_config(**SHAPE), V)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(clock))
    steps = [[windows(4, 20)], [windows(1, 20), windows(2, 20)], [windows(3, 20)]]
    profile = profile_steps(model, causal_objective, steps, Optimizer(model, optimizer_config()))
    assert (profile.seconds, profile.steps, profile.tokens) == (3.0, 2, 120)
    assert 0 <= profile.pass_bytes < profile.peak_memory_bytes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    metrics = profile_metrics(cost(tokens=36_000), profile)
    assert metrics["tokens_per_second"] == 40 and metrics["hours"] == 0.25 and metrics["seconds_per_update"] == 1.5
    assert metrics["tflops"] == pytest.approx(40 * 752_760_000 / 1e12, rel=1e-3)
    half = profile_metrics(cost(tokens=36_000), profile, share=0.5)  # half of each step was timed
    assert half["hours"] == 0.25 and half["seconds_per_update"] == 3.0


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_is_a_user_error_with_a_solution(error):
    model = Transformer(model_config(**SHAPE), V)

    def objective(model: Transformer, batch: Batch) -> Loss:
        raise error

    with pytest.raises(UserError, match=r"does not fit into the memory of cpu: .*smaller runtime.micro_batch="):
        profile_steps(model, objective, [[windows(1, 20)]], Optimizer(model, optimizer_config()))


# --- target machine ---------------------------------------------------------------------------------------------------


HERE = Machine(torch.device("cpu"), torch.bfloat16, threads=1, micro_batch=None, compile=False)


def plan(*arguments: str) -> dict[str, Any]:
    config = compose(Composer("pretrain"), ["dry_run=true", *arguments]).config
    assert isinstance(config, PretrainConfig)
    machine = dataclasses.replace(HERE, micro_batch=config.runtime.micro_batch)
    actual = target_plan(cost(steps=3_356_900, tokens=3_356_900 * 64 * 512), config, machine)
    assert actual is not None
    return actual


def test_hours_of_a_target_machine_by_hand():
    """1.0999e11 tokens x 752,760,000 FLOPs = 8.28e19; at 8 x 100 TFLOP/s 103,500 seconds."""
    actual = plan("plan.tflops=100", "plan.devices=8")
    assert actual["hours"] == pytest.approx(28.75, rel=1e-3) and actual["device_hours"] == 8 * actual["hours"]
    assert actual["seconds_per_update"] == pytest.approx(0.03083, rel=1e-3)
    assert "fits" not in actual and "hours" not in plan("plan.memory_gb=1")
    assert plan("plan.tflops=100")["hours"] == actual["device_hours"]


def test_fit_into_memory_and_largest_micro_batch():
    """Weights and optimizer state of base take 14 bytes per parameter in bf16: 1.63 GB."""
    assert plan("plan.memory_gb=141")["fits"] and plan("plan.memory_gb=141")["largest_micro_batch"] == 64
    none = plan("plan.memory_gb=1.6")
    assert not none["fits"] and none["largest_micro_batch"] is None
    some = plan("plan.memory_gb=8")
    assert (some["micro_batch"], some["fits"]) == (64, False) and 1 < some["largest_micro_batch"] < 64
    fitting = plan("plan.memory_gb=8", f"runtime.micro_batch={some['largest_micro_batch']}")
    assert fitting["fits"] and sum(fitting["memory_bytes"].values()) <= 8e9
    assert not plan("plan.memory_gb=8", f"runtime.micro_batch={some['largest_micro_batch'] + 1}")["fits"]
    assert plan("plan.memory_gb=8", "plan.devices=8")["micro_batch"] == 8


def test_no_target_machine_no_plan():
    config = compose(Composer("pretrain"), ["dry_run=true"]).config
    assert isinstance(config, PretrainConfig) and target_plan(cost(), config, HERE) is None
