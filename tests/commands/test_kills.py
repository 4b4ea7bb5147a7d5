"""Processes that are killed, stopped or started twice, and a clock that is set back: the results do not change.

Also: test_pretrain_and_finetune.py kills pretraining twenty times, test_ablation.py a study five times,
tests/text/test_corpus.py a preparation before every file operation, tests/cli/test_sweep.py sweeps on other launchers.
"""

from __future__ import annotations

import datetime
import functools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import hydra.core.utils
import pytest
import torch
from runs import write_run
from safetensors.torch import load_file
from worlds import SMALL, STORY

from gpt1cli.cli.main import main
from gpt1cli.runs import console, files, record

FORK = multiprocessing.get_context("fork")
STEPS = (
    "fsync",
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
    "symlink",
)  # operations that change the state of the files on disk
STOPS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}  # signal: exit status


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a text, a pretraining run on it, `run`, and fine-tuning from that, `whole`."""
    root = tmp_path_factory.mktemp("kills")
    (root / "story.txt").write_text(STORY * 200)
    assert main(pretrain(root, root / "run", "steps=3")) == 0
    return root


def pretrain(root: Path, run: Path, *more: str) -> list[str]:
    return [
        "pretrain", *SMALL, "corpus=text", f"corpus.path={root / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=30",
        "eval_tokens=64", f"cache={root / 'cache'}", f"hydra.run.dir={run}", *more,
    ]  # fmt: skip


def finetune(root: Path, run: Path) -> list[str]:
    return [
        "finetune", "task=demo_sentiment", f"init={root / 'run'}", "limit.train=12", "limit.valid=6", "limit.test=6",
        "batch_size=4", "steps=6", "runtime.threads=1", "runtime.progress=none", f"cache={root / 'cache'}",
        f"hydra.run.dir={run}",
    ]  # fmt: skip


def start(words: list[str], *code: str) -> subprocess.Popen[str]:
    """Start a process of gpt1, or of the given code, with stderr captured."""
    command = ["-c", *code, *words] if code else ["-m", "gpt1cli", *words]
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def contents(folder: Path, skipped: set[str]) -> dict[str, bytes]:
    """Return the contents of the files of a folder, except some names."""
    actual = (path for path in sorted(folder.rglob("*")) if path.is_file() and not skipped & {*path.parts})
    return {str(path.relative_to(folder)): path.read_bytes() for path in actual}


def is_whole(run: Path) -> None:
    """Check that no file under a final name is incomplete."""
    for path in run.rglob("*.json"):
        assert (
            path.name.startswith(".")
            or any(p.startswith(".") for p in path.relative_to(run).parts)
            or json.loads(path.read_text())
        )
    for path in run.glob("checkpoints/[0-9]*/*.safetensors"):
        assert load_file(path)
    for path in run.glob("predictions/*.jsonl"):
        assert path.read_bytes().endswith(b"}\n")


# --- killed before a step that the files depend on --------------------------------------------------------------------

COUNTING = """
import os, signal, sys
count = 0
def instead(name, function):
    def step(*arguments, **settings):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), number)
        return function(*arguments, **settings)
    return step
at, number, *words = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
from gpt1cli.cli.main import main
for name in "fsync rename unlink rmdir mkdir symlink".split():
    setattr(os, name, instead(name, getattr(os, name)))
