"""The README: every command in it is one that gpt1 takes, its links lead somewhere, its tree names every module."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest

from gpt1cli.cli.argv import sort
from gpt1cli.cli.hydra_loader import Composer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
STANDS_FOR = {"TASK": "task=sst2", "task=TASK": "task=sst2", "seed=SEED": "seed=1"}
STANDS_FOR |= {"runtime.precision=PRECISION": "runtime.precision=bf16"}


def commands() -> list[list[str]]:
    """The words behind `gpt1` of each command line in a code block, with something in place of the placeholders."""
    text = PAGE.partition("## The tree\n")[0].replace("\\\n", " ")
    lines = re.findall(r"^ {4}(?:.*[ /])?(?:gpt1|-m gpt1cli) (.*)$", text, re.MULTILINE)
    found = [shlex.split(re.split(r" \|\| |\s#\s| > ", line)[0]) for line in lines]
    return [[STANDS_FOR.get(word, word) for word in words] for words in found]


@functools.cache
def composer(command: str) -> Composer:
    return Composer(command)


def is_for_another_machine(words: list[str]) -> bool:
    """Ray is heavy, and not among what the tests install."""
    return "hydra/launcher=ray" in words and "ray" not in composer("finetune").options("hydra/launcher")


def test_the_commands_are_found():
    assert len(commands()) > 60


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_composes(words):
    typed = sort(words)
    if typed.command is None or is_for_another_machine(words):
        return
    sweep = "--multirun" in typed.flags
    checked = composer(typed.command).check(typed.overrides, sweep)
    for job in composer(typed.command).jobs(checked) if sweep else [checked]:
        composer(typed.command).load(job)


def test_links_lead_to_headings_of_the_page():
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]*)\)", PAGE)
    assert len(links) > 10 and {*links} <= anchors


def test_the_tree_names_every_module():
    tree = PAGE.partition("## The tree\n")[2]
    modules = [path.name for path in (ROOT / "gpt1cli").glob("*.py") if path.name != "__init__.py"]
    assert [name for name in modules if not re.search(rf"\b{re.escape(name)}", tree)] == []


def test_tests_that_the_page_names_exist():
    named = re.findall(r"`tests/(test_\w+\.py)`", PAGE)
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []
