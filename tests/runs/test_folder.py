"""Run folders: exclusive, whole at every moment, and readable without trust."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from gpt1cli.config.schema import UserError
from gpt1cli.runs import files, folder, record

# --- claiming ---------------------------------------------------------------------------------------------------------


def test_a_new_folder_and_an_empty_one_are_claimed(tmp_path):
    folder.claim(tmp_path / "a" / "b").close()
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "c" / ".hydra").mkdir(parents=True)  # as a sweep's job finds it
    folder.claim(tmp_path / "c").close()


def test_a_folder_that_holds_a_run_is_refused_and_resume_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=f"already holds a run: go on with it by resume={tmp_path}"):
        folder.claim(tmp_path)


def test_a_folder_with_other_files_is_refused_and_a_file_too(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(thesis.tex\)"):
        folder.claim(tmp_path)
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        with pytest.raises(UserError, match="cannot be made"):
            folder.claim(path)


def test_only_one_process_works_in_a_run_folder(tmp_path):
    code = (
        "import sys, pathlib; from gpt1cli import rundir\n"
        f"held = rundir.claim(pathlib.Path({str(tmp_path)!r})); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"in use by process {other.pid} on "):
            folder.lock(tmp_path)
        other.kill()
        other.wait()
    folder.lock(tmp_path).close()  # the lock died with its process


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_json(path, {"steps": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"steps": 2})
    assert json.loads(path.read_text()) == {"steps": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_torn_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    files.append_jsonl(path, {"step": 1})

    class FullDisk(io.FileIO):
        def write(self, data):
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return super().write(data[:7])

    monkeypatch.setattr("builtins.open", lambda path, mode, buffering: FullDisk(path, mode))
    with pytest.raises(OSError, match="No space"):
        files.append_jsonl(path, {"step": 2})
    monkeypatch.undo()
    assert path.read_text() == '{"step": 1}\n'


def test_metrics_are_cut_after_a_step_and_a_torn_last_line_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    folder.cut_metrics(path, 3)  # nothing there: nothing to do
    for step in (0, 1, 2, 3, 4):
        files.append_jsonl(path, {"step": step, "split": "train", "loss": 0.1 + step / 3})
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in files.read_jsonl(path)] == [0, 1, 2, 3, 4]
    before = path.read_text().splitlines()[:4]
    folder.cut_metrics(path, 3)
    assert path.read_text().splitlines() == before


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step" 2}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: not a JSON object"):
        files.read_jsonl(tmp_path / "metrics.jsonl")


def test_finishing_writes_the_result_and_forgets_an_earlier_failure(tmp_path):
    (tmp_path / "error.txt").write_text("Traceback ...")
    folder.finish(tmp_path, {"status": "finished"})
    assert os.listdir(tmp_path) == ["result.json"]


# --- the record -------------------------------------------------------------------------------------------------------


def test_the_record_gives_back_what_was_run(tmp_path):
    config = {"seed": 3, "out": "a: b #c\n'\"${x}\udcff\u2028é", "lr": 6.25e-05, "steps": None, "splits": {"no": "yes"}}
    words = ["finetune", "task=rte", "out=x\nmodel: evil", "text=\udcff"]
    record.record(tmp_path, config, words, {"command": "finetune"})
    assert files.read_config(tmp_path / "config.yaml") == config
    first = (tmp_path / "config.yaml").read_text().splitlines()[0]
    assert first.startswith("# gpt1 finetune task=rte ") and "evil" in first
    environment = record.environment(tmp_path)
    assert environment["command"] == "finetune" and environment["command_line"] == words
    assert environment["versions"]["torch"] and set(environment["git"] or {}) <= {"commit", "dirty"}


def test_a_resumed_run_keeps_its_first_environment(tmp_path):
    record.record(tmp_path, {"steps": 1}, ["pretrain"], {})
    record.note(tmp_path, threads=2)
    record.record(tmp_path, {"steps": 2}, ["pretrain", "resume=x"], {})
    (warning,) = record.note(tmp_path, threads=4)
    assert "threads was 2 when the run began, and is 4 now" in warning
    found = record.environment(tmp_path)
    assert found["threads"] == 2 and found["command_line"] == ["pretrain"]
    assert [session["threads"] for session in found["resumed"]] == [4]
    assert (tmp_path / "config.yaml").read_text().splitlines() == ["# gpt1 pretrain", "steps: 2"]


def test_a_resumed_run_whose_data_changed_is_refused(tmp_path):
    record.record(tmp_path, {}, ["pretrain"], {})
    record.note_checksums(tmp_path, tokenizer="a", corpus="b")
    record.record(tmp_path, {}, ["pretrain", "resume=x"], {})
    record.note_checksums(tmp_path, tokenizer="a", corpus="b")
    with pytest.raises(UserError, match="corpus changed since the run began"):
        record.note_checksums(tmp_path, tokenizer="a", corpus="c")


def test_checksums_that_only_a_later_session_knew_hold_too(tmp_path):
    record.record(tmp_path, {}, ["pretrain"], {})  # killed before it had read its data
    for _ in range(2):
        record.record(tmp_path, {}, ["pretrain", "resume=x"], {})
        record.note_checksums(tmp_path, corpus="b")
    with pytest.raises(UserError, match="corpus changed since the run began"):
        record.note_checksums(tmp_path, corpus="c")


def test_a_folder_of_a_run_killed_at_its_very_start_is_free_and_its_environment_forgotten(tmp_path):
    files.write_json(tmp_path / "environment.json", {"command_line": ["an", "earlier", "one"]})
    folder.claim(tmp_path).close()
    record.record(tmp_path, {}, ["pretrain"], {})
    found = record.environment(tmp_path)
    assert found["command_line"] == ["pretrain"] and "resumed" not in found


def test_a_run_that_came_to_nothing_is_removed_and_one_with_work_in_it_is_not(tmp_path):
    for name, kept in (("a", None), ("b", "metrics.jsonl")):
        folder.claim(tmp_path / name).close()
        record.record(tmp_path / name, {}, ["pretrain"], {})
        if kept:
            (tmp_path / name / kept).write_text("")
        folder.abandon(tmp_path / name)
    assert os.listdir(tmp_path) == ["b"]


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1, 2", "no readable YAML"),
        ("- 1\n- 2\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("!!python/object/apply:os.system [touch owned]", "no readable YAML"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: &x [*x]", "aliases"),
        ("a: " + "[" * 1000, "no readable YAML"),
        ("a: 2020-99-99", "no readable YAML"),
        ("? [a]\n: 1\n", "no readable YAML"),
    ],
)
def test_a_strangers_config_is_read_without_trust(tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as refused:
        files.read_config(tmp_path / "config.yaml")
    assert len(str(refused.value)) < 500
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_told(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"a: \xff\xfe\x00")
    for name in ("config.yaml", "missing.yaml"):
        with pytest.raises(UserError, match=name):
            files.read_config(tmp_path / name)


def test_numbers_are_read_as_hydra_reads_them(tmp_path):
    (tmp_path / "config.yaml").write_text("lr: 1e-4\nsteps: 10\nname: 1e-4x\n")
    assert files.read_config(tmp_path / "config.yaml") == {"lr": 1e-4, "steps": 10, "name": "1e-4x"}
