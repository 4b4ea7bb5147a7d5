"""Writes that fail: nothing written before is lost, the message tells the way on, and with room again a run goes on.

The system's refusal is put in at the lowest place that a write passes: where a file is synced (all that appears whole,
and shards), where a line is appended, where safetensors writes. A slow test fills a real file system.
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
from gpt1cli.runs import files as runs_files
from gpt1cli.runs import folder as runs_folder
from gpt1cli.training import processes

REASON = {errno.ENOSPC: "disk is full", errno.EDQUOT: "quota is used up", errno.EIO: "disk reports an error"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a text, its prepared corpus, and a run on it that nothing disturbed: `whole`."""
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


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fsync_fails(monkeypatch: pytest.MonkeyPatch, of: str, number: int = errno.ENOSPC, at: int = 1) -> None:
    """From the at-th sync on of a file whose path holds `of`, the system refuses."""
    sync, count = os.fsync, 0

    def refusing(file: int) -> None:
        nonlocal count
        if of in os.readlink(f"/proc/self/fd/{file}"):
            count += 1
            if count >= at:
                raise OSError(number, os.strerror(number))
        sync(file)

    monkeypatch.setattr(os, "fsync", refusing)


def tensors_fail(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """From the at-th file of tensors on, half of it is written; safetensors tells so in its own words."""
    write, count = load.save_file, 0

    def refusing(tensors, path, *rest, **more):
        nonlocal count
        count += 1
        write(tensors, path, *rest, **more)
        if count >= at:
            os.truncate(path, path.stat().st_size // 2)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(load, "save_file", refusing)


def lines_fail(monkeypatch: pytest.MonkeyPatch, number: int, at: int) -> None:
    """The at-th line of metrics is written in part, and then the system refuses."""
    count = 0

    class Full(io.FileIO):
        def write(self, data):
            nonlocal count
            if len(data) < 10:
                raise OSError(number, os.strerror(number))
            count += 1
            return super().write(data[:-5] if count >= at else data)

    def opened(path, *rest, original=open, **more):
        return (
            Full(path, "ab")
            if str(path).endswith("metrics.jsonl") and rest[:1] == ("ab",)
            else original(path, *rest, **more)
        )

    monkeypatch.setattr(runs_folder, "open", opened, raising=False)


def is_told(told: str, number: int, *parts: str) -> None:
    assert REASON[number] in told and "cannot be written" in told and "Traceback" not in told, told
    assert told.count("\n") == 2 and all(part in told for part in parts), told


# --- a run in training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("state.json", errno.EDQUOT),
        pytest.param("state.json", errno.EIO, marks=pytest.mark.slow),
        ("last line", errno.ENOSPC),
        pytest.param("last line", errno.EIO, marks=pytest.mark.slow),
        ("result.json", errno.EDQUOT),
        ("report.html", errno.ENOSPC),
    ],
)
def test_a_training_whose_disk_fails_goes_on_with_room_to_the_same_weights(world, tmp_path, capsys, what, number):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        if what == "last line":
            lines_fail(patched, number, at=6)
        else:
            fsync_fails(
                patched, f"/{what}" if what == "state.json" else f"/.{what}", number, at=2 if "state" in what else 1
            )
        assert main(pretrain(world, str(run))) == 2
    named = {"state.json": f"{run}/checkpoints/4", "last line": f"{run}/metrics.jsonl"}.get(what, f"{run}/{what}")
    is_told(capsys.readouterr().err, number, named, "what was written before is kept", f"then resume={run}")
    assert not (run / "result.json").exists() and not (run / "error.txt").exists()
    assert all(path.name in {"last", "best", "2", "4", "6"} for path in (run / "checkpoints").iterdir())
    assert load.load(str(run), None, "")  # what was saved before is whole
    assert (run / "metrics.jsonl").read_bytes().endswith(b"}\n")
    assert main(["pretrain", f"resume={run}"]) == 0
    assert same_weights(run, world / "whole")
    ours, theirs = (runs_files.read_jsonl(folder / "metrics.jsonl") for folder in (run, world / "whole"))
    assert [(line["step"], line["split"], line["loss"]) for line in ours] == [
        (line["step"], line["split"], line["loss"]) for line in theirs
    ]


