"""A run folder: claimed by one process alone, whole at every moment, finished by result.json.

Files appear whole (written aside, synced, renamed) and lines are appended whole, so that a run killed between any two
instructions can go on. What is read back is plain data of a stranger: nothing in it is executed.
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
from gpt1cli.config.schema import UserError, annotation_of, check, display
from gpt1cli.runs.files import REASONS, _Loader, read_json, read_jsonl, write_json, write_text, writing
from gpt1cli.runs.record import RECORDED, environment

LOCK = ".lock"
TORN = r"\.(environment\.json|config\.yaml)-\d+"  # written by a process that was killed before it could rename it


# --- claiming ---------------------------------------------------------------------------------------------------------


def claim(folder: Path) -> TextIO:
    """Make the folder of a new run, locked until the returned file is closed. UserError where anything is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = REASONS.get(error.errno or 0, error.strerror)
        raise UserError(f"{folder} cannot be made: {why}; out=DIR puts runs elsewhere") from error
    handle = lock(folder)
    # a sweep's job finds .hydra made; a run killed at its very start leaves an environment, and is no run yet
    for torn in [path for path in folder.iterdir() if re.fullmatch(TORN, path.name)]:
        torn.unlink()
    found = sorted({path.name for path in folder.iterdir()} - {LOCK, ".hydra", "environment.json"})
    if not found:
        (folder / "environment.json").unlink(missing_ok=True)
        return handle
    handle.close()
    if is_run(folder):
        raise UserError(f"{folder} already holds a run: {_beside(folder)}")
    raise UserError(f"{folder} is not empty ({display(', '.join(found))}): a run takes a folder of its own")


def _beside(folder: Path) -> str:
    """What helps where a folder is named that holds a run: not every command has something to go on with."""
    command = None
    with contextlib.suppress(UserError):
        command = environment(folder).get("command")
    known = commands.COMMANDS.get(command) if isinstance(command, str) else None
    if known is None or annotation_of(known.config, "resume") is not None:
        return f"go on with it by resume={folder}, or name another folder"
    return f"gpt1 {command} has nothing to go on from: name another folder, or remove this one first"


def unused(folder: Path) -> Path:
    """The folder, which is named after the time; NAME-2 and so on where the clock was put back, or did not move."""
    names = itertools.chain([folder.name], (f"{folder.name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(folder.with_name, names) if not os.path.lexists(path))


def refuse_links(folder: Path) -> None:
    """UserError for links in a run folder that lead out of it: what is written and removed there would be elsewhere.

    Such a folder may be a stranger's, who would have `checkpoints` lead to one's own files. wandb links from the logs
    below its own folder to those in its cache, and writes into each of these folders once.
    """
    root, found = os.path.realpath(folder), []
    for place, folders, files in os.walk(folder):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            inside = Path(os.path.relpath(path, folder)).parts
            if inside[0] == "wandb" and inside[2:-1] == ("logs",) and os.path.isfile(path):
                continue
            if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root):
                found.append(f"  {os.path.relpath(path, folder)} -> {os.readlink(path)}")
    if found:
        told = f"{folder}: a run writes into its own folder alone, but these links lead out of it:"
        raise UserError("\n".join([told, *sorted(found)[:10], "put what they lead to in their place, or remove them"]))


def lock(folder: Path) -> TextIO:
    """Lock a run folder until the returned file is closed; UserError where another process works in it."""
    refuse_links(folder)
    try:
        handle = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the run lasts)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from error
    try:
        # NOTE lockf and not flock: a worker process that outlives a killed run would inherit the latter and hold it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        handle.seek(0)
        holder = handle.read().strip() or "another process"
        handle.close()
        raise UserError(f"{folder} is in use by {holder}: only one process may work in a run folder") from None
    except OSError as error:
        print(f"gpt1: {folder}: no locks on this file system ({error.strerror}); keep others out", file=sys.stderr)
    with writing(folder / LOCK):
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}\n")
        handle.flush()
    return handle


def holder(folder: Path) -> int | None:
    """The process of this machine that works in a run folder; None where there is none."""
    with contextlib.suppress(OSError), open(folder / LOCK, "r+", encoding="utf-8") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            named = re.fullmatch(rf"process (\d+) on {re.escape(platform.node())}\n", handle.read())
            return int(named[1]) if named else None
    return None


def abandon(folder: Path) -> None:
    """Remove the folder of a run that found its input at fault before it made anything of it."""
    if is_bare(folder):
        shutil.rmtree(folder)


def is_bare(folder: Path) -> bool:
    """Whether a run has not come further than its record."""
    record = {LOCK, ".hydra", "config.yaml", "environment.json", "run.log"}
    return {path.name for path in folder.iterdir() if not re.fullmatch(TORN, path.name)} <= record


def clear(folder: Path) -> None:
    """Empty the folder of an interrupted run that is to begin anew; Hydra's record and the lock stay.

    What makes it a run goes last: killed in between, it is still one to be emptied. UserError where it is in use.
    """
    with lock(folder):
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.yaml"):
            if path.name not in (LOCK, ".hydra"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def is_run(folder: str | Path) -> bool:
    """Whether a run has begun in the folder."""
    return os.path.isfile(os.path.join(folder, "config.yaml"))


# --- writing ----------------------------------------------------------------------------------------------------------


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line torn by a kill: they are written again by a resumed run.

    UserError names a line that no run has written: the curves are drawn of them all.
    """
    if not path.exists():
        return
    lines = read_jsonl(path)
    for number, line in enumerate(lines, start=1):
        types: dict[str, Any] = {"step": int, "split": str, **dict.fromkeys(line.keys() - {"step", "split"}, float)}
        if wrong := [problem for key in types for problem in check(types[key], line.get(key), key)]:
            raise UserError("\n".join([f"{path}, line {number}: not a line of metrics; mend or remove it:", *wrong]))
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))


def finish(folder: Path, result: Mapping[str, Any]) -> None:
    """Declare the run finished: result.json is the last file of a run to be written."""
    (folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    write_json(folder / "result.json", result)


def reopen(folder: Path) -> None:
    """Take back that a run is finished: it goes on."""
    (folder / "result.json").unlink(missing_ok=True)


def is_finished(folder: Path, steps: int | None) -> bool:
    """Whether the run has ended well, and has done that many updates (None: as many as it set out to do)."""
    path = folder / "result.json"
    if not path.exists() or steps is None:
        return path.exists()
    done = read_json(path).get("steps", 0)
    if problems := check(int, done, "steps"):
        raise UserError("\n".join([f"{path} tells no result:", *problems]))
    return done >= steps


# --- what a run was ---------------------------------------------------------------------------------------------------


RECORDED |= {"checksums": dict[str, str], "steps": int}


# --- reading ----------------------------------------------------------------------------------------------------------


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.[\d_]+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
