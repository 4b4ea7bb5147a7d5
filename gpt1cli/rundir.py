"""A run folder: claimed by one process alone, whole at every moment, finished by result.json.

Files appear whole (written aside, synced, renamed) and lines are appended whole, so that a run killed between any two
instructions can go on. What is read back is plain data of a stranger: nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

from gpt1cli import disk
from gpt1cli.config import commands
from gpt1cli.config.schema import InputError, annotation_of, check, shown
from gpt1cli.config.version import __version__

LOCK = ".lock"
TORN = r"\.(environment\.json|config\.yaml)-\d+"  # written by a process that was killed before it could rename it
PACKAGES = ("torch", "numpy", "ftfy", "spacy", "tokenizers", "datasets")  # a number may depend on their versions


# --- claiming ---------------------------------------------------------------------------------------------------------


def claim(folder: Path) -> TextIO:
    """Make the folder of a new run, locked until the returned file is closed. InputError where anything is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = disk.REASONS.get(error.errno or 0, error.strerror)
        raise InputError(f"{folder} cannot be made: {why}; out=DIR puts runs elsewhere") from error
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
        raise InputError(f"{folder} already holds a run: {_beside(folder)}")
    raise InputError(f"{folder} is not empty ({shown(', '.join(found))}): a run takes a folder of its own")


def _beside(folder: Path) -> str:
    """What helps where a folder is named that holds a run: not every command has something to go on with."""
    command = None
    with contextlib.suppress(InputError):
        command = environment(folder).get("command")
    known = commands.COMMANDS.get(command) if isinstance(command, str) else None
    if known is None or annotation_of(known, "resume") is not None:
        return f"go on with it by resume={folder}, or name another folder"
    return f"gpt1 {command} has nothing to go on from: name another folder, or remove this one first"


