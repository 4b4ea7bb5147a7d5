"""A study as its cells: the runs that a table or a figure of the paper takes, each composed before the first one runs.

A cell is an ordinary run. What tells it from its neighbours are three words: task=, ablation= and seed=.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt1cli import options, rundir, running
from gpt1cli.compose import compose
from gpt1cli.composer import Composer, Source
from gpt1cli.config import FinetuneConfig, ModelConfig, RunConfig, SweepsConfig, TrainConfig
from gpt1cli.schema import InputError, flat, shown

STARTS = {"transformer": "init", "lstm": "init_lstm"}  # architecture -> what names a run of it
ARCHITECTURES = tuple(STARTS)
HOW = ("runtime.", "logger.")  # how a cell is executed and followed: the study's own, handed to each
SHAPE = {key for keys in ModelConfig.SHAPES.values() for key in keys}


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str  # of its folder
    command: str
    words: tuple[str, ...]  # its overrides, as one would type them
    config: RunConfig

    def seeded(self, seed: int) -> Cell:
        """The same run with another seed."""
        config = dataclasses.replace(self.config, seed=seed)
        return Cell(f"{self.name}-seed{seed}", self.command, (*self.words, f"seed={seed}"), config)


def home(folder: Path) -> Path:
    """Where the cells of a study have their folders."""
    return folder / "cells"


def variants(config: SweepsConfig) -> list[str]:
    """The ablations that are run."""
    return [config.ablation.name] if config.ablation else config.variants or config.study.variants


def pretrainings(config: SweepsConfig) -> list[Cell]:
    """The study's own pretraining: of a Transformer, and of an LSTM where some cell or curve is about one."""
    words = {name: [*config.study.pretraining, f"model.architecture={name}"] for name in _own(config)}
    for word in config.cells if words else ():
        key, _, group = (part := word.partition("=")[0]).rpartition(".")
        if part in ("model", "tokenizer") or key == "tokenizer" or (key == "model" and group in SHAPE):
            way = "name it in study.pretraining=[...], each word in quotes, or name init=RUN"
            raise InputError(f"{word}: study={config.study.name} pretrains the models of its cells: {way}")
    return [_cell(f"pretrain-{name}", "pretrain", given, config) for name, given in words.items()]


def _own(config: SweepsConfig) -> list[str]:
    """The architectures that the study pretrains itself: those its cells need, where init= names no run instead."""
    if not config.study.pretraining or _named(config, "transformer"):
        return []
    if lstm := _named(config, "lstm"):
        raise InputError(
            f"init_lstm={lstm}: study={config.study.name} pretrains both models of its cells: name init= too"
        )
    return list(ARCHITECTURES if "lstm" in variants(config) or probed(config) else ARCHITECTURES[:1])


def _named(config: SweepsConfig, architecture: str) -> str | None:
    """The run of this architecture that the user has named for the cells."""
    key = f"{STARTS[architecture]}="
    return next((word.removeprefix(key) for word in reversed(config.cells) if word.startswith(key)), None)


def finetunings(config: SweepsConfig, folder: Path | None) -> list[Cell]:
    """Every cell that is fine-tuned, the seeds outermost: what is done early is a whole table of one seed.

    `folder` is that of the study, where its own pretraining lies; None where that is still to be done: fresh weights
    stand in, so that everything else about the cells can be checked.
    """
    study = config.study
    begin = [*study.overrides, *_beginnings(config, folder), *_begun(folder), *config.cells]

    def cell(task: str, variant: str, name: str, *more: str) -> Cell:
        start = [word for word in begin if variant == "lstm" or not word.startswith("init_lstm=")]
        return _cell(f"{task}-{name}", "finetune", [*start, f"task={task}", f"ablation={variant}", *more], config)

    cells = []
    for task in tasks(config):
        for variant in variants(config):
            curve = ["score_train=true"] if variant == "full" and task in transferred(config) else []
            cells.append(cell(task, variant, variant, *curve))
    for task in transferred(config):
        whole = cell(task, "full", "full", "score_train=true")
        if task not in tasks(config):
            cells.append(whole)
        assert isinstance(whole.config, FinetuneConfig)
        fresh = folder is None and "transformer" in _own(config)  # which have nothing to transfer
        for layers in range(whole.config.model.n_layer):
            more = [] if fresh else [f"transfer_layers={layers}"]
            cells.append(cell(task, "full", f"layers{layers}", "score_train=true", *more))
    return [cell.seeded(seed) for seed in config.seeds for cell in cells]


