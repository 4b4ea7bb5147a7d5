"""Runs inside a run: what a study and a search are made of, each an ordinary run with a folder of its own.

A cell is composed from overrides, as one would type them, before the first one runs. It is begun, or gone on with where
it was interrupted; what has a result is left alone.
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
from gpt1cli.cli.hydra_loader import Composer, Source
from gpt1cli.cli.overrides import quote
from gpt1cli.cli.resolve import compose
from gpt1cli.config import options
from gpt1cli.config.commands import COMMANDS, RunConfig, SearchConfig, SweepsConfig, TrainConfig
from gpt1cli.config.schema import UserError, annotation_of, display, flat
from gpt1cli.config.training import LoggerConfig
from gpt1cli.runs.console import clock, write_log
from gpt1cli.runs.files import read_config, read_json
from gpt1cli.runs.folder import claim, clear, is_finished, is_run, lock

HOW = ("runtime.", "logger.")  # how a cell is executed and followed: its parent's own, handed to each
Parent = SweepsConfig | SearchConfig


@dataclass(frozen=True)
class Cell:
    """One run inside of another."""

    name: str  # of its folder
    command: str
    words: tuple[str, ...]  # its overrides, as one would type them
    config: RunConfig
    after: tuple[str, ...] = ()  # the cells without whose result it cannot begin
    group: str = ""  # of cells that differ in a grid's values, of which validation chooses one

    def also(self, name: str, **settings: Any) -> Cell:
        """The same run with other values of some of its own keys, of which no other key follows."""
        words = tuple(f"{key}={value}" for key, value in settings.items())
        config = dataclasses.replace(self.config, **settings)
        return dataclasses.replace(self, name=f"{self.name}-{name}", words=(*self.words, *words), config=config)


# --- composing --------------------------------------------------------------------------------------------------------


def composed(name: str, command: str, given: Sequence[str], parent: Parent, after: Sequence[str] = ()) -> Cell:
    """The cell of these overrides. UserError names the cell and what is wrong with it."""
    composer = composer_of(command, parent)
    words = (*_shared(parent, composer.cls), *given)
    try:
        # one at a time, as a later word may stand against an earlier one; what a search's own cells get, it gathers
        together = [words] if command == "search" else [[word] for word in words]
        checked = [word for some in together for word in composer.check([*some], whole=False)]
        return Cell(name, command, words, execute.resolved(compose(composer, checked).config), tuple(after))
    except UserError as error:
        raise UserError(f"cell {name}: {error}") from None


def differences(cell: Cell, stored: Mapping[str, Any]) -> list[str]:
    """In what a run that has begun is not what the cell would be now: `key=stored, now value`."""
    before, now = (dict(flat(one)) for one in (stored, dataclasses.asdict(cell.config)))
    # besides where and how it is executed and followed, and what init tells of init_lstm
    apart = ("resume", "config", "cache", "hub", "out", "name", "init_lstm")
    keys = [key for key in now if before.get(key) != now[key] and not key.startswith(HOW) and key not in apart]
    return [f"{key}={display(before.get(key))}, now {display(now[key])}" for key in keys]


def composer_of(command: str, parent: Parent) -> Composer:
    """What composes the cells, from the folders that composed their parent."""
    return _composer(command, parent.config_dir)


@functools.cache
def _composer(command: str, config_dir: str | None) -> Composer:
    return Composer(command, Source(extra=config_dir))


def _shared(parent: Parent, cls: type) -> Iterator[str]:
    """What the cells have in common with their parent: where things lie, and how they are executed and followed."""
    for key in ("out", "cache", "hub"):
        if (value := getattr(parent, key)) is not None:
            yield f"{key}={os.path.abspath(value)}"
    usual = options.values("runtime", "default")
    for key, value in dataclasses.asdict(parent.runtime).items():
        if value != usual[key] and (key not in ("devices", "shard") or issubclass(cls, TrainConfig)):
            yield f"runtime.{key}={'null' if value is None else str(value).lower()}"
    if parent.logger.name != "none" and annotation_of(cls, "logger") is not None:
        yield from followed(parent.logger)


def followed(logger: LoggerConfig) -> Iterator[str]:
    """The parent's tracker as overrides of its cells."""
    yield f"logger={logger.name}"
    if logger.project is not None:
        yield f"logger.project={logger.project}"


