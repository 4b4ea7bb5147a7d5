"""A command that a scheduler has started again goes on in the folder that it began.

Slurm (sbatch --requeue) and torchrun (--max-restarts) start a command again as it was typed, and tell how often in the
environment. With a fixed hydra.run.dir= or hydra.sweep.dir= it then finds its own folder begun, which is refused at any
other time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt1cli import rundir, running, schema
from gpt1cli.compose import FREE, Composed, compose
from gpt1cli.composer import Composer
from gpt1cli.overrides import quote
from gpt1cli.schema import InputError, flat, shown

COUNTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
APART = (*FREE, "hub")  # may differ: where things lie, and how they are executed and followed


def restarted() -> str | None:
    """`SLURM_RESTART_COUNT=2` where a scheduler has started this command again."""
    return next((f"{name}={count}" for name in COUNTS if (count := os.environ.get(name, "0")) not in ("", "0")), None)


def taken_up(composer: Composer, words: list[str], composed: Composed) -> Composed | None:
    """What was composed, of a run that was started again so that it goes on; None where it is finished.

    InputError where the folder holds another run: the keys that differ.
    """
    folder, why = composed.folder, restarted()
    if composed.resumed or why is None or not rundir.is_run(folder):
        return composed
    stored = {"command": rundir.environment(folder).get("command"), **rundir.read_config(folder / "config.yaml")}
    now = {"command": composer.command, **dataclasses.asdict(running.resolved(composed.config))}
    refuse_others(folder, why, dict(flat(stored)), dict(flat(now)))
    if rundir.is_finished(folder, None) and composer.command != "ablation":  # which looks after its own cells
        tell(f"{why}: {folder} is finished")
        return None
    if schema.annotation_of(composer.cls, "resume") is None:
        tell(f"{why}: beginning anew in {folder}")
        rundir.clear(folder)
        return composed
    tell(f"{why}: going on with {folder}")
    free = [word for word in words if word.lstrip("+").startswith(("runtime", "logger"))]
    return compose(composer, [f"resume={quote(str(folder))}", *free])


def refuse_others(folder: Path, why: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """InputError lists in what the folder's run or sweep is not what this command line asks for."""
    keys = [key for key in dict.fromkeys((*now, *stored)) if key.partition(".")[0] not in APART]
    if other := [key for key in keys if stored.get(key) != now.get(key)]:
        lines = [f"  {key}={shown(now.get(key))}: the folder has {shown(stored.get(key))}" for key in other]
        told = f"{folder} was begun with another configuration, and {why} goes on with the same one alone:"
        raise InputError("\n".join([told, *lines, "name another folder, or what it was begun with"]))


def tell(line: str) -> None:
    """Tell it once, however many processes torchrun has started."""
    if os.environ.get("RANK", "0") == "0":
        print(f"gpt1: {line}", flush=True)
