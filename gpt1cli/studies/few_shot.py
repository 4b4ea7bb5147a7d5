"""A study on few examples as its cells: the rows of LM-BFF's main table (Gao et al. 2021, Table 3), for each task.

Every row of a seed sees the same examples, K of each class to train on and K more to choose by. Of a row that is
trained there is a run for each point of a grid, of which validation chooses one for every task and seed; the automatic
prompts are those of a search on the very same examples (gpt1 search), one for every task and seed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt1cli.config.commands import FewshotConfig, FinetuneConfig, SearchConfig, SweepsConfig
from gpt1cli.config.prompt import PromptConfig
from gpt1cli.config.schema import UserError, annotation_of, build, unknown
from gpt1cli.runs.files import read_config
from gpt1cli.studies import transfer
from gpt1cli.studies.cells import Cell, composed
from gpt1cli.studies.transfer import Kind, Stage, home, prerequisites
from gpt1cli.tasks import few_shot


class Row(NamedTuple):
    """A row of the table: which command runs it, and how."""

    command: str
    words: tuple[str, ...] = ()
    demos: bool = False  # whether it is fine-tuned behind demonstrations
    searched: bool = False  # whether its prompts are automatic


ROWS = {
    "zeroshot": Row("fewshot"),
    "incontext": Row("fewshot", ("balanced=false",)),
    "head": Row("finetune", ("method=head",)),
    "prompt": Row("finetune", ("method=prompt",)),
    "prompt_demos": Row("finetune", ("method=prompt",), demos=True),
    "auto": Row("finetune", ("method=prompt",), searched=True),
    "auto_demos": Row("finetune", ("method=prompt",), demos=True, searched=True),
}
IN_CONTEXT = 32  # demonstrations of the row incontext, where there are as many and they fit
FEWER_SETS = {"mnli": 4, "snli": 4, "qqp": 4}  # of demonstrations that are averaged: LM-BFF's numbers for large tests
# What rows, grid and seeds say, so that nothing else may; demos= says of which kind demonstrations are.
TAKEN = {
    "method": "the rows say how: variants=[...]",
    "prompt": "row prompt has the task's own, and task.prompt.KEY= changes it; row auto has those that are searched",
    "batch_size": "the grid says which: grid.batch_size=[...]",
    "lr": "the grid says which: grid.lr=[...]",
    "seed": "a study takes seeds=[...]",
}


def stages(config: SweepsConfig) -> list[Stage]:
    """Pretraining of the study's own, the searches, and what the table is made of."""
    _check(config)
    return [
        lambda _: transfer.pretrainings(config),
        lambda begun: searches(config, begun),
        lambda begun: rows(config, begun),
    ]


def kinds(config: SweepsConfig) -> list[Kind]:
    """The cells that training takes, one for each task, row and batch size; a search as the runs that it tunes."""
    _check(config)
    found = [Kind(cell, 1, 1) for cell in transfer.pretrainings(config)]
    points, seeds = grid_of(config), config.seeds
    for search in searches(config, None)[: len(transfer.tasks(config))]:
        assert isinstance(search.config, SearchConfig)
        task = search.config.task.name
        cell = _at(_cell(config, task, "prompt", None), seeds[0], _of_search(points))
        found.append(
            Kind(dataclasses.replace(cell, name=f"search-{task}"), len(seeds) * search.config.tune, len(seeds))
        )
    sizes = list(dict.fromkeys(point.get("batch_size") for point in points))
    trained = [name for name in chosen_rows(config) if ROWS[name].command == "finetune"]
    for task, name, size in itertools.product(transfer.tasks(config), trained, sizes):
        alike = [point for point in points if point.get("batch_size") == size]
        cell, runs = _at(_cell(config, task, name, None), seeds[0], alike[0]), len(seeds) * len(alike)
        one = len(seeds) if size == sizes[0] else 0  # of a whole grid a single run keeps its weights
        found.append(Kind(cell, runs, runs if config.keep == "all" else one))
    return found


def chosen_rows(config: SweepsConfig) -> list[str]:
    """The rows that are run. UserError for one that there is not."""
    named = transfer.variants(config)
    if odd := [name for name in named if name not in ROWS]:
        raise UserError(f"variants={named}: {unknown(odd[0], ROWS, f'row of study={config.study.name}')}")
    return named


def _check(config: SweepsConfig) -> None:
    """UserError for overrides of the cells that the study itself makes."""
    named = [word.lstrip("+").partition("=")[0] for word in config.cells]
    wrong = [f"{key}=: {TAKEN[key]}" for key in TAKEN if key in named]
    if "demos=none" in config.cells:
        wrong.append("demos=none: the rows say where there are none: variants=[...]")
    if wrong:
        raise UserError("\n".join(f"study={config.study.name}: {problem}" for problem in wrong))


# --- cells ------------------------------------------------------------------------------------------------------------


