"""Checks of gpt1 doctor on synthetic files and numbers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from gpt1cli.cli.main import main
from gpt1cli.commands import doctor
from gpt1cli.models import create


def test_versions_of_packages_are_checked_and_a_wrong_one_has_a_remedy(monkeypatch):
    required = ["rich>=1", "numpy>=999", "no-such-package>=1", "pytest>=1; extra == 'dev'", "rich>=1; extra == 'one'"]
    required.append("no-such-package>=1; extra == 'two'")
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: required)
    findings = {(finding.kind, finding.name): finding for finding in doctor.check_versions()}
    assert (
        findings["version", "rich"].state == importlib.metadata.version("rich")
        and not findings["version", "rich"].remedy
    )
    assert findings["version", "numpy"].remedy == "pip install 'numpy>=999'"
    assert findings["version", "no-such-package"].state == "missing"
    assert findings["extra", "one"].state == "installed" and "gpt1[two]" in findings["extra", "two"].state
    assert ("extra", "dev") not in findings


@pytest.mark.parametrize(
    ("bf16", "gain", "remedy"),
    [
        (True, 2.0, ""),
        (True, 0.95, ""),
        (True, 0.5, "runtime.precision=fp32"),
        (False, 0.3, ""),
        (False, 1.5, "runtime.precision=bf16"),
    ],
)
def test_precision_is_wrong_if_the_other_one_is_clearly_faster(bf16, gain, remedy):
    assert doctor.check_precision(bf16, gain).remedy == remedy


def test_container_limits_count(tmp_path, monkeypatch):
    monkeypatch.setattr(create, "CGROUP", tmp_path)
    bound = len(os.sched_getaffinity(0))
    assert doctor.usable_cores() == bound  # no such files: no container
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.usable_cores() == bound
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert doctor.usable_cores() == 0.5
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert doctor.check_cpu().remedy == "runtime.threads=1"
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    assert create.memory_sizes() == (3e9, 2e9)
    assert "2GB free" in doctor.check_memory().state and "micro_batch" in doctor.check_memory().remedy


def test_a_gpu_that_torch_does_not_see_is_a_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    (findings,) = doctor.check_gpus()
    assert torch.__version__ in findings.state and "install torch" in findings.remedy


def test_space_and_permissions_are_checked_at_the_future_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 1e9, 8e9))
    assert doctor.check_folder("out", str(tmp_path / "not/yet/there")).remedy == ""
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    assert doctor.check_folder("out", str(tmp_path / "file/below")).remedy == "out=DIR, a folder that you may write to"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 8e9, 1e9))
    assert doctor.check_folder("cache", str(tmp_path)).remedy == "cache=DIR on another disk"


def test_abandoned_and_outdated_files_of_a_cache(tmp_path):
    def make_folder(name: str, days: float) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "data").write_bytes(b"x" * 1000)
        os.utime(path, (time.time() - days * 86400,) * 2)
        return path

    old = make_folder("corpora/.books-0123456789abcdef01234567", 2)
    make_folder("corpora/.other-0123456789abcdef01234567", 0.5)  # may still be in use
    make_folder("corpora/books-0123456789abcdef01234567", 9)
    half = make_folder("datasets/org___set/default/0.0.0/key.incomplete", 3)
    assert doctor.abandoned_files(tmp_path) == sorted([old, half])

    old_state = make_folder("datasets/org___set-0123456789abcdef", 5)
    make_folder("datasets/org___set-fedcba9876543210", 1)
    make_folder("datasets/org___other-0123456789abcdef", 7)
    assert doctor.outdated_datasets(tmp_path) == [old_state]
    findings = {finding.name: finding for finding in doctor.check_disk(str(tmp_path), str(tmp_path))}
    assert findings["corpora"].state == "1, 3kB"  # with the unfinished ones
    assert findings["old states of hub=DIR"].remedy.endswith(f": rm -r {old_state}")
    assert str(old) in findings["files of killed processes"].remedy


def test_a_folder_instead_of_the_hub(tmp_path):
    (tmp_path / "org" / "set").mkdir(parents=True)
    assert doctor.check_hub(str(tmp_path), None).state == "1 repositories: org/set"
    (tmp_path / "empty").mkdir()
    assert "DIR/org/name" in doctor.check_hub(str(tmp_path / "empty"), None).remedy
    assert doctor.check_hub(None, "no answer").state == "no answer" and not doctor.check_hub(None, None).remedy


def test_doctor_checks_only_the_parts_of_what(tmp_path, capsys):
    (tmp_path / "org" / "set").mkdir(parents=True)
    words = ["doctor", f"hub={tmp_path}", f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}"]
    assert main([*words, "what=[machine,disk,hub]", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    output = capsys.readouterr().out
    assert "This machine" in output and "Disk and cache" in output and "Tasks and corpora" not in output
    findings = {
        (finding["kind"], finding["name"]): finding
        for finding in json.loads((tmp_path / "run/result.json").read_text())["found"]
    }
    assert findings["version", "python"]["state"].startswith("3.")
    assert "times as fast as fp32" in findings["precision", "bf16"]["state"]
    assert f"hub hub={tmp_path}" in (tmp_path / "run" / "report.md").read_text()