# --- running ----------------------------------------------------------------------------------------------------------


def run_all(
    cells: Sequence[Cell],
    home: Path,
    parent: Parent,
    failed: dict[str, str],
    done: int,
    of: int,
    tidy: Callable[[Cell], None],
) -> None:
    """Run the cells that have no result yet, and tidy each; a failed one is told and remembered, or stops them all.

    `done` of the parent's cells came before these, `of` is how many it has.
    """
    began, ran = time.perf_counter(), 0
    for number, cell in enumerate(cells, start=done + 1):
        place = home / cell.name
        if lost := [name for name in cell.after if name in failed]:
            failed[cell.name] = f"not run, for want of {', '.join(lost)}"
            continue
        if is_run(place) and (other := differences(cell, read_config(place / "config.yaml"))):
            told = "\n  ".join(other)
            raise UserError(f"{place} was begun with another configuration:\n  {told}\nstart a new one instead")
        if is_finished(place, None):
            tidy(cell)
            continue
        last = done + len(cells) == of  # cells before those, of pretraining, take another time
        left = f", left {clock((time.perf_counter() - began) / ran * (of - number + 1))}" if ran and last else ""
        say(home.parent, f"gpt1: cell {number}/{of} {cell.name}{left}")
        try:
            run_one(cell, place, parent)
            tidy(cell)
        except UserError as error:
            warn(home.parent, f"gpt1: cell {cell.name}: {error}")
            failed[cell.name] = str(error)
        except execute.Failed as error:  # it has said why
            write_log(home.parent, error.told)
            failed[cell.name] = f"see {place / 'error.txt'}"
        ran += 1
        gc.collect()
        if failed and parent.on_error == "stop":
            return


def run_one(cell: Cell, place: Path, parent: Parent) -> None:
    """One cell in its folder: begun, or gone on with where it was interrupted."""
    resumed = is_run(place) and hasattr(cell.config, "resume")
    config = cell.config
    if is_run(place) and not resumed:  # interrupted, and nothing to go on from
        clear(place)
    if resumed:
        free = [*(word for word in cell.words if word.startswith("runtime.")), *followed(parent.logger)]
        config = compose(composer_of(cell.command, parent), [f"resume={quote(str(place))}", *free]).config
    folders = ["--config-dir", parent.config_dir] if parent.config_dir else []
    with lock(place) if resumed else claim(place):
        execute.execute(module_of(cell), cell.command, config, place, resumed, [*folders, cell.command, *cell.words])


def module_of(cell: Cell) -> ModuleType:
    """The command that runs it."""
    return importlib.import_module(COMMANDS[cell.command].module)


def on_dev(place: Path, headline: str) -> tuple[float, float]:
    """What a finished run is chosen by: its headline metric on validation, and of equals the lower loss there."""
    valid = read_json(place / "result.json")["valid"]
    return valid[headline], -valid["loss"]


def keep_best(place: Path) -> None:
    """Of a finished fine-tuning only the best weights stay, without what it would take to train on."""
    checkpoints = place / "checkpoints"
    if not (checkpoints / "best").is_symlink():
        return
    best = (checkpoints / "best").resolve()
    (checkpoints / "last").unlink(missing_ok=True)
    for other in checkpoints.iterdir():
        if not other.is_symlink() and other != best:
            shutil.rmtree(other)
    (best / "training.safetensors").unlink(missing_ok=True)


def keep_chosen(places: Iterable[Path], headline: str, most: int = 1) -> None:
    """Of those that are finished the weights of the best alone stay; what the others scored and predicted does, too."""
    done = [place for place in places if is_finished(place, None)]
    ranked = sorted(done, key=lambda place: on_dev(place, headline), reverse=True)  # of equals the first
    for place in ranked[most:]:
        shutil.rmtree(place / "checkpoints", ignore_errors=True)


def say(folder: Path, text: str) -> None:
    """A line for the user, and for run.log."""
    print(text, flush=True)
    write_log(folder, text)


def warn(folder: Path, text: str) -> None:
    """The same on stderr."""
    execute.say(text)
    write_log(folder, text)
