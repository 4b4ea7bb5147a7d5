"""The user's own rows as a task (task=file): csv, tsv, jsonl or parquet files; only task.kind is required.

`infer_task` reads the files once, before the run is recorded: it finds the columns of texts, answers and labels, and
the names of the labels. The results become part of the task, so that a checkpoint knows what its outputs mean.

Longer than 300 lines: four formats, five kinds of task, and the mistakes that own files contain.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt1cli.config.schema import UserError, build, display
from gpt1cli.config.task import SCORE_LOSSES, TaskConfig
from gpt1cli.data import tables
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources.rows import flatten_answers

HOLDOUT_SEED = 0  # the same held-out rows for every run, so that runs can be compared


class TaskKind(NamedTuple):
    """What a value of task.kind means."""

    layout: str
    texts: tuple[int, int]  # minimum and maximum number
    metrics: list[str]
    scores: bool = False


KINDS = {
    "classification": TaskKind("single", (1, 1), ["accuracy", "matthews_correlation"]),
    "pair": TaskKind("pair", (2, 2), ["accuracy", "matthews_correlation"]),
    "similarity": TaskKind("similarity", (2, 2), ["pearson", "spearmanr"], scores=True),
    "regression": TaskKind("single", (1, 1), ["pearson", "spearmanr"], scores=True),
    "choice": TaskKind("choice", (0, 2), ["accuracy"]),
}

# Common column names, in lower case, most common first.
TEXT_COLUMNS = (
    "text", "sentence", "content", "review", "document", "article", "body", "comment", "message", "tweet", "post",
    "sentence1", "premise", "question", "question1", "query", "input", "title",
)  # fmt: skip
PAIR_COLUMNS = (
    ("text", "text_b"), ("text_a", "text_b"), ("premise", "hypothesis"), ("sentence1", "sentence2"),
    ("question1", "question2"), ("text1", "text2"), ("sentence_a", "sentence_b"), ("sentence_1", "sentence_2"),
    ("question", "sentence"), ("question", "answer"), ("query", "document"), ("context", "question"),
)  # fmt: skip
CONTEXT_COLUMNS = ("article", "passage", "context", "story", "document", "text")
QUESTION_COLUMNS = ("question", "query", "prompt", "premise", "sentence")
LABEL_COLUMNS = (
    "label", "labels", "gold_label", "class", "category", "target", "score", "similarity", "similarity_score", "rating",
    "stars", "sentiment", "answer", "answer_idx", "correct", "y",
)  # fmt: skip
CHOICES_COLUMNS = ("choices", "options", "answers", "endings")
NUMBERED_CHOICE = re.compile(r"(choice|option|answer|ending|sol)[ _]?([0-9]|[a-h])")


# --- columns, labels and scores of the files --------------------------------------------------------------------------


def infer_task(task: TaskConfig) -> TaskConfig:
    """The task with its columns, labels and splits inferred from its files.

    Raises UserError if one of them cannot be inferred.
    """
    files: dict[str, str] = {name: path for name in ("train", "valid", "test") if (path := getattr(task, name))}
    splits = {name: name for name in task.split_names}
    if task.columns:  # inferred before; files added later may have other column names
        text_columns = [name for name in (task.text, task.text_b) if name]
        return _validated(dataclasses.replace(task, splits=splits, columns=text_columns or task.columns))
    assert task.kind
    kind = KINDS[task.kind]
    with tables.open_table(files["train"], header=task.header) as table:
        columns, choices, label = find_columns(task, table.columns, table.name)
        task = dataclasses.replace(task, columns=columns, choices=choices, label=label, layout=kind.layout)  # type: ignore[arg-type]
        values = [(line, row.get(label), _row_answers(task, row)) for line, row in table.rows]
    task = dataclasses.replace(task, splits=splits, metrics=task.metrics or kind.metrics)
    if not kind.scores:
        return _validated(dataclasses.replace(task, labels=task.labels or _class_names(task, files["train"], values)))
    task = dataclasses.replace(task, loss=task.loss if task.loss in SCORE_LOSSES else "mse")
    return _validated(dataclasses.replace(task, range=task.range or _score_range(task, files)))


def _validated(task: TaskConfig) -> TaskConfig:
    """The task, checked again after its values were changed."""
    return build(TaskConfig, dataclasses.asdict(task))


def find_columns(task: TaskConfig, columns: Sequence[str], where: str) -> tuple[list[str], list[str], str]:
    """The columns of the texts, of the answers and of the label: those named in the task, else those with common names.

    Raises UserError if one is not found.
    """
    kind, by_name = KINDS[task.kind or ""], _by_lower_name(columns)
    named_columns = [name for name in (task.text, task.text_b, task.label, task.id, *task.choices) if name]
    if missing := [name for name in named_columns if name not in columns]:
        raise UserError(f"{where}: no column {', '.join(missing)}; available: {', '.join(columns)}")
    label = task.label or next((by_name[name] for name in LABEL_COLUMNS if name in by_name), "")
    other_columns = {label, task.id}
    texts, choices = find_input_columns(
        kind, task, [name for name in columns if name not in other_columns or name in task.choices]
    )
    problems = []
    if not kind.texts[0] <= len(texts) <= kind.texts[1]:
        two = kind.texts[1] == 2
        problems.append(f"the text column{'s: set task.text= and task.text_b=' if two else ': set task.text='}")
    if kind.layout == "choice" and not choices:
        problems.append("the columns of the answers: set task.choices=[...]")
    if not label:
        problems.append("the label column: set task.label=")
    if problems:
        head = f"{where}: the columns are {display(', '.join(columns))}; not found for task.kind={task.kind}:"
        raise UserError("\n  ".join([head, *problems]))
    return texts, choices, label


def find_input_columns(kind: TaskKind, task: TaskConfig, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns of the texts and of the answers: those named in the task, else those with common names."""
    by_name = _by_lower_name(columns)
    named_choices = task.choices if set(task.choices) <= set(columns) else []
    choices = named_choices or (_find_choice_columns(by_name) if kind.layout == "choice" else [])
    others = {lower: name for lower, name in by_name.items() if name not in choices}
    texts = [name for name in (task.text, task.text_b) if name is not None and name in columns]
    in_order = [name for name in columns if name not in choices]
    return texts or _find_text_columns(kind, others, in_order), list(choices)


