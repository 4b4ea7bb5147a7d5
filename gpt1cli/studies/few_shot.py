"""Few-shot studies: the cells of LM-BFF's main table (Gao et al. 2021, Table 3), for each task.

All rows of a seed use the same examples: K of each class for training and K for validation. A trained row has one run
for each point of a grid, and validation chooses one run for every task and seed. Automatic prompts come from a search
on the same examples (gpt1 search), one for every task and seed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt1cli.config.commands import FewshotConfig, FinetuneConfig, SearchConfig, SweepsConfig
from gpt1cli.config.prompt import PromptConfig
from gpt1cli.config.schema import UserError, annotation_of, build, unknown_name
from gpt1cli.runs.files import read_config
from gpt1cli.studies import transfer
from gpt1cli.studies.cells import Cell, compose_cell
from gpt1cli.studies.transfer import CostGroup, Stage, cells_folder, prerequisites
from gpt1cli.tasks import few_shot


class RowSpec(NamedTuple):
    """A row of the table: its command and settings."""

    command: str
    overrides: tuple[str, ...] = ()
    demos: bool = False  # fine-tuned with demonstrations
    searched: bool = False  # with automatic prompts


ROWS = {
    "zeroshot": RowSpec("fewshot"),
    "incontext": RowSpec("fewshot", ("balanced=false",)),
    "head": RowSpec("finetune", ("method=head",)),
    "prompt": RowSpec("finetune", ("method=prompt",)),
    "prompt_demos": RowSpec("finetune", ("method=prompt",), demos=True),
    "auto": RowSpec("finetune", ("method=prompt",), searched=True),
    "auto_demos": RowSpec("finetune", ("method=prompt",), demos=True, searched=True),
}
MAX_DEMONSTRATIONS = 32  # of the row incontext; fewer if there are fewer examples
DEMO_SETS = {"mnli": 4, "snli": 4, "qqp": 4}  # sets of demonstrations to average: LM-BFF's numbers for large test sets
# Keys that rows, grid and seeds set, and what to use instead; demos= chooses the kind of demonstrations.
RESERVED_KEYS = {
    "method": "the rows set it; choose rows with variants=[...]",
    "prompt": "row prompt uses the task's own prompt (change it with task.prompt.KEY=), row auto the searched ones",
    "batch_size": "the grid sets it; use grid.batch_size=[...]",
    "lr": "the grid sets it; use grid.lr=[...]",
    "seed": "a study has several seeds; use seeds=[...]",
}


def stages(config: SweepsConfig) -> list[Stage]:
    """The stages in order: the study's own pretraining, the searches, the cells of the table."""
    _check_overrides(config)
    return [
        lambda _: transfer.pretraining_cells(config),
        lambda folder: search_cells(config, folder),
        lambda folder: table_cells(config, folder),
    ]


def cost_groups(config: SweepsConfig) -> list[CostGroup]:
    """The cells that train, one group for each task, row and batch size; a search counts the runs that it tunes."""
    _check_overrides(config)
    groups = [CostGroup(cell, 1, 1) for cell in transfer.pretraining_cells(config)]
    points, seeds = grid_points(config), config.seeds
    for search in search_cells(config, None)[: len(transfer.table_tasks(config))]:
        assert isinstance(search.config, SearchConfig)
        task = search.config.task.name
        cell = _at_grid_point(_finetuning_cell(config, task, "prompt", None), seeds[0], _search_settings(points))
        groups.append(
            CostGroup(dataclasses.replace(cell, name=f"search-{task}"), len(seeds) * search.config.tune, len(seeds))
        )
    sizes = list(dict.fromkeys(point.get("batch_size") for point in points))
    trained = [name for name in selected_rows(config) if ROWS[name].command == "finetune"]
    for task, name, size in itertools.product(transfer.table_tasks(config), trained, sizes):
        same_size = [point for point in points if point.get("batch_size") == size]
        cell = _at_grid_point(_finetuning_cell(config, task, name, None), seeds[0], same_size[0])
        runs = len(seeds) * len(same_size)
        best = len(seeds) if size == sizes[0] else 0  # one run of the whole grid keeps its weights: count it once
        groups.append(CostGroup(cell, runs, runs if config.keep == "all" else best))
    return groups


def selected_rows(config: SweepsConfig) -> list[str]:
    """The rows to run. Raises UserError if a row does not exist."""
    selected = transfer.variants(config)
    if unknown := [name for name in selected if name not in ROWS]:
        raise UserError(f"variants={selected}: {unknown_name(unknown[0], ROWS, f'row of study={config.study.name}')}")
    return selected


def _check_overrides(config: SweepsConfig) -> None:
    """Raise UserError if overrides for the cells set what the study itself sets."""
    keys = [word.lstrip("+").partition("=")[0] for word in config.cells]
    problems = [f"{key}=: {RESERVED_KEYS[key]}" for key in RESERVED_KEYS if key in keys]
    if "demos=none" in config.cells:
        problems.append("demos=none: the rows set it; choose rows without demonstrations with variants=[...]")
    if problems:
        raise UserError("\n".join(f"study={config.study.name}: {problem}" for problem in problems))


# --- cells ------------------------------------------------------------------------------------------------------------