@pytest.mark.parametrize("at", [3, 4])  # the second checkpoint's weights, its optimizer's state
def test_tensors_that_find_no_room_cost_no_older_checkpoint_and_leave_nothing_that_holds_room(
    world, tmp_path, capsys, monkeypatch, at
):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        tensors_fail(patched, at)
        assert main(pretrain(world, str(run))) == 2
    is_told(capsys.readouterr().err, errno.ENOSPC, f"{run}/checkpoints/4", "make room", f"resume={run}")
    assert sorted(os.listdir(run / "checkpoints")) == ["2", "best", "last"]
    assert main(["pretrain", f"resume={run}"]) == 0 and same_weights(run, world / "whole")


def test_a_first_checkpoint_without_room_leaves_a_run_that_resumes_from_its_start(world, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        tensors_fail(patched, at=1)
        assert main(pretrain(world, str(run))) == 2
    is_told(capsys.readouterr().err, errno.ENOSPC, f"resume={run}")
    assert main(["pretrain", f"resume={run}"]) == 0 and same_weights(run, world / "whole")


@pytest.mark.parametrize("what", ["config.yaml", "environment.json"])
def test_a_run_that_cannot_write_its_record_leaves_nothing_and_the_same_command_begins_it(
    world, tmp_path, capsys, what
):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        fsync_fails(patched, f"/.{what}")
        assert main(pretrain(world, str(run))) == 2
    is_told(capsys.readouterr().err, errno.ENOSPC, f"{run}/{what}", "another place by out=", "then the same command")
    assert not run.exists()
    assert main(pretrain(world, str(run), "steps=1")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["valid.jsonl", "result.json"])
def test_a_fine_tuning_without_room_for_what_it_found_goes_on_to_it(world, tmp_path, capsys, what):
    assert main(finetune(world, str(tmp_path / "whole"))) == 0
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        fsync_fails(patched, f"/.{what}")
        assert main(finetune(world, str(run))) == 2
    is_told(capsys.readouterr().err, errno.ENOSPC, what, f"resume={run}")
    assert main(["finetune", f"resume={run}"]) == 0
    for name in ("valid", "test"):
        paths = [folder / "predictions" / f"{name}.jsonl" for folder in (run, tmp_path / "whole")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


# --- what is made at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["train.bin", "done.json", "meta.json", "vocab.json"])
def test_shards_without_room_are_no_corpus_and_the_next_preparation_makes_it(world, tmp_path, capsys, what):
    words = ["prepare", "corpus=text", f"corpus.path={world / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30"]
    words += ["runtime.progress=none", f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'out'}"]
    with pytest.MonkeyPatch.context() as patched:
        fsync_fails(patched, what)
        assert main(words) == 2
    is_told(
        capsys.readouterr().err, errno.ENOSPC, str(tmp_path / "cache"), "another place by cache=", "the same command"
    )
    corpora = tmp_path / "cache" / "corpora"
    assert not [path for path in corpora.glob("*") if not path.name.startswith(".")]
    assert main(words) == 0
    (made,), (whole,) = ([*(root / "cache" / "corpora").glob("text-*")] for root in (tmp_path, world))
    assert sorted(os.listdir(made)) == sorted(os.listdir(whole))
    assert all((made / name).read_bytes() == (whole / name).read_bytes() for name in os.listdir(whole))


def test_a_run_whose_cache_is_full_goes_on_with_another_cache(world, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        fsync_fails(patched, "/train.bin")
        assert main(pretrain(world, str(run), f"cache={tmp_path / 'full'}")) == 2
    is_told(capsys.readouterr().err, errno.ENOSPC, "another place by cache=", "then the same command")
    assert main(pretrain(world, str(run), "steps=2")) == 0
    assert main(["pretrain", f"resume={run}", "steps=3", f"cache={tmp_path / 'other'}"]) == 0


@pytest.mark.parametrize("what", ["report.md", "report.html", "table.csv", "result.json"])
def test_a_report_without_room_leaves_no_half_of_one(world, tmp_path, capsys, what):
    words = ["report", f"runs=[{world / 'whole'}]", f"hydra.run.dir={tmp_path / 'report'}"]
    with pytest.MonkeyPatch.context() as patched:
        fsync_fails(patched, f"/.{what}")
        assert main(words) == 2
    is_told(capsys.readouterr().err, errno.ENOSPC, f"{tmp_path / 'report' / what}", "out=", "then the same command")
    assert not (tmp_path / "report" / what).exists() and not [*(tmp_path / "report").glob(f".{what}-*")]


def test_what_several_processes_cannot_write_is_told_by_the_first(tmp_path):
    """As a rank sends it on, through a pipe."""
    unwritten = files.Unwritten(errno.ENOSPC, "No space left on device", "/full/checkpoints/4")
    with pytest.raises(files.Unwritten) as raised:
        processes._tell([2, None], pickle.loads(pickle.dumps([("unwritten", unwritten, "")])), tmp_path)
    assert files.told(raised.value).startswith("/full/checkpoints/4 cannot be written: the disk is full (No space left")


# --- places that take nothing -----------------------------------------------------------------------------------------

LONG = "x" * 300


@pytest.mark.parametrize(
    ("key", "place", "told"),
    [
        ("out", "file", "a file stands where a folder is wanted"),
        ("out", "file/below", "a file stands where a folder is wanted"),
        ("out", LONG, "the path is too long"),
        ("cache", "file", "a file stands where a folder is wanted"),
        ("cache", "file/below", "a file stands where a folder is wanted"),
        ("cache", LONG, "the path is too long"),
    ],
)
def test_a_place_that_can_be_no_folder_is_told_with_the_key_that_names_another(
    world, tmp_path, capsys, key, place, told
):
    (tmp_path / "file").write_text("mine")
    words = ["prepare", "corpus=text", f"corpus.path={world / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30"]
    places = {"out": tmp_path / "out", "cache": tmp_path / "cache", key: tmp_path / place}
    assert main([*words, "runtime.progress=none", *(f"{name}={path}" for name, path in places.items())]) == 2
    error = capsys.readouterr().err
    assert told in error and f"{key}=" in error and str(tmp_path / place)[:100] in error and "Traceback" not in error
    assert (tmp_path / "file").read_text() == "mine" and not [*tmp_path.rglob("config.yaml")]


@pytest.mark.parametrize("key", ["out", "cache"])
def test_a_folder_without_permission_is_told(world, tmp_path, capsys, monkeypatch, key):
    """mkdir refuses, as the kernel would of anybody but root."""
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
    """A file system of so many bytes; skips where that takes rights that we do not have."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root and a kernel that lets it")
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
def test_a_disk_that_fills_up_again_and_again_ends_in_the_weights_of_one_with_room(world, tmp_path):
    """Room grows by a few pages at a time: what is refused is now this, now that."""
    with mounted(tmp_path / "small", 4096 * 2) as folder:
        run, size, refused = folder / "run", 4096 * 2, []
        while True:
            words = ["pretrain", f"resume={run}"] if (run / "config.yaml").exists() else pretrain(world, str(run))
            done = gpt1(*words)
            for path in run.glob("checkpoints/[0-9]*"):
                assert load_file(path / "model.safetensors") and json.loads((path / "state.json").read_text())
            if done.returncode == 0:
                break
            assert done.returncode == 2 and "Traceback" not in done.stderr and "the disk is full" in done.stderr, done
            assert not (run / "result.json").exists()
            refused.append(done.stderr.split(" cannot be written")[0].rpartition("/")[2])
            size += 4096 * 7
            remount(folder, f"size={size}")
        assert len(set(refused)) > 2, refused
        assert same_weights(run, world / "whole")


@pytest.mark.slow
def test_a_read_only_file_system_is_told_and_the_run_in_it_is_as_it_was(world, tmp_path):
    with mounted(tmp_path / "small", 2**24) as folder:
        assert main(pretrain(world, str(folder / "run"), "steps=2")) == 0
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        remount(folder, "ro")
        for words in (pretrain(world, str(folder / "new")), ["pretrain", f"resume={folder / 'run'}", "steps=4"]):
            done = gpt1(*words)
            told = done.stderr
            assert done.returncode == 2 and "ead-only" in told and str(folder) in told and "Traceback" not in told
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# --- whose error it is ------------------------------------------------------------------------------------------------


def test_an_error_over_another_file_or_a_pipe_is_not_one_of_this_write(tmp_path):
    for other in (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/read.txt"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ValueError("of the work itself"),
        SafetensorError("InvalidHeader"),
    ):
        with pytest.raises(type(other)) as raised, files.writing(tmp_path / "a" / "b"):
            raise other
        assert raised.value is other and files.found(other) is None


def test_the_write_that_failed_is_found_below_what_a_library_made_of_it():
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "/cache/x.arrow")
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error
    except RuntimeError as error:
        found = files.found(error)
    assert found is not None and found.filename == "/cache/x.arrow"
    assert files.told(found, "cache=").startswith("/cache/x.arrow cannot be written: the disk quota is used up")
    assert files.found(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None  # one that is read