def task_kind(task: TaskConfig) -> TaskKind:
    """The TaskKind that describes a task of any source, with the task's own number of texts."""
    n = len(task.columns)
    return TaskKind(task.layout, (n, n), task.metrics, not task.is_classification)


def _by_lower_name(columns: Sequence[str]) -> dict[str, str]:
    return {name.strip().lower(): name for name in reversed(columns)}


def _find_text_columns(kind: TaskKind, by_name: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    if kind.layout == "choice":
        first = [
            [by_name[name] for name in names if name in by_name][:1] for names in (CONTEXT_COLUMNS, QUESTION_COLUMNS)
        ]
        return [name for names in first for name in names]
    common = PAIR_COLUMNS if kind.texts == (2, 2) else [(name,) for name in TEXT_COLUMNS]
    default = list(columns) if len(columns) == kind.texts[1] else []
    return next(([by_name[name] for name in names] for names in common if set(names) <= by_name.keys()), default)


def _find_choice_columns(by_name: Mapping[str, str]) -> list[str]:
    numbered = sorted(lower for lower in by_name if NUMBERED_CHOICE.fullmatch(lower))
    if len(numbered) > 1:
        return [by_name[lower] for lower in numbered]
    letters = [letter for letter in "abcdefgh" if letter in by_name]
    if len(letters) > 1:
        return [by_name[letter] for letter in letters]
    return [by_name[name] for name in CHOICES_COLUMNS if name in by_name][:1]


def _row_answers(task: TaskConfig, row: Mapping[str, Any]) -> list[Any]:
    return flatten_answers(row.get(name) for name in task.choices)


def _class_names(task: TaskConfig, path: str, values: Sequence[tuple[int, Any, list[Any]]]) -> list[str]:
    """The names of the classes, or of the answers of a choice, in an order independent of the order of the rows."""
    names = {name for _, value, _ in values if (name := label_name(value)) is not None}
    if not names:
        raise UserError(f"{path}: no row has a label in column {task.label}; another column: task.label=NAME")
    if task.choices:
        return _choice_names(task, path, names, len(values[0][2]))
    if len(names) < 2:
        raise UserError(
            f"{path}: every label in column {task.label} is {display(next(iter(names)))}; two different ones are needed"
        )
    if len(names) > 50 and len(names) > len(values) / 2:
        problem = f"column {task.label} has {len(names):,} different labels in {len(values):,} rows"
        raise UserError(f"{path}: {problem}; for scores: task.kind=regression, for another column: task.label=NAME")
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=int) if numbers else sorted(names)


