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
from gpt1cli.data.hub import Requirement, task_requirements
from gpt1cli.reporting import page
from gpt1cli.reporting.page import ReportTable
from gpt1cli.reporting.report import summarise_study
from gpt1cli.runs.files import read_json
from gpt1cli.runs.folder import create_folder, finish_run, reopen_run
from gpt1cli.studies import few_shot, transfer
from gpt1cli.studies.cells import (
    Cell,
    command_module,
    log_message,
    log_warning,
    prune_checkpoints,
    prune_other_runs,
    run_cells,
)

STUDY_KINDS = {"transfer": transfer, "few": few_shot}  # study.kind -> module that lists its cells


def needs(config: SweepsConfig) -> list[Requirement]:
    """Return what all cells require, before the first one runs."""
    cells = [cell for stage in STUDY_KINDS[config.study.kind].stages(config) for cell in stage(None)]
    if not cells:
        names = ", ".join(transfer.variants(config))
        raise UserError(f"study={config.study.name} has no cell of {names}; choose other variants=")
    trained_first, requirements = transfer.prerequisites(config), list[Requirement]()
    for cell in cells:
        is_zero_shot = isinstance(cell.config, ZeroshotConfig)
        # the study may still have to write the init of these cells
        if is_zero_shot or (isinstance(cell.config, FewshotConfig | SearchConfig) and trained_first):
            requirements += task_requirements(cell.config.task)  # type: ignore[attr-defined]
        else:
            requirements += command_module(cell).needs(cell.config)
    return list(dict.fromkeys(requirements))


def run(config: SweepsConfig, folder: Path) -> None:
    """Cells one by one, each in its own folder -> their table -> result.json. Raises RunFailed if a cell failed."""
    if config.dry_run:
        profile_study(config, folder)
        return
    try:
        run_study(config, folder)
    except (KeyboardInterrupt, SystemExit):
        execute.print_error(f"gpt1: to continue: gpt1 ablation resume={folder}")
        raise


def run_study(config: SweepsConfig, folder: Path) -> None:
    """Run stage after stage, write the tables, and record or raise what failed."""
    start_time, failed = time.perf_counter(), dict[str, str]()
    stages = STUDY_KINDS[config.study.kind].stages(config)
    total, done, prerequisites = sum(len(stage(None)) for stage in stages), 0, transfer.prerequisites(config)
    reopen_run(folder)
    for stage in stages:
        is_blocked = any(name in failed for name in prerequisites)  # no later cell can start without it
        cells = stage(None if is_blocked else folder)
        run_cells(
            cells, transfer.cells_folder(folder), config, failed, done, total, checkpoint_pruner(config, folder, cells)
        )
        done += len(cells)
        if failed and config.on_error == "stop":
            break
    summarise_study(folder, failed)
    if failed and config.on_error == "stop":
        message = f"gpt1: stopped at the first failed cell; to continue: gpt1 ablation resume={folder}"
        log_warning(folder, message)
        raise execute.RunFailed(1, message)
    summary = {"status": "finished", "command": "ablation", "name": config.name, "cells": total}
    finish_run(folder, {**summary, "failed": failed, "seconds": round(time.perf_counter() - start_time, 3)})
    succeeded = total - len(failed)
    log_message(folder, f"gpt1: {succeeded} of {total} cells: {folder / 'report.md'}, report.html, table.csv")
    if failed:
        message = f"gpt1: {len(failed)} of {total} cells failed; to retry them: gpt1 ablation resume={folder}"
        log_warning(folder, message)
        raise execute.RunFailed(1, message)


def checkpoint_pruner(config: SweepsConfig, folder: Path, cells: Sequence[Cell]) -> Callable[[Cell], None]:
    """Return the function that removes checkpoints of a finished cell, as keep= says."""
    cells_folder = transfer.cells_folder(folder)

    def prune(cell: Cell) -> None:
        if cell.command != "finetune" or config.keep == "all":
            return
        assert isinstance(cell.config, FinetuneConfig)
        prune_checkpoints(cells_folder / cell.name)
        if cell.group:
            group_runs = [cells_folder / other.name for other in cells if other.group == cell.group]
            prune_other_runs(group_runs, cell.config.task.metrics[0])

    return prune


def profile_study(config: SweepsConfig, folder: Path) -> None:
    """dry_run=true: a dry run of one cell of each kind -> hours and disk space of all cells."""
    groups = STUDY_KINDS[config.study.kind].cost_groups(config)
    rows, runs, hours, total_bytes = [], 0, 0.0, 0
    for number, (cell, count, keeping) in enumerate(groups, start=1):
        print(f"gpt1: dry run {number}/{len(groups)} {cell.name}", flush=True)
        assert isinstance(cell.config, TrainConfig)
        cell_folder = transfer.cells_folder(folder) / cell.name
        dry_config = dataclasses.replace(cell.config, dry_run=True)
        overrides = [cell.command, *cell.overrides, "dry_run=true"]
        with create_folder(cell_folder), contextlib.redirect_stdout(io.StringIO()):  # hides its tables
            execute.execute_run(command_module(cell), cell.command, dry_config, cell_folder, False, overrides)
        plan = read_json(cell_folder / "plan.json")
        each, kept_bytes = plan["here"]["hours"], checkpoint_bytes(cell, config, plan["parameters"]["all"]) * keeping
        rows.append([cell.name, f"{count}", f"{each:.3g}", f"{each * count:.3g}", f"{kept_bytes / 1e9:.3f}"])
        runs, hours, total_bytes = runs + count, hours + each * count, total_bytes + kept_bytes
    rows.append(["all", f"{runs}", "", f"{hours:.3g}", f"{total_bytes / 1e9:.3f}"])
    table = ReportTable("Cost of the study", ["cell", "runs", "hours each", "hours", "GB kept"], rows)
    table.show()
    page.write_page(folder, "Dry run", [table])
    summary = {"status": "finished", "command": "ablation", "dry_run": True, "name": config.name}
    finish_run(folder, {**summary, "cells": runs, "hours": hours, "bytes": total_bytes})
    print(f"dry run, nothing trained: {hours:.3g} hours without evaluation, {total_bytes / 1e9:.2f} GB; {folder}")


def checkpoint_bytes(cell: Cell, config: SweepsConfig, parameters: int) -> int:
    """Bytes of the checkpoints that a finished cell keeps: fp32 weights, with optimizer state unless keep=best."""
    if cell.command == "finetune" and config.keep == "best":
        return 4 * parameters
    assert isinstance(cell.config, TrainConfig)
    extra = len(getattr(cell.config, "keep_checkpoints", ()))
    return 12 * parameters * (2 + extra)  # best and last
