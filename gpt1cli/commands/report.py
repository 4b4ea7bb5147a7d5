"""gpt1 report: finished runs laid out as the paper lays out its own, in the terminal and in pages to keep."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt1cli import comparison, curves, fewtable, glue, layers, pages, paper, report, rundir
from gpt1cli.config.commands import ReportConfig
from gpt1cli.data.hub import Need
from gpt1cli.pages import Block, Table
from gpt1cli.report import Finished


def needs(config: ReportConfig) -> list[Need]:
    """Nothing from outside."""
    return []


def run(config: ReportConfig, folder: Path) -> None:
    """Find the finished runs -> the paper's tables and figures, tables of the rest -> report.md, .html, table.csv."""
    runs = report.find_runs(config.runs)
    blocks, records = laid_out(runs)
    if config.submission:
        packed = glue.pack(Path(config.submission), submitted(runs))
        blocks.append(Table(f"Submission: {config.submission}", ["file", "from"], packed))
    write(folder, runs, blocks, records)
    rundir.finish(folder, {"status": "finished", "command": "report", "name": config.name, "runs": len(runs)})
    print(f"report: {folder / 'report.md'}, report.html, table.csv")


def laid_out(runs: Sequence[Finished], chosen: Sequence[str] | None = None) -> tuple[list[Block], list[dict[str, Any]]]:
    """Whatever the runs fill: tables and figures of the paper, tables of the rest; their numbers as records.

    Of the paper's tables those that are `chosen`, and what they leave out; None: all.
    """
    blocks, records = of_the_paper(runs, chosen)
    few, placed = fewtable.lines_of(runs)
    if few:
        table, own = fewtable.table_of(few)
        worth = fewtable.worth(few)
        blocks = [table, *([worth] if worth else []), fewtable.picture_of(few), *blocks]
        records = [*own, *records]
        runs = [run for run in runs if run.folder not in placed]
    if found := layers.series(runs):
        blocks += layers.figure(found)
    blocks += curves.figure(runs)
    rest = unplaced(runs)
    return [*blocks, *report.tables(rest)], [*records, *report.records(rest)]


def write(folder: Path, runs: Sequence[Finished], blocks: Sequence[Block], records: Sequence[dict[str, Any]]) -> None:
    """The blocks and where the runs lie, in report.md and report.html; table.csv; then the tables in the terminal."""
    sources = Table("Runs", ["folder"], [[str(run.folder)] for run in runs])
    pages.write(folder, "Report", [*blocks, sources])
    rundir.write_text(folder / "table.csv", pages.held(separated(records)))
    for block in blocks:
        if isinstance(block, Table):
            block.show()


def of_the_paper(runs: Sequence[Finished], chosen: Sequence[str] | None) -> tuple[list[Block], list[dict[str, Any]]]:
    """The paper's tables as far as the runs fill them, and likenesses of Table 5; their numbers as records.

    With tables that are `chosen` these come first, and of the others those that hold runs which stand nowhere else.
    """
    blocks: list[Block] = []
    records: list[dict[str, Any]] = []
    told = {run.folder for *_, drawn in layers.series(runs) for same in drawn.values() for run in same}
    tables = sorted(paper.layouts().values(), key=lambda layout: layout.key not in (chosen or ()))
    for layout in [*tables, *paper.likenesses(runs)]:
        if rows := paper.rows_of(layout, runs):
            shown = {run.folder for row in rows for same in row.runs.values() for run in same}
            if chosen is not None and layout.key not in chosen and shown <= told:
                continue
            told |= shown
            table, own = paper.table_of(layout, rows)
            blocks += [table, paper.picture_of(layout, rows)]
            records += own
            if len(layout.variants) > 1 and (worth := comparison.table(rows)):
                blocks.append(worth)
    return blocks, records


def unplaced(runs: Sequence[Finished]) -> list[Finished]:
    """The runs that are in no table and no figure of the paper."""
    placed = {
        run.folder
        for layout in [*paper.layouts().values(), *paper.likenesses(runs)]
        for row in paper.rows_of(layout, runs)
        for same in row.runs.values()
        for run in same
    }
    placed |= {run.folder for *_, drawn in layers.series(runs) for same in drawn.values() for run in same}
    return [run for run in runs if run.folder not in placed]


def submitted(runs: Sequence[Finished]) -> dict[str, Path]:
    """File of a submission -> where it is: where several runs have it, that of the best on validation."""
    best: dict[str, tuple[float, Path]] = {}
    for run in runs:
        headline = run.config["task"]["metrics"][0] if "task" in run.config else ""
        score = run.result.get("valid", {}).get(headline, float("-inf"))
        for path in sorted((run.folder / "submission").glob("*.tsv")):
            if path.stem not in best or score > best[path.stem][0]:
                best[path.stem] = score, path
    return {name: path for name, (_, path) in best.items()}


def separated(records: Sequence[dict[str, Any]]) -> str:
    """The records as comma-separated values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, paper.FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
