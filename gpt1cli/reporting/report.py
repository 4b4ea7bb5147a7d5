"""A report as text and files: the paper's tables over finished runs, and the summaries of studies."""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt1cli.reporting import bootstrap, collect, figure2, lmbff_table, page, paper_tables, report
from gpt1cli.reporting.collect import Finished, find_runs
from gpt1cli.reporting.figure2 import right_figure
from gpt1cli.reporting.page import Block, Table
from gpt1cli.runs.files import read_config, read_json, write_text


def laid_out(runs: Sequence[Finished], chosen: Sequence[str] | None = None) -> tuple[list[Block], list[dict[str, Any]]]:
    """Whatever the runs fill: tables and figures of the paper, tables of the rest; their numbers as records.

    Of the paper's tables those that are `chosen`, and what they leave out; None: all.
    """
    blocks, records = of_the_paper(runs, chosen)
    few, placed = lmbff_table.lines_of(runs)
    if few:
        table, own = lmbff_table.table_of(few)
        worth = lmbff_table.worth(few)
        blocks = [table, *([worth] if worth else []), lmbff_table.picture_of(few), *blocks]
        records = [*own, *records]
        runs = [run for run in runs if run.folder not in placed]
    if found := figure2.series(runs):
        blocks += figure2.left_figure(found)
    blocks += right_figure(runs)
    rest = unplaced(runs)
    return [*blocks, *collect.tables(rest)], [*records, *collect.records(rest)]


def write(folder: Path, runs: Sequence[Finished], blocks: Sequence[Block], records: Sequence[dict[str, Any]]) -> None:
    """The blocks and where the runs lie, in report.md and report.html; table.csv; then the tables in the terminal."""
    sources = Table("Runs", ["folder"], [[str(run.folder)] for run in runs])
    page.write(folder, "Report", [*blocks, sources])
    write_text(folder / "table.csv", page.held(separated(records)))
    for block in blocks:
        if isinstance(block, Table):
            block.show()


def of_the_paper(runs: Sequence[Finished], chosen: Sequence[str] | None) -> tuple[list[Block], list[dict[str, Any]]]:
    """The paper's tables as far as the runs fill them, and likenesses of Table 5; their numbers as records.

    With tables that are `chosen` these come first, and of the others those that hold runs which stand nowhere else.
    """
    blocks: list[Block] = []
    records: list[dict[str, Any]] = []
    told = {run.folder for *_, drawn in figure2.series(runs) for same in drawn.values() for run in same}
    tables = sorted(paper_tables.layouts().values(), key=lambda layout: layout.key not in (chosen or ()))
    for layout in [*tables, *paper_tables.likenesses(runs)]:
        if rows := paper_tables.rows_of(layout, runs):
            shown = {run.folder for row in rows for same in row.runs.values() for run in same}
            if chosen is not None and layout.key not in chosen and shown <= told:
                continue
            told |= shown
            table, own = paper_tables.table_of(layout, rows)
            blocks += [table, paper_tables.picture_of(layout, rows)]
            records += own
            if len(layout.variants) > 1 and (worth := bootstrap.table(rows)):
                blocks.append(worth)
    return blocks, records


def unplaced(runs: Sequence[Finished]) -> list[Finished]:
    """The runs that are in no table and no figure of the paper."""
    placed = {
        run.folder
        for layout in [*paper_tables.layouts().values(), *paper_tables.likenesses(runs)]
        for row in paper_tables.rows_of(layout, runs)
        for same in row.runs.values()
        for run in same
    }
    placed |= {run.folder for *_, drawn in figure2.series(runs) for same in drawn.values() for run in same}
    return [run for run in runs if run.folder not in placed]


def separated(records: Sequence[dict[str, Any]]) -> str:
    """The records as comma-separated values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, paper_tables.FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def summarise(folder: Path, failed: Mapping[str, str]) -> None:
    """What gpt1 report makes of all finished cells below a folder, and which failed."""
    finished = [path for path in folder.rglob("cells/*/result.json") if not read_json(path).get("dry_run")]
    runs: Sequence[Finished] = find_runs([glob.escape(str(folder))]) if finished else ()
    configs = [path for place in (".", "*") for path in folder.glob(f"{place}/config.yaml")]
    studies_of = [read_config(path).get("study", {}) for path in configs]
    named = [key for key in paper_tables.layouts() if key in {study.get("name") for study in studies_of}]
    figures = not any(study.get("tasks") for study in studies_of)  # alone: a study of no table has none
    blocks, records = report.laid_out(runs, named if named or figures else None)
    lines = [[name, message] for name, message in failed.items()]
    report.write(folder, runs, [*blocks, *([Table("Failed", ["cell", "why"], lines)] if failed else [])], records)


def summarise_all(folder: Path) -> None:
    """The joint table of a sweep's jobs, each of them a study."""
    studied = [read_json(path) for path in sorted(folder.glob("*/result.json"))]
    if studied and all(one.get("dry_run") for one in studied):
        return
    summarise(folder, {name: why for one in studied for name, why in one.get("failed", {}).items()})
    print(f"gpt1: all jobs together: {folder / 'report.md'}, report.html, table.csv", flush=True)
