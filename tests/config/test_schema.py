"""The door between plain data and dataclasses; and every option in conf/ goes through it."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import pytest

from gpt1cli.cli.hydra_loader import Composer
from gpt1cli.cli.resolve import compose
from gpt1cli.config import commands, options, schema
from gpt1cli.config.schema import Field, UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: Annotated[float, Field("a rate", above=0)]
    kind: Literal["a", "b"]

    def problems(self):
        if self.rate > 1 and self.kind == "a":
            yield "rate exceeds 1 with kind=a"


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: Annotated[int | None, Field("steps", at_least=1)]
    names: list[str]
    splits: dict[str, str]
    folder: Annotated[str | None, Field("a folder", filled=True)]
    inner: Inner


GOOD: dict[str, Any] = {"steps": 3, "names": ["x"], "splits": {}, "folder": None, "inner": {"rate": 1, "kind": "a"}}


def test_good_data_becomes_the_dataclass_and_whole_numbers_become_floats():
    built = schema.build(Outer, GOOD)
    assert built == Outer(3, ["x"], {}, None, Inner(1.0, "a"))
    assert type(built.inner.rate) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 1e3}, "steps=1000.0 is refused: steps takes a whole number or null"),
        ({"steps": True}, "steps=true is refused: steps takes a whole number or null"),
        ({"steps": 0}, "steps=0 is refused: it must be at least 1"),
        ({"names": "x"}, "names=x is refused: names takes a list, each a text"),
        ({"names": [1]}, "names[0]=1 is refused: names[0] takes a text"),
        ({"splits": {"train": 3}}, "splits.train=3 is refused: splits.train takes a text"),
        ({"folder": ""}, "folder= is refused: it must not be empty"),
        ({"folder": "a\0b"}, "must not hold a NUL"),
        ({"folder": "\ud800"}, "must not hold a NUL or half a character"),
        ({"inner": 3}, "inner=3 is refused"),
        ({"inner": {"rate": math.nan, "kind": "a"}}, "inner.rate=nan is refused: inner.rate takes a number"),
        ({"inner": {"rate": 10**400, "kind": "a"}}, "inner.rate takes a number"),
        ({"inner": {"rate": 0, "kind": "a"}}, "inner.rate=0 is refused: it must be above 0"),
        ({"inner": {"rate": 2, "kind": "a"}}, "inner.rate exceeds 1 with kind=a"),
        ({"inner": {"rate": 1, "kind": "aa"}}, "takes one of a, b; did you mean a?"),
        ({"stps": 1}, "stps: no such key; did you mean steps?"),
    ],
)
def test_bad_data_is_refused_by_name_value_and_what_would_be_right(change, message):
    with pytest.raises(UserError) as refused:
        schema.build(Outer, GOOD | change)
    assert message in str(refused.value)


def test_all_mistakes_are_told_together():
    with pytest.raises(UserError) as refused:
        schema.build(Outer, {"steps": 0, "names": [], "splits": {}, "inner": {"rate": -1, "kind": "c"}})
    assert len(str(refused.value).splitlines()) == 4  # steps, folder (missing), inner.rate, inner.kind


def test_a_long_value_is_cut_in_a_message():
    [message] = schema.check(schema.fields_of(Outer)["steps"], "x" * 10_000, "steps")
    assert len(message) < 300


COMPOSERS = {command: Composer(command) for command in commands.COMMANDS}
SPLITS = {name: options.values("task", name)["splits"] for name in options.names("task")}
OWN = [name for name in SPLITS if options.values("task", name)["source"] == "file"]
PROBES = [name for name, splits in SPLITS.items() if not {"train", "valid"} <= set(splits) and name not in OWN]
NEEDED = {  # what has no default
    "evaluate": ["run=outputs/finetune"],
    "generate": ["prompt=the sea"],
    "zeroshot": ["init=openai"],  # not what a demo task brings
    "fewshot": ["init=openai", "shots=0"],
    "search": ["init=openai", "what=templates"],
    "predict": ["run=outputs/finetune", "text=the sea"],
    "score": ["input=-"],
    "report": ["runs=[outputs]"],
}


def cases() -> list[tuple[str, dict[str, str]]]:
    """Compositions of every command in which every option of each of its groups occurs."""
    found = []
    for command in sorted(commands.COMMANDS.keys() - {"export"}):  # has no groups of its own, and reads the run at once
        known = {group: list(options.names(group)) for group in options.defaults(command)[0]}
        if command in ("finetune", "search"):
            known["task"] = [name for name in known["task"] if name not in PROBES]
        for number in range(max(map(len, known.values()))):
            found.append((command, {group: names[number % len(names)] for group, names in known.items()}))
    return found


@pytest.mark.parametrize(("command", "chosen"), cases(), ids=lambda case: case if isinstance(case, str) else "")
def test_every_option_in_conf_composes_and_builds(command, chosen):
    if chosen.get("study", "").startswith("lmbff"):  # whose rows are no ablations
        chosen = {group: option for group, option in chosen.items() if group != "ablation"}
    words = [f"{group}={option}" for group, option in chosen.items()]
    words += ["corpus.path=books/"] if chosen.get("corpus") == "text" else []
    words += ["init=none"] if {"init", "model"} <= schema.fields_of(commands.COMMANDS[command].config).keys() else []
    words += NEEDED.get(command, [])
    words += ["task.train=rows.csv", "task.kind=pair"] if chosen.get("task") in OWN else []
    asked = command in ("fewshot", "search") and chosen.get("task") == "file"
    words += ["task.prompt.template={text} {label}"] if asked else []
    built = compose(COMPOSERS[command], COMPOSERS[command].check(words)).config
    for group, option in chosen.items():
        if group != "runtime":  # the machine's settings have no name
            assert getattr(built, group).name == option


@pytest.mark.parametrize("task", PROBES)
def test_a_task_that_only_probes_is_not_fine_tuned_on(task):
    with pytest.raises(UserError, match=f"task={task} has no train and valid splits to fine-tune on; there: "):
        compose(COMPOSERS["finetune"], [f"task={task}", "init=none", "model=tiny"])


def test_every_key_has_a_meaning_and_every_group_a_dataclass():
    for command, (cls, *_) in commands.COMMANDS.items():
        for name, annotation in schema.fields_of(cls).items():
            grouped = dataclasses.is_dataclass(schema.unwrap(annotation))
            assert grouped or schema.key_of(annotation).meaning, f"{command}: {name}"
        assert set(options.defaults(command)[0]) <= set(commands.GROUPS)
        for group in options.defaults(command)[0]:
            assert all(options.names(group).values()), f"an option of {group} does not say what it is"