def unused(folder: Path) -> Path:
    """The folder, which is named after the time; NAME-2 and so on where the clock was put back, or did not move."""
    names = itertools.chain([folder.name], (f"{folder.name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(folder.with_name, names) if not os.path.lexists(path))


def refuse_links(folder: Path) -> None:
    """InputError for links in a run folder that lead out of it: what is written and removed there would be elsewhere.

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
        raise InputError("\n".join([told, *sorted(found)[:10], "put what they lead to in their place, or remove them"]))


def lock(folder: Path) -> TextIO:
    """Lock a run folder until the returned file is closed; InputError where another process works in it."""
    refuse_links(folder)
    try:
        handle = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the run lasts)
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}") from error
    try:
        # NOTE lockf and not flock: a worker process that outlives a killed run would inherit the latter and hold it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        handle.seek(0)
        holder = handle.read().strip() or "another process"
        handle.close()
        raise InputError(f"{folder} is in use by {holder}: only one process may work in a run folder") from None
    except OSError as error:
        print(f"gpt1: {folder}: no locks on this file system ({error.strerror}); keep others out", file=sys.stderr)
    with disk.writing(folder / LOCK):
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

    What makes it a run goes last: killed in between, it is still one to be emptied. InputError where it is in use.
    """
    with lock(folder):
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.yaml"):
            if path.name not in (LOCK, ".hydra"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def is_run(folder: str | Path) -> bool:
    """Whether a run has begun in the folder."""
    return os.path.isfile(os.path.join(folder, "config.yaml"))


# --- writing ----------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    with whole(path) as file:
        file.write(text)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """A file to write into that is there whole once the block is left, and not at all where that fails."""
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    with disk.writing(path):
        try:
            with open(aside, "w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.rename(path)
        finally:
            with contextlib.suppress(OSError):  # of a folder in which nothing can be made there is nothing to remove
                aside.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file of bytes, whole or not at all."""
    with whole(path) as file:
        file.buffer.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def append_jsonl(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line, whole and at once; what of it did not fit on the disk is taken back, then OSError is raised."""
    data = (json.dumps(line) + "\n").encode()
    with disk.writing(path), open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line torn by a kill: they are written again by a resumed run.

    InputError names a line that no run has written: the curves are drawn of them all.
    """
    if not path.exists():
        return
    lines = read_jsonl(path)
    for number, line in enumerate(lines, start=1):
        types: dict[str, Any] = {"step": int, "split": str, **dict.fromkeys(line.keys() - {"step", "split"}, float)}
        if wrong := [problem for key in types for problem in check(types[key], line.get(key), key)]:
            raise InputError("\n".join([f"{path}, line {number}: not a line of metrics; mend or remove it:", *wrong]))
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, without a torn last one. InputError names a line that is no JSON object."""
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn, or nothing
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            found.append(None)
        if not isinstance(found[-1], dict):
            raise InputError(f"{path}, line {number}: not a JSON object; mend or remove that line")
    return found


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
        raise InputError("\n".join([f"{path} tells no result:", *problems]))
    return done >= steps


# --- what a run was ---------------------------------------------------------------------------------------------------


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
    """Add the checksums of data and tokenizer; InputError where a resumed run began with others."""
    known = environment(folder)
    sessions = [known, *known.get("resumed", [])]  # the first may have been killed before it knew any
    began = next((session["checksums"] for session in sessions if "checksums" in session), checksums)
    if other := [name for name in began if began[name] != checksums.get(name)]:
        raise InputError(
            f"{folder} cannot go on: {' and '.join(other)} changed since the run began (environment.json has the"
            " checksums); put back what it read, or start a new run, perhaps with init= of this one"
        )
    note(folder, checksums=checksums)


def dated(folder: Path) -> str:
    """When a run was begun, or last gone on with, as it recorded that: in UTC, so that later ones compare as greater.

    Empty where no such record can be read.
    """
    with contextlib.suppress(InputError):
        known = environment(folder)
        resumed = known.get("resumed")
        for session in (*reversed(resumed if isinstance(resumed, list) else []), known):
            if isinstance(session, dict) and isinstance(date := session.get("date"), str):
                return date
    return ""


def newer(folder: Path) -> str:
    """The remark that a newer gpt1 wrote a run, to follow what is wrong with it; empty where none did."""
    with contextlib.suppress(InputError):
        versions = environment(folder).get("versions")
        wrote = versions.get("gpt1") if isinstance(versions, dict) else None
        if isinstance(wrote, str) and _numbers(wrote) > _numbers(__version__):
            return f"\ngpt1 {shown(wrote)} wrote it, this is gpt1 {__version__}: update gpt1"
    return ""


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]{1,9}", version)[:3]]


# What environment.json says of a session that is read again -> its type.
RECORDED: dict[str, Any] = {"command": str, "command_line": list[str], "date": str, "versions": dict[str, str]}
RECORDED |= {"checksums": dict[str, str], "steps": int}


def environment(folder: Path) -> dict[str, Any]:
    """What environment.json says; empty where there is none. InputError where that is no record of a run."""
    path = folder / "environment.json"
    if not path.exists():
        return {}
    found = read_json(path)
    resumed: Any = found.get("resumed", [])  # anything may stand in a stranger's file
    if not isinstance(resumed, list) or not all(isinstance(session, dict) for session in resumed):
        raise InputError(f"{path} is no record of a run: resumed={shown(resumed)} is no list of sessions")
    sessions = [(session, key) for session in (found, *resumed) for key in RECORDED if key in session]
    if wrong := [problem for session, key in sessions for problem in check(RECORDED[key], session[key], key)]:
        raise InputError("\n".join([f"{path} is no record of a run:", *wrong[:10]]))
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
    source = Path(__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return None

    try:
        command = ["git", "-C", str(source), "status", "--porcelain=v2", "--branch"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


# --- reading ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML as Hydra reads it (1e-4 is a number), without aliases: they could make a small file endless."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.[\d_]+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a config.yaml. InputError where there is none."""
    try:
        with open(path, "rb") as file:
            found = yaml.load(file, _Loader)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # PyYAML raises whatever its constructors stumble over, besides YAMLError
        raise InputError(f"{path} is no readable YAML: {shown(' '.join(str(error).split()))}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no mapping of keys to values")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. InputError where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no whole JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object")
    return found
