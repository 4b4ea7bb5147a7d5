"""gpt1 report: finished runs laid out as tables, in the terminal and in report.md."""

from __future__ import annotations

from pathlib import Path

from gpt1cli import report, rundir
from gpt1cli.config import ReportConfig
from gpt1cli.hub import Need


def needs(config: ReportConfig) -> list[Need]:
    """Nothing from outside."""
    return []


def run(config: ReportConfig, folder: Path) -> None:
    """Find the finished runs, show their tables, write report.md."""
    runs = report.find_runs(config.runs)
    made = report.tables(runs)
    for table in made:
        table.show()
    sources = "\n".join(f"- {run.folder}" for run in runs)
    page = "\n".join(["# Report\n", *(table.markdown() for table in made), "## Runs\n", sources, ""])
    rundir.write_text(folder / "report.md", page)
    rundir.finish(folder, {"status": "finished", "command": "report", "name": config.name, "runs": len(runs)})
    print(f"report: {folder / 'report.md'}")
