"""What gpt1 doctor finds out about a machine, a disk and a hub, on files and figures made up here."""

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


def test_versions_are_those_of_the_packages_and_a_wrong_one_has_a_remedy(monkeypatch):
    required = ["rich>=1", "numpy>=999", "no-such-package>=1", "pytest>=1; extra == 'dev'", "rich>=1; extra == 'one'"]
    required.append("no-such-package>=1; extra == 'two'")
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: required)
    found = {(one.kind, one.name): one for one in doctor.versions()}
    assert found["version", "rich"].state == importlib.metadata.version("rich") and not found["version", "rich"].remedy
    assert found["version", "numpy"].remedy == "pip install 'numpy>=999'"
    assert found["version", "no-such-package"].state == "missing"
    assert found["extra", "one"].state == "installed" and "gpt1[two]" in found["extra", "two"].state
    assert ("extra", "dev") not in found


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
def test_precision_is_wrong_where_the_other_one_is_clearly_faster(bf16, gain, remedy):
    assert doctor.precision(bf16, gain).remedy == remedy


def test_what_a_container_leaves_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(create, "CGROUP", tmp_path)
    bound = len(os.sched_getaffinity(0))
    assert doctor.cores() == bound  # no such files: no container
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.cores() == bound
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert doctor.cores() == 0.5
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert doctor.processor().remedy == "runtime.threads=1"
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    assert create.sizes_of_memory() == (3e9, 2e9)
    assert "2GB of it free" in doctor.memory().state and "micro_batch" in doctor.memory().remedy


def test_a_gpu_that_torch_does_not_see_is_a_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    (found,) = doctor.accelerators()
    assert torch.__version__ in found.state and "a build of torch" in found.remedy


def test_room_and_rights_are_looked_at_where_the_folder_will_be(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 1e9, 8e9))
    assert doctor.place("out", str(tmp_path / "not/yet/there")).remedy == ""
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    assert doctor.place("out", str(tmp_path / "file/below")).remedy == "out=DIR, a folder you may write to"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 8e9, 1e9))
    assert doctor.place("cache", str(tmp_path)).remedy == "cache=DIR on another disk"


def test_what_may_go_of_a_cache(tmp_path):
    def made(name: str, days: float) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "data").write_bytes(b"x" * 1000)
        os.utime(path, (time.time() - days * 86400,) * 2)
        return path

    old = made("corpora/.books-0123456789abcdef01234567", 2)
    made("corpora/.other-0123456789abcdef01234567", 0.5)  # may be at work
    made("corpora/books-0123456789abcdef01234567", 9)
    half = made("datasets/org___set/default/0.0.0/key.incomplete", 3)
    assert doctor.torn(tmp_path) == sorted([old, half])

    before = made("datasets/org___set-0123456789abcdef", 5)
    made("datasets/org___set-fedcba9876543210", 1)
    made("datasets/org___other-0123456789abcdef", 7)
    assert doctor.outdated(tmp_path) == [before]
    found = {one.name: one for one in doctor.disk(str(tmp_path), str(tmp_path))}
    assert found["corpora"].state == "1, 3kB"  # with what is still being made
    assert found["earlier states of hub=DIR"].remedy == f"may go: rm -r {before}"
    assert str(old) in found["left by killed processes"].remedy


def test_a_folder_in_the_place_of_the_hub(tmp_path):
    (tmp_path / "org" / "set").mkdir(parents=True)
    assert doctor.reach(str(tmp_path), None).state == "1 repositories: org/set"
    (tmp_path / "empty").mkdir()
    assert "DIR/org/name" in doctor.reach(str(tmp_path / "empty"), None).remedy
    assert doctor.reach(None, "no answer").state == "no answer" and not doctor.reach(None, None).remedy


def test_the_doctor_looks_at_what_is_asked_for(tmp_path, capsys):
    (tmp_path / "org" / "set").mkdir(parents=True)
    words = ["doctor", f"hub={tmp_path}", f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}"]
    assert main([*words, "what=[machine,disk,hub]", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    shown = capsys.readouterr().out
    assert "This machine" in shown and "Disk and cache" in shown and "Tasks and corpora" not in shown
    found = {(one["kind"], one["name"]): one for one in json.loads((tmp_path / "run/result.json").read_text())["found"]}
    assert found["version", "python"]["state"].startswith("3.")
    assert "times as fast as fp32" in found["precision", "bf16"]["state"]
    assert f"hub hub={tmp_path}" in (tmp_path / "run" / "report.md").read_text()
