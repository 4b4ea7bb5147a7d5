"""The record of a run: its configuration, command line, environment and checksums."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gpt1cli.config.schema import UserError, check, display
from gpt1cli.config.version import __version__
from gpt1cli.runs.files import read_json, write_json, write_text

PACKAGES = ("torch", "numpy", "ftfy", "spacy", "tokenizers", "datasets")  # a number may depend on their versions


def record(folder: Path, config: Mapping[str, Any], command_line: Sequence[str], extra: Mapping[str, Any]) -> None:
    """Write config.yaml and environment.json; a resumed run adds its environment to the first one."""
    session = {"command_line": [*command_line], **_environment(), **extra}
    earlier = environment(folder)
    command_line = earlier.get("command_line", command_line)
    if earlier:
        session = {**earlier, "resumed": [*earlier.get("resumed", []), session]}
    write_json(folder / "environment.json", session)
    words = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shlex.join(command_line))
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / "config.yaml", f"# gpt1 {words}\n{text}")  # from here on the folder holds a run


def note(folder: Path, **facts: Any) -> list[str]:
    """Add facts that are known later (device, threads, updates) to the environment of this session.

    Of a resumed run: a warning for each fact that was another one when the run began.
    """
    known = environment(folder)
    session = known["resumed"][-1] if known.get("resumed") else known
    changed = [key for key in facts if session is not known and key in known and known[key] != facts[key]]
    session.update(facts)
    write_json(folder / "environment.json", known)
    return [
        f"warning: {key} was {known[key]} when the run began, and is {facts[key]} now;"
        " what follows is not bit for bit what it would have been"
        for key in changed
    ]


def note_checksums(folder: Path, **checksums: str) -> None:
    """Add the checksums of data and tokenizer; UserError where a resumed run began with others."""
    known = environment(folder)
    sessions = [known, *known.get("resumed", [])]  # the first may have been killed before it knew any
    began = next((session["checksums"] for session in sessions if "checksums" in session), checksums)
    if other := [name for name in began if began[name] != checksums.get(name)]:
        raise UserError(
            f"{folder} cannot go on: {' and '.join(other)} changed since the run began (environment.json has the"
            " checksums); put back what it read, or start a new run, perhaps with init= of this one"
        )
    note(folder, checksums=checksums)


def dated(folder: Path) -> str:
    """When a run was begun, or last gone on with, as it recorded that: in UTC, so that later ones compare as greater.

    Empty where no such record can be read.
    """
    with contextlib.suppress(UserError):
        known = environment(folder)
        resumed = known.get("resumed")
        for session in (*reversed(resumed if isinstance(resumed, list) else []), known):
            if isinstance(session, dict) and isinstance(date := session.get("date"), str):
                return date
    return ""


def newer(folder: Path) -> str:
    """The remark that a newer gpt1 wrote a run, to follow what is wrong with it; empty where none did."""
    with contextlib.suppress(UserError):
        versions = environment(folder).get("versions")
        wrote = versions.get("gpt1") if isinstance(versions, dict) else None
        if isinstance(wrote, str) and _numbers(wrote) > _numbers(__version__):
            return f"\ngpt1 {display(wrote)} wrote it, this is gpt1 {__version__}: update gpt1"
    return ""


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]{1,9}", version)[:3]]


# What environment.json says of a session that is read again -> its type.
RECORDED: dict[str, Any] = {"command": str, "command_line": list[str], "date": str, "versions": dict[str, str]}


def environment(folder: Path) -> dict[str, Any]:
    """What environment.json says; empty where there is none. UserError where that is no record of a run."""
    path = folder / "environment.json"
    if not path.exists():
        return {}
    found = read_json(path)
    resumed: Any = found.get("resumed", [])  # anything may stand in a stranger's file
    if not isinstance(resumed, list) or not all(isinstance(session, dict) for session in resumed):
        raise UserError(f"{path} is no record of a run: resumed={display(resumed)} is no list of sessions")
    sessions = [(session, key) for session in (found, *resumed) for key in RECORDED if key in session]
    if wrong := [problem for session, key in sessions for problem in check(RECORDED[key], session[key], key)]:
        raise UserError("\n".join([f"{path} is no record of a run:", *wrong[:10]]))
    return found


def _environment() -> dict[str, Any]:
    import importlib.metadata  # 30 ms that `gpt1 --help` has no use for

    versions = {"gpt1": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = {"platform": platform.platform(), "cpus": os.cpu_count()}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "git": _git(), "versions": versions, **machine}


def _git() -> dict[str, Any] | None:
    """The commit of the source and whether files of it were changed; None where gpt1 is no checkout."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None

    try:
        command = ["git", "-C", str(source), "status", "--porcelain=v2", "--branch"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}
