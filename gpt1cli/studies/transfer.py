"""Transfer studies: the cells of a table or a figure of the paper, all composed before the first one runs.

A cell is an ordinary run (cells.py). Its overrides task=, ablation= and seed= distinguish it from the others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gpt1cli.config.commands import FinetuneConfig, SweepsConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError
from gpt1cli.runs.files import read_config
from gpt1cli.studies.cells import Cell, compose_cell

INIT_KEYS = {"transformer": "init", "lstm": "init_lstm"}  # architecture -> the key that names a pretrained run of it
ARCHITECTURES = tuple(INIT_KEYS)
MODEL_SHAPE_KEYS = {key for keys in ModelConfig.SHAPE_KEYS.values() for key in keys}

Stage = Callable[[Path | None], list[Cell]]  # the study's folder, or None before anything has run -> cells


class CostGroup(NamedTuple):
    """Cells of equal cost: one of them, how many runs there are, and how many of them keep their weights."""

    cell: Cell
    runs: int
    kept: int


def cells_folder(folder: Path) -> Path:
    """The folder below which a study's cells have their folders."""
    return folder / "cells"


def variants(config: SweepsConfig) -> list[str]:
    """The ablations to run."""
    return [config.ablation.name] if config.ablation else config.variants or config.study.variants


def stages(config: SweepsConfig) -> list[Stage]:
    """The stages in order; cells of a stage may need the results of earlier stages."""
    return [
        lambda _: pretraining_cells(config),
        lambda folder: [*zero_shot_cells(config, folder), *finetuning_cells(config, folder)],
    ]


