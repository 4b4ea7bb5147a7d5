"""A run folder: created and locked by one process, readable at every moment, finished by result.json.

Files appear complete and lines are appended complete (runs/files.py), so that a run can continue after a kill at any
instruction. A folder may come from a stranger: nothing in it is executed, and links that lead out of it are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from gpt1cli.config import commands
from gpt1cli.config.schema import UserError, annotation_of, display, value_problems
from gpt1cli.runs.files import REASONS, name_write_errors, read_json, read_jsonl, write_json, write_text
from gpt1cli.runs.record import read_environment

LOCK = ".lock"
TEMPORARY_FILES = r"\.(environment\.json|config\.yaml)-\d+"  # left by a process that was killed before it renamed them


# --- creating ---------------------------------------------------------------------------------------------------------


def create_folder(folder: Path) -> TextIO:
    """Create the folder of a new run and lock it until the returned file is closed.

    Raises UserError if it cannot be created, or is not empty.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = REASONS.get(error.errno or 0, error.strerror)
        raise UserError(f"{folder} cannot be created: {reason}; set out=DIR to another folder") from error
    handle = lock_folder(folder)
    # .hydra exists already in a job of a sweep; a run killed at its start leaves environment.json, and is no run yet
    for temporary in [path for path in folder.iterdir() if re.fullmatch(TEMPORARY_FILES, path.name)]:
        temporary.unlink()
    names = sorted({path.name for path in folder.iterdir()} - {LOCK, ".hydra", "environment.json"})
    if not names:
        (folder / "environment.json").unlink(missing_ok=True)
        return handle
    handle.close()
    if is_run(folder):
        raise UserError(f"{folder} already contains a run: {_existing_run_hint(folder)}")
    raise UserError(f"{folder} is not empty ({display(', '.join(names))}): a run needs its own, empty folder")


def _existing_run_hint(folder: Path) -> str:
    """What to do if the named folder contains a run: only some commands can resume."""
    command = None
    with contextlib.suppress(UserError):
        command = read_environment(folder).get("command")
    known = commands.COMMANDS.get(command) if isinstance(command, str) else None
    if known is None or annotation_of(known.config, "resume") is not None:
        return f"continue it with resume={folder}, or choose another folder"
    return f"gpt1 {command} cannot be resumed: choose another folder, or remove this one first"


def unique_path(folder: Path) -> Path:
    """The folder, whose name is a time; NAME-2 and so on if it exists: the clock was put back, or did not move."""
    names = itertools.chain([folder.name], (f"{folder.name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(folder.with_name, names) if not os.path.lexists(path))


def is_run(folder: str | Path) -> bool:
    """Whether a run has started in the folder."""
    return os.path.isfile(os.path.join(folder, "config.yaml"))


# --- locking ----------------------------------------------------------------------------------------------------------


def lock_folder(folder: Path) -> TextIO:
    """Lock a run folder until the returned file is closed. Raises UserError if another process works in it."""
    refuse_links(folder)
    try:
        handle = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the run lasts)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from error
    try:
        # NOTE lockf and not flock: a worker process that outlives a killed run would inherit a flock and keep it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        handle.seek(0)
        owner = handle.read().strip() or "another process"
        handle.close()
        raise UserError(f"{folder} is in use by {owner}: only one process may work in a run folder") from None
    except OSError as error:
        print(
            f"gpt1: {folder}: this file system has no locks ({error.strerror}); start no second process in this folder",
            file=sys.stderr,
        )
    with name_write_errors(folder / LOCK):
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}\n")
        handle.flush()
    return handle


def lock_owner(folder: Path) -> int | None:
    """The id of the process on this machine that works in a run folder; None if there is none."""
    with contextlib.suppress(OSError), open(folder / LOCK, "r+", encoding="utf-8") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = re.fullmatch(rf"process (\d+) on {re.escape(platform.node())}\n", handle.read())
            return int(owner[1]) if owner else None
    return None


def refuse_links(folder: Path) -> None:
    """Raise UserError if links in a run folder lead out of it: we would write and remove files elsewhere.

    A stranger's folder could have a link `checkpoints` to the user's own files. Exception: wandb links from the logs
    below its own folder to those in its cache, and writes into each of these folders once.
    """
    root, links = os.path.realpath(folder), []
    for parent, folders, files in os.walk(folder):
        for path in (os.path.join(parent, name) for name in (*folders, *files)):
            inside = Path(os.path.relpath(path, folder)).parts
            if inside[0] == "wandb" and inside[2:-1] == ("logs",) and os.path.isfile(path):
                continue
            if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root):
                links.append(f"  {os.path.relpath(path, folder)} -> {os.readlink(path)}")
    if links:
        message = f"{folder}: a run only writes into its own folder, but these links lead out of it:"
        raise UserError("\n".join([message, *sorted(links)[:10], "replace them by what they point to, or remove them"]))


# --- writing ----------------------------------------------------------------------------------------------------------


def truncate_metrics(path: Path, step: int) -> None:
    """Remove the lines after `step` and an incomplete last line: a resumed run writes them again.

    Raises UserError for a line that no run has written: all of them are plotted.
    """
    if not path.exists():
        return
    lines = read_jsonl(path)
    for number, line in enumerate(lines, start=1):
        types: dict[str, Any] = {"step": int, "split": str, **dict.fromkeys(line.keys() - {"step", "split"}, float)}
        if problems := [problem for key in types for problem in value_problems(types[key], line.get(key), key)]:
            message = f"{path}, line {number}: not a line of metrics; correct or remove it:"
            raise UserError("\n".join([message, *problems]))
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))


def finish_run(folder: Path, result: Mapping[str, Any]) -> None:
    """Mark the run as finished: result.json is the last file that a run writes."""
    (folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    write_json(folder / "result.json", result)


def reopen_run(folder: Path) -> None:
    """Mark a finished run as unfinished, because it continues."""
    (folder / "result.json").unlink(missing_ok=True)


def is_finished(folder: Path, steps: int | None) -> bool:
    """Whether the run has finished with at least `steps` steps; None: with the steps of its own configuration."""
    path = folder / "result.json"
    if not path.exists() or steps is None:
        return path.exists()
    done = read_json(path).get("steps", 0)
    if problems := value_problems(int, done, "steps"):
        raise UserError("\n".join([f"{path} is not the result of a run:", *problems]))
    return done >= steps


# --- removing ---------------------------------------------------------------------------------------------------------


def is_empty_run(folder: Path) -> bool:
    """Whether a run has written nothing but its configuration, environment and log."""
    record = {LOCK, ".hydra", "config.yaml", "environment.json", "run.log"}
    return {path.name for path in folder.iterdir() if not re.fullmatch(TEMPORARY_FILES, path.name)} <= record


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that stopped at a mistake in its input before it produced anything."""
    if is_empty_run(folder):
        shutil.rmtree(folder)


def clear_folder(folder: Path) -> None:
    """Empty the folder of an interrupted run that starts again; Hydra's record and the lock stay.

    config.yaml is removed last: after a kill in between, the folder still counts as a run that must be emptied.
    Raises UserError if the folder is in use.
    """
    with lock_folder(folder):
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.yaml"):
            if path.name not in (LOCK, ".hydra"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
