"""Stored configurations and yamls for --config-dir from other users: used or refused in a few lines, without damage.

Keys are missing or unknown; values have other types, are nested, huge, or random text. A training takes two steps at
most.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    QUIET,
    accepted_or_refused,
    changed,
    damaged,
    drawn,
    examples,
    harmed_copy,
    ran,
    remade,
    some_of,
    state_of,
    stopped,
    unharmed,
    yamls,
)
from worlds import CONF

from gpt1cli.commands import ablation, finetune
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, build
from gpt1cli.models import create
from gpt1cli.training import dry_run

FIT = finetune.fit
MEMORY = 1e8  # bytes of memory that the machine pretends to have


def short_fit(**settings: Any) -> Any:
    """Train only if the run is short."""
    return FIT(**settings) if settings["config"].steps <= 2 else stopped()


@pytest.fixture
def short(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevent long trainings and large models."""
    monkeypatch.setattr(finetune, "fit", short_fit)
    monkeypatch.setattr(dry_run, "dry_run", lambda *_: stopped())
    monkeypatch.setattr(ablation, "run", lambda *_: stopped())
    monkeypatch.setattr(create, "memory_sizes", lambda: (MEMORY, MEMORY))


# --- foreign runs -----------------------------------------------------------------------------------------------------


class Use(NamedTuple):
    """A command and the files of a run that it reads."""

    words: list[str]
    files: list[str]


FEW = ["limit.train=4", "limit.valid=2", "limit.test=2", "steps=1", "batch_size=2"]
USES = {
    "repeat": Use(["finetune", "config={run}/config.yaml"], ["config.yaml", "environment.json"]),
    "resume": Use(
        ["finetune", "resume={run}"], ["config.yaml", "environment.json", "result.json", "state.json", "config.json"]
    ),
    "go on": Use(
        ["finetune", "resume={run}", "steps=2"],
        ["config.yaml", "environment.json", "result.json", "state.json", "metrics.jsonl"],
    ),
    "start": Use(["finetune", "init={run}", "task=demo_acceptability", *FEW], ["config.json"]),
    "evaluate": Use(["evaluate", "run={run}", "split=valid"], ["config.json"]),
    "ensemble": Use(["evaluate", "runs=[{run},{world}/run]", "split=valid"], ["config.json"]),
    "predict": Use(["predict", "run={run}", "text=a cat"], ["config.json"]),
    "report": Use(["report", "runs=[{run},{world}/run]"], ["config.yaml", "result.json", "environment.json"]),
}
RESUMES = ("resume", "go on")
RECORD = {".lock", "run.log", "environment.json", "config.yaml", ".hydra"}  # a resumed run appends to these


def place_of(run: Path, name: str) -> Path:
    """Return the path of a file of the run or of its checkpoint."""
    return next(path for path in (run / name, *run.glob(f"checkpoints/*/{name}")) if path.exists())


def replacements(name: str, whole: bytes) -> st.SearchStrategy[bytes]:
    """Other contents for a file of a run."""
    if name.endswith(".yaml"):
        return yamls(whole.decode())
    if name.endswith(".jsonl"):
        lines = st.lists(changed(json.loads(whole.splitlines()[0])), max_size=3)
        return st.one_of(lines.map(lambda found: "".join(json.dumps(x) + "\n" for x in found).encode()), damaged(whole))
    plain = changed(json.loads(whole)).map(lambda plain: json.dumps(plain).encode())
    return st.one_of(plain, plain, plain, damaged(whole))


def use_run(world: Path, use: str, name: str, data: bytes) -> int:
    """Run a command on a copy of the run with one file replaced; the checksums match."""
    out = world / "out"
    with harmed_copy(world, "run") as run:
        path = place_of(run, name)
        path.write_bytes(data)
        if path.parent != run:
            remade(path.parent)
        words = [word.format(run=run, world=world) for word in USES[use].words]
        if use not in RESUMES:
            with unharmed(world, out):
                return accepted_or_refused(*words, f"out={out}", f"cache={world / 'cache'}", *QUIET)
        before = state_of(run)
        with unharmed(world, out, own=run):
            status = accepted_or_refused(*words)
            after = state_of(run)
        if status == 2:  # no earlier result is lost
            reached = {path: what for path, what in before.items() if Path(path).name not in RECORD}
            assert {path: after.get(path) for path in reached} == reached
        assert (run / "result.json").is_file()
        return status


FINDINGS = [  # earlier findings of the tests below: use, file, changed keys or bytes, exit status
    ("go on", "environment.json", {"command_line": None}, 2),
    ("go on", "environment.json", {"command_line": ["finetune", 1]}, 2),
    ("go on", "environment.json", {"resumed": 3}, 2),
    ("go on", "environment.json", {"checksums": "all well"}, 2),
    ("go on", "result.json", {"steps": "1"}, 2),
    ("go on", "state.json", {"seconds": ""}, 2),  # a finished run stays finished if a resume is refused
    ("go on", "state.json", {"step": 3}, 2),
    ("go on", "metrics.jsonl", b"null\n", 2),
    ("go on", "metrics.jsonl", b'{"step": "1", "split": "train"}\n', 2),
    ("go on", "metrics.jsonl", b'{"step": 1, "split": "train", "loss": [2]}\n', 2),
    ("start", "config.json", {"model": None}, 2),
    ("start", "config.json", {"special_rows": 2**40}, 2),
    ("report", "config.yaml", {"\ud83d": 1}, 0),
    ("report", "result.json", b"{", 0),
]


