"""gpt1 doctor: what is at hand here, and the remedy for what is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from gpt1cli import checkup, hub, options, pages, rundir
from gpt1cli.checkup import Finding
from gpt1cli.config import DoctorConfig
from gpt1cli.groups import CorpusConfig, TaskConfig, TokenizerConfig
from gpt1cli.hub import Need
from gpt1cli.pages import Table
from gpt1cli.published import REPOS
from gpt1cli.schema import build

OWN = {"file": "task.train", "text": "corpus.path"}  # source -> the key that names the user's files


def needs(config: DoctorConfig) -> list[Need]:
    """Nothing: to find out what is missing is the command's work."""
    return []


def run(config: DoctorConfig, folder: Path) -> None:
    """Look at what was asked for -> a table of each -> how many problems there are -> result.json."""
    silence = hub.unreachable() if config.hub is None and {"hub", "tasks"} & {*config.what} else None
    looks = {
        "machine": lambda: checkup.machine(),
        "disk": lambda: checkup.disk(config.out, config.cache),
        "hub": lambda: [checkup.reach(config.hub, silence)],
        "tasks": lambda: data(config, silence),
    }
    titles = {"machine": "This machine", "disk": "Disk and cache", "hub": "The hub", "tasks": "Tasks and corpora"}
    found: list[Finding] = []
    tables: list[Table] = []
    for part in looks:
        if part in config.what:
            seen = list(looks[part]())
            joint = "=" if part == "tasks" else " "  # these are options to name
            rows = [[f"{one.kind}{joint}{one.name}", one.state, one.remedy] for one in seen]
            tables.append(Table(titles[part], ["what", "state", "remedy"], rows))
            tables[-1].show()
            found += seen
    pages.write(folder, "What is at hand here", tables)
    problems = sum(bool(one.remedy) for one in found)
    print(f"{problems} of {len(found)} findings have a remedy: {folder / 'report.md'}" if problems else "all is well")
    about = {"status": "finished", "command": "doctor", "name": config.name}
    rundir.finish(folder, {**about, "found": [dataclasses.asdict(one) for one in found]})


def data(config: DoctorConfig, silence: str | None) -> Iterator[Finding]:
    """Every task and corpus of conf/ and the published model."""
    for kind, needs in (("task", _task_needs), ("corpus", _corpus_needs)):
        for name in options.names(kind):
            if key := OWN.get(options.values(kind, name)["source"]):
                yield Finding(kind, name, f"of files of your own: {key}=FILE")
            else:
                yield diagnosis(kind, name, needs(name), config, silence)
    for name in REPOS:
        yield diagnosis("tokenizer", name, _tokenizer_needs(name), config, silence)
        yield diagnosis("init", name, hub.weights_needs(name), config, silence)


def diagnosis(kind: str, name: str, needs: list[Need], config: DoctorConfig, silence: str | None) -> Finding:
    """What is wrong with the data of one option, if anything, and the ways out of it."""
    missing = {need: reason for need in needs if (reason := hub.amiss(need, config.hub, config.cache))}
    if not missing:
        return Finding(kind, name, "at hand")
    names = {f"{need.repo}{', ' + need.subset if need.subset else ''}": reason for need, reason in missing.items()}
    ways = dict.fromkeys(way for need in missing for way in need.ways_out)
    if config.hub is None and not silence and not ways:  # what has ways of its own is not simply fetched
        return Finding(kind, name, "on the hub: fetched at its first use", missing=names)
    general = f"put it there: {'; '.join(names)}" if config.hub else f"hub=DIR with {'; '.join(names)}"
    others = [] if ways or config.hub else ["the network"]
    return Finding(kind, name, "missing", " or ".join([general, *others, *ways]), names)


def _task_needs(option: str) -> list[Need]:
    return hub.task_needs(build(TaskConfig, options.values("task", option)))


def _tokenizer_needs(option: str) -> list[Need]:
    return hub.tokenizer_needs(build(TokenizerConfig, options.values("tokenizer", option)))


def _corpus_needs(option: str) -> list[Need]:
    return hub.corpus_needs(build(CorpusConfig, options.values("corpus", option)))