def grid_points(config: SweepsConfig) -> list[dict[str, Any]]:
    """The points of the grid: the settings of each, the user's values before the study's."""
    default, own = (dataclasses.asdict(grid) for grid in (config.study.grid, config.grid))
    values = {key: own[key] or default[key] for key in default if own[key] or default[key]}
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def _search_settings(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings to tune candidates with: the largest batch size and the lowest learning rate, as in LM-BFF."""
    choose = {"batch_size": max, "lr": min}
    return {key: choose[key](point[key] for point in points) for key in points[0]}


def search_cells(config: SweepsConfig, folder: Path | None) -> list[Cell]:
    """A search for every task and seed, if a row has automatic prompts."""
    if not any(ROWS[name].searched for name in selected_rows(config)):
        return []
    fixed = [f"{key}={value}" for key, value in _search_settings(grid_points(config)).items()] + _placeholder_init(
        config, folder
    )
    common = [word for word in _common_overrides(config, folder, FinetuneConfig) if not word.startswith("demo")]
    cells = []
    for task in transfer.table_tasks(config):
        words = [*common, *fixed, *config.study.search, f"task={task}"]
        cells.append(compose_cell(f"search-{task}", "search", words, config, prerequisites(config)))
    return [cell.with_settings(f"seed{seed}", seed=seed) for seed in config.seeds for cell in cells]


def table_cells(config: SweepsConfig, folder: Path | None) -> list[Cell]:
    """All cells of the table, ordered by seed first; zero-shot does not depend on the seed and runs only once."""
    cells, points = [], grid_points(config)
    entries = list(itertools.product(transfer.table_tasks(config), selected_rows(config)))
    untrained = {
        (task, name): _untrained_cell(config, task, name, folder)
        for task, name in entries
        if ROWS[name].command == "fewshot"
    }
    trained = {
        (task, name): _finetuning_cell(config, task, name, folder)
        for task, name in entries
        if (task, name) not in untrained
    }
    for seed, (task, name) in itertools.product(config.seeds, entries):
        if name == "zeroshot":
            cells += [untrained[task, name]] if seed == config.seeds[0] else []
        elif name == "incontext":
            cells.append(untrained[task, name].with_settings(f"seed{seed}", seeds=[seed]))
        else:
            cell = trained[task, name]
            if ROWS[name].searched:
                cell = _with_searched_prompt(cell, folder, f"search-{task}-seed{seed}")
            cells += [_at_grid_point(cell, seed, point) for point in points]
    return cells


def _common_overrides(config: SweepsConfig, folder: Path | None, cls: type) -> list[str]:
    """The overrides of all cells whose keys the command's config class has."""
    words = [*config.study.overrides, *transfer.initial_weights(config, folder), *config.cells]
    return [word for word in words if annotation_of(cls, word.lstrip("+~").partition("=")[0]) is not None]


def _placeholder_init(config: SweepsConfig, folder: Path | None) -> list[str]:
    """init=null as a placeholder before the study's own pretraining has run."""
    return ["init=null"] if folder is None and prerequisites(config) else []


def _at_grid_point(cell: Cell, seed: int, point: Mapping[str, Any]) -> Cell:
    """The cell with this seed at this point of the grid."""
    seeded = cell.with_settings(f"seed{seed}", seed=seed)
    names = {"batch_size": "batch", "lr": "lr"}
    suffix = "-".join(f"{names[key]}{value:g}" for key, value in point.items())
    return dataclasses.replace(seeded.with_settings(suffix, **point), group=seeded.name) if point else seeded


def _finetuning_cell(config: SweepsConfig, task: str, name: str, folder: Path | None) -> Cell:
    """A fine-tuning cell, still without a seed."""
    row, common = ROWS[name], _common_overrides(config, folder, FinetuneConfig)
    words = [word for word in common if not word.startswith("demo")]
    if row.demos:
        sets = [f"demo_sets={DEMO_SETS[task]}"] if task in DEMO_SETS else []
        words += ["demos=similar", *sets, *(word for word in common if word.startswith("demo"))]
    words += [f"task={task}", *row.overrides]
    return compose_cell(f"{task}-{name}", "finetune", words, config, prerequisites(config))


def _with_searched_prompt(cell: Cell, folder: Path | None, search: str) -> Cell:
    """The cell with the best prompt of a search; before the search has finished, with the task's own prompt."""
    cell = dataclasses.replace(cell, depends_on=(*cell.depends_on, search))
    if folder is None or not (best := cells_folder(folder) / search / "best.yaml").exists():
        return cell
    assert isinstance(cell.config, FinetuneConfig)
    task = dataclasses.replace(cell.config.task, prompt=build(PromptConfig, read_config(best)))
    words = (*(word for word in cell.overrides if not word.startswith("task.prompt.")), f"prompt={best}")
    return dataclasses.replace(
        cell, overrides=words, config=dataclasses.replace(cell.config, prompt=str(best), task=task)
    )


def _untrained_cell(config: SweepsConfig, task: str, name: str, folder: Path | None) -> Cell:
    """A cell without training, tested on the same examples as the other rows."""
    common = _common_overrides(config, folder, FewshotConfig)
    shots = [int(word.partition("=")[2]) for word in common if word.startswith("shots=")][-1]
    words = [word for word in common if not word.startswith("shots=")] + _placeholder_init(config, folder)
    words += [f"task={task}", f"pool={shots}", f"seeds=[{config.seeds[0]}]", *ROWS[name].overrides]
    if name == "zeroshot":
        return compose_cell(f"{task}-{name}", "fewshot", [*words, "shots=0"], config, prerequisites(config))
    cell = compose_cell(f"{task}-{name}", "fewshot", words, config, prerequisites(config))
    assert isinstance(cell.config, FewshotConfig)  # it contains the task's classes
    count = min(MAX_DEMONSTRATIONS, shots * len(few_shot.class_names(cell.config.task)))
    return dataclasses.replace(cell.with_settings("", shots=count), name=cell.name)
