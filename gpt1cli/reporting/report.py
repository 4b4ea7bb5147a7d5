"""The report of finished runs and of studies: report.md, report.html, table.csv, and the tables in the terminal.

It contains the tables and figures of the papers that the runs fill (Tables 2 to 5, Figure 2, LM-BFF's Table 3), similar
tables for other tasks, and a summary of the remaining runs.
"""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt1cli.reporting import bootstrap, collect, figure2, lmbff_table, page, paper_tables
from gpt1cli.reporting.collect import FinishedRun, find_runs
from gpt1cli.reporting.figure2 import right_figure
from gpt1cli.reporting.page import Block, ReportTable
from gpt1cli.runs.files import read_config, read_json, write_text

Records = list[dict[str, Any]]  # rows of table.csv

# --- contents ---------------------------------------------------------------------------------------------------------


def published_blocks(runs: Sequence[FinishedRun], chosen: Sequence[str] | None) -> tuple[list[Block], Records]:
    """The paper's tables that the runs fill, and similar tables for other tasks; their numbers as records.

    If tables are `chosen`, these come first; other tables follow only if they contain runs that are nowhere else.
    """
    blocks: list[Block] = []
    records: Records = []
    placed = {run.folder for *_, by_layers in figure2.layer_series(runs) for same in by_layers.values() for run in same}
    tables = sorted(paper_tables.published_tables().values(), key=lambda layout: layout.key not in (chosen or ()))
    for layout in [*tables, *paper_tables.table5_like(runs)]:
        if rows := paper_tables.variant_rows(layout, runs):
            folders = {run.folder for row in rows for same in row.runs.values() for run in same}
            if chosen is not None and layout.key not in chosen and folders <= placed:
                continue
            placed |= folders
            table, table_records = paper_tables.format_table(layout, rows)
            blocks += [table, paper_tables.draw_table(layout, rows)]
            records += table_records
            if len(layout.variants) > 1 and (comparison := bootstrap.comparison_table(rows)):
                blocks.append(comparison)
    return blocks, records


def unplaced_runs(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs that are in no table and no figure of the paper."""
    placed = {
        run.folder
        for layout in [*paper_tables.published_tables().values(), *paper_tables.table5_like(runs)]
        for row in paper_tables.variant_rows(layout, runs)
        for same in row.runs.values()
        for run in same
    }
    placed |= {
        run.folder for *_, by_layers in figure2.layer_series(runs) for same in by_layers.values() for run in same
    }
    return [run for run in runs if run.folder not in placed]


def build_report(runs: Sequence[FinishedRun], chosen: Sequence[str] | None = None) -> tuple[list[Block], Records]:
    """All tables and figures that the runs fill, and their numbers as records.

    If tables of the paper are `chosen`, the others are added only for runs that are nowhere else; None: all tables.
    """
    blocks, records = published_blocks(runs, chosen)
    few_shot_rows, placed = lmbff_table.few_shot_rows(runs)
    if few_shot_rows:
        table, table_records = lmbff_table.format_few_shot_table(few_shot_rows)
        comparison = lmbff_table.compare_rows(few_shot_rows)
        picture = lmbff_table.draw_few_shot_table(few_shot_rows)
        blocks = [table, *([comparison] if comparison else []), picture, *blocks]
        records = [*table_records, *records]
        runs = [run for run in runs if run.folder not in placed]
    if series := figure2.layer_series(runs):
        blocks += figure2.left_figure(series)
    blocks += right_figure(runs)
    other_runs = unplaced_runs(runs)
    return [*blocks, *collect.summary_tables(other_runs)], [*records, *collect.summary_records(other_runs)]


# --- files ------------------------------------------------------------------------------------------------------------


def records_csv(records: Sequence[dict[str, Any]]) -> str:
    """The records as comma-separated values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, paper_tables.FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def write_report(
    folder: Path, runs: Sequence[FinishedRun], blocks: Sequence[Block], records: Sequence[dict[str, Any]]
) -> None:
    """Write the blocks and the folders of the runs to report.md and report.html, the records to table.csv; print."""
    sources = ReportTable("Runs", ["folder"], [[str(run.folder)] for run in runs])
    page.write_page(folder, "Report", [*blocks, sources])
    write_text(folder / "table.csv", page.encodable(records_csv(records)))
    for block in blocks:
        if isinstance(block, ReportTable):
            block.show()


# --- studies ----------------------------------------------------------------------------------------------------------


def summarise_study(folder: Path, failed: Mapping[str, str]) -> None:
    """Write the report of all finished cells below a folder; `failed` are the others: cell -> error message."""
    finished = [path for path in folder.rglob("cells/*/result.json") if not read_json(path).get("dry_run")]
    runs: Sequence[FinishedRun] = find_runs([glob.escape(str(folder))]) if finished else ()
    paths = [path for pattern in (".", "*") for path in folder.glob(f"{pattern}/config.yaml")]
    studies = [read_config(path).get("study", {}) for path in paths]
    chosen = [key for key in paper_tables.published_tables() if key in {study.get("name") for study in studies}]
    only_figures = not any(study.get("tasks") for study in studies)  # such a study has no table
    blocks, records = build_report(runs, chosen if chosen or only_figures else None)
    rows = [[name, message] for name, message in failed.items()]
    write_report(folder, runs, [*blocks, *([ReportTable("Failed", ["cell", "why"], rows)] if failed else [])], records)


def summarise_sweep(folder: Path) -> None:
    """Write the joint report of a sweep whose jobs are studies."""
    results = [read_json(path) for path in sorted(folder.glob("*/result.json"))]
    if results and all(result.get("dry_run") for result in results):
        return
    summarise_study(folder, {name: why for result in results for name, why in result.get("failed", {}).items()})
    print(f"gpt1: report of all jobs: {folder / 'report.md'}, report.html, table.csv", flush=True)