def grid_of(config: SweepsConfig) -> list[dict[str, Any]]:
    """The points of the grid: what each sets."""
    own, mine = (dataclasses.asdict(grid) for grid in (config.study.grid, config.grid))
    values = {key: mine[key] or own[key] for key in own if mine[key] or own[key]}
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def _of_search(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How candidates are tuned: at the largest batch size and the lowest rate, which are LM-BFF's own of its grid."""
    pick = {"batch_size": max, "lr": min}
    return {key: pick[key](point[key] for point in points) for key in points[0]}


def searches(config: SweepsConfig, folder: Path | None) -> list[Cell]:
    """A search for every task and seed, where a row has automatic prompts."""
    if not any(ROWS[name].searched for name in chosen_rows(config)):
        return []
    fixed = [f"{key}={value}" for key, value in _of_search(grid_of(config)).items()] + _stand_in(config, folder)
    begin = [word for word in _begin(config, folder, FinetuneConfig) if not word.startswith("demo")]
    found = []
    for task in transfer.tasks(config):
        words = [*begin, *fixed, *config.study.search, f"task={task}"]
        found.append(composed(f"search-{task}", "search", words, config, prerequisites(config)))
    return [cell.also(f"seed{seed}", seed=seed) for seed in config.seeds for cell in found]


def rows(config: SweepsConfig, folder: Path | None) -> list[Cell]:
    """Every cell of the table, the seeds outermost; zero-shot, which no seed changes, runs with the first one alone."""
    found, points = [], grid_of(config)
    kinds = list(itertools.product(transfer.tasks(config), chosen_rows(config)))
    asked = {
        (task, name): _asked(config, task, name, folder) for task, name in kinds if ROWS[name].command == "fewshot"
    }
    tuned = {(task, name): _cell(config, task, name, folder) for task, name in kinds if (task, name) not in asked}
    for seed, (task, name) in itertools.product(config.seeds, kinds):
        if name == "zeroshot":
            found += [asked[task, name]] if seed == config.seeds[0] else []
        elif name == "incontext":
            found.append(asked[task, name].also(f"seed{seed}", seeds=[seed]))
        else:
            cell = tuned[task, name]
            if ROWS[name].searched:
                cell = _searched(cell, folder, f"search-{task}-seed{seed}")
            found += [_at(cell, seed, point) for point in points]
    return found


def _begin(config: SweepsConfig, folder: Path | None, cls: type) -> list[str]:
    """The overrides of all cells, as far as a command knows them."""
    words = [*config.study.overrides, *transfer.beginnings(config, folder), *config.cells]
    return [word for word in words if annotation_of(cls, word.lstrip("+~").partition("=")[0]) is not None]


def _stand_in(config: SweepsConfig, folder: Path | None) -> list[str]:
    """What those start from that need weights, where these are still to be pretrained."""
    return ["init=null"] if folder is None and prerequisites(config) else []


def _at(cell: Cell, seed: int, point: Mapping[str, Any]) -> Cell:
    """The cell with a seed, at a point of the grid."""
    seeded = cell.also(f"seed{seed}", seed=seed)
    names = {"batch_size": "batch", "lr": "lr"}
    told = "-".join(f"{names[key]}{value:g}" for key, value in point.items())
    return dataclasses.replace(seeded.also(told, **point), group=seeded.name) if point else seeded


def _cell(config: SweepsConfig, task: str, name: str, folder: Path | None) -> Cell:
    """A fine-tuning that has no seed yet."""
    row, begin = ROWS[name], _begin(config, folder, FinetuneConfig)
    words = [word for word in begin if not word.startswith("demo")]
    if row.demos:
        sets = [f"demo_sets={FEWER_SETS[task]}"] if task in FEWER_SETS else []
        words += ["demos=similar", *sets, *(word for word in begin if word.startswith("demo"))]
    return composed(f"{task}-{name}", "finetune", [*words, f"task={task}", *row.words], config, prerequisites(config))


def _searched(cell: Cell, folder: Path | None, search: str) -> Cell:
    """The fine-tuning through the best prompt of a search; before that has one, through the task's own."""
    cell = dataclasses.replace(cell, after=(*cell.after, search))
    if folder is None or not (best := home(folder) / search / "best.yaml").exists():
        return cell
    assert isinstance(cell.config, FinetuneConfig)
    task = dataclasses.replace(cell.config.task, prompt=build(PromptConfig, read_config(best)))
    words = (*(word for word in cell.words if not word.startswith("task.prompt.")), f"prompt={best}")
    return dataclasses.replace(cell, words=words, config=dataclasses.replace(cell.config, prompt=str(best), task=task))


def _asked(config: SweepsConfig, task: str, name: str, folder: Path | None) -> Cell:
    """A task answered without training, on what the other rows are tested on."""
    begin = _begin(config, folder, FewshotConfig)
    shots = [int(word.partition("=")[2]) for word in begin if word.startswith("shots=")][-1]
    words = [word for word in begin if not word.startswith("shots=")] + _stand_in(config, folder)
    words += [f"task={task}", f"pool={shots}", f"seeds=[{config.seeds[0]}]", *ROWS[name].words]
    if name == "zeroshot":
        return composed(f"{task}-{name}", "fewshot", [*words, "shots=0"], config, prerequisites(config))
    cell = composed(f"{task}-{name}", "fewshot", words, config, prerequisites(config))
    assert isinstance(cell.config, FewshotConfig)  # which knows the task's classes
    most = min(IN_CONTEXT, shots * len(few_shot.class_names(cell.config.task)))
    return dataclasses.replace(cell.also("", shots=most), name=cell.name)
