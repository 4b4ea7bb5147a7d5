"""Files of other users or of a newer gpt1 are used or refused with a message; nothing in them is executed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from strategies import QUIET, accepted_or_refused, ran, remade, state_of
from worlds import read

from gpt1cli.config.schema import UserError, flatten
from gpt1cli.config.version import __version__
from gpt1cli.evaluation import predictor
from gpt1cli.pretrained import load
from gpt1cli.runs import files
from gpt1cli.runs import folder as runs_folder
from gpt1cli.text import bpe

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def run(world, tmp_path) -> Path:
    """A copy of the fine-tuned run, for changes."""
    return shutil.copytree(world / "run", tmp_path / "run", symlinks=True)


def places(tmp_path: Path) -> list[str]:
    return [f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}", *QUIET]


def change_yaml(path: Path, **changes: object) -> None:
    """Change values of a yaml; keys may be dotted, None removes one."""
    actual = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = actual
        for parent in parents:
            node = node[parent]
        if value is None:
            del node[last]
        else:
            node[last] = value
    path.write_text(yaml.safe_dump(actual))


def checkpoint_folder(run: Path) -> Path:
    return (run / "checkpoints" / "best").resolve()


# --- a newer gpt1 -----------------------------------------------------------------------------------------------------


def set_version(run: Path, version: str) -> None:
    about = json.loads((run / "environment.json").read_text())
    about["versions"]["gpt1"] = version
    (run / "environment.json").write_text(json.dumps(about))


@pytest.mark.parametrize("key", ["moon", "task__moon", "runtime__moon"])
def test_keys_of_a_newer_gpt1_are_reported_with_its_version(run, tmp_path, key):
    change_yaml(run / "config.yaml", **{key: 3})
    for version, words in (("9.0.0", [f"resume={run}"]), ("0.0.9", [f"config={run}", *places(tmp_path)])):
        set_version(run, version)
        before = state_of(run)
        outcome = ran("finetune", *words)
        assert outcome.status == 2 and f"{key.replace('__', '.')}: no such key" in outcome.err
        newer = f"it was written by gpt1 9.0.0, but this is gpt1 {__version__}: update gpt1"
        assert (newer in outcome.err) == (version == "9.0.0")
        assert state_of(run) == before


def test_a_run_with_keys_of_a_newer_gpt1_is_still_evaluated_and_reported(run, tmp_path):
    change_yaml(run / "config.yaml", moon=3, task__moon=[1])
    assert ran("evaluate", f"run={run}", *places(tmp_path)).status == 0
    assert ran("report", f"runs=[{run}]", *places(tmp_path)).status == 0


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"task": None}, "task.name=null is refused"),
        ({"seed": [1]}, "seed=[1] is refused: expected int"),
        ({"task__metrics": []}, "valid.accuracy"),
        ({"model": "x"}, "model.n_layer=null is refused"),
        ({"transfer_layers": "most"}, "transfer_layers=most is refused"),
        ({"demo_sets": 3, "demos": 7}, "demos=7 is refused"),
    ],
)
def test_a_report_skips_unknown_runs_with_a_message(world, run, tmp_path, changes, fragment):
    if "task__metrics" in changes:
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | {"valid": {"accuracy": float("nan")}}))
    else:
        change_yaml(run / "config.yaml", **changes)
    set_version(run, "9.0.0")
    outcome = ran("report", f"runs=[{run}]", *places(tmp_path))
    assert outcome.status == 2 and f"{run} is skipped: " in outcome.err and fragment in outcome.err
    assert "written by gpt1 9.0.0" in outcome.err
    outcome = ran("report", f"runs=[{run},{world / 'run'}]", f"hydra.run.dir={tmp_path / 'report'}", *places(tmp_path))
    assert outcome.status == 0 and f"{run} is skipped: " in outcome.err
    assert str(run) not in (tmp_path / "report" / "report.md").read_text()


# --- executable text --------------------------------------------------------------------------------------------------

RESOLVED = {
    "task.zeroshot.cue": "${oc.env:GPT1_SECRET}",
    "task.zeroshot.opening": "${oc.decode:'1'}",
    "task.prompt.separator": "${now:%Y}",
    "task.prompt.description": "${hydra:job.name}",
    "task.remedy": "${gpt1.text:x41}",
    "task.prompt.content_free": "${seed}",
}


def text_fields(task: Mapping[str, Any]) -> dict[str, Any]:
    actual = dict(flatten({"task": task}))
    return {key: actual[key] for key in RESOLVED}


def test_interpolations_in_a_foreign_run_are_not_resolved(run, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT1_SECRET", "swordfish")
    change_yaml(run / "config.yaml", name="${oc.env:GPT1_SECRET}")
    change_yaml(run / "config.yaml", **{key.replace(".", "__"): value for key, value in RESOLVED.items()})
    outcome = ran("finetune", f"resume={run}")
    assert outcome.status == 2 and "name=${oc.env:GPT1_SECRET} is refused" in outcome.err  # not resolved
    outcome = ran("finetune", f"config={run}", "name=mine", f"hydra.run.dir={tmp_path / 'again'}", *places(tmp_path))
    assert outcome.status == 0, outcome.err
    assert text_fields(files.read_config(tmp_path / "again" / "config.yaml")["task"]) == RESOLVED
    about = checkpoint_folder(tmp_path / "again") / "config.json"
    assert text_fields(json.loads(about.read_text())["task"]) == RESOLVED
    outcome = ran("evaluate", f"run={tmp_path / 'again'}", f"hydra.run.dir={tmp_path / 'scored'}", *places(tmp_path))
    assert text_fields(files.read_config(tmp_path / "scored" / "config.yaml")["task"]) == RESOLVED
    assert not any(b"swordfish" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_interpolations_in_a_foreign_prompt_are_not_resolved(world, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT1_SECRET", "swordfish")
    prompt = {
        "template": "{text} {label}",
        "description": "${oc.env:GPT1_SECRET}",
        "words": {"positive": "great", "negative": "bad"},
    }
    (tmp_path / "prompt.yaml").write_text(yaml.safe_dump(prompt))
    words = ["fewshot", "task=demo_sentiment", f"init={world / 'pretrained'}", f"prompt={tmp_path / 'prompt.yaml'}"]
    words += ["shots=0", "limit.test=2", "limit.valid=2", f"hydra.run.dir={tmp_path / 'run'}", *places(tmp_path)]
    outcome = ran(*words)
    assert outcome.status == 0, outcome.err
    assert files.read_config(tmp_path / "run" / "config.yaml")["task"]["prompt"]["description"] == prompt["description"]


TARGETS = [
    {"hydra": {"callbacks": {"x": {"_target_": "marker.mark"}}}},
    {"hydra": {"callbacks": {"x": {"_target_": "hydra.utils.instantiate", "_recursive_": True, "config": {}}}}},
    {"hydra": {"callbacks": {"x": "${task.prompt.words}"}}, "task": {"prompt": {"words": {"_target_": "marker.mark"}}}},
    {"hydra": {"callbacks": {"x": {"_target_": "${hydra.job.name}"}}, "job": {"name": "marker.mark"}}},
    {"hydra": {"launcher": {"_target_": "marker.mark"}}},
    {"hydra": {"sweeper": {"_target_": "marker.mark"}}},
    {"hydra": {"job_logging": {"version": 1, "handlers": {"x": {"()": "marker.mark"}}, "root": {"handlers": ["x"]}}}},
    {"hydra": {"job_logging": {"version": 1, "handlers": {"x": {"class": "marker.mark"}}}}},
    {"hydra": {"hydra_logging": {"version": 1, "formatters": {"x": {"()": "ext://marker.mark"}}}}},
    {"hydra": {"job": {"env_set": {"LD_PRELOAD": "/tmp/evil.so"}}}},
]


@pytest.mark.parametrize("more", TARGETS, ids=lambda more: json.dumps(more["hydra"])[:60])
def test_hydra_executes_nothing_from_a_foreign_task(tmp_path, monkeypatch, more):
    """A yaml for --config-dir may set anything, also settings of Hydra; any reference to code is refused."""
    (tmp_path / "marker.py").write_text(f"def mark(*a, **k):\n    open({str(tmp_path / 'marked')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = read("task/demo_sentiment.yaml")
    for key, value in more.get("task", {}).items():
        task["task"][key] |= value
    (tmp_path / "conf" / "task").mkdir(parents=True)
    text = yaml.safe_dump({**task, "hydra": more["hydra"]})
    (tmp_path / "conf" / "task" / "theirs.yaml").write_text(f"# @package _global_\n{text}")
    words = ["--config-dir", str(tmp_path / "conf"), "finetune", "task=theirs", "steps=1", *places(tmp_path)]
    for flags in ([], ["-m"]) if more is TARGETS[0] else ([],):
        outcome = ran(*flags, *words)
        assert outcome.status == 2 and ("runs no code that" in outcome.err or "a yaml may not set" in outcome.err), (
            outcome.err
        )
    assert not (tmp_path / "marked").exists() and not (tmp_path / "out" / "finetune").exists()


def test_a_target_in_foreign_files_is_an_unknown_key(run, tmp_path):
    target = {"_target_": "os.system", "_recursive_": True, "command": f"touch {tmp_path / 'marked'}"}
    change_yaml(run / "config.yaml", logger={"name": "none", "project": None, **target})
    for words in ([f"resume={run}"], [f"config={run}", *places(tmp_path)]):
        outcome = ran("finetune", *words)
        assert outcome.status == 2 and "logger._target_: no such key" in outcome.err
    folder = checkpoint_folder(run)
    about = json.loads((folder / "config.json").read_text())
    about["task"] |= target
    (folder / "config.json").write_text(json.dumps(about))
    remade(folder)
    outcome = ran("evaluate", f"run={run}", *places(tmp_path))
    assert outcome.status == 2 and "_target_: no such key" in outcome.err
    assert not (tmp_path / "marked").exists()


# --- links and names that leave a folder ------------------------------------------------------------------------------

LINKS = [
    "checkpoints",
    "predictions",
    "plots",
    ".hydra",
    ".lock",
    "metrics.jsonl",
    "run.log",
    "config.yaml",
    "submission",
]


def test_log_links_of_wandb_do_not_stop_a_run(tmp_path):
    logs = tmp_path / "run" / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (tmp_path / "core.log").write_text("wandb's\n")
    (logs / "debug-core.log").symlink_to(tmp_path / "core.log")
    runs_folder.refuse_links(tmp_path / "run")
    (tmp_path / "run" / "wandb" / "offline-run-2").symlink_to(tmp_path)
    with pytest.raises(UserError, match="wandb/offline-run-2 -> "):
        runs_folder.refuse_links(tmp_path / "run")


@pytest.mark.parametrize("name", LINKS)
def test_a_run_with_links_to_the_outside_is_not_resumed(run, tmp_path, name):
    """Otherwise the run would write and remove files elsewhere."""
    outside, place = tmp_path / "outside", run / name
    if place.exists():
        place.rename(outside)
    else:
        outside.mkdir() if name == "submission" else outside.write_text("mine\n")
    place.symlink_to(outside)
    (run / "result.json").unlink()
    before = state_of(tmp_path)
    outcome = ran("finetune", f"resume={run}")
    assert outcome.status == 2 and "these links lead out of it" in outcome.err and f"{name} -> {outside}" in outcome.err
    assert state_of(tmp_path) == before


def test_a_moved_run_with_links_inside_is_resumed(run):
    (run / "result.json").unlink()
    assert ran("finetune", f"resume={run}").status == 0 and (run / "result.json").exists()


def test_a_checkpoint_of_linked_files_is_read_and_their_targets_are_unchanged(run, tmp_path):
    """The cache of the hub has such links."""
    folder, outside = checkpoint_folder(run), tmp_path / "blobs"
    outside.mkdir()
    for path in folder.iterdir():
        path.rename(outside / path.name)
        path.symlink_to(outside / path.name)
    before = state_of(outside)
    assert ran("evaluate", f"run={run}", *places(tmp_path)).status == 0
    assert ran("export", f"run={run}", f"out={tmp_path / 'exported'}", f"hydra.run.dir={tmp_path / 'e'}").status == 0
    assert state_of(outside) == before and not any(path.is_symlink() for path in (tmp_path / "exported").iterdir())


AWAY = ["../../x", "/tmp/x", "..", ".", "a/../../b"]
NAMES = ["name", "task.name", "logger.project"]


@pytest.mark.parametrize("value", AWAY)
def test_a_name_cannot_leave_the_output_folder(world, tmp_path, value):
    for key in NAMES:
        words = [f"config={world / 'run'}", f"{key}={value}", *(["logger=wandb"] if "logger" in key else [])]
        outcome = ran("finetune", *words, *places(tmp_path))
        assert outcome.status == 2 and f"{key}={value} is refused" in outcome.err, outcome.err
    words = ["corpus=text", f"corpus.path={world / 'rows.csv'}", f"corpus.name={value}", "tokenizer=demo"]
    outcome = ran("prepare", *words, *places(tmp_path))
    assert outcome.status == 2 and f"corpus.name={value} is refused" in outcome.err, outcome.err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "changes",
    [
        {"task__name": "../../x"},
        {"task__submission": {"test": "../../x"}},
        {"task__submission": {"../../x": "RTE"}},
        {"task__splits": {"valid": "valid", "valid_/../../x": "valid"}},
        {"name": "../../x"},
        {"limit": {"train": "../../x", "valid": None, "test": None}},
        {"corpus": {"name": "../../x"}},
    ],
)
def test_stored_names_cannot_leave_the_run_folder(run, tmp_path, changes):
    change_yaml(run / "config.yaml", **changes)
    inside = {key.removeprefix("task__"): value for key, value in changes.items() if key.startswith("task__")}
    folder = checkpoint_folder(run)
    about = json.loads((folder / "config.json").read_text())
    about["task"] |= inside
    (folder / "config.json").write_text(json.dumps(about))
    remade(folder)
    before = state_of(tmp_path)
    uses = [["finetune", f"resume={run}"], ["finetune", f"config={run}", *places(tmp_path)]]
    uses += [["evaluate", f"run={run}", *places(tmp_path)]] if inside else []
    for words in uses:
        assert accepted_or_refused(*words) == 2
    assert state_of(tmp_path) == before


def test_labels_and_ids_are_not_used_as_paths_or_formulas(world, tmp_path):
    labels, ids = ["../../x", "/tmp/x", "$\\frac{"], ["../../y", "/tmp/y", "<b>"]
    rows = [{"text": f"a cat {n}", "label": labels[n % 3], "id": f"{ids[n % 3]}{n}"} for n in range(18)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["finetune", "task=file", f"task.train={tmp_path / 'rows.jsonl'}", "task.kind=classification", "task.id=id"]
    words += [f"init={world / 'pretrained'}", "steps=1", "batch_size=4", f"hydra.run.dir={tmp_path / 'run'}"]
    assert ran(*words, *places(tmp_path)).status == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["rows.jsonl", "run"]
    answered = files.read_jsonl(tmp_path / "run" / "predictions" / "valid.jsonl")
    assert {line["label"] for line in answered} == set(labels)
    assert "<b>" not in (tmp_path / "run" / "report.html").read_text()


# --- another tokenizer ------------------------------------------------------------------------------------------------


def other_merges(vocabulary: bpe.Tokenizer) -> bpe.Tokenizer:
    """A vocabulary of the same size with two ids swapped."""
    entries = dict(vocabulary.vocabulary)
    first, second = list(entries)[1:3]
    swapped = {first: second, second: first}
    turned = {swapped.get(entry, entry): index for entry, index in entries.items()}
    return bpe.Tokenizer(turned, vocabulary.merges)


@pytest.mark.parametrize("part", ["run", "pretrained", "exported"])
def test_another_tokenizer_of_the_same_size_is_refused(world, tmp_path, part):
    copy = shutil.copytree(world / part, tmp_path / part, symlinks=True)
    folder = copy if part == "exported" else checkpoint_folder(copy)
    right = load.load_language_model(str(folder), None, "")[1]
    wrong = other_merges(right)
    assert len(wrong) == len(right)
    wrong.save(folder)
    (folder / "checksums.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="its tokenizer is not the one that its model was trained with; copy"):
        load.load_language_model(str(folder), None, "")
    if part == "run":
        with pytest.raises(UserError, match="its tokenizer is not the one"):
            predictor.load_fine_tuned(folder)
    about = json.loads((folder / "config.json").read_text())
    del (about.get("gpt1") or about)["tables"]
    (folder / "config.json").write_text(json.dumps(about))
    assert len(load.load_language_model(str(folder), None, "")[1]) == len(
        right
    )  # of an older gpt1, without a digest to compare
