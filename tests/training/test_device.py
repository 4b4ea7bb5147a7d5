"""Where a run is computed: what is chosen, what is refused, and that fp32 means fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from worlds import exact

from gpt1cli.config.schema import UserError
from gpt1cli.config.training import RuntimeConfig
from gpt1cli.training import device as training_device

ASKED = {
    "device": "cpu", "precision": "auto", "compile": False, "threads": 1, "devices": 1, "shard": False,
    "micro_batch": None, "progress": "none",
}  # fmt: skip


@pytest.fixture(autouse=True)
def settings_of_torch(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(training_device, "keep_memory", lambda: None)  # it would hold for the rest of the test run
    with exact():
        yield


def start(seed: int = 0, **asked: object) -> training_device.Machine:
    return training_device.start(RuntimeConfig(**{**ASKED, **asked}), seed)


@pytest.mark.parametrize("fast", [True, False])
def test_precision_is_what_was_asked_for_and_auto_what_the_hardware_is_fast_in(monkeypatch, fast):
    monkeypatch.setattr(training_device, "has_fast_bf16", lambda device: fast)
    assert start(precision="fp32").precision == torch.float32
    assert start(precision="bf16").precision == torch.bfloat16
    assert start(precision="auto").precision == (torch.bfloat16 if fast else torch.float32)


def test_fp32_on_a_cpu_multiplies_in_fp32():
    start(precision="fp32")
    a, b = torch.randn(64, 512), torch.randn(512, 64)
    wanted = a.double() @ b.double()
    assert ((a @ b - wanted).norm() / wanted.norm()).item() < 1e-6


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"runtime\.device=cuda"):
        start(device="cuda")
    assert start(device="auto").device == torch.device("cpu")


def test_threads_and_seed_are_set():
    machine = start(threads=2, seed=5)
    assert machine.threads == torch.get_num_threads() == 2
    drawn = torch.rand(3)
    assert start(threads=None, seed=5).threads == 2 and torch.equal(torch.rand(3), drawn)
    assert start(seed=2**63 - 1) and not torch.equal(torch.rand(3), drawn)


def test_rows_fill_the_token_budget_unless_a_micro_batch_is_named():
    assert start().rows(512) == 8 and start().rows(10**6) == 1  # 4,096 tokens on a CPU
    assert start(micro_batch=3).rows(512) == 3


def test_a_machine_describes_itself():
    machine = start(precision="bf16")
    assert machine.describe() == {"device": "cpu", "precision": "bfloat16", "threads": 1, "devices": 1}
    assert str(machine) == "cpu, bfloat16, 1 thread"


def test_peak_memory_is_in_bytes():
    assert 50e6 < training_device.peak_memory_bytes(torch.device("cpu")) < 1e12
