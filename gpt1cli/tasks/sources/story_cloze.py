"""Story Cloze 2016: four sentences of a story, and two endings (Mostafazadeh et al. 2016).

The authors of GPT-1 trained on the validation file, split 1,497/374, and tested on the test file (released code,
datasets.py): the training stories have no wrong endings. The rows come from the hub, or from the two csv files that the
authors of the data set give out (task.path=), which have other column names.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources.rows import NO_LABEL, load_columns, parse_label

SPLIT_SEED, VALID_ROWS = 3535999445, 374  # released code, datasets.py
FILES = {"validation": "cloze_test_val*.csv", "test": "cloze_test_test*.csv"}
CSV_COLUMNS = [
    "InputStoryid", *(f"InputSentence{i}" for i in range(1, 5)),
    "RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding",
]  # fmt: skip


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """`train` and `valid` are parts of the validation file; any other split is the file with that name."""
    from sklearn.model_selection import train_test_split

    file = "validation" if split in ("train", "valid") else split
    loaded = _csv_rows(Path(task.path), file) if task.path else _hub_rows(task, file, hub, cache)
    if loaded is None:
        return None
    where, rows = loaded
    if task.path:
        task = dataclasses.replace(task, label=CSV_COLUMNS[-1])  # for error messages
    examples = []
    for number, (name, *sentences, one, two, answer) in enumerate(rows):
        label = parse_label(task, answer, f"{where}: row {number}")
        examples.append(Example(str(name), (" ".join(sentences),), label, (one, two)))
    if file == split:
        return examples
    if len(examples) <= VALID_ROWS:
        raise UserError(f"{where}: {VALID_ROWS} rows are used for validation, but there are only {len(examples)} rows")
    train, valid = train_test_split(examples, test_size=VALID_ROWS, random_state=SPLIT_SEED)
    return train if split == "train" else valid


CsvRows = list[tuple[Any, ...]]  # story id, four sentences, two endings, "1" or "2"


def _hub_rows(task: TaskConfig, file: str, hub: str | None, cache: str | Path) -> tuple[str, CsvRows] | None:
    loaded = load_columns(task, file, ["story_id", *task.columns, *task.choices, task.label], hub, cache)
    if loaded is None:
        return None
    where, columns = loaded
    answers = [
        answer if answer in NO_LABEL else str(answer) for answer in columns.pop()
    ]  # numbers from 1 in the hub's rows
    return where, list(zip(*columns, answers, strict=True))


def _csv_rows(folder: Path, file: str) -> tuple[str, CsvRows] | None:
    if file not in FILES:
        return None
    paths = sorted(folder.expanduser().glob(FILES[file]))
    # The 2018 data set, which the authors give out with this one, has a validation file too.
    paths = [path for path in paths if "spring2016" in path.name] or paths
    if len(paths) != 1:
        raise UserError(
            f"task.path={folder}: it must contain one file {FILES[file]}, but contains {len(paths) or 'none'}"
        )
    try:
        with paths[0].open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            rows, names = list(reader), reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{paths[0]}: cannot be read ({error})") from error
    if missing := [name for name in CSV_COLUMNS if name not in names]:
        raise UserError(f"{paths[0]}: no column {', '.join(missing)}; available: {', '.join(names)}")
    return str(paths[0]), [tuple(row[name] or "" for name in CSV_COLUMNS) for row in rows]
