"""The README: gpt1 accepts its commands, its links and paths exist, its tree is that of the package and the tests."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest

from gpt1cli.cli.argv import parse_argv
from gpt1cli.cli.hydra_loader import Composer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
PLACEHOLDERS = {"TASK": "task=sst2", "task=TASK": "task=sst2", "seed=SEED": "seed=1"}
PLACEHOLDERS |= {"runtime.precision=PRECISION": "runtime.precision=bf16"}


def commands() -> list[list[str]]:
    """The words after `gpt1` of each command line in a code block, with values instead of placeholders."""
    text = PAGE.partition("## The tree\n")[0].replace("\\\n", " ")
    lines = re.findall(r"^ {4}(?:.*[ /])?(?:gpt1|-m gpt1cli) (.*)$", text, re.MULTILINE)
    split_lines = [shlex.split(re.split(r" \|\| |\s#\s| > ", line)[0]) for line in lines]
    return [[PLACEHOLDERS.get(word, word) for word in words] for words in split_lines]


def tree_paths() -> list[str]:
    """The paths of the tree, whose indentation shows the folders."""
    paths, folders = [], [""]
    for indent, name in re.findall(r"^ {4}( *)(\S+)", PAGE.partition("## The tree\n")[2], re.MULTILINE):
        depth = len(indent) // 2
        paths.append(folders[depth] + name)
        folders[depth + 1 :] = [folders[depth] + name]
    return paths


@functools.cache
def composer(command: str) -> Composer:
    return Composer(command)


def needs_ray(words: list[str]) -> bool:
    """Ray is heavy, and the tests do not install it."""
    return "hydra/launcher=ray" in words and "ray" not in composer("finetune").options("hydra/launcher")


def test_commands_are_found():
    assert len(commands()) > 60


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_composes(words):
    typed = parse_argv(words)
    if typed.command is None or needs_ray(words):
        return
    sweep = "--multirun" in typed.flags
    checked = composer(typed.command).check_overrides(typed.overrides, sweep)
    for job in composer(typed.command).list_jobs(checked) if sweep else [checked]:
        composer(typed.command).load(job)


def test_links_lead_to_headings():
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]*)\)", PAGE)
    assert len(links) > 10 and {*links} <= anchors


def test_tree_names_every_module_in_its_folder():
    modules = [path for folder in ("gpt1cli", "tests") for path in (ROOT / folder).rglob("*.py")]
    actual = [str(path.relative_to(ROOT)) for path in modules if path.name != "__init__.py"]
    assert sorted(path for path in tree_paths() if path.endswith(".py")) == sorted(actual)
    assert [path for path in tree_paths() if not (ROOT / path).exists()] == []


def test_paths_in_the_text_exist():
    paths = re.findall(r"`((?:gpt1cli|tests|conf)/[\w./]*)`", PAGE)
    assert len(paths) > 10 and [path for path in paths if not (ROOT / path).exists()] == []


def test_names_in_the_text_are_in_their_files():
    names = re.findall(r"`(\w+)` (?:in|of)\s+`(gpt1cli/[\w./]+\.py)`", PAGE)
    assert len(names) > 5
    assert [(name, file) for name, file in names if name not in (ROOT / file).read_text(encoding="utf-8")] == []


def test_each_fault_names_tests_that_exist():
    rows = re.findall(
        r"^\|.*\| ([\w, ]+) \|$", PAGE.partition("## Fault tolerance\n")[2].partition("\n## ")[0], re.MULTILINE
    )
    names = {name for row in rows[1:] for name in row.split(", ")}
    files = {path.stem.removeprefix("test_"): path for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(rows) > 30 and names <= files.keys()
