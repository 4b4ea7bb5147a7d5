"""gpt1 report: finished runs laid out as the paper lays out its own, in the terminal and in pages to keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt1cli.config.commands import ReportConfig
from gpt1cli.data.hub import Need
from gpt1cli.reporting import collect
from gpt1cli.reporting.collect import Finished
from gpt1cli.reporting.page import Table
from gpt1cli.reporting.report import laid_out, write
from gpt1cli.runs.folder import finish
from gpt1cli.tasks import glue


def needs(config: ReportConfig) -> list[Need]:
    """Nothing from outside."""
    return []


def run(config: ReportConfig, folder: Path) -> None:
    """Find the finished runs -> the paper's tables and figures, tables of the rest -> report.md, .html, table.csv."""
    runs = collect.find_runs(config.runs)
    blocks, records = laid_out(runs)
    if config.submission:
        packed = glue.pack(Path(config.submission), submitted(runs))
        blocks.append(Table(f"Submission: {config.submission}", ["file", "from"], packed))
    write(folder, runs, blocks, records)
    finish(folder, {"status": "finished", "command": "report", "name": config.name, "runs": len(runs)})
    print(f"report: {folder / 'report.md'}, report.html, table.csv")


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
