"""Validation of plain data into dataclasses, for small classes and for every option in conf/."""

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
    folder: Annotated[str | None, Field("a folder", nonempty=True)]
    inner: Inner


GOOD: dict[str, Any] = {"steps": 3, "names": ["x"], "splits": {}, "folder": None, "inner": {"rate": 1, "kind": "a"}}


def test_valid_data_becomes_the_dataclass_and_ints_become_floats():
    built = schema.build(Outer, GOOD)
    assert built == Outer(3, ["x"], {}, None, Inner(1.0, "a"))
    assert type(built.inner.rate) is float


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"steps": 1e3}, "steps=1000.0 is refused: expected int or null"),
        ({"steps": True}, "steps=true is refused: expected int or null"),
        ({"steps": 0}, "steps=0 is refused: it must be at least 1"),
        ({"names": "x"}, "names=x is refused: expected list of strings"),
        ({"names": [1]}, "names[0]=1 is refused: expected string"),
        ({"splits": {"train": 3}}, "splits.train=3 is refused: expected string"),
        ({"folder": ""}, "folder= is refused: it must not be empty"),
        ({"folder": "a\0b"}, "must not contain a NUL"),
        ({"folder": "\ud800"}, "unpaired surrogate"),
        ({"inner": 3}, "inner=3 is refused"),
        ({"inner": {"rate": math.nan, "kind": "a"}}, "inner.rate=nan is refused: expected number"),
        ({"inner": {"rate": 10**400, "kind": "a"}}, "expected number"),
        ({"inner": {"rate": 0, "kind": "a"}}, "inner.rate=0 is refused: it must be above 0"),
        ({"inner": {"rate": 2, "kind": "a"}}, "inner.rate exceeds 1 with kind=a"),
        ({"inner": {"rate": 1, "kind": "aa"}}, "expected one of a, b; did you mean a?"),
        ({"stps": 1}, "stps: no such key; did you mean steps?"),
    ],
)
def test_invalid_data_is_refused_with_key_value_and_what_is_allowed(change, fragment):
    with pytest.raises(UserError) as error:
        schema.build(Outer, GOOD | change)
    assert fragment in str(error.value)


def test_all_mistakes_are_reported_together():
    with pytest.raises(UserError) as error:
        schema.build(Outer, {"steps": 0, "names": [], "splits": {}, "inner": {"rate": -1, "kind": "c"}})
    assert len(str(error.value).splitlines()) == 4  # steps, folder (missing), inner.rate, inner.kind


def test_long_value_is_truncated_in_a_message():
    [message] = schema.value_problems(schema.config_fields(Outer)["steps"], "x" * 10_000, "steps")
    assert len(message) < 300


COMPOSERS = {command: Composer(command) for command in commands.COMMANDS}
SPLITS = {name: options.values("task", name)["splits"] for name in options.names("task")}
FILE_TASKS = [name for name in SPLITS if options.values("task", name)["source"] == "file"]
ZERO_SHOT_TASKS = [
    name for name, splits in SPLITS.items() if not {"train", "valid"} <= set(splits) and name not in FILE_TASKS
]
NEEDED = {  # keys without a default
    "evaluate": ["run=outputs/finetune"],
    "generate": ["prompt=the sea"],
    "zeroshot": ["init=openai"],  # instead of the init=none of a demo task
    "fewshot": ["init=openai", "shots=0"],
    "search": ["init=openai", "what=templates"],
    "predict": ["run=outputs/finetune", "text=the sea"],
    "score": ["input=-"],
    "report": ["runs=[outputs]"],
}


def cases() -> list[tuple[str, dict[str, str]]]:
    """Compositions of every command that contain every option of each of its groups."""
    compositions = []
    for command in sorted(commands.COMMANDS.keys() - {"export"}):  # it has no groups and reads the run at once
        known = {group: list(options.names(group)) for group in options.defaults(command)[0]}
        if command in ("finetune", "search"):
            known["task"] = [name for name in known["task"] if name not in ZERO_SHOT_TASKS]
        for number in range(max(map(len, known.values()))):
            compositions.append((command, {group: names[number % len(names)] for group, names in known.items()}))
    return compositions


@pytest.mark.parametrize(("command", "chosen"), cases(), ids=lambda case: case if isinstance(case, str) else "")
def test_every_option_in_conf_composes_and_builds(command, chosen):
    if chosen.get("study", "").startswith("lmbff"):  # their rows are not ablations
        chosen = {group: option for group, option in chosen.items() if group != "ablation"}
    words = [f"{group}={option}" for group, option in chosen.items()]
    words += ["corpus.path=books/"] if chosen.get("corpus") == "text" else []
    words += (
        ["init=none"] if {"init", "model"} <= schema.config_fields(commands.COMMANDS[command].config).keys() else []
    )
    words += NEEDED.get(command, [])
    words += ["task.train=rows.csv", "task.kind=pair"] if chosen.get("task") in FILE_TASKS else []
    needs_prompt = command in ("fewshot", "search") and chosen.get("task") == "file"
    words += ["task.prompt.template={text} {label}"] if needs_prompt else []
    built = compose(COMPOSERS[command], COMPOSERS[command].check_overrides(words)).config
    for group, option in chosen.items():
        if group != "runtime":  # the runtime group has no name
            assert getattr(built, group).name == option


@pytest.mark.parametrize("task", ZERO_SHOT_TASKS)
def test_zero_shot_task_cannot_be_fine_tuned(task):
    with pytest.raises(UserError, match=f"task={task} cannot be fine-tuned: it needs train and valid; its splits: "):
        compose(COMPOSERS["finetune"], [f"task={task}", "init=none", "model=tiny"])


def test_every_key_has_a_meaning_and_every_group_a_dataclass():
    for command, (cls, *_) in commands.COMMANDS.items():
        for name, annotation in schema.config_fields(cls).items():
            grouped = dataclasses.is_dataclass(schema.unwrap(annotation))
            assert grouped or schema.field_of(annotation).meaning, f"{command}: {name}"
        assert set(options.defaults(command)[0]) <= set(commands.GROUPS)
        for group in options.defaults(command)[0]:
            assert all(options.names(group).values()), f"an option of {group} does not say what it is"