def probings(config: SweepsConfig, folder: Path | None) -> list[Cell]:
    """The tasks scored at every kept checkpoint of the study's own pretraining; one checkpoint stands in for those."""
    if folder is None and _own(config):
        words = ["init=null"]
    else:
        own = [str(home(folder or Path()) / f"pretrain-{name}") for name in _own(config)]
        runs = own or [run for name in STARTS if (run := _named(config, name))]
        words = ["runs=[{}]".format(",".join(f'"{run}"' for run in runs)), "checkpoint=all"]
    limits = [word for word in config.cells if word.startswith("limit.")]
    return [_cell(f"zeroshot-{task}", "zeroshot", [f"task={task}", *words, *limits], config) for task in probed(config)]


def tasks(config: SweepsConfig) -> list[str]:
    """The tasks of the study's table; none where the study is a figure alone."""
    return (config.tasks or config.study.tasks) if config.study.tasks else []


def transferred(config: SweepsConfig) -> list[str]:
    """The tasks whose number of transferred blocks is varied."""
    if "full" not in (variants(config) or ["full"]):
        return []
    if not config.study.tasks:
        return config.tasks or config.study.transfer
    return [task for task in config.study.transfer if task in tasks(config)]


def probed(config: SweepsConfig) -> list[str]:
    """The tasks that are scored at every kept checkpoint, without training."""
    wanted = "full" in variants(config)
    return [task for task in config.study.zeroshot if wanted and (config.tasks is None or task in config.tasks)]


def _beginnings(config: SweepsConfig, folder: Path | None) -> list[str]:
    """What the cells start from, where the study has its own pretraining."""
    if folder is None:
        return []
    runs = {STARTS[name]: home(folder) / f"pretrain-{name}" for name in _own(config)}
    return [f"{key}={run}" for key, run in runs.items() if run.exists()]


def _begun(folder: Path | None) -> list[str]:
    """The LSTM that the cells have begun with, so that a study goes on with it where a newer one could be found."""
    for path in sorted(home(folder).glob("*-lstm-seed*/config.yaml")) if folder else ():
        stored = rundir.read_config(path)
        return [f"init_lstm={stored['init'] if stored['pretrained'] else 'none'}"]
    return []


def _cell(name: str, command: str, given: Sequence[str], config: SweepsConfig) -> Cell:
    """The cell of these overrides, composed. InputError names the cell and what is wrong with it."""
    composer = composer_of(command, config)
    words = (*_shared(config, composer.cls), *given)
    try:
        checked = [word for one in words for word in composer.check([one], whole=False)]
        return Cell(name, command, words, running.resolved(compose(composer, checked).config))
    except InputError as error:
        raise InputError(f"cell {name}: {error}") from None


def differences(cell: Cell, stored: Mapping[str, Any]) -> list[str]:
    """In what a run that has begun is not what the cell would be now: `key=stored, now value`."""
    before, now = (dict(flat(one)) for one in (stored, dataclasses.asdict(cell.config)))
    # besides where and how it is executed and followed, and what init tells of init_lstm
    apart = ("resume", "config", "cache", "hub", "out", "name", "init_lstm")
    keys = [key for key in now if before.get(key) != now[key] and not key.startswith(HOW) and key not in apart]
    return [f"{key}={shown(before.get(key))}, now {shown(now[key])}" for key in keys]


def composer_of(command: str, config: SweepsConfig) -> Composer:
    """What composes a study's cells, from the folders that composed the study."""
    return _composer(command, config.config_dir)


@functools.cache
def _composer(command: str, config_dir: str | None) -> Composer:
    return Composer(command, Source(extra=config_dir))


def _shared(config: SweepsConfig, cls: type) -> Iterator[str]:
    """What the study and its cells have in common: where things lie, and how they are executed and followed."""
    for key in ("out", "cache", "hub"):
        if (value := getattr(config, key)) is not None:
            yield f"{key}={os.path.abspath(value)}"
    usual = options.values("runtime", "default")
    for key, value in dataclasses.asdict(config.runtime).items():
        if value != usual[key] and (key not in ("devices", "shard") or issubclass(cls, TrainConfig)):
            yield f"runtime.{key}={'null' if value is None else str(value).lower()}"
    if config.logger.name != "none":
        yield from followed(config)


def followed(config: SweepsConfig) -> Iterator[str]:
    """The tracker of the study as overrides of its cells."""
    yield f"logger={config.logger.name}"
    if config.logger.project is not None:
        yield f"logger.project={config.logger.project}"
