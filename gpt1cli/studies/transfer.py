"""A study as its cells: the runs that a table or a figure of the paper takes, each composed before the first one runs.

A cell is an ordinary run (cells.py). What tells it from its neighbours are three words: task=, ablation= and seed=.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gpt1cli.config.commands import FinetuneConfig, SweepsConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError
from gpt1cli.runs.files import read_config
from gpt1cli.studies.cells import Cell, composed

STARTS = {"transformer": "init", "lstm": "init_lstm"}  # architecture -> what names a run of it
ARCHITECTURES = tuple(STARTS)

Stage = Callable[[Path | None], list[Cell]]  # the study's folder, None before anything is done -> cells


class Kind(NamedTuple):
    """A cell that stands for others of its kind: how many there are, and how many keep their weights."""

    cell: Cell
    runs: int
    kept: int


SHAPE = {key for keys in ModelConfig.SHAPES.values() for key in keys}


def home(folder: Path) -> Path:
    """Where the cells of a study have their folders."""
    return folder / "cells"


def variants(config: SweepsConfig) -> list[str]:
    """The ablations that are run."""
    return [config.ablation.name] if config.ablation else config.variants or config.study.variants


def stages(config: SweepsConfig) -> list[Stage]:
    """What is run one after the other: cells of a stage may need those before it."""
    return [lambda _: pretrainings(config), lambda begun: [*probings(config, begun), *finetunings(config, begun)]]


def kinds(config: SweepsConfig) -> list[Kind]:
    """The cells that training takes, alike ones together."""
    cells = finetunings(config, None)
    own = [Kind(cell, 1, 1) for cell in pretrainings(config)]
    return [
        *own,
        *(Kind(cell, len(config.seeds), len(config.seeds)) for cell in cells[: len(cells) // len(config.seeds)]),
    ]


def pretrainings(config: SweepsConfig) -> list[Cell]:
    """The study's own pretraining: of a Transformer, and of an LSTM where some cell or curve is about one."""
    words = {name: [*config.study.pretraining, f"model.architecture={name}"] for name in _own(config)}
    for word in config.cells if words else ():
        key, _, group = (part := word.partition("=")[0]).rpartition(".")
        if part in ("model", "tokenizer") or key == "tokenizer" or (key == "model" and group in SHAPE):
            way = "name it in study.pretraining=[...], each word in quotes, or name init=RUN"
            raise UserError(f"{word}: study={config.study.name} pretrains the models of its cells: {way}")
    return [composed(f"pretrain-{name}", "pretrain", given, config) for name, given in words.items()]


def prerequisites(config: SweepsConfig) -> list[str]:
    """The cells of the study's own pretraining, without which no other cell begins."""
    return [f"pretrain-{name}" for name in _own(config)]


def _own(config: SweepsConfig) -> list[str]:
    """The architectures that the study pretrains itself: those its cells need, where init= names no run instead."""
    if not config.study.pretraining or _named(config, "transformer"):
        return []
    if lstm := _named(config, "lstm"):
        raise UserError(
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
    begin = [*study.overrides, *beginnings(config, folder), *_begun(folder), *config.cells]

    after = prerequisites(config)

    def cell(task: str, variant: str, name: str, *more: str) -> Cell:
        start = [word for word in begin if variant == "lstm" or not word.startswith("init_lstm=")]
        words = [*start, f"task={task}", f"ablation={variant}", *more]
        return composed(f"{task}-{name}", "finetune", words, config, after)

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
    return [cell.also(f"seed{seed}", seed=seed) for seed in config.seeds for cell in cells]


def probings(config: SweepsConfig, folder: Path | None) -> list[Cell]:
    """The tasks scored at every kept checkpoint of the study's own pretraining; one checkpoint stands in for those."""
    if folder is None and _own(config):
        words = ["init=null"]
    else:
        own = [str(home(folder or Path()) / f"pretrain-{name}") for name in _own(config)]
        runs = own or [run for name in STARTS if (run := _named(config, name))]
        words = ["runs=[{}]".format(",".join(f'"{run}"' for run in runs)), "checkpoint=all"]
    words += [word for word in config.cells if word.startswith("limit.")]
    after = prerequisites(config)
    return [
        composed(f"zeroshot-{task}", "zeroshot", [f"task={task}", *words], config, after) for task in probed(config)
    ]


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


def beginnings(config: SweepsConfig, folder: Path | None) -> list[str]:
    """What the cells start from, where the study has its own pretraining."""
    if folder is None:
        return []
    runs = {STARTS[name]: home(folder) / f"pretrain-{name}" for name in _own(config)}
    return [f"{key}={run}" for key, run in runs.items() if run.exists()]


def _begun(folder: Path | None) -> list[str]:
    """The LSTM that the cells have begun with, so that a study goes on with it where a newer one could be found."""
    for path in sorted(home(folder).glob("*-lstm-seed*/config.yaml")) if folder else ():
        stored = read_config(path)
        return [f"init_lstm={stored['init'] if stored['pretrained'] else 'none'}"]
    return []
