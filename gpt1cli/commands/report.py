"""gpt1 report: tables and figures of finished runs in the form of the paper, printed and written to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt1cli.config.commands import ReportConfig
from gpt1cli.data.hub import Requirement
from gpt1cli.reporting import collect
from gpt1cli.reporting.collect import FinishedRun
from gpt1cli.reporting.page import ReportTable
from gpt1cli.reporting.report import build_report, write_report
from gpt1cli.runs.folder import finish_run
from gpt1cli.tasks import glue


def needs(config: ReportConfig) -> list[Requirement]:
    """Require nothing."""
    return []


def run(config: ReportConfig, folder: Path) -> None:
    """Finished runs -> tables and figures of the paper, tables of the other runs -> report.md, .html, table.csv."""
    runs = collect.find_runs(config.runs)
    blocks, records = build_report(runs)
    if config.submission:
        packed = glue.pack_submission(Path(config.submission), submission_files(runs))
        blocks.append(ReportTable(f"Submission: {config.submission}", ["file", "from"], packed))
    write_report(folder, runs, blocks, records)
    finish_run(folder, {"status": "finished", "command": "report", "name": config.name, "runs": len(runs)})
    print(f"report: {folder / 'report.md'}, report.html, table.csv")


def submission_files(runs: Sequence[FinishedRun]) -> dict[str, Path]:
    """Return submission file -> its path; if several runs have one, that of the run with the best validation score."""
    best: dict[str, tuple[float, Path]] = {}
    for run in runs:
        metric = run.config["task"]["metrics"][0] if "task" in run.config else ""
        score = run.result.get("valid", {}).get(metric, float("-inf"))
        for path in sorted((run.folder / "submission").glob("*.tsv")):
            if path.stem not in best or score > best[path.stem][0]:
                best[path.stem] = score, path
    return {name: path for name, (_, path) in best.items()}
