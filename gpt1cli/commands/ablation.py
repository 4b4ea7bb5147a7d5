"""gpt1 ablation, alias gpt1 sweeps: a study of many runs (paper, section 5 and the tables of section 4.2)."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import glob
import importlib
import io
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from gpt1cli import pages, paper, rundir, running, studies
from gpt1cli.commands import report
from gpt1cli.compose import compose
from gpt1cli.config import SweepsConfig, TrainConfig, ZeroshotConfig
from gpt1cli.hub import Need, task_needs
from gpt1cli.loggers import clock, write_log
from gpt1cli.overrides import quote
from gpt1cli.pages import Table
from gpt1cli.report import Finished, find_runs
from gpt1cli.schema import InputError
from gpt1cli.studies import Cell


def needs(config: SweepsConfig) -> list[Need]:
    """What must be at hand for every cell, before the first one runs."""
    cells = [*studies.pretrainings(config), *studies.finetunings(config, None)]
    if not cells:
        chosen = ", ".join(studies.variants(config))
        raise InputError(f"study={config.study.name} has no cell of {chosen}: nothing to run")
    found = [need for cell in cells for need in _module(cell).needs(cell.config)]
    for cell in studies.probings(config, None):
        assert isinstance(cell.config, ZeroshotConfig)
        found += task_needs(cell.config.task)
    return list(dict.fromkeys(found))


def run(config: SweepsConfig, folder: Path) -> None:
    """Cell after cell, each in its own folder -> the table that they make -> result.json; Failed where a cell did."""
    if config.dry_run:
        rehearse(config, folder)
        return
    try:
        _study(config, folder)
    except (KeyboardInterrupt, SystemExit):
        running.say(f"gpt1: the study goes on with gpt1 sweeps resume={folder}")
        raise


def _study(config: SweepsConfig, folder: Path) -> None:
    began, failed = time.perf_counter(), dict[str, str]()
    home = studies.home(folder)
    own = studies.pretrainings(config)
    rundir.reopen(folder)
    expected = len(own) + len(studies.finetunings(config, None)) + len(studies.probings(config, None))
    _run_all(own, home, config, failed, 0, expected)
    if failed:
        lost = ", ".join(failed)
        rest = [*studies.probings(config, None), *studies.finetunings(config, None)]
        failed |= {cell.name: f"not run, for want of {lost}" for cell in rest}
    else:
        cells = [*studies.probings(config, folder), *studies.finetunings(config, folder)]
        _run_all(cells, home, config, failed, len(own), expected)
    summarise(folder, failed)
    if failed and config.on_error == "stop":
        told = f"gpt1: stopped; resume={folder} goes on"
        _warn(folder, told)
        raise running.Failed(1, told)
    about = {"status": "finished", "command": "ablation", "name": config.name, "cells": expected}
    rundir.finish(folder, {**about, "failed": failed, "seconds": round(time.perf_counter() - began, 3)})
    _say(folder, f"gpt1: {expected - len(failed)} of {expected} cells: {folder / 'report.md'}, report.html, table.csv")
    if failed:
        told = f"gpt1: {len(failed)} of {expected} cells failed; resume={folder} tries them again"
        _warn(folder, told)
        raise running.Failed(1, told)


def rehearse(config: SweepsConfig, folder: Path) -> None:
    """dry_run=true: a dry run of each cell with the first seed -> the hours and the disk of them all."""
    own, cells = studies.pretrainings(config), studies.finetunings(config, None)
    kinds = cells[: len(cells) // len(config.seeds)]
    rows, hours, held = [], 0.0, 0
    for number, (cell, count) in enumerate([(c, 1) for c in own] + [(c, len(config.seeds)) for c in kinds], start=1):
        print(f"gpt1: dry run {number}/{len(own) + len(kinds)} {cell.name}", flush=True)
        assert isinstance(cell.config, TrainConfig)
        place = studies.home(folder) / cell.name
        dry, words = dataclasses.replace(cell.config, dry_run=True), [cell.command, *cell.words, "dry_run=true"]
        with rundir.claim(place), contextlib.redirect_stdout(io.StringIO()):  # its tables
            running.execute(_module(cell), cell.command, dry, place, False, words)
        plan = rundir.read_json(place / "plan.json")
        each, kept = plan["here"]["hours"], kept_bytes(cell, config, plan["parameters"]["all"])
        rows.append([cell.name, f"{count}", f"{each:.3f}", f"{each * count:.3f}", f"{kept * count / 1e9:.3f}"])
        hours, held = hours + each * count, held + kept * count
    rows.append(["all", f"{len(own) + len(cells)}", "", f"{hours:.3f}", f"{held / 1e9:.3f}"])
    table = Table("What the study takes", ["cell", "runs", "hours each", "hours", "GB kept"], rows)
    table.show()
    pages.write(folder, "A dry run", [table])
    about = {"status": "finished", "command": "ablation", "dry_run": True, "name": config.name}
    rundir.finish(folder, {**about, "cells": len(own) + len(cells), "hours": hours, "bytes": held})
    print(f"a dry run: nothing was trained; {hours:.2f} hours of training alone, {held / 1e9:.2f} GB: {folder}")


def kept_bytes(cell: Cell, config: SweepsConfig, parameters: int) -> int:
    """Bytes of the checkpoints that a finished cell keeps: fp32 weights, and with them two moments where all stay."""
    if cell.command == "finetune" and config.keep == "best":
        return 4 * parameters
    assert isinstance(cell.config, TrainConfig)
    further = len(getattr(cell.config, "keep_checkpoints", ()))
    return 12 * parameters * (2 + further)  # best and last


def summarise(folder: Path, failed: Mapping[str, str]) -> None:
    """What gpt1 report makes of all finished cells below a folder, and which failed."""
    finished = [path for path in folder.rglob("cells/*/result.json") if not rundir.read_json(path).get("dry_run")]
    runs: Sequence[Finished] = find_runs([glob.escape(str(folder))]) if finished else ()
    configs = [path for place in (".", "*") for path in folder.glob(f"{place}/config.yaml")]
    studies_of = [rundir.read_config(path).get("study", {}) for path in configs]
    named = [key for key in paper.layouts() if key in {study.get("name") for study in studies_of}]
    figures = not any(study.get("tasks") for study in studies_of)  # alone: a study of no table has none
    blocks, records = report.laid_out(runs, named if named or figures else None)
    lines = [[name, message] for name, message in failed.items()]
    report.write(folder, runs, [*blocks, *([Table("Failed", ["cell", "why"], lines)] if failed else [])], records)


def summarise_all(folder: Path) -> None:
    """The joint table of a sweep's jobs, each of them a study."""
    studied = [rundir.read_json(path) for path in sorted(folder.glob("*/result.json"))]
    if studied and all(one.get("dry_run") for one in studied):
        return
    summarise(folder, {name: why for one in studied for name, why in one.get("failed", {}).items()})


