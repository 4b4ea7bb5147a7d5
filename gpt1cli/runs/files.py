"""A write that failed: which file, why, and the way on.

Whatever writes names its file by `writing`; what comes out of it passes as an OSError, so that each place can clean up
behind itself, and the door turns it into a few lines (`told`). Nothing is retried and nothing is skipped: a full disk
ends the run, with all that was written before it in place.
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

FULL = {  # no read fails so: told apart wherever they come from, Hydra and the hub's library among them
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may be so large here (ulimit -f, or the file system)",
}
SHUT = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOTDIR: "a file stands where a folder is wanted",
    errno.EEXIST: "a file stands where a folder is wanted",
    errno.EISDIR: "a folder stands where a file is wanted",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ENOENT: "the folder is gone",
}
REASONS = {**FULL, **SHUT, errno.EIO: "the disk reports an error"}
SURE = {*FULL, errno.EROFS}
REFUSED = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
FILE = "checksums.json"
PIECE = 2**22  # bytes read at a time


class Unwritten(OSError):
    """A file or folder that could not be written: errno, the system's words, the path."""

    def __reduce__(self) -> tuple[type, tuple[int | None, str | None, str | None]]:
        return type(self), (self.errno, self.strerror, self.filename)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What is written here is the file or folder `path`: an error that names no other one becomes Unwritten."""
    try:
        yield
    except Unwritten:
        raise
    except Exception as error:
        if unwritten := _of(error, Path(path)):
            raise unwritten from error
        raise


def _of(error: Exception, path: Path) -> Unwritten | None:
    """The error as one of writing; None where it is another's: of a file that is read, of a pipe, no OSError at all."""
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError):
        if error.filename is not None and not _related(Path(os.fsdecode(error.filename)), path):
            return None
        return Unwritten(error.errno, error.strerror or str(error), str(error.filename or path))
    # safetensors writes outside Python: Error while serializing: I/O error: No space left on device (os error 28)
    if type(error).__name__ == "SafetensorError" and (code := re.search(r"(?:os error|code:) (\d+)", str(error))):
        return Unwritten(int(code[1]), os.strerror(int(code[1])), str(path))
    return None


def _related(found: Path, path: Path) -> bool:
    """Whether the error is over the path, what is in it or beside it (written aside), or a folder on the way to it."""
    return found.is_relative_to(path.parent) or path.is_relative_to(found)


def found(error: BaseException | None, places: Iterable[Path] = ()) -> Unwritten | None:
    """The write that failed behind an exception, or None; libraries hide it below exceptions of their own.

    In `places`, which we write to, a refusal counts whoever met with it.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Unwritten):
            return error
        if isinstance(error, OSError):
            path = Path(os.fsdecode(error.filename)) if error.filename else None
            refused = path and error.errno in REFUSED and any(path.is_relative_to(place) for place in places)
            if error.errno in SURE or refused:
                return Unwritten(error.errno, error.strerror, error.filename)
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def told(unwritten: Unwritten, elsewhere: str = "", again: str = "the same command") -> str:
    """What could not be written, where and why, and the way on: `elsewhere` is the key that names another place."""
    words, number = unwritten.strerror, unwritten.errno
    reason = f"{REASONS[number]} ({words})" if number in REASONS else words
    what = os.fsdecode(unwritten.filename) if unwritten.filename else "what the run writes"
    way = {True: "make room there", False: "see to that"}[number in FULL]
    other = f" or name another place by {elsewhere}" if elsewhere else ""
    return f"{what} cannot be written: {reason}\nwhat was written before is kept; {way}{other}, then {again}"


def write_text(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    with whole(path) as file:
        file.write(text)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """A file to write into that is there whole once the block is left, and not at all where that fails."""
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    with writing(path):
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
    with writing(path), open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, without a torn last one. UserError names a line that is no JSON object."""
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn, or nothing
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            found.append(None)
        if not isinstance(found[-1], dict):
            raise UserError(f"{path}, line {number}: not a JSON object; mend or remove that line")
    return found


class _Loader(yaml.SafeLoader):
    """Safe YAML as Hydra reads it (1e-4 is a number), without aliases: they could make a small file endless."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


def read_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a config.yaml. UserError where there is none."""
    try:
        with open(path, "rb") as file:
            found = yaml.load(file, _Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # PyYAML raises whatever its constructors stumble over, besides YAMLError
        raise UserError(f"{path} is no readable YAML: {display(' '.join(str(error).split()))}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no mapping of keys to values")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. UserError where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no whole JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, renamed to its place when the block ends well; one that came first stays."""
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with writing(folder):
            aside.mkdir(parents=True)
            yield aside
            _put(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, folder: Path) -> None:
    for file in aside.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    try:
        aside.rename(folder)
    except OSError:
        if not folder.exists():  # else another process has prepared the same, which is as good
            raise


def of(path: Path, size: int | None = None) -> str:
    """The checksum of a file, or of its first `size` bytes: 8 hexadecimal digits."""
    found, left = 0, path.stat().st_size if size is None else size
    with open(path, "rb") as file:
        while piece := file.read(min(PIECE, left)):
            found, left = zlib.crc32(piece, found), left - len(piece)
    return f"{found:08x}"


def write(folder: Path) -> None:
    """Write the checksums of all files of a folder beside them."""
    write_json(folder / FILE, {file.name: of(file) for file in sorted(folder.iterdir())})


def check(folder: Path, names: Iterable[str], way_on: str) -> None:
    """UserError names a file that is not what was written, and the way on; a folder without checksums is believed."""
    if not (folder / FILE).exists():  # written by an older gpt1, or by another program
        return
    written = read_json(folder / FILE)
    for name in names:
        if name in written and not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; {way_on}")
        if name in written and (found := of(folder / name)) != written[name]:
            told = f"damaged (its checksum is {found}, {written[name]} was written)"
            raise UserError(f"{folder / name}: {told}; {way_on}")
