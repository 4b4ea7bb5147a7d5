"""Files of a run: writing them whole, reading them back, their checksums, and errors of writing.

A file or folder is written under a temporary name, synced and renamed, so that it appears complete or not at all. A
JSON line is appended complete or removed again. A failed write is never retried or skipped: it becomes a WriteError
that names the file, and ends the run; everything written before stays. Files that are read back may be a stranger's:
nothing in them is executed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from gpt1cli.config.schema import UserError, display

# --- writing ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[TextIO]:
    """A text file to write into. It appears at `path` when the block ends, and not at all if the block fails."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    with name_write_errors(path):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            with contextlib.suppress(OSError):  # if nothing can be created in the folder, there is nothing to remove
                temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; it is complete also after a power failure."""
    with atomic_write(path) as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file atomically."""
    with atomic_write(path) as file:
        file.buffer.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def append_jsonl(path: Path, line: Mapping[str, Any]) -> None:
    """Append one complete JSON line. If the disk has no room for all of it, remove the part and raise WriteError."""
    data = (json.dumps(line) + "\n").encode()
    with name_write_errors(path), open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `folder` if the block succeeds; a `folder` that already exists is kept."""
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with name_write_errors(folder):
            temporary.mkdir(parents=True)
            yield temporary
            publish_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Sync the files of a temporary folder and rename it to `folder`."""
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another process has written the same content first
            raise


# --- reading ----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a JSON object")
    return content


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, without an incomplete last line. Raises UserError for any other bad line."""
    lines = path.read_bytes().split(b"\n")
    objects = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline: nothing, or an incomplete line
        try:
            objects.append(json.loads(line))
        except (ValueError, RecursionError):
            objects.append(None)
        if not isinstance(objects[-1], dict):
            raise UserError(f"{path}, line {number}: not a JSON object; correct or remove this line")
    return objects


class ConfigLoader(yaml.SafeLoader):
    """Safe YAML without aliases: with them a small file could expand endlessly."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


ConfigLoader.add_implicit_resolver(  # 1e-4 is a number, as in Hydra
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.[\d_]+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a config.yaml. Raises UserError if there is none."""
    try:
        with open(path, "rb") as file:
            content = yaml.load(file, ConfigLoader)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # PyYAML's constructors raise many other errors besides YAMLError
        raise UserError(f"{path} is not valid YAML: {display(' '.join(str(error).split()))}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a mapping of keys to values")
    return content


# --- checksums --------------------------------------------------------------------------------------------------------

CHECKSUMS = "checksums.json"
CHUNK_BYTES = 2**22  # bytes read at a time


def file_checksum(path: Path, size: int | None = None) -> str:
    """CRC-32 of a file, or of its first `size` bytes, as 8 hexadecimal digits."""
    checksum, remaining = 0, path.stat().st_size if size is None else size
    with open(path, "rb") as file:
        while chunk := file.read(min(CHUNK_BYTES, remaining)):
            checksum, remaining = zlib.crc32(chunk, checksum), remaining - len(chunk)
    return f"{checksum:08x}"


def write_checksums(folder: Path) -> None:
    """Write checksums.json with the checksums of all files in the folder."""
    write_json(folder / CHECKSUMS, {file.name: file_checksum(file) for file in sorted(folder.iterdir())})


def check_checksums(folder: Path, names: Iterable[str], hint: str) -> None:
    """Compare files with checksums.json, if the folder has one.

    Raises UserError for a file that is missing or damaged; `hint` says what to do then.
    """
    if not (folder / CHECKSUMS).exists():  # written by an older gpt1, or by another program
        return
    expected = read_json(folder / CHECKSUMS)
    for name in names:
        if name in expected and not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; {hint}")
        if name in expected and (actual := file_checksum(folder / name)) != expected[name]:
            raise UserError(f"{folder / name}: damaged (checksum {actual}, expected {expected[name]}); {hint}")


# --- write errors -----------------------------------------------------------------------------------------------------

DISK_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than allowed here (ulimit -f, or the file system)",
}
PLACE_UNUSABLE = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOTDIR: "a file exists where a folder is needed",
    errno.EEXIST: "a file exists where a folder is needed",
    errno.EISDIR: "a folder exists where a file is needed",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ENOENT: "the folder no longer exists",
}
REASONS = {**DISK_FULL, **PLACE_UNUSABLE, errno.EIO: "the disk reports an error"}
# Reading never fails with these: they are write errors wherever they come from, e.g. Hydra or the hub's library.
ALWAYS_WRITES = {*DISK_FULL, errno.EROFS}
REFUSALS = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


class WriteError(OSError):
    """A file or folder that could not be written: errno, the system's message, the path."""

    def __reduce__(self) -> tuple[type, tuple[int | None, str | None, str | None]]:
        return type(self), (self.errno, self.strerror, self.filename)


@contextlib.contextmanager
def name_write_errors(path: str | Path) -> Iterator[None]:
    """Raise errors of the block as WriteError with the name of the file or folder `path`.

    Errors about an unrelated file stay as they are.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        if write_error := _as_write_error(error, Path(path)):
            raise write_error from error
        raise


def _as_write_error(error: Exception, path: Path) -> WriteError | None:
    """The error as a WriteError; None for an error of reading another file, of a pipe, or no OSError at all."""
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError):
        if error.filename is not None and not _concerns(Path(os.fsdecode(error.filename)), path):
            return None
        return WriteError(error.errno, error.strerror or str(error), str(error.filename or path))
    # safetensors writes outside Python: Error while serializing: I/O error: No space left on device (os error 28)
    if type(error).__name__ == "SafetensorError" and (code := re.search(r"(?:os error|code:) (\d+)", str(error))):
        return WriteError(int(code[1]), os.strerror(int(code[1])), str(path))
    return None


def _concerns(failed: Path, path: Path) -> bool:
    """Whether the failed file is `path`, below it, in its folder (a temporary file), or a folder that contains it."""
    return failed.is_relative_to(path.parent) or path.is_relative_to(failed)


def find_write_error(error: BaseException | None, places: Iterable[Path] = ()) -> WriteError | None:
    """The failed write behind an exception, or None; libraries hide it below exceptions of their own.

    `places` are folders that we only write to: there a refusal is a write error, whichever code met it.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, WriteError):
            return error
        if isinstance(error, OSError):
            path = Path(os.fsdecode(error.filename)) if error.filename else None
            refused = path and error.errno in REFUSALS and any(path.is_relative_to(place) for place in places)
            if error.errno in ALWAYS_WRITES or refused:
                return WriteError(error.errno, error.strerror, error.filename)
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def describe_write_error(error: WriteError, key: str = "", next_step: str = "repeat the same command") -> str:
    """Two lines for the user: what could not be written and why; what to do. `key` (out=) sets another place."""
    message, number = error.strerror, error.errno
    reason = f"{REASONS[number]} ({message})" if number in REASONS else message
    path = os.fsdecode(error.filename) if error.filename else "a file of the run"
    remedy = "free some disk space" if number in DISK_FULL else "solve this"
    alternative = f" or choose another place with {key}" if key else ""
    return f"{path} cannot be written: {reason}\nearlier files are kept; {remedy}{alternative}, then {next_step}"