def _run_all(
    cells: Sequence[Cell], home: Path, config: SweepsConfig, failed: dict[str, str], done: int, of: int
) -> None:
    """Run the cells that have no result yet; a failed one is told and remembered, or stops them all."""
    began, ran = time.perf_counter(), 0
    for number, cell in enumerate(cells, start=done + 1):
        place = home / cell.name
        if rundir.is_run(place) and (other := studies.differences(cell, rundir.read_config(place / "config.yaml"))):
            told = "\n  ".join(other)
            raise InputError(f"{place} was begun with another configuration:\n  {told}\nstart a new study instead")
        if rundir.is_finished(place, None):
            _tidy(cell, place, config)
            continue
        last = done + len(cells) == of  # cells before those, of pretraining, take another time
        left = f", left {clock((time.perf_counter() - began) / ran * (of - number + 1))}" if ran and last else ""
        _say(home.parent, f"gpt1: cell {number}/{of} {cell.name}{left}")
        try:
            _run_one(cell, place, config)
            _tidy(cell, place, config)
        except InputError as error:
            _warn(home.parent, f"gpt1: cell {cell.name}: {error}")
            failed[cell.name] = str(error)
        except running.Failed as error:  # it has said why
            write_log(home.parent, error.told)
            failed[cell.name] = f"see {place / 'error.txt'}"
        ran += 1
        gc.collect()
        if failed and config.on_error == "stop":
            return


def _run_one(cell: Cell, place: Path, study: SweepsConfig) -> None:
    """One cell in its folder: begun, or gone on with where it was interrupted."""
    resumed = rundir.is_run(place) and hasattr(cell.config, "resume")
    config = cell.config
    if rundir.is_run(place) and not resumed:  # interrupted, and nothing to go on from
        rundir.clear(place)
    if resumed:
        free = [*(word for word in cell.words if word.startswith("runtime.")), *studies.followed(study)]
        composer = studies.composer_of(cell.command, study)
        config = compose(composer, [f"resume={quote(str(place))}", *free]).config
    folders = ["--config-dir", study.config_dir] if study.config_dir else []
    with rundir.lock(place) if resumed else rundir.claim(place):
        running.execute(_module(cell), cell.command, config, place, resumed, [*folders, cell.command, *cell.words])


def _tidy(cell: Cell, place: Path, config: SweepsConfig) -> None:
    """keep=best: of a finished fine-tuning only the best weights stay, without what it would take to train on."""
    checkpoints = place / "checkpoints"
    if cell.command != "finetune" or config.keep == "all" or not (checkpoints / "best").is_symlink():
        return
    best = (checkpoints / "best").resolve()
    (checkpoints / "last").unlink(missing_ok=True)
    for other in checkpoints.iterdir():
        if not other.is_symlink() and other != best:
            shutil.rmtree(other)
    (best / "training.safetensors").unlink(missing_ok=True)


def _say(folder: Path, text: str) -> None:
    print(text, flush=True)
    write_log(folder, text)


def _warn(folder: Path, text: str) -> None:
    running.say(text)
    write_log(folder, text)


def _module(cell: Cell) -> ModuleType:
    return importlib.import_module(f"gpt1cli.commands.{cell.command}")
