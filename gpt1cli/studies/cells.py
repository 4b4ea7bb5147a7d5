"""Cells: the runs of a study or a search; each is an ordinary run with its own folder.

All cells are composed from overrides, as a user would type them, before the first one runs. A cell is started, or
resumed if it was interrupted; a cell that has a result is skipped.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gpt1cli.cli import execute
from gpt1cli.cli.hydra_loader import Composer, ConfigSource
from gpt1cli.cli.overrides import quote
from gpt1cli.cli.resolve import compose
from gpt1cli.config import options
from gpt1cli.config.commands import COMMANDS, RunConfig, SearchConfig, SweepsConfig, TrainConfig
from gpt1cli.config.schema import UserError, annotation_of, display, flatten
from gpt1cli.config.training import LoggerConfig
from gpt1cli.runs.console import format_duration, write_log
from gpt1cli.runs.files import read_config, read_json
from gpt1cli.runs.folder import clear_folder, create_folder, is_finished, is_run, lock_folder

EXECUTION_KEYS = ("runtime.", "logger.")  # execution and tracking: every cell gets its parent's settings
ParentConfig = SweepsConfig | SearchConfig


@dataclass(frozen=True)
class Cell:
    """One run of a study or a search."""

    name: str  # of its folder
    command: str
    overrides: tuple[str, ...]  # as a user would type them
    config: RunConfig
    depends_on: tuple[str, ...] = ()  # names of cells that must succeed before it
    group: str = ""  # shared by the cells of one grid; validation chooses one of them

    def with_settings(self, name: str, **settings: Any) -> Cell:
        """The cell with other values of keys on which no other key depends; `name` is added to its name."""
        overrides = (*self.overrides, *(f"{key}={value}" for key, value in settings.items()))
        config = dataclasses.replace(self.config, **settings)
        return dataclasses.replace(self, name=f"{self.name}-{name}", overrides=overrides, config=config)


# --- composing --------------------------------------------------------------------------------------------------------


def compose_cell(
    name: str, command: str, overrides: Sequence[str], parent: ParentConfig, depends_on: Sequence[str] = ()
) -> Cell:
    """Compose a cell from overrides. Raises UserError that names the cell and the problem."""
    composer = cell_composer(command, parent)
    words = (*_inherited_overrides(parent, composer.cls), *overrides)
    try:
        # Checked one by one, because a later word may contradict an earlier one. A search collects those for its own
        # cells from all words, so its words are checked together.
        groups = [words] if command == "search" else [[word] for word in words]
        checked = [word for group in groups for word in composer.check_overrides([*group], complete=False)]
        return Cell(name, command, words, execute.complete_config(compose(composer, checked).config), tuple(depends_on))
    except UserError as error:
        raise UserError(f"cell {name}: {error}") from None


def config_differences(cell: Cell, stored: Mapping[str, Any]) -> list[str]:
    """The settings in which an existing run differs from the cell: `key=stored, now value`."""
    before, now = (dict(flatten(config)) for config in (stored, dataclasses.asdict(cell.config)))
    # Places, execution and tracking may differ; init_lstm is compared through init.
    ignored = ("resume", "config", "cache", "hub", "out", "name", "init_lstm")
    keys = [
        key for key in now if before.get(key) != now[key] and not key.startswith(EXECUTION_KEYS) and key not in ignored
    ]
    return [f"{key}={display(before.get(key))}, now {display(now[key])}" for key in keys]


def cell_composer(command: str, parent: ParentConfig) -> Composer:
    """The composer of a command's cells, with the same config folders as their parent."""
    return _cached_composer(command, parent.config_dir)


@functools.cache
def _cached_composer(command: str, config_dir: str | None) -> Composer:
    return Composer(command, ConfigSource(extra=config_dir))


def _inherited_overrides(parent: ParentConfig, cls: type) -> Iterator[str]:
    """Overrides that cells inherit from their parent: folders, execution and tracking."""
    for key in ("out", "cache", "hub"):
        if (value := getattr(parent, key)) is not None:
            yield f"{key}={os.path.abspath(value)}"
    defaults = options.values("runtime", "default")
    for key, value in dataclasses.asdict(parent.runtime).items():
        if value != defaults[key] and (key not in ("devices", "shard") or issubclass(cls, TrainConfig)):
            yield f"runtime.{key}={'null' if value is None else str(value).lower()}"
    if parent.logger.name != "none" and annotation_of(cls, "logger") is not None:
        yield from logger_overrides(parent.logger)


