"""gpt1 ablation, alias gpt1 sweeps: a study of many runs (paper, section 5 and the tables of section 4.2)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gpt1cli.cli import execute
from gpt1cli.config.commands import (
    FewshotConfig,
    FinetuneConfig,
    SearchConfig,
    SweepsConfig,
    TrainConfig,
    ZeroshotConfig,
)
from gpt1cli.config.schema import UserError
from gpt1cli.data.hub import Need, task_needs
from gpt1cli.reporting import page
from gpt1cli.reporting.page import Table
from gpt1cli.reporting.report import summarise
from gpt1cli.runs.files import read_json
from gpt1cli.runs.folder import claim, finish, reopen
from gpt1cli.studies import few_shot, transfer
from gpt1cli.studies.cells import Cell, keep_best, keep_chosen, module_of, run_all, say, warn

FAMILIES = {"transfer": transfer, "few": few_shot}  # study.kind -> which cells there are


def needs(config: SweepsConfig) -> list[Need]:
    """What must be at hand for every cell, before the first one runs."""
    cells = [cell for stage in FAMILIES[config.study.kind].stages(config) for cell in stage(None)]
    if not cells:
        chosen = ", ".join(transfer.variants(config))
        raise UserError(f"study={config.study.name} has no cell of {chosen}: nothing to run")
    own, found = transfer.prerequisites(config), list[Need]()
    for cell in cells:
        probes = isinstance(cell.config, ZeroshotConfig)
        if probes or (isinstance(cell.config, FewshotConfig | SearchConfig) and own):  # init may still be to come
            found += task_needs(cell.config.task)  # type: ignore[attr-defined]
        else:
            found += module_of(cell).needs(cell.config)
    return list(dict.fromkeys(found))


def run(config: SweepsConfig, folder: Path) -> None:
    """Cell after cell, each in its own folder -> the table that they make -> result.json; Failed where a cell did."""
    if config.dry_run:
        rehearse(config, folder)
        return
    try:
        _study(config, folder)
    except (KeyboardInterrupt, SystemExit):
        execute.say(f"gpt1: the study goes on with gpt1 sweeps resume={folder}")
        raise


def _study(config: SweepsConfig, folder: Path) -> None:
    began, failed = time.perf_counter(), dict[str, str]()
    stages = FAMILIES[config.study.kind].stages(config)
    expected, done, first = sum(len(stage(None)) for stage in stages), 0, transfer.prerequisites(config)
    reopen(folder)
    for stage in stages:
        lost = any(name in failed for name in first)  # then nothing else can begin
        cells = stage(None if lost else folder)
        run_all(cells, transfer.home(folder), config, failed, done, expected, tidier(config, folder, cells))
        done += len(cells)
        if failed and config.on_error == "stop":
            break
    summarise(folder, failed)
    if failed and config.on_error == "stop":
        told = f"gpt1: stopped; resume={folder} goes on"
        warn(folder, told)
        raise execute.Failed(1, told)
    about = {"status": "finished", "command": "ablation", "name": config.name, "cells": expected}
    finish(folder, {**about, "failed": failed, "seconds": round(time.perf_counter() - began, 3)})
    well = expected - len(failed)
    say(folder, f"gpt1: {well} of {expected} cells: {folder / 'report.md'}, report.html, table.csv")
    if failed:
        told = f"gpt1: {len(failed)} of {expected} cells failed; resume={folder} tries them again"
        warn(folder, told)
        raise execute.Failed(1, told)


def tidier(config: SweepsConfig, folder: Path, cells: Sequence[Cell]) -> Callable[[Cell], None]:
    """What becomes of the weights of a finished cell, of which the best may be all that stays."""
    home = transfer.home(folder)

    def tidy(cell: Cell) -> None:
        if cell.command != "finetune" or config.keep == "all":
            return
        assert isinstance(cell.config, FinetuneConfig)
        keep_best(home / cell.name)
        if cell.group:
            rivals = [home / one.name for one in cells if one.group == cell.group]
            keep_chosen(rivals, cell.config.task.metrics[0])

    return tidy


def rehearse(config: SweepsConfig, folder: Path) -> None:
    """dry_run=true: a dry run of a cell of each kind -> the hours and the disk of them all."""
    kinds = FAMILIES[config.study.kind].kinds(config)
    rows, runs, hours, held = [], 0, 0.0, 0
    for number, (cell, count, kept) in enumerate(kinds, start=1):
        print(f"gpt1: dry run {number}/{len(kinds)} {cell.name}", flush=True)
        assert isinstance(cell.config, TrainConfig)
        place = transfer.home(folder) / cell.name
        dry, words = dataclasses.replace(cell.config, dry_run=True), [cell.command, *cell.words, "dry_run=true"]
        with claim(place), contextlib.redirect_stdout(io.StringIO()):  # its tables
            execute.execute(module_of(cell), cell.command, dry, place, False, words)
        plan = read_json(place / "plan.json")
        each, size = plan["here"]["hours"], kept_bytes(cell, config, plan["parameters"]["all"]) * kept
        rows.append([cell.name, f"{count}", f"{each:.3g}", f"{each * count:.3g}", f"{size / 1e9:.3f}"])
        runs, hours, held = runs + count, hours + each * count, held + size
    rows.append(["all", f"{runs}", "", f"{hours:.3g}", f"{held / 1e9:.3f}"])
    table = Table("What the study takes", ["cell", "runs", "hours each", "hours", "GB kept"], rows)
    table.show()
    page.write(folder, "A dry run", [table])
    about = {"status": "finished", "command": "ablation", "dry_run": True, "name": config.name}
    finish(folder, {**about, "cells": runs, "hours": hours, "bytes": held})
    print(f"a dry run: nothing was trained; {hours:.3g} hours of training alone, {held / 1e9:.2f} GB: {folder}")


def kept_bytes(cell: Cell, config: SweepsConfig, parameters: int) -> int:
    """Bytes of the checkpoints that a finished cell keeps: fp32 weights, and with them two moments where all stay."""
    if cell.command == "finetune" and config.keep == "best":
        return 4 * parameters
    assert isinstance(cell.config, TrainConfig)
    further = len(getattr(cell.config, "keep_checkpoints", ()))
    return 12 * parameters * (2 + further)  # best and last
