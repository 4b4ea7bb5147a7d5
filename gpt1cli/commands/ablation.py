"""gpt1 ablation, alias gpt1 sweeps: a study of many runs (paper, section 5 and the tables of section 4.2)."""

from __future__ import annotations

import contextlib
import gc
import importlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from gpt1cli import report, rundir, running, studies
from gpt1cli.compose import compose
from gpt1cli.composer import Composer
from gpt1cli.config import InputError, SweepsConfig
from gpt1cli.hub import Need
from gpt1cli.loggers import clock
from gpt1cli.overrides import quote
from gpt1cli.studies import Cell


def needs(config: SweepsConfig) -> list[Need]:
    """What must be at hand for every cell, before the first one runs."""
    cells = [*studies.pretrainings(config), *studies.finetunings(config, None)]
    found = [need for cell in cells for need in _module(cell).needs(cell.config)]
    return list(dict.fromkeys(found))


def run(config: SweepsConfig, folder: Path) -> None:
    """Cell after cell, each in its own folder -> the table that they make -> result.json; Failed where a cell did."""
    began, failed = time.perf_counter(), dict[str, str]()
    home = studies.home(folder)
    own = studies.pretrainings(config)
    expected = len(own) + len(studies.finetunings(config, None))
    _run_all(own, home, config, failed, 0, expected)
    cells = studies.finetunings(config, folder) if not failed else []
    _run_all(cells, home, config, failed, len(own), len(own) + len(cells))
    summarise(folder, failed)
    about = {"status": "finished", "command": "ablation", "name": config.name, "cells": len(own) + len(cells)}
    rundir.finish(folder, {**about, "failed": failed, "seconds": round(time.perf_counter() - began, 3)})
    if failed:
        running.say(f"gpt1: {len(failed)} of {len(own) + len(cells)} cells failed; resume={folder} tries them again")
        raise running.Failed(1)


def summarise(folder: Path, failed: dict[str, str]) -> None:
    """The tables of all finished cells below a folder, in the terminal and in report.md."""
    with contextlib.suppress(InputError):  # no cell has finished
        made = report.tables(report.find_runs([str(folder)]))
        for table in made:
            table.show()
        lines = [f"- {name}: {message}" for name, message in failed.items()]
        page = [*(table.markdown() for table in made), *(["## Failed\n", *lines, ""] if failed else [])]
        rundir.write_text(folder / "report.md", "\n".join(["# Report\n", *page]))


def _run_all(
    cells: Sequence[Cell], home: Path, config: SweepsConfig, failed: dict[str, str], done: int, of: int
) -> None:
    """Run the cells that have no result yet; a failed one is told and remembered, or stops them all."""
    began, ran = time.perf_counter(), 0
    for number, cell in enumerate(cells, start=done + 1):
        place = home / cell.name
        if rundir.is_finished(place, None):
            _tidy(place, config)
            continue
        left = f", left {clock((time.perf_counter() - began) / ran * (of - number + 1))}" if ran else ""
        print(f"gpt1: cell {number}/{of} {cell.name}{left}", flush=True)
        try:
            _run_one(cell, place)
            _tidy(place, config)
        except InputError as error:
            running.say(f"gpt1: cell {cell.name}: {error}")
            failed[cell.name] = str(error)
        except running.Failed:  # it has said why
            failed[cell.name] = f"see {place / 'error.txt'}"
        ran += 1
        gc.collect()
        if failed and config.on_error == "stop":
            return


def _run_one(cell: Cell, place: Path) -> None:
    """One cell in its folder: begun, or gone on with where it was interrupted."""
    resumed = rundir.is_run(place)
    config = cell.config
    if resumed:
        runtime = [word for word in cell.words if word.startswith("runtime.")]
        config = compose(Composer(cell.command), [f"resume={quote(str(place))}", *runtime]).config
    with rundir.lock(place) if resumed else rundir.claim(place):
        running.execute(_module(cell), cell.command, config, place, resumed, [cell.command, *cell.words])


def _tidy(place: Path, config: SweepsConfig) -> None:
    """keep=best: of a finished fine-tuning only the best weights stay, without what it would take to train on."""
    checkpoints = place / "checkpoints"
    if config.keep == "all" or not (checkpoints / "best").is_symlink() or place.name.startswith("pretrain-"):
        return
    best = (checkpoints / "best").resolve()
    (checkpoints / "last").unlink(missing_ok=True)
    for other in checkpoints.iterdir():
        if not other.is_symlink() and other != best:
            shutil.rmtree(other)
    (best / "training.safetensors").unlink(missing_ok=True)


def _module(cell: Cell) -> ModuleType:
    return importlib.import_module(f"gpt1cli.commands.{cell.command}")
