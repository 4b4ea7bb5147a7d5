"""One run of a command: what it needs is looked for, the run is recorded and done, and what goes wrong is told.

Commands are imported by name, when they run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import select
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from gpt1cli.config.commands import COMMANDS, FewshotConfig, FinetuneConfig, RunConfig, SearchConfig, TrainConfig
from gpt1cli.config.schema import UserError, display
from gpt1cli.config.task import TaskConfig
from gpt1cli.runs import files
from gpt1cli.runs.files import write_text
from gpt1cli.runs.folder import abandon, is_bare, is_run
from gpt1cli.runs.record import record

R = TypeVar("R", bound=RunConfig)


class Failed(Exception):
    """A run that failed and has told why: what is left is its exit status, and what was told."""

    def __init__(self, status: int, told: str = "") -> None:
        super().__init__(status, told)
        self.status, self.told = status, told


def checked(command: str, run: R) -> tuple[ModuleType, R]:
    """The command's module and the whole configuration, once all that the run needs is at hand."""
    run = resolved(run)
    hub, module = map(importlib.import_module, ("gpt1cli.data.hub", COMMANDS[command].module))
    hub.require(module.needs(run), run.hub, run.cache)
    return module, run


def resolved(run: R) -> R:
    """The configuration as the run is recorded with it: with what only its data can tell (task=file), and with the loss
    that scores have between the two words of a prompt.
    """
    task: TaskConfig | None = getattr(run, "task", None)
    if task is not None and task.source == "file":
        task = importlib.import_module("gpt1cli.tasks.splits").resolved(task)
        run = dataclasses.replace(run, task=task)  # type: ignore[call-arg]
    tuned = isinstance(run, FinetuneConfig) and run.method == "prompt"
    if (tuned or isinstance(run, FewshotConfig | SearchConfig)) and task is not None and not task.classes:
        run = dataclasses.replace(run, task=dataclasses.replace(task, loss="interpolation"))  # type: ignore[call-arg]
    return run


def start(module: ModuleType, run: RunConfig, folder: Path) -> None:
    """Run the command, in this process or as one of several."""
    if run.runtime.devices == 1 or not isinstance(run, TrainConfig):  # a study hands them on to its cells
        module.run(run, folder)
        return
    distributed = importlib.import_module("gpt1cli.training.processes")
    (distributed.join if by_torchrun() else distributed.launch)(module.run, run, folder)


def by_torchrun() -> int:
    """As one of how many processes torchrun has started this one; 0 where it has not, or not several."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return count if count > 1 else 0


def execute(
    module: ModuleType, command: str, run: RunConfig, folder: Path, resumed: bool, words: Sequence[str]
) -> None:
    """Record what is run, and run it. UserError passes; any other exception is told here and becomes Failed."""
    try:
        with on_disk(run, folder):
            stored = dataclasses.asdict(run) | ({"resume": None} if resumed else {})
            record(folder, stored, words, {"command": command})
            start(module, run, folder)
    except Failed:  # it has said why
        raise
    except UserError:
        if not resumed:
            with contextlib.suppress(OSError):  # of a disk that has failed
                abandon(folder)
        raise
    except Exception as error:
        told = "" if isinstance(error, BrokenPipeError) and stdout_is_gone() else fault(error, folder)
        if told:
            say(told)
        raise Failed(1, told) from error


@contextlib.contextmanager
def on_disk(run: RunConfig, folder: Path) -> Iterator[None]:
    """What could not be written becomes an UserError, which tells the way on."""
    try:
        yield
    except (UserError, Failed):
        raise
    except Exception as error:
        cache = Path(run.cache).absolute()
        if not (unwritten := files.found(error, [cache, folder])):
            raise
        place = Path(os.fsdecode(unwritten.filename)).absolute() if unwritten.filename else folder
        keys = {"cache=": cache, "output=": Path(getattr(run, "output", None) or cache).absolute()}
        elsewhere = next((key for key, named in keys.items() if place.is_relative_to(named)), "")
        again = "the same command"
        with contextlib.suppress(OSError):
            if hasattr(run, "resume") and is_run(folder) and not is_bare(folder):
                again = f"resume={folder}"
            elif not elsewhere:
                elsewhere = "out="
        raise UserError(files.told(unwritten, elsewhere, again)) from error


def say(message: str) -> None:
    """One message on stderr, if anybody reads it."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def fault(error: Exception, folder: Path | None) -> str:
    """One line for a fault of ours; the traceback goes into error.txt of the run folder, or into a temporary file."""
    import tempfile

    message = f"gpt1: {type(error).__name__}: {display(' '.join(str(error).split()))}"
    text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode()
    for place in (folder, None):
        with contextlib.suppress(OSError):
            path = (place or Path(tempfile.mkdtemp(prefix="gpt1-"))) / "error.txt"
            write_text(path, text)
            return f"{message}; traceback in {path}"
    return f"{message}; its traceback could not be written"


def stdout_is_gone() -> bool:
    """Whether nobody reads stdout any more; if so it goes nowhere from here on, so that Python's exit is quiet."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # no file behind it: a test's
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # errors are always reported
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True
