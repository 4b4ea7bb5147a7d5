"""gpt1 predict: a fine-tuned run on new rows, each answered with its label and the probabilities of all labels."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from gpt1cli.config.commands import PredictConfig
from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.data import tables
from gpt1cli.data.hub import Need
from gpt1cli.evaluation import predictor
from gpt1cli.evaluation.predictor import load_tuned
from gpt1cli.pretrained import locate
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import whole
from gpt1cli.runs.folder import finish
from gpt1cli.runs.record import note
from gpt1cli.tasks.classification import predicted
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources import file
from gpt1cli.training import device

ROWS = 1024  # read at a time: memory does not grow with the file

Write = Callable[[Mapping[str, Any]], None]


def needs(config: PredictConfig) -> list[Need]:
    """Nothing from outside; UserError where the run has no task, the rows are not there, or would be written over."""
    task = locate.task_of(locate.described(locate.find(config.run, "run")), config.run)
    if config.input is None:
        example_of(config, task)
    elif config.input != "-":
        with tables.opened(config.input, config.format) as table:
            fitted(task, table)
    elif config.format is None:
        raise UserError(f"input=- tells nothing by its name: add format=, one of {', '.join(tables.READERS)}")
    if config.output not in (None, "-"):
        target = Path(str(config.output))
        if target.suffix.lower() not in WRITERS:
            wanted = f"a file that ends in {', '.join(WRITERS)} is wanted, or - for stdout"
            raise UserError(f"output={config.output}: {wanted}")
        if target.exists():
            raise UserError(f"output={config.output} is there already: name another file, or remove it")
        if not target.parent.is_dir():
            raise UserError(f"output={config.output}: there is no folder {target.parent}")
    return []


def run(config: PredictConfig, folder: Path) -> None:
    """Rows -> items -> the best checkpoint's answers, in the order of the rows -> a file, or stdout."""
    machine = device.start(config.runtime, config.seed)
    note(folder, **machine.describe())
    origin = locate.find(config.run, "run")
    task = locate.task_of(locate.described(origin), config.run)
    model, vocabulary = load_tuned(origin)
    model.to(machine.device, machine.precision)
    asked = predictor.of(locate.described(origin), model, vocabulary, machine, config.hub)
    target = config.output or ("-" if config.text is not None else str(folder / "predictions.jsonl"))
    mode = "none" if target == "-" else config.runtime.progress

    began, count, cut, empty = time.perf_counter(), 0, 0, 0
    with (
        rows_of(config, task) as examples,
        written(target, task) as write,
        Progress(folder, 0, mode, unit="rows", description="predicted") as progress,
    ):
        while some := list(itertools.islice(examples, ROWS)):
            items, shortened, _ = asked.arrange(some)
            for line in predicted(task, some, asked.outputs(model, some, items)):
                write(line)
            count, cut, empty = count + len(some), cut + shortened, empty + sum(map(file.lacks_text, some))
            progress.total = count
            progress.update(count)
        if not count:
            raise UserError(f"input={config.input} has no rows")
        seconds = time.perf_counter() - began
        told = f", {cut:,} of them cut to fit n_positions" if cut else ""
        told += f", {empty:,} with an empty text" if empty else ""
        progress.say(f"{count:,} rows{told}; {target}")
    about = {"status": "finished", "command": "predict", "name": config.name, "run": config.run}
    counts = {"rows": count, "cut": cut, "empty": empty}
    finish(folder, {**about, **counts, "output": target, "seconds": round(seconds, 3)})


# --- rows -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rows_of(config: PredictConfig, task: TaskConfig) -> Iterator[Iterator[Example]]:
    """The examples of input=, or the one of text=."""
    if config.input is None:
        yield iter([example_of(config, task)])
        return
    with tables.opened(config.input, config.format) as table:
        yield file.examples_of(fitted(task, table), table, labelled=False)


def example_of(config: PredictConfig, task: TaskConfig) -> Example:
    """The example that text=, text_b= and choices= name. UserError unless these are what the task takes."""
    texts = tuple(text for text in (config.text, config.text_b) if text is not None)
    if len(texts) != len(task.columns):
        known = {0: "choices= alone", 1: "text=", 2: "text= and text_b="}
        wanted = known.get(len(task.columns), "more texts than two: name input=")
        raise UserError(f"{config.run} was trained on task={task.name}, of which an example is {wanted}")
    if task.choices and len(config.choices) != len(task.labels):
        raise UserError(f"{config.run} chooses among {len(task.labels)} answers: name choices=[...]")
    if config.choices and not task.choices:
        raise UserError(f"{config.run} was trained on task={task.name}, which has no choices")
    return Example("1", texts, None, tuple(config.choices))


def fitted(task: TaskConfig, table: tables.Table) -> TaskConfig:
    """The task with the columns of this table: its own, or where those are not there the ones with usual names."""
    task = dataclasses.replace(task, label="", id=None)
    if set(task.columns) | set(task.choices) <= set(table.columns):
        return task
    columns, choices = file.inputs_of(file.kind_of(task), task, table.columns)
    if len(columns) != len(task.columns) or bool(choices) != bool(task.choices):
        wanted = ", ".join([*task.columns, *task.choices])
        raise UserError(f"{table.where}: its columns are {', '.join(table.columns)}; the run was trained on {wanted}")
    return dataclasses.replace(task, columns=columns, choices=choices)


# --- answers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def written(target: str, task: TaskConfig) -> Iterator[Write]:
    """What takes the answers one by one: stdout for `-`, else a file that is there whole or not at all."""
    if target == "-":
        yield lambda line: print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    with whole(Path(target)) as out:
        yield WRITERS[Path(target).suffix.lower()](out, task)


def json_lines(out: TextIO, task: TaskConfig) -> Write:
    """An object a line."""

    def write(line: Mapping[str, Any]) -> None:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")

    return write


def separated(separator: str) -> Callable[[TextIO, TaskConfig], Write]:
    """A line of names, then id, prediction and the probability of each label."""

    def begun(out: TextIO, task: TaskConfig) -> Write:
        names = ["id", "prediction", *(f"probability of {label}" for label in task.labels)]
        rows = csv.writer(out, delimiter=separator, lineterminator="\n")
        rows.writerow(names)

        def write(line: Mapping[str, Any]) -> None:
            rows.writerow([line["id"], line["prediction"], *line.get("scores", {}).values()])

        return write

    return begun


WRITERS = {".jsonl": json_lines, ".csv": separated(","), ".tsv": separated("\t")}