def _choice_names(task: TaskConfig, path: str, names: set[str], n: int) -> list[str]:
    """How the label column names n answers: numbers from 0 or 1, or letters. Numbers from 1 if it has texts."""
    from_zero, from_one = [str(i) for i in range(n)], [str(i + 1) for i in range(n)]
    letters = [chr(ord("A") + i) for i in range(n)]
    fitting = [
        style for style in (from_zero, from_one, letters, [letter.lower() for letter in letters]) if names <= set(style)
    ]
    if len(fitting) == 2:  # labels 1 and 2 of three answers: the first and second, or the second and third?
        problem = f"the labels {', '.join(sorted(names))} of {n} answers can count from 0 or from 1"
        raise UserError(f"{path}: {problem}; set task.labels=[{','.join(from_zero)}] or [{','.join(from_one)}]")
    return fitting[0] if fitting else from_one


def _score_range(task: TaskConfig, files: Mapping[str, str]) -> list[int]:
    """The integers just below and above the scores of all files."""
    scores = []
    for path in files.values():
        with tables.open_table(path, header=task.header) as table:
            scores += [
                parse_score(row.get(task.label), f"{path}, line {line}: {task.label}")
                for line, row in table.rows
                if label_name(row.get(task.label)) is not None
            ]
    if not scores or min(scores) == max(scores):
        raise UserError(f"{files['train']}: column {task.label} needs at least two different scores")
    return [math.floor(min(scores)), math.ceil(max(scores))]


def label_name(value: Any) -> str | None:
    """A label as text; None if it is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # integers in a column with gaps
        return str(int(value))
    return str(value).strip() or None


def parse_score(value: Any, where: str) -> float:
    """A label as a number. Raises UserError if it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}={display(value)} is not a number")
    return number


# --- examples ---------------------------------------------------------------------------------------------------------


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """The rows of a split. Without a validation file `valid` is a share of the training rows, the same in every run."""
    path = task.train if split == "valid" and task.valid is None else getattr(task, split)
    if path is None:
        return None
    with tables.open_table(path, header=task.header) as table:
        examples = list(read_examples(task, table, labelled=split != "test"))
    if split == "train" and examples and all(map(has_empty_text, examples)):
        column = ", ".join(task.columns)
        raise UserError(f"{path}: every row has an empty text in column {column}; for another column: task.text=NAME")
    if task.valid is not None or split == "test":
        return examples
    holdout = sample_holdout(examples, task.holdout)
    return [example for number, example in enumerate(examples) if (number in holdout) == (split == "valid")]


def read_examples(task: TaskConfig, table: tables.FileRows, labelled: bool) -> Iterator[Example]:
    """The rows of a table as examples, with their line numbers or the column task.id as ids.

    The label column is required if `labelled`. Raises UserError if a row does not fit the task.
    """
    required = [*task.columns, *task.choices, *([task.id] if task.id else []), *([task.label] if labelled else [])]
    if missing := [name for name in required if name not in table.columns]:
        problem = f"{table.name}: no column {', '.join(missing)}; available: {', '.join(table.columns)}"
        raise UserError(f"{problem}\nrestore the file, or name its columns: task.text=, task.label=, ...")
    lines: dict[str, int] = {}
    for line, row in table.rows:
        where = f"{table.name}, line {line}"
        texts = tuple(_text_value(row, name, where) for name in task.columns)
        choices = tuple(_row_answers(task, row))
        if any(not isinstance(answer, str) for answer in choices):
            raise UserError(f"{where}: an answer in {', '.join(task.choices)} is not a text")
        if task.choices and len(choices) != len(task.labels):
            raise UserError(f"{where}: {len(choices)} answers, but the task has {len(task.labels)}")
        name = str(row[task.id]) if task.id else str(line)
        if task.id and lines.setdefault(name, line) != line:
            remedy = "ids must be unique; without task.id= the line number is the id"
            raise UserError(f"{where}: {task.id}={display(name)} is also in line {lines[name]}; {remedy}")
        yield Example(name, texts, _parse_label(task, row.get(task.label), choices, where), choices)


