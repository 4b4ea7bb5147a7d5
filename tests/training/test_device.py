"""Device setup: chosen device and precision, refused settings, exact fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from worlds import exact

from gpt1cli.config.schema import UserError
from gpt1cli.config.training import RuntimeConfig
from gpt1cli.training import device as training_device

DEFAULTS = {
    "device": "cpu", "precision": "auto", "compile": False, "threads": 1, "devices": 1, "shard": False,
    "micro_batch": None, "progress": "none",
}  # fmt: skip


@pytest.fixture(autouse=True)
def restore_torch_settings(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(training_device, "tune_allocator", lambda: None)  # it would affect the rest of the test run
    with exact():
        yield


def start(seed: int = 0, **settings: object) -> training_device.Machine:
    return training_device.setup_device(RuntimeConfig(**{**DEFAULTS, **settings}), seed)


@pytest.mark.parametrize("fast", [True, False])
def test_precision_as_set_and_auto_by_hardware(monkeypatch, fast):
    monkeypatch.setattr(training_device, "has_fast_bf16", lambda device: fast)
    assert start(precision="fp32").precision == torch.float32
    assert start(precision="bf16").precision == torch.bfloat16
    assert start(precision="auto").precision == (torch.bfloat16 if fast else torch.float32)


def test_cpu_fp32_products_are_exact():
    start(precision="fp32")
    a, b = torch.randn(64, 512), torch.randn(512, 64)
    expected = a.double() @ b.double()
    assert ((a @ b - expected).norm() / expected.norm()).item() < 1e-6


def test_missing_cuda_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"runtime\.device=cuda.*runtime\.device=cpu"):
        start(device="cuda")
    assert start(device="auto").device == torch.device("cpu")


def test_threads_and_seed_are_set():
    machine = start(threads=2, seed=5)
    assert machine.threads == torch.get_num_threads() == 2
    sample = torch.rand(3)
    assert start(threads=None, seed=5).threads == 2 and torch.equal(torch.rand(3), sample)
    assert start(seed=2**63 - 1) and not torch.equal(torch.rand(3), sample)


def test_micro_batch_rows_fill_the_token_budget_or_use_micro_batch():
    assert start().micro_batch_rows(512) == 8 and start().micro_batch_rows(10**6) == 1  # 4,096 tokens on a CPU
    assert start(micro_batch=3).micro_batch_rows(512) == 3


def test_machine_description():
    machine = start(precision="bf16")
    assert machine.describe() == {"device": "cpu", "precision": "bfloat16", "threads": 1, "devices": 1}
    assert str(machine) == "cpu, bfloat16, 1 thread"


def test_peak_memory_is_in_bytes():
    assert 50e6 < training_device.peak_memory_bytes(torch.device("cpu")) < 1e12
