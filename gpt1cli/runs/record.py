"""The record of a run: its configuration (config.yaml) and its environment (environment.json).

environment.json holds the command line, date, git commit, versions, machine, and the checksums of data and tokenizer.
Each resumed session adds an entry of the same kind to its list `resumed`.
"""

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

from gpt1cli.config.schema import UserError, display, value_problems
from gpt1cli.config.version import __version__
from gpt1cli.runs.files import read_json, write_json, write_text

PACKAGES = ("torch", "numpy", "ftfy", "spacy", "tokenizers", "datasets")  # a result may depend on their versions
# The keys of a session in environment.json that are read back -> their types.
ENVIRONMENT_TYPES: dict[str, Any] = {
    "command": str,
    "command_line": list[str],
    "date": str,
    "versions": dict[str, str],
    "checksums": dict[str, str],
    "steps": int,
}


# --- writing ----------------------------------------------------------------------------------------------------------


def write_record(
    folder: Path, config: Mapping[str, Any], command_line: Sequence[str], extra: Mapping[str, Any]
) -> None:
    """Write config.yaml and environment.json; a resumed run adds its session to the environment of the first one."""
    session = {"command_line": [*command_line], **_current_environment(), **extra}
    earlier = read_environment(folder)
    command_line = earlier.get("command_line", command_line)
    if earlier:
        session = {**earlier, "resumed": [*earlier.get("resumed", []), session]}
    write_json(folder / "environment.json", session)
    words = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shlex.join(command_line))
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / "config.yaml", f"# gpt1 {words}\n{text}")  # from now on the folder contains a run


def _current_environment() -> dict[str, Any]:
    import importlib.metadata  # 30 ms that `gpt1 --help` does not need

    versions = {"gpt1": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = {"platform": platform.platform(), "cpus": os.cpu_count()}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "git": _git_state(), "versions": versions, **machine}


def _git_state() -> dict[str, Any] | None:
    """The commit of the source, and whether its files were changed; None if gpt1 does not run from a checkout."""
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


def update_environment(folder: Path, **facts: Any) -> list[str]:
    """Add facts that are known later (device, threads, steps) to the environment of this session.

    Returns for a resumed run a warning for each fact that had another value when the run started.
    """
    environment = read_environment(folder)
    session = environment["resumed"][-1] if environment.get("resumed") else environment
    resumed = session is not environment
    changed = [key for key in facts if resumed and key in environment and environment[key] != facts[key]]
    session.update(facts)
    write_json(folder / "environment.json", environment)
    return [
        f"warning: {key} was {environment[key]} when the run started, and is {facts[key]} now;"
        " the results will not be bit for bit those of an uninterrupted run"
        for key in changed
    ]


def record_checksums(folder: Path, **checksums: str) -> None:
    """Add the checksums of data and tokenizer. Raises UserError if a resumed run started with other ones."""
    environment = read_environment(folder)
    sessions = [environment, *environment.get("resumed", [])]  # the first may have been killed before it had any
    first = next((session["checksums"] for session in sessions if "checksums" in session), checksums)
    if changed := [name for name in first if first[name] != checksums.get(name)]:
        raise UserError(
            f"{folder} cannot be resumed: {' and '.join(changed)} changed since the run started (environment.json has"
            " the checksums); restore the original data, or start a new run, for example with init= this run"
        )
    update_environment(folder, checksums=checksums)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_environment(folder: Path) -> dict[str, Any]:
    """The content of environment.json; empty if there is no such file. Raises UserError if it is no record of a run."""
    path = folder / "environment.json"
    if not path.exists():
        return {}
    environment = read_json(path)
    resumed: Any = environment.get("resumed", [])  # a stranger's file may contain anything
    if not isinstance(resumed, list) or not all(isinstance(session, dict) for session in resumed):
        raise UserError(f"{path} is not the record of a run: resumed={display(resumed)} is not a list of sessions")
    sessions = [(session, key) for session in (environment, *resumed) for key in ENVIRONMENT_TYPES if key in session]
    if problems := [
        error for session, key in sessions for error in value_problems(ENVIRONMENT_TYPES[key], session[key], key)
    ]:
        raise UserError("\n".join([f"{path} is not the record of a run:", *problems[:10]]))
    return environment


def last_run_date(folder: Path) -> str:
    """When a run was started or last resumed, as recorded: in UTC, so that later dates compare as greater.

    Empty if no such record can be read.
    """
    with contextlib.suppress(UserError):
        environment = read_environment(folder)
        resumed = environment.get("resumed")
        for session in (*reversed(resumed if isinstance(resumed, list) else []), environment):
            if isinstance(session, dict) and isinstance(date := session.get("date"), str):
                return date
    return ""


def newer_version_hint(folder: Path) -> str:
    """A line to add to an error: the run was written by a newer gpt1. Empty if it was not."""
    with contextlib.suppress(UserError):
        versions = read_environment(folder).get("versions")
        writer = versions.get("gpt1") if isinstance(versions, dict) else None
        if isinstance(writer, str) and _version_numbers(writer) > _version_numbers(__version__):
            return f"\nit was written by gpt1 {display(writer)}, but this is gpt1 {__version__}: update gpt1"
    return ""


def _version_numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]{1,9}", version)[:3]]