status = main(words)
print(count, file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_finetuning_stopped_before_any_file_operation_resumes_to_the_same_result(world, tmp_path):
    """Twelve signals (SIGKILL, SIGTERM, Ctrl-C in turn), each before a random file operation of the undisturbed run."""
    whole = tmp_path / "whole"
    process = start([*map(str, (0, 0)), *finetune(world, whole)], COUNTING)
    steps = int(process.communicate()[1].split()[-1])
    assert process.returncode == 0 and steps > 40
    draw, ended = random.Random(0), []
    for round, number in enumerate([*STOPS] * 4):
        run, at = tmp_path / f"run{round}", draw.randrange(1, steps + 1)
        process = start([str(at), str(int(number)), *finetune(world, run)], COUNTING)
        stderr = process.communicate()[1]
        assert process.returncode == STOPS[number] and "Traceback" not in stderr, (at, process.returncode, stderr)
        ended.append(at)
        is_whole(run)
        started = (run / "config.yaml").exists()
        assert main(["finetune", f"resume={run}"] if started else finetune(world, run)) == 0, at
        ours, theirs = (load_file(folder / "checkpoints" / "last" / "model.safetensors") for folder in (run, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), at
        for name in ("predictions/valid.jsonl", "predictions/test.jsonl"):
            assert (run / name).read_bytes() == (whole / name).read_bytes(), at
        leftovers = [path for path in run.rglob(".*") if path.name not in (".lock", ".hydra")]
        assert not leftovers or not started, (at, leftovers)


def status_when_stopped(at: int, number: int, words: list[str]) -> int:
    """Return the exit status of a command in its own process, which gets a signal before file operation number `at`."""

    def run() -> None:
        count = 0

        def step(function: Callable, *arguments, **settings):
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), number)
            return function(*arguments, **settings)

        for name in STEPS:
            setattr(os, name, functools.partial(step, getattr(os, name)))
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        os._exit(main(words))

    process = FORK.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_report_stopped_before_any_file_operation_is_repeated_by_the_same_command(tmp_path):
    """In another folder, because a folder with an unfinished report is refused."""
    for seed in (0, 1):
        write_run(tmp_path / "runs" / str(seed), "rte", {"valid": {"accuracy": 0.5 + seed / 10}}, seed=seed)
    words = ["report", f"runs=[{tmp_path / 'runs'}]"]
    assert status_when_stopped(0, 0, [*words, f"hydra.run.dir={tmp_path / 'whole'}"]) == 0
    whole = contents(tmp_path / "whole", {".hydra", ".lock", "config.yaml", "environment.json"})
    assert {"report.md", "report.html", "table.csv", "result.json"} <= whole.keys()
    at, statuses = 1, set[int]()
    while True:
        run, number = tmp_path / f"at{at}", [*STOPS][at % 3]
        status = status_when_stopped(at, number, [*words, f"hydra.run.dir={run}"])
        actual = contents(run, {".hydra", ".lock", "config.yaml", "environment.json"}) if run.exists() else {}
        half = {name for name in actual if not Path(name).name.startswith(".") and actual[name] != whole[name]}
        assert not half, (at, half)
        if status == 0:
            break
        assert status == STOPS[number], at
        statuses.add(status)
        assert "result.json" not in actual or actual.keys() >= whole.keys(), at  # written last, as the proof of success
        at += 2
    assert actual == whole and statuses == {*STOPS.values()}
    assert main([*words, f"hydra.run.dir={tmp_path / 'again'}"]) == 0
    assert contents(tmp_path / "again", {".hydra", ".lock", "config.yaml", "environment.json"}) == whole


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_preparation_stopped_before_any_file_operation_is_repeated_by_the_same_command(world, tmp_path):
    """Also the tokenizer and the record of the run; test_corpus.py has every operation of the shards."""
    words = ["prepare", "corpus=text", f"corpus.path={world / 'story.txt'}", "tokenizer=bpe", "tokenizer.merges=50"]
    words += [f"out={tmp_path / 'out'}", "runtime.progress=none"]
    process = start(["0", "0", *words, f"cache={tmp_path / 'whole'}"], COUNTING)
    steps = int(process.communicate()[1].split()[-1])
    assert process.returncode == 0 and steps > 20
    for number, at in zip([*STOPS] * 3, random.Random(1).sample(range(1, steps + 1), 9), strict=True):
        cache = tmp_path / f"at{at}"
        process = start([str(at), str(int(number)), *words, f"cache={cache}"], COUNTING)
        stderr = process.communicate()[1]
        assert process.returncode == STOPS[number] and "Traceback" not in stderr, (at, stderr)
        assert main([*words, f"cache={cache}"]) == 0, at
        for kind in ("corpora/text-*", "tokenizers/*"):
            (ours,), (theirs,) = ([*root.glob(kind)] for root in (cache, tmp_path / "whole"))
            assert contents(ours, set()) == contents(theirs, set()), at


