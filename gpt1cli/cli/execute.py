"""Executes one run of a command: checks what it needs, records it, runs it and reports its errors.

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
from gpt1cli.runs.folder import is_empty_run, is_run, remove_if_empty
from gpt1cli.runs.record import write_record

R = TypeVar("R", bound=RunConfig)


class RunFailed(Exception):
    """A run that failed and has already printed why: its exit status, and the printed message."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


def check_run(command: str, run: R) -> tuple[ModuleType, R]:
    """Return the command's module and complete configuration. Raises UserError if a file or package is missing."""
    run = complete_config(run)
    hub, module = map(importlib.import_module, ("gpt1cli.data.hub", COMMANDS[command].module))
    hub.check_requirements(module.needs(run), run.hub, run.cache)
    return module, run


def complete_config(run: R) -> R:
    """Return the configuration as it is recorded: with the task keys that come from the data (task=file), and with the
    loss for scores between the two words of a prompt.
    """
    task: TaskConfig | None = getattr(run, "task", None)
    if task is not None and task.source == "file":
        task = importlib.import_module("gpt1cli.tasks.splits").complete_task(task)
        run = dataclasses.replace(run, task=task)  # type: ignore[call-arg]
    is_prompt_tuning = isinstance(run, FinetuneConfig) and run.method == "prompt"
    if (
        (is_prompt_tuning or isinstance(run, FewshotConfig | SearchConfig))
        and task is not None
        and not task.is_classification
    ):
        run = dataclasses.replace(run, task=dataclasses.replace(task, loss="interpolation"))  # type: ignore[call-arg]
    return run


def run_command(module: ModuleType, run: RunConfig, folder: Path) -> None:
    """Run the command, in this process or in several."""
    if run.runtime.devices == 1 or not isinstance(run, TrainConfig):  # a study passes devices on to its cells
        module.run(run, folder)
        return
    processes = importlib.import_module("gpt1cli.training.processes")
    (processes.run_as_rank if torchrun_world_size() else processes.launch_ranks)(module.run, run, folder)


def torchrun_world_size() -> int:
    """Return the number of processes that torchrun started; 0 if there is no torchrun or only one process."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return count if count > 1 else 0


def execute_run(
    module: ModuleType, command: str, run: RunConfig, folder: Path, resumed: bool, words: Sequence[str]
) -> None:
    """Record the run and run it. Raises UserError as it is; any other exception is reported and becomes RunFailed."""
    try:
        with explain_write_errors(run, folder):
            stored = dataclasses.asdict(run) | ({"resume": None} if resumed else {})
            write_record(folder, stored, words, {"command": command})
            run_command(module, run, folder)
    except RunFailed:  # already reported
        raise
    except UserError:
        if not resumed:
            with contextlib.suppress(OSError):  # the disk may have failed
                remove_if_empty(folder)
        raise
    except Exception as error:
        message = "" if isinstance(error, BrokenPipeError) and is_stdout_closed() else save_traceback(error, folder)
        if message:
            print_error(message)
        raise RunFailed(1, message) from error


@contextlib.contextmanager
def explain_write_errors(run: RunConfig, folder: Path) -> Iterator[None]:
    """Convert a failed write into a UserError that names the file and the next step."""
    try:
        yield
    except (UserError, RunFailed):
        raise
    except Exception as error:
        cache = Path(run.cache).absolute()
        if not (write_error := files.find_write_error(error, [cache, folder])):
            raise
        path = Path(os.fsdecode(write_error.filename)).absolute() if write_error.filename else folder
        keys = {"cache=": cache, "output=": Path(getattr(run, "output", None) or cache).absolute()}
        folder_key = next((key for key, root in keys.items() if path.is_relative_to(root)), "")
        next_step = "repeat the same command"
        with contextlib.suppress(OSError):
            if hasattr(run, "resume") and is_run(folder) and not is_empty_run(folder):
                next_step = f"continue with resume={folder}"
            elif not folder_key:
                folder_key = "out="
        raise UserError(files.describe_write_error(write_error, folder_key, next_step)) from error


def print_error(message: str) -> None:
    """Print a message to stderr; ignore a closed stderr."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def save_traceback(error: Exception, folder: Path | None) -> str:
    """Write the traceback of an internal error to error.txt in the run folder or a temporary one; return one line."""
    import tempfile

    message = f"gpt1: {type(error).__name__}: {display(' '.join(str(error).split()))}"
    text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode()
    for parent in (folder, None):
        with contextlib.suppress(OSError):
            path = (parent or Path(tempfile.mkdtemp(prefix="gpt1-"))) / "error.txt"
            write_text(path, text)
            return f"{message}; traceback in {path}"
    return f"{message}; the traceback could not be written"


def is_stdout_closed() -> bool:
    """Whether the reader of stdout has closed it; then redirect stdout to /dev/null, so that Python exits quietly."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # not a real file, as in tests
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # errors are always reported
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True
