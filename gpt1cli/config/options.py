"""The contents of conf/: each command's groups and defaults, each group's options. Imports nothing heavy."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from gpt1cli.config import commands, schema


def folder() -> Path:
    """Return conf/ inside the wheel, or next to the package in the source tree."""
    package = Path(__file__).resolve().parents[1]
    return next((folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir()), package / "conf")


@cache
def defaults(name: str) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Return the groups of conf/<name>.yaml with their default options, and its own keys; included files first."""
    content = yaml.safe_load((folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    groups: dict[str, str | None] = {}
    keys: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            included_groups, included_keys = defaults(entry)
            groups, keys = {**groups, **included_groups}, {**keys, **included_keys}
        elif isinstance(entry, dict) and not next(iter(entry)).startswith("override "):
            groups.update(entry)
    content.pop("hydra", None)
    if command := commands.COMMANDS.get(name):  # skip groups that only other commands' files use
        groups = {group: option for group, option in groups.items() if schema.annotation_of(command.config, group)}
    return groups, {**keys, **content}


def names(group: str) -> dict[str, str]:
    """Return option -> its description, the first comment line of conf/<group>/<option>.yaml."""
    descriptions = {}
    for path in sorted((folder() / group).glob("*.yaml")):
        comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        descriptions[path.stem] = next((comment for comment in comments if not comment.startswith("@package")), "")
    return descriptions


def values(group: str, option: str) -> dict[str, Any]:
    """Return the keys of conf/<group>/<option>.yaml."""
    content = yaml.safe_load((folder() / group / f"{option}.yaml").read_text(encoding="utf-8"))
    return content.get(group, content)  # with "@package _global_" the group's own keys are one level down
