"""Failed writes: earlier files are kept, the message names the next step, and with free space the run continues.

The tests raise the system's error at the lowest level of a write: when a file is synced (atomic files, and shards),
when a line is appended, when safetensors writes. A slow test fills a real file system.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from worlds import SMALL, STORY

from gpt1cli.cli.main import main
from gpt1cli.pretrained import load
from gpt1cli.runs import files
from gpt1cli.training import checkpoint, processes

REASONS = {errno.ENOSPC: "disk is full", errno.EDQUOT: "quota is used up", errno.EIO: "disk reports an error"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a text, its prepared corpus, and an undisturbed run on it: `whole`."""
    root = tmp_path_factory.mktemp("disk")
    (root / "story.txt").write_text(STORY * 200)
    assert main(pretrain(root, "whole")) == 0
    return root


def pretrain(root: Path, run: str, *more: str) -> list[str]:
    return [
        "pretrain", *SMALL, "steps=6", "eval_every=2", "log_every=1", "eval_tokens=64", "corpus=text",
        f"corpus.path={root / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30",
        f"cache={root / 'cache'}", f"hydra.run.dir={root / run}", *more,
    ]  # fmt: skip


def finetune(root: Path, run: str, *more: str) -> list[str]:
    return [
        "finetune", "task=demo_sentiment", f"init={root / 'whole'}", "limit.train=8", "limit.valid=6", "limit.test=6",
        "batch_size=4", "steps=2", "runtime.threads=1", "runtime.progress=none", f"cache={root / 'cache'}",
        f"hydra.run.dir={root / run}", *more,
    ]  # fmt: skip


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fail_fsync(monkeypatch: pytest.MonkeyPatch, name: str, number: int = errno.ENOSPC, at: int = 1) -> None:
    """Syncing a file fails from the at-th time on, if its path contains `name`."""
    sync, count = os.fsync, 0

    def refusing(file: int) -> None:
        nonlocal count
        if name in os.readlink(f"/proc/self/fd/{file}"):
            count += 1
            if count >= at:
                raise OSError(number, os.strerror(number))
        sync(file)

    monkeypatch.setattr(os, "fsync", refusing)


def fail_tensors(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """From the at-th file of tensors on, only half is written; the message is that of safetensors."""
    write, count = checkpoint.save_file, 0

    def refusing(tensors, path, *rest, **more):
        nonlocal count
        count += 1
        write(tensors, path, *rest, **more)
        if count >= at:
            os.truncate(path, path.stat().st_size // 2)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", refusing)


def fail_lines(monkeypatch: pytest.MonkeyPatch, number: int, at: int) -> None:
    """The at-th line of metrics is written partly, then writing fails."""
    count = 0

    class FullDisk(io.FileIO):
        def write(self, data):
            nonlocal count
            if len(data) < 10:
                raise OSError(number, os.strerror(number))
            count += 1
            return super().write(data[:-5] if count >= at else data)

    def open_file(path, *rest, original=open, **more):
        return (
            FullDisk(path, "ab")
            if str(path).endswith("metrics.jsonl") and rest[:1] == ("ab",)
            else original(path, *rest, **more)
        )

    monkeypatch.setattr(files, "open", open_file, raising=False)


def check_message(message: str, number: int, *parts: str) -> None:
    assert REASONS[number] in message and "cannot be written" in message and "Traceback" not in message, message
    assert message.count("\n") == 2 and all(part in message for part in parts), message


# --- training runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("state.json", errno.EDQUOT),
        pytest.param("state.json", errno.EIO, marks=pytest.mark.slow),
        ("last line", errno.ENOSPC),
        pytest.param("last line", errno.EIO, marks=pytest.mark.slow),
        ("result.json", errno.EDQUOT),
        ("report.html", errno.ENOSPC),
    ],
)
def test_training_continues_after_a_failed_write_to_the_same_weights(world, tmp_path, capsys, name, number):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        if name == "last line":
            fail_lines(patched, number, at=6)
        else:
            fail_fsync(
                patched, f"/{name}" if name == "state.json" else f"/.{name}", number, at=2 if "state" in name else 1
            )
        assert main(pretrain(world, str(run))) == 2
    path = {"state.json": f"{run}/checkpoints/4", "last line": f"{run}/metrics.jsonl"}.get(name, f"{run}/{name}")
    check_message(capsys.readouterr().err, number, path, "earlier files are kept", f"then continue with resume={run}")
    assert not (run / "result.json").exists() and not (run / "error.txt").exists()
    assert all(path.name in {"last", "best", "2", "4", "6"} for path in (run / "checkpoints").iterdir())
    assert load.load_language_model(str(run), None, "")  # the earlier checkpoint is complete
    assert (run / "metrics.jsonl").read_bytes().endswith(b"}\n")
    assert main(["pretrain", f"resume={run}"]) == 0
    assert same_weights(run, world / "whole")
    lines, expected = (files.read_jsonl(folder / "metrics.jsonl") for folder in (run, world / "whole"))
    assert [(line["step"], line["split"], line["loss"]) for line in lines] == [
        (line["step"], line["split"], line["loss"]) for line in expected
    ]


@pytest.mark.parametrize("at", [3, 4])  # the weights and the optimizer state of the second checkpoint
def test_tensors_without_disk_space_keep_older_checkpoints_and_leave_no_files(world, tmp_path, capsys, monkeypatch, at):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        fail_tensors(patched, at)
        assert main(pretrain(world, str(run))) == 2
    check_message(
        capsys.readouterr().err, errno.ENOSPC, f"{run}/checkpoints/4", "free some disk space", f"resume={run}"
    )
    assert sorted(os.listdir(run / "checkpoints")) == ["2", "best", "last"]
    assert main(["pretrain", f"resume={run}"]) == 0 and same_weights(run, world / "whole")


def test_run_without_space_for_its_first_checkpoint_resumes_from_its_start(world, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        fail_tensors(patched, at=1)
        assert main(pretrain(world, str(run))) == 2
    check_message(capsys.readouterr().err, errno.ENOSPC, f"resume={run}")
    assert main(["pretrain", f"resume={run}"]) == 0 and same_weights(run, world / "whole")


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_run_without_space_for_its_record_leaves_nothing_and_can_be_repeated(world, tmp_path, capsys, name):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        fail_fsync(patched, f"/.{name}")
        assert main(pretrain(world, str(run))) == 2
    check_message(
        capsys.readouterr().err,
        errno.ENOSPC,
        f"{run}/{name}",
        "another place with out=",
        "then repeat the same command",
    )
    assert not run.exists()
    assert main(pretrain(world, str(run), "steps=1")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["valid.jsonl", "result.json"])
def test_fine_tuning_without_space_for_its_results_continues(world, tmp_path, capsys, name):
    assert main(finetune(world, str(tmp_path / "whole"))) == 0
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        fail_fsync(patched, f"/.{name}")
        assert main(finetune(world, str(run))) == 2
    check_message(capsys.readouterr().err, errno.ENOSPC, name, f"resume={run}")
    assert main(["finetune", f"resume={run}"]) == 0
    for split in ("valid", "test"):
        paths = [folder / "predictions" / f"{split}.jsonl" for folder in (run, tmp_path / "whole")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


# --- shards and reports ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.bin", "done.json", "meta.json", "vocab.json"])
def test_shards_without_disk_space_are_prepared_again(world, tmp_path, capsys, name):
    words = ["prepare", "corpus=text", f"corpus.path={world / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30"]
    words += ["runtime.progress=none", f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'out'}"]
    with pytest.MonkeyPatch.context() as patched:
        fail_fsync(patched, name)
        assert main(words) == 2
    check_message(
        capsys.readouterr().err, errno.ENOSPC, str(tmp_path / "cache"), "another place with cache=", "the same command"
    )
    corpora = tmp_path / "cache" / "corpora"
    assert not [path for path in corpora.glob("*") if not path.name.startswith(".")]
    assert main(words) == 0
    (shards,), (expected,) = ([*(root / "cache" / "corpora").glob("text-*")] for root in (tmp_path, world))
    assert sorted(os.listdir(shards)) == sorted(os.listdir(expected))
    assert all((shards / file).read_bytes() == (expected / file).read_bytes() for file in os.listdir(expected))


def test_run_with_a_full_cache_continues_with_another_cache(world, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        fail_fsync(patched, "/train.bin")
        assert main(pretrain(world, str(run), f"cache={tmp_path / 'full'}")) == 2
    check_message(capsys.readouterr().err, errno.ENOSPC, "another place with cache=", "then repeat the same command")
    assert main(pretrain(world, str(run), "steps=2")) == 0
    assert main(["pretrain", f"resume={run}", "steps=3", f"cache={tmp_path / 'other'}"]) == 0


@pytest.mark.parametrize("name", ["report.md", "report.html", "table.csv", "result.json"])
def test_report_without_disk_space_leaves_no_partial_file(world, tmp_path, capsys, name):
    words = ["report", f"runs=[{world / 'whole'}]", f"hydra.run.dir={tmp_path / 'report'}"]
    with pytest.MonkeyPatch.context() as patched:
        fail_fsync(patched, f"/.{name}")
        assert main(words) == 2
    check_message(
        capsys.readouterr().err, errno.ENOSPC, f"{tmp_path / 'report' / name}", "out=", "then repeat the same command"
    )
    assert not (tmp_path / "report" / name).exists() and not [*(tmp_path / "report").glob(f".{name}-*")]


def test_write_error_of_several_processes_is_reported_by_the_first(tmp_path):
    """As a rank sends it, through a pipe."""
    unwritten = files.WriteError(errno.ENOSPC, "No space left on device", "/full/checkpoints/4")
    with pytest.raises(files.WriteError) as raised:
        processes._raise_outcome([2, None], pickle.loads(pickle.dumps([("unwritten", unwritten, "")])), tmp_path)
    message = files.describe_write_error(raised.value)
    assert message.startswith("/full/checkpoints/4 cannot be written: the disk is full (No space left")


# --- unusable places -----------------------------------------------------------------------------------------

LONG = "x" * 300


@pytest.mark.parametrize(
    ("key", "place", "reason"),
    [
        ("out", "file", "a file exists where a folder is needed"),
        ("out", "file/below", "a file exists where a folder is needed"),
        ("out", LONG, "the path is too long"),
        ("cache", "file", "a file exists where a folder is needed"),
        ("cache", "file/below", "a file exists where a folder is needed"),
        ("cache", LONG, "the path is too long"),
    ],
)
def test_unusable_folder_is_reported_with_the_key_that_sets_another(world, tmp_path, capsys, key, place, reason):
    (tmp_path / "file").write_text("mine")
    words = ["prepare", "corpus=text", f"corpus.path={world / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30"]
    places = {"out": tmp_path / "out", "cache": tmp_path / "cache", key: tmp_path / place}
    assert main([*words, "runtime.progress=none", *(f"{name}={path}" for name, path in places.items())]) == 2
    error = capsys.readouterr().err
    assert reason in error and f"{key}=" in error and str(tmp_path / place)[:100] in error and "Traceback" not in error
    assert (tmp_path / "file").read_text() == "mine" and not [*tmp_path.rglob("config.yaml")]


@pytest.mark.parametrize("key", ["out", "cache"])
def test_folder_without_permission_is_reported(world, tmp_path, capsys, monkeypatch, key):
    """mkdir fails, as it does for anybody but root."""
    closed, mkdir = tmp_path / "closed", os.mkdir
    closed.mkdir()

    def refusing(path, *rest, **more):
        if Path(path).parent == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *rest, **more)

    monkeypatch.setattr(os, "mkdir", refusing)
    words = ["prepare", "corpus=text", f"corpus.path={world / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30"]
    places = {"out": tmp_path / "out", "cache": tmp_path / "cache", key: closed / "below"}
    assert main([*words, "runtime.progress=none", *(f"{name}={path}" for name, path in places.items())]) == 2
    error = capsys.readouterr().err
    assert "no permission" in error and str(closed) in error and f"{key}=" in error and "Traceback" not in error


# --- a real file system -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A file system of this size in bytes; skips the test if we may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root and a kernel that allows it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def gpt1(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gpt1cli", *words], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_on_a_disk_that_fills_up_repeatedly_has_the_same_weights(world, tmp_path):
    """The disk grows by a few pages at a time, so that different files fail."""
    with mounted(tmp_path / "small", 4096 * 2) as folder:
        run, size, failed = folder / "run", 4096 * 2, []
        while True:
            words = ["pretrain", f"resume={run}"] if (run / "config.yaml").exists() else pretrain(world, str(run))
            done = gpt1(*words)
            for path in run.glob("checkpoints/[0-9]*"):
                assert load_file(path / "model.safetensors") and json.loads((path / "state.json").read_text())
            if done.returncode == 0:
                break
            assert done.returncode == 2 and "Traceback" not in done.stderr and "the disk is full" in done.stderr, done
            assert not (run / "result.json").exists()
            failed.append(done.stderr.split(" cannot be written")[0].rpartition("/")[2])
            size += 4096 * 7
            remount(folder, f"size={size}")
        assert len(set(failed)) > 2, failed
        assert same_weights(run, world / "whole")


@pytest.mark.slow
def test_read_only_file_system_is_reported_and_its_run_unchanged(world, tmp_path):
    with mounted(tmp_path / "small", 2**24) as folder:
        assert main(pretrain(world, str(folder / "run"), "steps=2")) == 0
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        remount(folder, "ro")
        for words in (pretrain(world, str(folder / "new")), ["pretrain", f"resume={folder / 'run'}", "steps=4"]):
            done = gpt1(*words)
            error = done.stderr
            assert done.returncode == 2 and "ead-only" in error and str(folder) in error and "Traceback" not in error
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# --- finding the error ------------------------------------------------------------------------------------------------


def test_errors_of_other_files_and_pipes_are_no_write_errors(tmp_path):
    for other in (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/read.txt"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ValueError("not a write"),
        SafetensorError("InvalidHeader"),
    ):
        with pytest.raises(type(other)) as raised, files.name_write_errors(tmp_path / "a" / "b"):
            raise other
        assert raised.value is other and files.find_write_error(other) is None


def test_write_error_is_found_below_the_exception_of_a_library():
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "/cache/x.arrow")
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error
    except RuntimeError as error:
        write_error = files.find_write_error(error)
    assert write_error is not None and write_error.filename == "/cache/x.arrow"
    message = files.describe_write_error(write_error, "cache=")
    assert message.startswith("/cache/x.arrow cannot be written: the disk quota is used up")
    # an error of reading
    assert files.find_write_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None