def has_empty_text(example: Example) -> bool:
    """Whether a text of the example is empty or blank."""
    return not all(text.strip() for text in example.texts)


def _text_value(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UserError(
            f"{where}: {'no text' if value is None else 'a number or a list, not a text,'} in column {column}"
        )
    return value


def _parse_label(task: TaskConfig, value: Any, choices: Sequence[str], where: str) -> int | float | None:
    name = label_name(value)
    if name is None:
        return None
    if not task.is_classification:
        assert task.range
        score = parse_score(value, f"{where}: {task.label}")
        if not task.range[0] <= score <= task.range[1]:
            raise UserError(f"{where}: {task.label}={score:g} is outside task.range={task.range}")
        return score
    if name in task.labels:
        return task.labels.index(name)
    if choices.count(name) == 1:
        return choices.index(name)
    allowed = display(", ".join(task.labels)) + (", or the text of an answer" if choices else "")
    problem = f"{where}: {task.label}={display(name)} is not a label of the task; allowed: {allowed}"
    raise UserError(f"{problem}; correct it, empty it to skip the row, or add it to task.labels= and train again")


def sample_holdout(examples: Sequence[Example], share: float) -> set[int]:
    """Numbers of the examples held out for validation: a share of every class, drawn with HOLDOUT_SEED.

    A class with one example stays in training. Raises UserError if no example can be held out.
    """
    strata: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        if example.label is not None:
            strata.setdefault(example.label if isinstance(example.label, int) else None, []).append(number)
    rng, holdout = random.Random(HOLDOUT_SEED), set[int]()
    for numbers in strata.values():
        count = min(len(numbers) - 1, max(1, round(share * len(numbers))))
        holdout |= set(rng.sample(numbers, count))
    if not holdout:
        raise UserError("too few labelled rows to hold some out for validation: add rows, or set task.valid=FILE")
    return holdout


# --- summary before training ------------------------------------------------------------------------------------------


def summarize_data(task: TaskConfig, splits: Mapping[str, Sequence[Example]]) -> list[str]:
    """Lines for the log: the columns used, the counts of each label, empty texts, and the first rows."""
    answers = f"; answers {', '.join(task.choices)}" if task.choices else ""
    lines = [f"columns: texts {', '.join(task.columns)}{answers}; label {task.label}"]
    for name, examples in splits.items():
        labels = [example.label for example in examples if example.label is not None]
        if task.is_classification and labels:
            counts = Counter(task.labels[int(label)] for label in labels)
            lines.append(f"{name}: " + ", ".join(f"{label} {counts[label]:,}" for label in task.labels))
            same_letters = [f"{a} and {b}" for a, b in itertools.combinations(task.labels, 2) if a.lower() == b.lower()]
            if name == "train" and same_letters:
                lines.append(f"different labels that differ only in upper and lower case: {', '.join(same_letters)}")
        elif labels:
            lines.append(f"{name}: scores {min(labels):g} to {max(labels):g}, mean {sum(labels) / len(labels):.3g}")
        if empty := [example.id for example in examples if has_empty_text(example)]:
            lines.append(f"{name}: {len(empty):,} with an empty text, the first is {empty[0]}")
    for example in itertools.islice(splits["train"], 3):
        texts = " | ".join(textwrap.shorten(text, 80) for text in (*example.texts, *example.choices))
        label = task.labels[int(example.label or 0)] if task.is_classification else f"{example.label:g}"
        lines.append(f"  {label} <- {texts}")
    return lines
