"""Run folders: exclusive, consistent at every moment, and safe to read if a stranger wrote them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from gpt1cli.config.schema import UserError
from gpt1cli.runs import files, folder, record

# --- creating ---------------------------------------------------------------------------------------------------------


def test_new_and_empty_folders_are_accepted(tmp_path):
    folder.create_folder(tmp_path / "a" / "b").close()
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "c" / ".hydra").mkdir(parents=True)  # as in a job of a sweep
    folder.create_folder(tmp_path / "c").close()


def test_folder_with_a_run_is_refused_and_resume_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=f"already contains a run: continue it with resume={tmp_path}"):
        folder.create_folder(tmp_path)


def test_folder_with_other_files_and_file_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(thesis.tex\)"):
        folder.create_folder(tmp_path)
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        with pytest.raises(UserError, match="cannot be created"):
            folder.create_folder(path)


def test_only_one_process_works_in_a_run_folder(tmp_path):
    code = (
        "import sys, pathlib; from gpt1cli.runs import folder\n"
        f"lock = folder.create_folder(pathlib.Path({str(tmp_path)!r})); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=f"in use by process {other.pid} on "):
            folder.lock_folder(tmp_path)
        other.kill()
        other.wait()
    folder.lock_folder(tmp_path).close()  # the lock ended with its process


# --- writing ----------------------------------------------------------------------------------------------------------


def test_file_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_json(path, {"steps": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"steps": 2})
    assert json.loads(path.read_text()) == {"steps": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_line_without_disk_space_leaves_no_partial_line(tmp_path, monkeypatch):
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


def test_metrics_are_truncated_after_a_step_without_the_incomplete_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    folder.truncate_metrics(path, 3)  # no file: nothing to do
    for step in (0, 1, 2, 3, 4):
        files.append_jsonl(path, {"step": step, "split": "train", "loss": 0.1 + step / 3})
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in files.read_jsonl(path)] == [0, 1, 2, 3, 4]
    before = path.read_text().splitlines()[:4]
    folder.truncate_metrics(path, 3)
    assert path.read_text().splitlines() == before


def test_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step" 2}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: not a JSON object"):
        files.read_jsonl(tmp_path / "metrics.jsonl")


def test_finished_run_has_a_result_and_no_earlier_error(tmp_path):
    (tmp_path / "error.txt").write_text("Traceback ...")
    folder.finish_run(tmp_path, {"status": "finished"})
    assert os.listdir(tmp_path) == ["result.json"]


# --- the record -------------------------------------------------------------------------------------------------------


def test_record_contains_config_and_command_line(tmp_path):
    config = {"seed": 3, "out": "a: b #c\n'\"${x}\udcff\u2028é", "lr": 6.25e-05, "steps": None, "splits": {"no": "yes"}}
    words = ["finetune", "task=rte", "out=x\nmodel: evil", "text=\udcff"]
    record.write_record(tmp_path, config, words, {"command": "finetune"})
    assert files.read_config(tmp_path / "config.yaml") == config
    first = (tmp_path / "config.yaml").read_text().splitlines()[0]
    assert first.startswith("# gpt1 finetune task=rte ") and "evil" in first
    environment = record.read_environment(tmp_path)
    assert environment["command"] == "finetune" and environment["command_line"] == words
    assert environment["versions"]["torch"] and set(environment["git"] or {}) <= {"commit", "dirty"}


def test_resumed_run_keeps_its_first_environment(tmp_path):
    record.write_record(tmp_path, {"steps": 1}, ["pretrain"], {})
    record.update_environment(tmp_path, threads=2)
    record.write_record(tmp_path, {"steps": 2}, ["pretrain", "resume=x"], {})
    (warning,) = record.update_environment(tmp_path, threads=4)
    assert "threads was 2 when the run started, and is 4 now" in warning
    environment = record.read_environment(tmp_path)
    assert environment["threads"] == 2 and environment["command_line"] == ["pretrain"]
    assert [session["threads"] for session in environment["resumed"]] == [4]
    assert (tmp_path / "config.yaml").read_text().splitlines() == ["# gpt1 pretrain", "steps: 2"]


def test_resumed_run_with_changed_data_is_refused(tmp_path):
    record.write_record(tmp_path, {}, ["pretrain"], {})
    record.record_checksums(tmp_path, tokenizer="a", corpus="b")
    record.write_record(tmp_path, {}, ["pretrain", "resume=x"], {})
    record.record_checksums(tmp_path, tokenizer="a", corpus="b")
    with pytest.raises(UserError, match="corpus changed since the run started"):
        record.record_checksums(tmp_path, tokenizer="a", corpus="c")


def test_checksums_of_a_later_session_are_compared_too(tmp_path):
    record.write_record(tmp_path, {}, ["pretrain"], {})  # killed before it read its data
    for _ in range(2):
        record.write_record(tmp_path, {}, ["pretrain", "resume=x"], {})
        record.record_checksums(tmp_path, corpus="b")
    with pytest.raises(UserError, match="corpus changed since the run started"):
        record.record_checksums(tmp_path, corpus="c")


def test_folder_of_a_run_killed_at_its_start_is_reused_without_its_environment(tmp_path):
    files.write_json(tmp_path / "environment.json", {"command_line": ["an", "earlier", "one"]})
    folder.create_folder(tmp_path).close()
    record.write_record(tmp_path, {}, ["pretrain"], {})
    environment = record.read_environment(tmp_path)
    assert environment["command_line"] == ["pretrain"] and "resumed" not in environment


def test_empty_run_is_removed_and_run_with_metrics_is_kept(tmp_path):
    for name, kept in (("a", None), ("b", "metrics.jsonl")):
        folder.create_folder(tmp_path / name).close()
        record.write_record(tmp_path / name, {}, ["pretrain"], {})
        if kept:
            (tmp_path / name / kept).write_text("")
        folder.remove_if_empty(tmp_path / name)
    assert os.listdir(tmp_path) == ["b"]


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "is not valid YAML"),
        ("- 1\n- 2\n", "does not contain a mapping"),
        ("", "does not contain a mapping"),
        ("!!python/object/apply:os.system [touch owned]", "is not valid YAML"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: &x [*x]", "aliases"),
        ("a: " + "[" * 1000, "is not valid YAML"),
        ("a: 2020-99-99", "is not valid YAML"),
        ("? [a]\n: 1\n", "is not valid YAML"),
    ],
)
def test_malicious_config_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        files.read_config(tmp_path / "config.yaml")
    assert len(str(refused.value)) < 500
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_binary_and_missing_config_are_named(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"a: \xff\xfe\x00")
    for name in ("config.yaml", "missing.yaml"):
        with pytest.raises(UserError, match=name):
            files.read_config(tmp_path / name)


def test_numbers_are_read_as_in_hydra(tmp_path):
    (tmp_path / "config.yaml").write_text("lr: 1e-4\nsteps: 10\nname: 1e-4x\n")
    assert files.read_config(tmp_path / "config.yaml") == {"lr": 1e-4, "steps": 10, "name": "1e-4x"}
