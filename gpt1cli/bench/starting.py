"""How long it takes until a command answers, beside the least that any such program takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from gpt1cli.bench.contest import Contender, Contest, Job, Setting

HERE = __name__
HYDRA_APP = """
import hydra

@hydra.main(version_base=None, config_path=None)
def app(cfg): pass

app()
"""


def startup(setting: Setting) -> Iterable[Contest]:
    """Help beside a Python that does nothing; a composed configuration beside an empty Hydra app."""
    gpt1 = [str(Path(sys.executable).with_name("gpt1"))]
    if not Path(gpt1[0]).exists():  # not installed: run from the source
        gpt1 = [sys.executable, "-m", "gpt1cli"]
    for name, ours, theirs, at_most in (
        ("startup, --help", [*gpt1, "--help"], ("python -c pass", [sys.executable, "-c", "pass"]), 3),
        ("startup, --cfg job", [*gpt1, "finetune", "task=rte", "--cfg", "job"],
         ("an empty Hydra app", [sys.executable, "-c", HYDRA_APP, "--cfg", "job"]), 1.5),
    ):  # fmt: skip
        contenders = [Contender("gpt1", f"{HERE}:command", {"words": ours})]
        contenders += [Contender(theirs[0], f"{HERE}:command", {"words": theirs[1]})]
        yield Contest(name, "starts", contenders, {theirs[0]: 1 / at_most}, in_subprocesses=True)


def command(words: list[str]) -> Job:
    """A command run to its end, five times."""

    def job() -> float:
        for _ in range(5):
            subprocess.run(words, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)
        return 5

    return job
