"""A write that failed: which file, why, and the way on.

Whatever writes names its file by `writing`; what comes out of it passes as an OSError, so that each place can clean up
behind itself, and the door turns it into a few lines (`told`). Nothing is retried and nothing is skipped: a full disk
ends the run, with all that was written before it in place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

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
