"""gpt1 predict: labels and label probabilities of new rows, by a fine-tuned run."""

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
from gpt1cli.data.hub import Requirement
from gpt1cli.evaluation.predictor import load_fine_tuned, restore_predictor
from gpt1cli.pretrained import locate
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import atomic_write
from gpt1cli.runs.folder import finish_run
from gpt1cli.runs.record import update_environment
from gpt1cli.tasks.classification import prediction_records
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources import file
from gpt1cli.training import device

BATCH_ROWS = 1024  # rows read at a time, so that memory does not grow with the file

WriteRecord = Callable[[Mapping[str, Any]], None]


def needs(config: PredictConfig) -> list[Requirement]:
    """Require nothing. Raises UserError if the run has no task, rows are missing, or output would overwrite a file."""
    task = locate.checkpoint_task(
        locate.read_checkpoint_config(locate.resolve_checkpoint(config.run, "run")), config.run
    )
    if config.input is None:
        build_example(config, task)
    elif config.input != "-":
        with tables.open_table(config.input, config.format) as table:
            match_columns(task, table)
    elif config.format is None:
        raise UserError(f"input=- needs format=, one of {', '.join(tables.READERS)}")
    if config.output not in (None, "-"):
        target = Path(str(config.output))
        if target.suffix.lower() not in WRITERS:
            raise UserError(f"output={config.output}: use a file name ending in {', '.join(WRITERS)}, or - for stdout")
        if target.exists():
            raise UserError(f"output={config.output} already exists; choose another file or remove it")
        if not target.parent.is_dir():
            raise UserError(f"output={config.output}: no such folder: {target.parent}")
    return []


def run(config: PredictConfig, folder: Path) -> None:
    """Rows -> items -> predictions of the best checkpoint, in the order of the rows -> a file or stdout."""
    machine = device.setup_device(config.runtime, config.seed)
    update_environment(folder, **machine.describe())
    checkpoint_folder = locate.resolve_checkpoint(config.run, "run")
    task = locate.checkpoint_task(locate.read_checkpoint_config(checkpoint_folder), config.run)
    model, tokenizer = load_fine_tuned(checkpoint_folder)
    model.to(machine.device, machine.precision)
    predictor = restore_predictor(
        locate.read_checkpoint_config(checkpoint_folder), model, tokenizer, machine, config.hub
    )
    target = config.output or ("-" if config.text is not None else str(folder / "predictions.jsonl"))
    mode = "none" if target == "-" else config.runtime.progress

    start_time, count, truncated, empty = time.perf_counter(), 0, 0, 0
    with (
        open_examples(config, task) as examples,
        open_output(target, task) as write,
        Progress(folder, 0, mode, unit="rows", description="predicted") as progress,
    ):
        while batch := list(itertools.islice(examples, BATCH_ROWS)):
            items, batch_truncated, _ = predictor.encode(batch)
            for record in prediction_records(task, batch, predictor.outputs(model, batch, items)):
                write(record)
            count, truncated, empty = (
                count + len(batch),
                truncated + batch_truncated,
                empty + sum(map(file.has_empty_text, batch)),
            )
            progress.total = count
            progress.update(count)
        if not count:
            raise UserError(f"input={config.input} has no rows")
        seconds = time.perf_counter() - start_time
        details = f", {truncated:,} truncated to n_positions" if truncated else ""
        details += f", {empty:,} with an empty text" if empty else ""
        progress.say(f"{count:,} rows{details}; {target}")
    summary = {"status": "finished", "command": "predict", "name": config.name, "run": config.run}
    counts = {"rows": count, "cut": truncated, "empty": empty}
    finish_run(folder, {**summary, **counts, "output": target, "seconds": round(seconds, 3)})


# --- rows -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_examples(config: PredictConfig, task: TaskConfig) -> Iterator[Iterator[Example]]:
    """Open the examples of input=, or the one of text=."""
    if config.input is None:
        yield iter([build_example(config, task)])
        return
    with tables.open_table(config.input, config.format) as table:
        yield file.read_examples(match_columns(task, table), table, labelled=False)


def build_example(config: PredictConfig, task: TaskConfig) -> Example:
    """Build the example from text=, text_b= and choices=. Raises UserError unless the task takes exactly these."""
    texts = tuple(text for text in (config.text, config.text_b) if text is not None)
    if len(texts) != len(task.columns):
        keys = {0: "choices= alone", 1: "text=", 2: "text= and text_b="}
        required = keys.get(len(task.columns), "input=, for more than two texts")
        raise UserError(f"run={config.run} was trained on task={task.name}; an example needs {required}")
    if task.choices and len(config.choices) != len(task.labels):
        raise UserError(
            f"run={config.run} needs {len(task.labels)} choices: add choices=[...]; given: {len(config.choices)}"
        )
    if config.choices and not task.choices:
        raise UserError(f"run={config.run} was trained on task={task.name}, which has no choices; leave choices= out")
    return Example("1", texts, None, tuple(config.choices))


def match_columns(task: TaskConfig, table: tables.FileRows) -> TaskConfig:
    """Return the task with columns of this table: its own, or if missing the ones with the usual names."""
    task = dataclasses.replace(task, label="", id=None)
    if set(task.columns) | set(task.choices) <= set(table.columns):
        return task
    columns, choices = file.find_input_columns(file.task_kind(task), task, table.columns)
    if len(columns) != len(task.columns) or bool(choices) != bool(task.choices):
        required = ", ".join([*task.columns, *task.choices])
        raise UserError(f"{table.name}: columns {required} not found; the file has {', '.join(table.columns)}")
    return dataclasses.replace(task, columns=columns, choices=choices)


# --- output -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_output(target: str, task: TaskConfig) -> Iterator[WriteRecord]:
    """Open a writer of records: stdout for `-`, else a file that appears only when complete."""
    if target == "-":
        yield lambda record: print(json.dumps(record, ensure_ascii=False), flush=True)
        return
    with atomic_write(Path(target)) as out:
        yield WRITERS[Path(target).suffix.lower()](out, task)


def jsonl_writer(out: TextIO, task: TaskConfig) -> WriteRecord:
    """Write one JSON object per line."""

    def write(record: Mapping[str, Any]) -> None:
        out.write(json.dumps(record, ensure_ascii=False) + "\n")

    return write


def csv_writer(separator: str) -> Callable[[TextIO, TaskConfig], WriteRecord]:
    """Write a header, then id, prediction and label probabilities, one record per line."""

    def open_writer(out: TextIO, task: TaskConfig) -> WriteRecord:
        header = ["id", "prediction", *(f"probability of {label}" for label in task.labels)]
        rows = csv.writer(out, delimiter=separator, lineterminator="\n")
        rows.writerow(header)

        def write(record: Mapping[str, Any]) -> None:
            rows.writerow([record["id"], record["prediction"], *record.get("scores", {}).values()])

        return write

    return open_writer


WRITERS = {".jsonl": jsonl_writer, ".csv": csv_writer(","), ".tsv": csv_writer("\t")}
