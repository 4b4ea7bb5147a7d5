"""Start-up time of a command, compared with the minimum for such a program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from gpt1cli.bench.contest import BenchSettings, Candidate, Contest, Job

HERE = __name__
HYDRA_APP = """
import hydra

@hydra.main(version_base=None, config_path=None)
def app(cfg): pass

app()
"""


def startup(settings: BenchSettings) -> Iterable[Contest]:
    """Help, compared with a Python that does nothing; a composed configuration, compared with an empty Hydra app."""
    gpt1 = [str(Path(sys.executable).with_name("gpt1"))]
    if not Path(gpt1[0]).exists():  # not installed: run from the source
        gpt1 = [sys.executable, "-m", "gpt1cli"]
    for name, ours, theirs, max_ratio in (
        ("startup, --help", [*gpt1, "--help"], ("python -c pass", [sys.executable, "-c", "pass"]), 3),
        ("startup, --cfg job", [*gpt1, "finetune", "task=rte", "--cfg", "job"],
         ("an empty Hydra app", [sys.executable, "-c", HYDRA_APP, "--cfg", "job"]), 1.5),
    ):  # fmt: skip
        candidates = [Candidate("gpt1", f"{HERE}:run_command", {"words": ours})]
        candidates += [Candidate(theirs[0], f"{HERE}:run_command", {"words": theirs[1]})]
        yield Contest(name, "starts", candidates, {theirs[0]: 1 / max_ratio}, in_subprocesses=True)


def run_command(words: list[str]) -> Job:
    """Run a command five times."""

    def job() -> float:
        for _ in range(5):
            subprocess.run(words, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)
        return 5

    return job