def cost_groups(config: SweepsConfig) -> list[CostGroup]:
    """The cells that train, grouped by cost: one for all seeds."""
    cells = finetuning_cells(config, None)
    pretraining = [CostGroup(cell, 1, 1) for cell in pretraining_cells(config)]
    return [
        *pretraining,
        *(CostGroup(cell, len(config.seeds), len(config.seeds)) for cell in cells[: len(cells) // len(config.seeds)]),
    ]


def pretraining_cells(config: SweepsConfig) -> list[Cell]:
    """The study's own pretraining: a Transformer, and an LSTM if a cell or a curve needs one.

    Raises UserError for overrides that would change the pretrained model.
    """
    words = {name: [*config.study.pretraining, f"model.architecture={name}"] for name in _own_architectures(config)}
    for word in config.cells if words else ():
        key, _, group = (part := word.partition("=")[0]).rpartition(".")
        if part in ("model", "tokenizer") or key == "tokenizer" or (key == "model" and group in MODEL_SHAPE_KEYS):
            raise UserError(
                f"{word}: study={config.study.name} pretrains the models of its cells: put this word in"
                " study.pretraining=[...], each word in quotes, or name a pretrained model with init=RUN"
            )
    return [compose_cell(f"pretrain-{name}", "pretrain", overrides, config) for name, overrides in words.items()]


def prerequisites(config: SweepsConfig) -> list[str]:
    """Names of the study's own pretraining cells; all other cells need them."""
    return [f"pretrain-{name}" for name in _own_architectures(config)]


def _own_architectures(config: SweepsConfig) -> list[str]:
    """The architectures that the study pretrains itself: those its cells need, or none if init= names a run.

    Raises UserError for init_lstm= without init=.
    """
    if not config.study.pretraining or _named_run(config, "transformer"):
        return []
    if lstm := _named_run(config, "lstm"):
        raise UserError(
            f"init_lstm={lstm}: study={config.study.name} pretrains both models of its cells: add init=RUN, or remove"
            " init_lstm="
        )
    return list(ARCHITECTURES if "lstm" in variants(config) or zero_shot_tasks(config) else ARCHITECTURES[:1])


def _named_run(config: SweepsConfig, architecture: str) -> str | None:
    """The run of this architecture that the user named for the cells, if any."""
    key = f"{INIT_KEYS[architecture]}="
    return next((word.removeprefix(key) for word in reversed(config.cells) if word.startswith(key)), None)


def finetuning_cells(config: SweepsConfig, folder: Path | None) -> list[Cell]:
    """All fine-tuning cells, ordered by seed first, so that the table of the first seed is complete early.

    `folder` is the study's folder with its own pretraining; None before pretraining: the cells then have fresh
    weights, so that everything else about them can be checked.
    """
    study = config.study
    common = [*study.overrides, *initial_weights(config, folder), *_started_lstm(folder), *config.cells]
    depends_on = prerequisites(config)

    def cell(task: str, variant: str, name: str, *more: str) -> Cell:
        own = [word for word in common if variant == "lstm" or not word.startswith("init_lstm=")]
        words = [*own, f"task={task}", f"ablation={variant}", *more]
        return compose_cell(f"{task}-{name}", "finetune", words, config, depends_on)

    cells = []
    for task in table_tasks(config):
        for variant in variants(config):
            curve = ["score_train=true"] if variant == "full" and task in transfer_tasks(config) else []
            cells.append(cell(task, variant, variant, *curve))
    for task in transfer_tasks(config):
        whole = cell(task, "full", "full", "score_train=true")
        if task not in table_tasks(config):
            cells.append(whole)
        assert isinstance(whole.config, FinetuneConfig)
        fresh = folder is None and "transformer" in _own_architectures(
            config
        )  # fresh weights have no layers to transfer
        for layers in range(whole.config.model.n_layer):
            more = [] if fresh else [f"transfer_layers={layers}"]
            cells.append(cell(task, "full", f"layers{layers}", "score_train=true", *more))
    return [cell.with_settings(f"seed{seed}", seed=seed) for seed in config.seeds for cell in cells]


def zero_shot_cells(config: SweepsConfig, folder: Path | None) -> list[Cell]:
    """Cells that score the zero-shot tasks at every kept checkpoint of pretraining.

    If folder is None and the study pretrains its own models, init=null is a placeholder for their checkpoints.
    """
    if folder is None and _own_architectures(config):
        words = ["init=null"]
    else:
        own = [str(cells_folder(folder or Path()) / f"pretrain-{name}") for name in _own_architectures(config)]
        runs = own or [run for name in INIT_KEYS if (run := _named_run(config, name))]
        words = ["runs=[{}]".format(",".join(f'"{run}"' for run in runs)), "checkpoint=all"]
    words += [word for word in config.cells if word.startswith("limit.")]
    depends_on = prerequisites(config)
    return [
        compose_cell(f"zeroshot-{task}", "zeroshot", [f"task={task}", *words], config, depends_on)
        for task in zero_shot_tasks(config)
    ]


def table_tasks(config: SweepsConfig) -> list[str]:
    """The tasks of the study's table; none if the study is only a figure."""
    return (config.tasks or config.study.tasks) if config.study.tasks else []


def transfer_tasks(config: SweepsConfig) -> list[str]:
    """The tasks for which the number of transferred layers is varied."""
    if "full" not in (variants(config) or ["full"]):
        return []
    if not config.study.tasks:
        return config.tasks or config.study.transfer
    return [task for task in config.study.transfer if task in table_tasks(config)]


def zero_shot_tasks(config: SweepsConfig) -> list[str]:
    """The tasks to score without training, at every kept checkpoint."""
    has_full = "full" in variants(config)
    return [task for task in config.study.zeroshot if has_full and (config.tasks is None or task in config.tasks)]


def initial_weights(config: SweepsConfig, folder: Path | None) -> list[str]:
    """Overrides init= and init_lstm= that name the study's own pretrained runs, if they exist."""
    if folder is None:
        return []
    runs = {INIT_KEYS[name]: cells_folder(folder) / f"pretrain-{name}" for name in _own_architectures(config)}
    return [f"{key}={run}" for key, run in runs.items() if run.exists()]


def _started_lstm(folder: Path | None) -> list[str]:
    """The override init_lstm= of cells that already started, so that a resumed study does not find a newer LSTM."""
    for path in sorted(cells_folder(folder).glob("*-lstm-seed*/config.yaml")) if folder else ():
        stored = read_config(path)
        return [f"init_lstm={stored['init'] if stored['pretrained'] else 'none'}"]
    return []