@pytest.mark.parametrize(("use", "name", "change", "status"), FINDINGS)
def test_earlier_findings_stay_fixed(world, short, use, name, change, status):
    whole = place_of(world / "run", name).read_bytes()
    data = change if isinstance(change, bytes) else json.dumps(yaml.safe_load(whole) | change).encode()
    assert use_run(world, use, name, data) == status


@pytest.mark.parametrize("use", USES)
@examples(2, 60)
def test_a_foreign_run_is_used_or_refused(world, short, use, count):
    wholes = {name: place_of(world / "run", name).read_bytes() for name in USES[use].files}

    @drawn(count)
    @given(
        some_of(USES[use].files).flatmap(lambda name: replacements(name, wholes[name]).map(lambda data: (name, data)))
    )
    def check(harm):
        use_run(world, use, *harm)

    check()


# --- foreign yaml files -----------------------------------------------------------------------------------------------

PROMPT = """template: "{text} it was {label}"
words: {positive: great, negative: bad}
separator: " "
description: a text and what it is
"""
YAMLS = {  # kind of yaml -> its place, its text, and the overrides that use it
    "task": ("task/mine.yaml", "task/demo_acceptability.yaml", ["finetune", "task=mine", *FEW]),
    "rows": ("task/mine.yaml", "task/sst2.yaml", ["finetune", "task=mine", *FEW]),
    "rule": ("task/mine.yaml", "task/demo_choice.yaml", ["zeroshot", "task=mine", *FEW[1:3]]),
    "model": ("model/mine.yaml", "model/tiny.yaml", ["pretrain", "model=mine", "corpus=demo", "plan.tokens=1e6"]),
    "study": ("study/mine.yaml", "study/demo.yaml", ["ablation", "study=mine"]),
    "few": ("study/mine.yaml", "study/lmbff_demo.yaml", ["ablation", "study=mine"]),
    "shown": ("prompt.yaml", PROMPT, ["fewshot", "shots=1", "seeds=[0]", *FEW[1:3]]),
    "tuned": ("prompt.yaml", PROMPT, ["finetune", "method=prompt", *FEW]),
}


def use_yaml(world: Path, what: str, data: bytes) -> int:
    """Run a command that reads this yaml."""
    place, _, words = YAMLS[what]
    out, mine = world / "out", world / "broken" / "conf"
    shutil.rmtree(mine, ignore_errors=True)
    (mine / place).parent.mkdir(parents=True)
    (mine / place).write_bytes(data)
    if place == "prompt.yaml":
        words = [*words, "task=demo_sentiment", f"prompt={mine / place}"]
    else:
        words = ["--config-dir", str(mine), *words]
    if "plan.tokens=1e6" in words:
        words = [*words, "dry_run=true"]
    elif what not in ("study", "few"):
        words = [*words, f"init={world / 'pretrained'}"]
    with unharmed(world, out):
        return accepted_or_refused(*words, f"out={out}", f"cache={world / 'cache'}", *QUIET)


@pytest.mark.parametrize("change", ["n_layer: 2147483648", "d_ff: 1000000000000", "n_positions: 4294967296"])
def test_a_model_too_large_for_the_memory_is_refused(world, short, change):
    lines = (CONF / "model/tiny.yaml").read_text().splitlines()
    key = change.partition(":")[0]
    text = "\n".join(change if line.startswith(f"{key}:") else line for line in lines)
    with pytest.raises(UserError, match=r"model=tiny is too large: [0-9,]+ parameters"):
        create.create_model(build(ModelConfig, yaml.safe_load(text)), 10)
    assert use_yaml(world, "model", text.encode()) == 2


@pytest.mark.parametrize("data", [b"name: \xff", b"name: !!int x", b"name: [", b"a: 1\n a: 2"])
def test_an_unreadable_yaml_is_reported(tmp_path, data):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    path = tmp_path / "conf" / "model" / "mine.yaml"
    path.write_bytes(data)
    words = ["--config-dir", str(tmp_path / "conf"), "pretrain", "model=mine", "corpus=demo", f"out={tmp_path / 'out'}"]
    outcome = ran(*words)
    assert outcome.status == 2 and str(path) in outcome.err


@pytest.mark.parametrize("what", YAMLS)
@examples(2, 30)
def test_a_foreign_yaml_is_used_or_refused(world, short, what, count):
    text = YAMLS[what][1]
    text = (CONF / text).read_text() if text.endswith(".yaml") else text

    @drawn(count)
    @given(yamls(text))
    def check(data):
        use_yaml(world, what, data)

    check()
