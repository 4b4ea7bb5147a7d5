"""gpt1 doctor: what is at hand here, and the remedy for what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt1cli import hub, options, rundir
from gpt1cli.config import CorpusConfig, DoctorConfig, TaskConfig, TokenizerConfig
from gpt1cli.hub import Need
from gpt1cli.pages import Table
from gpt1cli.schema import build


def needs(config: DoctorConfig) -> list[Need]:
    """Nothing: to find out what is missing is the command's work."""
    return []


def run(config: DoctorConfig, folder: Path) -> None:
    """Every task and corpus of conf/ and the published model: what is at hand, and where not, what to do."""
    silence = hub.unreachable() if config.hub is None else None
    found = [
        *(diagnosis("task", name, _task_needs(name), config, silence) for name in options.names("task")),
        *(diagnosis("corpus", option, _corpus_needs(option), config, silence) for option in options.names("corpus")),
        diagnosis("tokenizer", "openai", _tokenizer_needs("openai"), config, silence),
        diagnosis("init", "openai", hub.weights_needs("openai"), config, silence),
    ]
    place = f"hub={config.hub}" if config.hub else "the caches"
    rows = [[f"{one['kind']}={one['name']}", one["state"], one["remedy"]] for one in found]
    table = Table(f"What is in {place}", ["what", "state", "remedy"], rows)
    table.show()
    if silence:
        print(f"The Hugging Face hub cannot be reached: {silence}")
    rundir.write_text(folder / "report.md", table.markdown())
    about = {"status": "finished", "command": "doctor", "name": config.name}
    rundir.finish(folder, {**about, "found": found})


def diagnosis(kind: str, name: str, needs: list[Need], config: DoctorConfig, silence: str | None) -> dict[str, Any]:
    """What is wrong with the data of one option, if anything, and the ways out of it."""
    missing = {need: reason for need in needs if (reason := hub.amiss(need, config.hub, config.cache))}
    if not missing:
        return {"kind": kind, "name": name, "state": "at hand", "missing": {}, "remedy": ""}
    names = {f"{need.repo}{', ' + need.subset if need.subset else ''}": reason for need, reason in missing.items()}
    ways = dict.fromkeys(way for need in missing for way in need.ways_out)
    if config.hub is not None:
        state, general = "missing", f"put it there: {'; '.join(names)}"
    elif silence or ways:  # what has ways of its own is not simply fetched
        state, general = "missing", f"hub=DIR with {'; '.join(names)}" + ("" if ways else ", or the network")
    else:
        state, general = "on the hub", "none needed: fetched at its first use"
    return {"kind": kind, "name": name, "state": state, "missing": names, "remedy": " or ".join([general, *ways])}


def _task_needs(option: str) -> list[Need]:
    values = options.values("task", option)
    return [] if values["source"] == "file" else hub.task_needs(build(TaskConfig, values))  # files are the user's


def _tokenizer_needs(option: str) -> list[Need]:
    return hub.tokenizer_needs(build(TokenizerConfig, options.values("tokenizer", option)))


def _corpus_needs(option: str) -> list[Need]:
    values = options.values("corpus", option)
    # corpus=text has no path of its own: it is the user's, and there is nothing to look for
    return [] if values["source"] == "text" else hub.corpus_needs(build(CorpusConfig, values))
