"""A dry run's few updates, what is made of them, and the plan for a machine that is only described."""

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
from gpt1cli.training.dry_run import Work, described, measured, rehearse
from gpt1cli.training.objectives.causal import Loss, language_modelling
from gpt1cli.training.optimizer import Optimizer

V = 300


def work(**changes: object) -> Work:
    """Base as the paper trains it: 64 x 512 tokens an update."""
    about = {"model": model_config("base"), "vocabulary": 40_478, "outputs": 0, "logits": True, "updates": 10}
    about |= {"tokens": 327_680, "context": 512, "batch_size": 64, "longest": 512}
    return Work(**(about | changes))  # type: ignore[arg-type]


def windows(rows: int, context: int) -> Batch:
    return windows_batch(np.random.default_rng(0).integers(0, V, (rows, context + 1)))


# --- two updates ------------------------------------------------------------------------------------------------------


def test_a_rehearsal_times_all_updates_but_the_first_and_learns_nothing(monkeypatch):
    model = Transformer(model_config(**SHAPE), V)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(clock))
    updates = [[windows(4, 20)], [windows(1, 20), windows(2, 20)], [windows(3, 20)]]
    seen = rehearse(model, language_modelling, updates, Optimizer(model, optimizer_config()))
    assert (seen.seconds, seen.updates, seen.tokens) == (3.0, 2, 120)
    assert 0 <= seen.pass_bytes < seen.peak_memory_bytes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    told = measured(work(tokens=36_000), seen)
    assert told["tokens_per_second"] == 40 and told["hours"] == 0.25 and told["seconds_per_update"] == 1.5
    assert told["tflops"] == pytest.approx(40 * 752_760_000 / 1e12, rel=1e-3)
    half = measured(work(tokens=36_000), seen, share=0.5)  # of each update one half was done
    assert half["hours"] == 0.25 and half["seconds_per_update"] == 3.0


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_told_with_a_way_out(error):
    model = Transformer(model_config(**SHAPE), V)

    def objective(model: Transformer, batch: Batch) -> Loss:
        raise error

    with pytest.raises(UserError, match=r"does not fit into the memory of cpu: name a smaller runtime.micro_batch="):
        rehearse(model, objective, [[windows(1, 20)]], Optimizer(model, optimizer_config()))


# --- a described machine ----------------------------------------------------------------------------------------------


HERE = Machine(torch.device("cpu"), torch.bfloat16, threads=1, micro_batch=None, compile=False)


def plan(*words: str) -> dict[str, Any]:
    config = compose(Composer("pretrain"), ["dry_run=true", *words]).config
    assert isinstance(config, PretrainConfig)
    machine = dataclasses.replace(HERE, micro_batch=config.runtime.micro_batch)
    found = described(work(updates=3_356_900, tokens=3_356_900 * 64 * 512), config, machine)
    assert found is not None
    return found


def test_hours_and_device_hours_of_a_described_machine_by_hand():
    """1.0999e11 tokens x 752,760,000 operations = 8.28e19; at 8 x 100 TFLOP/s 103,500 seconds."""
    found = plan("plan.tflops=100", "plan.devices=8")
    assert found["hours"] == pytest.approx(28.75, rel=1e-3) and found["device_hours"] == 8 * found["hours"]
    assert found["seconds_per_update"] == pytest.approx(0.03083, rel=1e-3)
    assert "fits" not in found and "hours" not in plan("plan.memory_gb=1")
    assert plan("plan.tflops=100")["hours"] == found["device_hours"]


def test_whether_it_fits_and_what_would():
    """Weights and moments of base take 14 bytes a parameter in bf16: 1.63 GB."""
    assert plan("plan.memory_gb=141")["fits"] and plan("plan.memory_gb=141")["largest_micro_batch"] == 64
    none = plan("plan.memory_gb=1.6")
    assert not none["fits"] and none["largest_micro_batch"] is None
    some = plan("plan.memory_gb=8")
    assert (some["micro_batch"], some["fits"]) == (64, False) and 1 < some["largest_micro_batch"] < 64
    fitting = plan("plan.memory_gb=8", f"runtime.micro_batch={some['largest_micro_batch']}")
    assert fitting["fits"] and sum(fitting["memory_bytes"].values()) <= 8e9
    assert not plan("plan.memory_gb=8", f"runtime.micro_batch={some['largest_micro_batch'] + 1}")["fits"]
    assert plan("plan.memory_gb=8", "plan.devices=8")["micro_batch"] == 8


def test_nothing_described_is_no_plan():
    config = compose(Composer("pretrain"), ["dry_run=true"]).config
    assert isinstance(config, PretrainConfig) and described(work(), config, HERE) is None