def logger_overrides(logger: LoggerConfig) -> Iterator[str]:
    """The parent's tracker as overrides for its cells."""
    yield f"logger={logger.name}"
    if logger.project is not None:
        yield f"logger.project={logger.project}"


# --- running ----------------------------------------------------------------------------------------------------------


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    parent: ParentConfig,
    failed: dict[str, str],
    done: int,
    total: int,
    prune: Callable[[Cell], None],
) -> None:
    """Run the cells that have no result yet, below `folder`, and prune the checkpoints of each.

    A failed cell is reported and added to `failed` (name -> reason); with on_error=stop no more cells are run. `done`
    of the parent's `total` cells came before these. Raises UserError if a cell was started with other settings.
    """
    start_time, ran = time.perf_counter(), 0
    for number, cell in enumerate(cells, start=done + 1):
        place = folder / cell.name
        if blocking := [name for name in cell.depends_on if name in failed]:
            failed[cell.name] = f"not run, because {', '.join(blocking)} failed"
            continue
        if is_run(place) and (changes := config_differences(cell, read_config(place / "config.yaml"))):
            listed = "\n  ".join(changes)
            raise UserError(f"{place} was started with other settings:\n  {listed}\nstart a new run instead")
        if is_finished(place, None):
            prune(cell)
            continue
        last = done + len(cells) == total  # earlier stages take other times: they pretrain or search
        remaining = ""
        if ran and last:
            seconds = (time.perf_counter() - start_time) / ran * (total - number + 1)
            remaining = f", about {format_duration(seconds)} left"
        log_message(folder.parent, f"gpt1: cell {number}/{total} {cell.name}{remaining}")
        try:
            run_cell(cell, place, parent)
            prune(cell)
        except UserError as error:
            log_warning(folder.parent, f"gpt1: cell {cell.name}: {error}")
            failed[cell.name] = str(error)
        except execute.RunFailed as error:  # its reason is already printed
            write_log(folder.parent, error.message)
            failed[cell.name] = f"see {place / 'error.txt'}"
        ran += 1
        gc.collect()
        if failed and parent.on_error == "stop":
            return


def run_cell(cell: Cell, place: Path, parent: ParentConfig) -> None:
    """Run one cell in its folder `place`, or resume it if it was interrupted."""
    resumed = is_run(place) and hasattr(cell.config, "resume")
    config = cell.config
    if is_run(place) and not resumed:  # interrupted, and its command cannot resume
        clear_folder(place)
    if resumed:
        changeable = [
            *(word for word in cell.overrides if word.startswith("runtime.")),
            *logger_overrides(parent.logger),
        ]
        config = compose(cell_composer(cell.command, parent), [f"resume={quote(str(place))}", *changeable]).config
    flags = ["--config-dir", parent.config_dir] if parent.config_dir else []
    words = [*flags, cell.command, *cell.overrides]
    with lock_folder(place) if resumed else create_folder(place):
        execute.execute_run(command_module(cell), cell.command, config, place, resumed, words)


def command_module(cell: Cell) -> ModuleType:
    """The module of the cell's command."""
    return importlib.import_module(COMMANDS[cell.command].module)


def validation_score(place: Path, headline: str) -> tuple[float, float]:
    """Sort key of a finished run: its headline metric on validation, then the negative validation loss for ties."""
    valid = read_json(place / "result.json")["valid"]
    return valid[headline], -valid["loss"]


def prune_checkpoints(place: Path) -> None:
    """Remove all checkpoints of a finished fine-tuning run but the best, and the training state of the best."""
    checkpoints = place / "checkpoints"
    if not (checkpoints / "best").is_symlink():
        return
    best = (checkpoints / "best").resolve()
    (checkpoints / "last").unlink(missing_ok=True)
    for other in checkpoints.iterdir():
        if not other.is_symlink() and other != best:
            shutil.rmtree(other)
    (best / "training.safetensors").unlink(missing_ok=True)


def prune_other_runs(places: Iterable[Path], headline: str, keep: int = 1) -> None:
    """Remove the checkpoints of all finished runs but the `keep` best; scores and predictions of all runs stay."""
    done = [place for place in places if is_finished(place, None)]
    ranked = sorted(done, key=lambda place: validation_score(place, headline), reverse=True)  # of ties the first
    for place in ranked[keep:]:
        shutil.rmtree(place / "checkpoints", ignore_errors=True)


def log_message(folder: Path, text: str) -> None:
    """Print a line and append it to run.log."""
    print(text, flush=True)
    write_log(folder, text)


def log_warning(folder: Path, text: str) -> None:
    """Print a line on stderr and append it to run.log."""
    execute.print_error(text)
    write_log(folder, text)