# --- two at once ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_simultaneous_preparations_make_one_corpus(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("".join(f"the quick brown fox {i} jumps over the lazy dog .\n" for i in range(20_000)))
    words = ["prepare", "corpus=text", f"corpus.path={path}", "tokenizer=bpe", "tokenizer.merges=50"]
    words += [f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}"]
    both = [start(words), start(words)]
    assert [process.wait() for process in both] == [0, 0]
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("result.json")]
    assert len(results) == 2 and results[0]["shards"] == results[1]["shards"]
    name = Path(results[0]["shards"]).name
    assert {*os.listdir(tmp_path / "cache" / "corpora")} == {name, f".{name}.seen"}
    assert len(os.listdir(tmp_path / "cache" / "tokenizers")) == 1


def test_a_run_locked_by_a_live_process_is_refused_and_a_stale_lock_is_not(world, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(pretrain(world, run, "steps=1")) == 0
    before = contents(run, {".lock"})
    code = (
        "import sys, pathlib; from gpt1cli.runs import folder\n"
        f"held = folder.lock_folder(pathlib.Path({str(run)!r})); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert main(["pretrain", f"resume={run}", "steps=2"]) == 2
        assert f"{run} is in use by process {other.pid} on " in capsys.readouterr().err
        assert contents(run, {".lock"}) == before
        other.kill()
    assert f"process {other.pid} " in (run / ".lock").read_text()  # stale: no process holds it
    assert main(["pretrain", f"resume={run}", "steps=2"]) == 0
    assert json.loads((run / "result.json").read_text())["steps"] == 2


# --- the clock --------------------------------------------------------------------------------------------------------


class BackwardsClock:
    """A clock that goes back an hour at every call, finally before 1970; or one that stands still."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 1_000_000_000.0, step

    def __call__(self) -> float:
        self.now -= self.step
        return self.now

    def stamp(self, *_: object) -> datetime.datetime:
        return datetime.datetime(2026, 10, 25, 3) - datetime.timedelta(seconds=1_000_000_000 - self())


def set_clock(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    clock = BackwardsClock(step)
    faked = type("datetime", (datetime.datetime,), {"now": clock.stamp})
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(hydra.core.utils, "datetime", faked)  # names run folders
    monkeypatch.setattr(record, "datetime", SimpleNamespace(datetime=faked, UTC=datetime.UTC))
    monkeypatch.setattr(console, "datetime", faked)


def test_runs_started_at_the_same_time_have_separate_folders(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "0", "rte", {"valid": {"accuracy": 0.5}})
    set_clock(monkeypatch, 0.0)
    for _ in range(3):
        assert main(["report", f"runs=[{tmp_path / 'runs'}]", f"out={tmp_path / 'out'}"]) == 0
    assert {path.parent.name for path in (tmp_path / "out").rglob("result.json")} == {
        f"20261025-030000-000000{end}" for end in ("", "-2", "-3")
    }


@pytest.mark.slow
def test_a_clock_set_back_breaks_nothing(world, tmp_path, monkeypatch):
    set_clock(monkeypatch, 3600.0)
    words = [word for word in pretrain(world, tmp_path, "steps=2", "log_every=1") if "hydra.run.dir" not in word]
    for _ in range(2):
        assert main([*words, f"out={tmp_path / 'out'}"]) == 0
    first, second = (path.parent for path in (tmp_path / "out").rglob("result.json"))
    a, b = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert main(["pretrain", f"resume={first}", "steps=4"]) == 0
    assert len(record.read_environment(first)["resumed"]) == 1
    for run in (first, second):
        seconds = [line["seconds"] for line in files.read_jsonl(run / "metrics.jsonl")]
        assert seconds == sorted(seconds) and seconds[0] >= 0
        assert json.loads((run / "result.json").read_text())["seconds"] > 0
