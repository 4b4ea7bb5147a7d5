"""Random command lines are accepted, or refused in a few lines, and harm nothing.

The commands themselves do nothing here; everything before them is real: flags, overrides, Hydra's composition, stored
configurations, a run's requirements, its folder.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import accepted_or_refused, drawn, examples, joined, leaves, some_of, texts, unharmed

from gpt1cli.cli import argv
from gpt1cli.config import commands, options, schema

COMMANDS = [*commands.COMMANDS, *argv.ALIASES]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder deep enough for every .. of the examples, with the working folder `here`; commands that do nothing."""
    here = tmp_path / "a" / "b" / "c" / "d" / "here"
    for folder in (here, here / "out", tmp_path / "hub", tmp_path / "home", here / "mine" / "task"):
        folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    for name, value in (("HOME", "home"), ("GPT1_HUB", "hub"), ("GPT1_CACHE", "home/cache")):
        monkeypatch.setenv(name, str(tmp_path / value))
    for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("gpt1cli.data.hub.connection_error", lambda: "no network in tests")
    for name in commands.COMMANDS:
        module = importlib.import_module(f"gpt1cli.commands.{name}")
        monkeypatch.setattr(module, "run", lambda config, folder: None)
    return tmp_path


# --- words ------------------------------------------------------------------------------------------------------------


def keys_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a command."""
    for name, annotation in schema.config_fields(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(inner := schema.unwrap(annotation)):
            yield from keys_of(typing.cast(type, inner), f"{prefix}{name}.")


KEYS = sorted({key for command in commands.COMMANDS.values() for key in keys_of(command.config)})
GROUPS = {group: [*options.names(group)] for group in commands.GROUPS}
HYDRA_KEYS = ["hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name", "hydra.verbose", "hydra.mode"]
HYDRA_KEYS += [
    "hydra.output_subdir",
    "hydra.job.chdir",
    "hydra.searchpath",
    "hydra.nothing",
    "hydra",
    "hydra.job.env_set.A",
]

GRAMMAR = (
    "' \" [ ] { } ( ) , : = $ \\ ~ + - . / * @ ! # % & | < > ? ; ^ ` null true 1 1e3 -1 0x1f a é 我 ${ } ${seed} ???"
)
GRAMMAR += " ${oc.env:HOME} ${oc.env:NONE} ${hydra:job.num} ${task.name} ${.} ${..} ${gpt1.text:xzz} ${gpt1.text:x61}"
GRAMMAR += " [1,2] {a:1} {a:{b:2}} [a,[b]] none openai .. ../.. ~/x nan inf 1e999 9999999999999999999999 'a' \"b\""
SIGNS = [*GRAMMAR.split(), " ", "\t", "\n", "\r", "\0", "\x1b", "\u2028", "\ud800", "\udcff", "\U0001f600", "\u202e"]
LONG = ["x", "[", "{a:", "'", "\\", "${", "(", "a."]  # repeated 300 times
SWEEPS = [
    "1,2",
    "a,b",
    "range(1,3)",
    "range(1,9,0)",
    "range(3)",
    "choice(1,2)",
    "choice()",
    "glob(ls*)",
    "interval(0,1)",
]
SWEEPS += ["sort(2,1)", "shuffle(1,2)", "tag(a,1)", "cast(1)", "int(a)", "str(1)", "float(x)", "extend_list(1)"]


def harmless(value: str) -> str:
    """A value that, read as a path, stays inside the test's folder."""
    return value.replace("/tmp", "").lstrip("/") if value.startswith("/") else value


value = st.one_of(
    some_of(SIGNS),
    joined(some_of(SIGNS), 6),
    some_of(SWEEPS),
    some_of(LONG).map(lambda sign: sign * 300),
    leaves.map(str),
    texts,
).map(harmless)
key = (
    some_of(KEYS)
    | some_of(HYDRA_KEYS)
    | some_of([*GROUPS])
    | joined(some_of(SIGNS), 3)
    | some_of(["a.b", ".", "a.", ".a"])
)
option = some_of([*GROUPS]).flatmap(lambda group: some_of(GROUPS[group]).map(lambda name: f"{group}={name}"))
prefix = some_of(["", "", "", "", "+", "++", "~"])
override = st.builds("{}{}={}".format, prefix, key, value) | option | st.builds("~{}".format, key)
flag = some_of([*argv.FLAGS, *argv.SHORT_FLAGS]) | st.builds("{}={}".format, some_of([*argv.FLAGS]), value)
flags = st.one_of(
    flag, some_of(["--cfg job", "--cfg all", "--info", "--info defaults", "-m", "-m", "--resolve"]),
    some_of(["--config-dir mine", "--config-dir nowhere", "--config-name nothing", "--config-name pretrain"]),
).map(lambda text: text.split(" ") if text.count(" ") == 1 else [text])  # fmt: skip
word = st.one_of(override, override, override, value, some_of(COMMANDS)).map(lambda text: [text])


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Usually a command, with a few words and flags, in any order."""
    words = draw(st.lists(word, max_size=4)) + draw(
        st.lists(flags, max_size=2) if draw(st.integers(0, 3)) == 0 else st.just([])
    )
    if draw(st.integers(0, 9)):
        words.append([draw(some_of(COMMANDS))])
    if draw(st.booleans()):
        words.append([f"task={draw(some_of(GROUPS['task']))}"])
    return [text for group in draw(st.permutations(words)) for text in group if not launches(text)]


def launches(word: str) -> bool:
    """Whether the word starts another process, or names code that Hydra calls."""
    return "launcher" in word or "_target_" in word or "sweeper" in word or "callbacks" in word


@examples(100, 1000)
def test_random_words_are_accepted_or_refused(world, count):
    out = Path.cwd() / "out"
    out_words = [f"hydra.sweep.dir={out}/sweep", f"hydra.run.dir={out}/run"]

    @drawn(count)
    @given(command_lines(), st.booleans())
    def check(words, has_folder):
        with unharmed(world, out if has_folder else world / "a"):
            accepted_or_refused(*words, *(out_words if has_folder else []))

    check()
