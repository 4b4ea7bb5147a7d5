"""Runs, checkpoints, sweeps and studies that commit d801a04 wrote go on, and answer as they did then.

data/old_runs.tar.xz holds them as they lay on the disk, data/old_runs.json what that commit said of them
(data/make_old_runs.py made both). The names in a run's folder, in its configuration, its result, its weights and its
training state are a promise: whoever has a run can still use it. A test that fails here says that the promise is
broken; neither of the two files is ever written anew by later code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import runpy
import shutil
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gpt1cli

DATA = Path(__file__).resolve().parent / "data"
PLACE = "/somewhere"  # where the runs lay when they were made
RELATIVE = 1e-5
ABSOLUTE = 2e-6  # probabilities are written with six digits, of which the last may be rounded up here and down there
TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes"}  # what no two runs have in common
ALONE = ("cache=cache", "runtime.threads=1", "runtime.progress=none", "runtime.device=cpu", "runtime.precision=fp32")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, in a folder that nobody works in."""
    root = tmp_path_factory.mktemp("old")
    with tarfile.open(DATA / "old_runs.tar.xz") as archive:
        archive.extractall(root, filter="data")
    return root


@pytest.fixture
def world(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old runs in a folder of the test's own, where commands run, with the paths in them leading there."""
    root = tmp_path / "world"
    shutil.copytree(unpacked, root, symlinks=True)
    for path in root.rglob("*"):
        # a checkpoint's files are left as they are: their checksums are stored beside them
        if path.suffix in (".yaml", ".json", ".jsonl") and "checkpoints" not in path.parts and not path.is_symlink():
            path.write_text(path.read_text(encoding="utf-8").replace(PLACE, str(root)), encoding="utf-8")
    for name in [name for name in os.environ if name.startswith("GPT1_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What d801a04 said."""
    return json.loads((DATA / "old_runs.json").read_text(encoding="utf-8"))


def gpt1(*words: str) -> str:
    """What a command prints, run as `python -m gpt1cli` runs it, but in this process: that saves seconds a command."""
    before, sys.argv = sys.argv, ["gpt1", *words]
    printed, told = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that another test has imported gpt1cli.__main__ before
            runpy.run_module("gpt1cli", run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, f"gpt1 {' '.join(words)}\n{printed.getvalue()}\n{told.getvalue()}"
    finally:
        sys.argv = before
    return printed.getvalue()


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tensors(path: Path) -> dict[str, Any]:
    """Small tensors as they are, large ones, which are copied and never computed, as a checksum."""
    found = {name: tensor.flatten() for name, tensor in load_file(path).items()}
    return {
        name: x.tolist() if len(x) <= 64 else hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16]
        for name, x in found.items()
    }


def differences(expected: Any, found: Any, where: str = "") -> Iterator[str]:
    """Where found is not what is expected, but for times, for rounding, and for where the folder lies."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if expected.keys() != found.keys():
            yield f"{where}: {sorted(expected)} expected, {sorted(found)} found"
        for key in (expected.keys() & found.keys()) - TIMES:
            yield from differences(expected[key], found[key], f"{where}.{key}")
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{where}: {len(expected)} entries expected, {len(found)} found"
        for place, (a, b) in enumerate(zip(expected, found, strict=False)):
            yield from differences(a, b, f"{where}[{place}]")
    elif isinstance(expected, float) and isinstance(found, float):
        if not math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            yield f"{where}: {expected} expected, {found} found"
    elif isinstance(expected, str) and expected.startswith(PLACE):
        if not str(found).endswith(expected.removeprefix(PLACE)):
            yield f"{where}: {expected} expected, {found} found"
    elif type(expected) is not type(found) or expected != found:
        yield f"{where}: {expected!r} expected, {found!r} found"


def alike(expected: Any, found: Any) -> None:
    """Fail with all differences."""
    told = list(differences(expected, found))
    assert not told, "\n".join(told[:20])


def needs_the_versions_of(run: Path) -> None:
    """Skip where a run on the level of words would rightly be refused: other versions of ftfy or spaCy, other words."""
    then = json.loads((run / "environment.json").read_text(encoding="utf-8"))["versions"]
    for package in ("ftfy", "spacy"):
        if then[package] != importlib.metadata.version(package):
            pytest.skip(f"the run was begun with {package} {then[package]}")


# --- going on ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_pretraining_goes_on_to_the_end_of_one_that_was_not(
    world: Path, expected: dict[str, Any]
) -> None:
    part, corpora = world / "runs" / "part", sorted(path.name for path in (world / "cache" / "corpora").iterdir())
    stopped = max(line["step"] for line in lines(part / "metrics.jsonl"))
    assert not (part / "result.json").exists() and stopped < 120
    gpt1("pretrain", f"resume={part}")
    alike(expected["whole"], lines(part / "metrics.jsonl"))
    assert result(part)["steps"] == 120 and len(json.loads((part / "environment.json").read_text())["resumed"]) == 1
    # what was prepared then is found again: a byte-level vocabulary has no other package's version in its key
    assert sorted(path.name for path in (world / "cache" / "corpora").iterdir()) == corpora


@pytest.mark.slow
def test_a_finished_pretraining_goes_on_with_more_steps(world: Path, expected: dict[str, Any]) -> None:
    pre = world / "runs" / "pre"
    needs_the_versions_of(pre)
    gpt1("pretrain", f"resume={pre}", "steps=14")
    alike(expected["longer"][-4:], lines(pre / "metrics.jsonl")[-4:])
    assert result(pre)["steps"] == 14


@pytest.mark.slow
def test_a_half_done_study_goes_on_to_the_table_of_one_that_was_not_interrupted(
    world: Path, expected: dict[str, Any]
) -> None:
    study = world / "runs" / "study"
    needs_the_versions_of(world / "runs" / "pre")
    full, lstm = (study / "cells" / f"demo_sentiment-{name}-seed0" for name in ("full", "lstm"))
    before = (full / "result.json").stat().st_mtime_ns
    assert lstm.exists() and not (lstm / "result.json").exists() and not (study / "result.json").exists()
    gpt1("sweeps", f"resume={study}")
    assert (full / "result.json").stat().st_mtime_ns == before
    alike(expected["study"], {cell.name: result(cell) for cell in (full, lstm)})
    assert (study / "table.csv").read_text() == expected["study_table"]


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_job_that_is_missing(world: Path) -> None:
    sweep = world / "runs" / "sweep"
    kept, before = (sweep / "0" / "result.json").stat().st_mtime_ns, result(sweep / "1")
    shutil.rmtree(sweep / "1")
    gpt1("finetune", f"resume={sweep}")
    alike(before, result(sweep / "1"))
    assert (sweep / "0" / "result.json").stat().st_mtime_ns == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head", "prompt"])
def test_a_configuration_repeats_a_fine_tuning(world: Path, name: str) -> None:
    run = world / "runs" / name
    gpt1("finetune", f"config={run / 'config.yaml'}", f"hydra.run.dir={world / 'again'}")
    alike(result(run), result(world / "again"))
    alike(lines(run / "metrics.jsonl"), lines(world / "again" / "metrics.jsonl"))
    alike(lines(run / "predictions" / "test.jsonl"), lines(world / "again" / "predictions" / "test.jsonl"))


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head", pytest.param("prompt", marks=pytest.mark.slow)])
def test_a_fine_tuned_run_is_evaluated(world: Path, expected: dict[str, Any], name: str) -> None:
    gpt1("evaluate", f"run=runs/{name}", "split=valid", "limit.valid=16", *ALONE, "hydra.run.dir=scored")
    alike(expected["evaluate"][name], result(world / "scored"))


@pytest.mark.slow
def test_evaluating_the_test_split_gives_what_the_run_itself_wrote(world: Path) -> None:
    gpt1("evaluate", "run=runs/head", "split=test", "limit.test=8", *ALONE, "hydra.run.dir=scored")
    alike(result(world / "runs" / "head")["test"], result(world / "scored")["test"])
    written = world / "runs" / "head" / "predictions" / "test.jsonl"
    alike(lines(written), lines(world / "scored" / "predictions" / "test.jsonl"))


def test_fine_tuned_runs_predict(world: Path, expected: dict[str, Any]) -> None:
    gpt1("predict", "run=runs/head", "input=rows.csv", *ALONE, "output=head.jsonl")
    alike(expected["predict"]["head"], lines(world / "head.jsonl"))
    said = gpt1("predict", "run=runs/prompt", "text=the cat sat", "text_b=a cat", *ALONE)
    alike(expected["predict"]["prompt"], [json.loads(line) for line in said.splitlines()])


@pytest.mark.parametrize(
    ("init", "name"), [("pre", "score"), pytest.param("lstm", "score_lstm", marks=pytest.mark.slow)]
)
def test_a_language_model_scores(world: Path, expected: dict[str, Any], init: str, name: str) -> None:
    gpt1("score", f"init=runs/{init}", "input=lines.txt", *ALONE, "hydra.run.dir=scored")
    alike(expected[name], lines(world / "scored" / "scores.jsonl"))


@pytest.mark.parametrize(
    ("init", "name"), [("part", "generate"), pytest.param("lstm", "generate_lstm", marks=pytest.mark.slow)]
)
def test_a_language_model_generates(world: Path, expected: dict[str, Any], init: str, name: str) -> None:
    gpt1("generate", f"init=runs/{init}", "prompt=the cat", "tokens=40", "samples=2", *ALONE, "hydra.run.dir=generated")
    alike(expected[name], lines(world / "generated" / "generated.jsonl"))


@pytest.mark.slow
def test_language_models_are_asked_without_training(world: Path, expected: dict[str, Any]) -> None:
    gpt1(
        "zeroshot", "task=demo_choice", f"runs=[{world}/runs/pre,{world}/runs/lstm]", "limit.valid=12", "limit.test=8",
        *ALONE, "hydra.run.dir=asked",
    )  # fmt: skip
    alike(expected["zeroshot"], lines(world / "asked" / "metrics.jsonl"))


@pytest.mark.slow
def test_a_language_model_is_asked_behind_demonstrations(world: Path, expected: dict[str, Any]) -> None:
    gpt1(
        "fewshot", "task=demo_sentiment", "shots=[0,2]", "seeds=[13]", "split=valid", "limit.valid=12", "init=runs/pre",
        *ALONE, "hydra.run.dir=asked",
    )  # fmt: skip
    alike(expected["fewshot"], lines(world / "asked" / "metrics.jsonl"))


@pytest.mark.parametrize("name", ["pre", "part", "lstm"])
def test_python_loads_a_run_and_a_checkpoint(world: Path, expected: dict[str, Any], name: str) -> None:
    told = expected["logits"][name]
    for place in (world / "runs" / name, (world / "runs" / name / "checkpoints" / "last").resolve()):
        model, tokenizer = gpt1cli.load(place)
        assert tokenizer.encode("the cat sat on") == told["tokens"]
        with torch.no_grad():
            found = model.logits(model(torch.tensor([told["tokens"]])))[0, -1].tolist()
        alike(told["logits"], found)


# --- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head", pytest.param("prompt", marks=pytest.mark.slow)])
def test_a_fine_tuned_run_is_exported(world: Path, expected: dict[str, Any], name: str) -> None:
    gpt1("export", f"run=runs/{name}", "out=exported", *ALONE)
    told, found = expected["export"][name], world / "exported"
    alike(told["config"], json.loads((found / "config.json").read_text()))
    alike(told["tensors"], tensors(found / "model.safetensors"))


def test_old_runs_are_reported(world: Path, expected: dict[str, Any]) -> None:
    gpt1("report", "runs=[runs/sweep]", *ALONE, "hydra.run.dir=reported")
    assert (world / "reported" / "table.csv").read_text() == expected["report"]


def test_nothing_in_the_archive_names_a_machine(unpacked: Path) -> None:
    """What was written then is the user's alone: paths begin at the placeholder."""
    for path in unpacked.rglob("*"):
        if path.is_file() and path.suffix not in (".safetensors", ".bin", ".npy", ".png"):
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in ("/root", "/home", "/tmp", "/Users")), path
