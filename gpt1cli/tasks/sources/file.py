"""Rows of one's own as a task (task=file): csv, tsv, jsonl or parquet files, of which one names only the kind.

`resolved` looks into the files once, before the run is recorded: which columns hold texts, answers and labels, and what
labels there are. What it finds is the task's from then on, so that a checkpoint knows what its answers mean.
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
from gpt1cli.config.task import SCORES, TaskConfig
from gpt1cli.data import tables
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources.rows import answers

SEED = 0  # of the rows that are held out: the same for every run, so that runs can be compared


class Kind(NamedTuple):
    """What task.kind stands for."""

    layout: str
    texts: tuple[int, int]  # fewest and most
    metrics: list[str]
    scores: bool = False


KINDS = {
    "classification": Kind("single", (1, 1), ["accuracy", "matthews_correlation"]),
    "pair": Kind("pair", (2, 2), ["accuracy", "matthews_correlation"]),
    "similarity": Kind("similarity", (2, 2), ["pearson", "spearmanr"], scores=True),
    "regression": Kind("single", (1, 1), ["pearson", "spearmanr"], scores=True),
    "choice": Kind("choice", (0, 2), ["accuracy"]),
}

# Usual names, lower case, the likelier ones first.
TEXT = (
    "text", "sentence", "content", "review", "document", "article", "body", "comment", "message", "tweet", "post",
    "sentence1", "premise", "question", "question1", "query", "input", "title",
)  # fmt: skip
PAIRS = (
    ("text", "text_b"), ("text_a", "text_b"), ("premise", "hypothesis"), ("sentence1", "sentence2"),
    ("question1", "question2"), ("text1", "text2"), ("sentence_a", "sentence_b"), ("sentence_1", "sentence_2"),
    ("question", "sentence"), ("question", "answer"), ("query", "document"), ("context", "question"),
)  # fmt: skip
CONTEXTS = ("article", "passage", "context", "story", "document", "text")
QUESTIONS = ("question", "query", "prompt", "premise", "sentence")
LABEL = (
    "label", "labels", "gold_label", "class", "category", "target", "score", "similarity", "similarity_score", "rating",
    "stars", "sentiment", "answer", "answer_idx", "correct", "y",
)  # fmt: skip
CHOICES = ("choices", "options", "answers", "endings")
ONE_CHOICE = re.compile(r"(choice|option|answer|ending|sol)[ _]?([0-9]|[a-h])")


# --- what the files hold ----------------------------------------------------------------------------------------------


def resolved(task: TaskConfig) -> TaskConfig:
    """The task with its columns, labels and splits, as its files have them. UserError says what cannot be told."""
    files: dict[str, str] = {name: path for name in ("train", "valid", "test") if (path := getattr(task, name))}
    splits = {name: name for name in task.there}
    if task.columns:  # looked into before; files that came later may call them otherwise
        named = [name for name in (task.text, task.text_b) if name]
        return _checked(dataclasses.replace(task, splits=splits, columns=named or task.columns))
    assert task.kind
    kind = KINDS[task.kind]
    with tables.opened(files["train"], header=task.header) as table:
        columns, choices, label = found_columns(task, table.columns, table.where)
        task = dataclasses.replace(task, columns=columns, choices=choices, label=label, layout=kind.layout)  # type: ignore[arg-type]
        values = [(line, row.get(label), _answers(task, row)) for line, row in table.rows]
    task = dataclasses.replace(task, splits=splits, metrics=task.metrics or kind.metrics)
    if not kind.scores:
        return _checked(dataclasses.replace(task, labels=task.labels or _labels(task, files["train"], values)))
    task = dataclasses.replace(task, loss=task.loss if task.loss in SCORES else "mse")
    return _checked(dataclasses.replace(task, range=task.range or _range(task, files)))


def _checked(task: TaskConfig) -> TaskConfig:
    """The task, sound as a whole: no value has gone through the door since it was changed."""
    return build(TaskConfig, dataclasses.asdict(task))


def found_columns(task: TaskConfig, there: Sequence[str], where: str) -> tuple[list[str], list[str], str]:
    """Columns of the texts, of the answers, and of the label: those that are named, else those with usual names."""
    kind, by_name = KINDS[task.kind or ""], _by_name(there)
    named = [name for name in (task.text, task.text_b, task.label, task.id, *task.choices) if name]
    if missing := [name for name in named if name not in there]:
        raise UserError(f"{where}: no column {', '.join(missing)}; there: {', '.join(there)}")
    label = task.label or next((by_name[name] for name in LABEL if name in by_name), "")
    apart = {label, task.id}
    texts, choices = inputs_of(kind, task, [name for name in there if name not in apart or name in task.choices])
    lacking = []
    if not kind.texts[0] <= len(texts) <= kind.texts[1]:
        two = kind.texts[1] == 2
        lacking.append(f"which {'hold the texts' if two else 'holds the text'}: name task.text=")
        lacking[-1] += " and task.text_b=" if two else ""
    if kind.layout == "choice" and not choices:
        lacking.append("which hold the answers: name task.choices=[...]")
    if not label:
        lacking.append("which holds the label: name task.label=")
    if lacking:
        head = f"{where}: its columns are {display(', '.join(there))}; task.kind={task.kind} cannot tell"
        raise UserError("\n  ".join([head, *lacking]))
    return texts, choices, label


def inputs_of(kind: Kind, task: TaskConfig, there: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns of the texts and of the answers among these: those that are named, else those with usual names."""
    by_name = _by_name(there)
    named = task.choices if set(task.choices) <= set(there) else []
    choices = named or (_choice_columns(by_name) if kind.layout == "choice" else [])
    free = {low: name for low, name in by_name.items() if name not in choices}
    texts = [name for name in (task.text, task.text_b) if name is not None and name in there]
    rest = [name for name in there if name not in choices]
    return texts or _text_columns(kind, free, rest), list(choices)


def kind_of(task: TaskConfig) -> Kind:
    """The kind whose examples look like those of a task; the task's own number of texts."""
    n = len(task.columns)
    return Kind(task.layout, (n, n), task.metrics, not task.classes)


def _by_name(there: Sequence[str]) -> dict[str, str]:
    return {name.strip().lower(): name for name in reversed(there)}


def _text_columns(kind: Kind, free: Mapping[str, str], rest: Sequence[str]) -> list[str]:
    if kind.layout == "choice":
        found = [[free[name] for name in names if name in free][:1] for names in (CONTEXTS, QUESTIONS)]
        return [name for one in found for name in one]
    usual = PAIRS if kind.texts == (2, 2) else [(name,) for name in TEXT]
    left = list(rest) if len(rest) == kind.texts[1] else []
    return next(([free[name] for name in names] for names in usual if set(names) <= free.keys()), left)


def _choice_columns(by_name: Mapping[str, str]) -> list[str]:
    numbered = sorted(low for low in by_name if ONE_CHOICE.fullmatch(low))
    if len(numbered) > 1:
        return [by_name[low] for low in numbered]
    letters = [low for low in "abcdefgh" if low in by_name]
    if len(letters) > 1:
        return [by_name[low] for low in letters]
    return [by_name[name] for name in CHOICES if name in by_name][:1]


def _answers(task: TaskConfig, row: Mapping[str, Any]) -> list[Any]:
    return answers(row.get(name) for name in task.choices)


def _labels(task: TaskConfig, path: str, values: Sequence[tuple[int, Any, list[Any]]]) -> list[str]:
    """The names of the classes, or of the places of a choice, in an order that does not hang on that of the rows."""
    names = {name for _, value, _ in values if (name := name_of(value)) is not None}
    if not names:
        raise UserError(f"{path}: no row has a label in column {task.label}")
    if task.choices:
        return _places(task, path, names, len(values[0][2]))
    if len(names) < 2:
        raise UserError(f"{path}: every label in column {task.label} is {display(next(iter(names)))}; two are needed")
    if len(names) > 50 and len(names) > len(values) / 2:
        told = f"{len(names):,} different labels in {len(values):,} rows of column {task.label}"
        raise UserError(f"{path}: {told}; scores are task.kind=regression, another column is task.label=NAME")
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=int) if numbers else sorted(names)


def _places(task: TaskConfig, path: str, names: set[str], n: int) -> list[str]:
    """What the places of n answers are called in the label column: 0 or 1 onwards, letters; else by their texts."""
    from_zero, from_one = [str(i) for i in range(n)], [str(i + 1) for i in range(n)]
    letters = [chr(ord("A") + i) for i in range(n)]
    fitting = [
        style for style in (from_zero, from_one, letters, [letter.lower() for letter in letters]) if names <= set(style)
    ]
    if len(fitting) == 2:  # 1 and 2 of three: the first and the second, or the second and the third?
        told = f"labels {', '.join(sorted(names))} of {n} answers may count from 0 or from 1"
        raise UserError(f"{path}: {told}; name task.labels=[{','.join(from_zero)}] or [{','.join(from_one)}]")
    return fitting[0] if fitting else from_one


def _range(task: TaskConfig, files: Mapping[str, str]) -> list[int]:
    """Whole numbers around the scores of all files."""
    scores = []
    for path in files.values():
        with tables.opened(path, header=task.header) as table:
            scores += [
                score_of(row.get(task.label), f"{path}, line {line}: {task.label}")
                for line, row in table.rows
                if name_of(row.get(task.label)) is not None
            ]
    if not scores or min(scores) == max(scores):
        raise UserError(f"{files['train']}: column {task.label} needs at least two different scores")
    return [math.floor(min(scores)), math.ceil(max(scores))]


def name_of(value: Any) -> str | None:
    """A label as text; None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # whole numbers with gaps come as these
        return str(int(value))
    return str(value).strip() or None


def score_of(value: Any, where: str) -> float:
    """A label as a number. UserError where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}={display(value)} is no number")
    return number


# --- examples ---------------------------------------------------------------------------------------------------------


def load(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """The rows of a split; without a file for it, `valid` is a share of the training rows, the same for every run."""
    path = task.train if split == "valid" and task.valid is None else getattr(task, split)
    if path is None:
        return None
    with tables.opened(path, header=task.header) as table:
        examples = list(examples_of(task, table, labelled=split != "test"))
    if split == "train" and examples and all(map(lacks_text, examples)):
        column = ", ".join(task.columns)
        raise UserError(f"{path}: every row has an empty text in column {column}; another column is task.text=NAME")
    if task.valid is not None or split == "test":
        return examples
    held = held_out(examples, task.holdout)
    return [example for number, example in enumerate(examples) if (number in held) == (split == "valid")]


def examples_of(task: TaskConfig, table: tables.Table, labelled: bool) -> Iterator[Example]:
    """The rows of a table as examples, under their lines or the ids of task.id. Labels may lack unless `labelled`."""
    wanted = [*task.columns, *task.choices, *([task.id] if task.id else []), *([task.label] if labelled else [])]
    if missing := [name for name in wanted if name not in table.columns]:
        there = f"{table.where}: no column {', '.join(missing)}; there: {', '.join(table.columns)}"
        raise UserError(f"{there}\nput the file back as it was, or name its columns: task.text=, task.label=, ...")
    lines: dict[str, int] = {}
    for line, row in table.rows:
        where = f"{table.where}, line {line}"
        texts = tuple(_text(row, name, where) for name in task.columns)
        choices = tuple(_answers(task, row))
        if any(not isinstance(answer, str) for answer in choices):
            raise UserError(f"{where}: an answer in {', '.join(task.choices)} is no text")
        if task.choices and len(choices) != len(task.labels):
            raise UserError(f"{where} has {len(choices)} answers, but the task has {len(task.labels)}")
        name = str(row[task.id]) if task.id else str(line)
        if task.id and lines.setdefault(name, line) != line:
            own = "an id is that of one row, and without task.id= that is its line"
            raise UserError(f"{where}: {task.id}={display(name)} stands in line {lines[name]} too; {own}")
        yield Example(name, texts, _label(task, row.get(task.label), choices, where), choices)


def lacks_text(example: Example) -> bool:
    """Whether one of its texts is empty, or blank."""
    return not all(text.strip() for text in example.texts)


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UserError(f"{where}: {'no' if value is None else 'a number or a list, and no'} text in column {column}")
    return value


def _label(task: TaskConfig, value: Any, choices: Sequence[str], where: str) -> int | float | None:
    name = name_of(value)
    if name is None:
        return None
    if not task.classes:
        assert task.range
        score = score_of(value, f"{where}: {task.label}")
        if not task.range[0] <= score <= task.range[1]:
            raise UserError(f"{where}: {task.label}={score:g} is outside of task.range={task.range}")
        return score
    if name in task.labels:
        return task.labels.index(name)
    if choices.count(name) == 1:
        return choices.index(name)
    right = "places or texts of answers" if choices else display(", ".join(task.labels))
    told = f"{where}: {task.label}={display(name)}; the task has {right}, by task.labels= or its training file"
    raise UserError(f"{told}; mend the label, empty it to leave the row out, or name it and train with such rows")


def held_out(examples: Sequence[Example], share: float) -> set[int]:
    """Numbers of the examples that are kept for validation: that share of every class, drawn by SEED.

    A class of one example stays in training. UserError where nothing would be left to validate with.
    """
    strata: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        if example.label is not None:
            strata.setdefault(example.label if isinstance(example.label, int) else None, []).append(number)
    draw, held = random.Random(SEED), set[int]()
    for numbers in strata.values():
        count = min(len(numbers) - 1, max(1, round(share * len(numbers))))
        held |= set(draw.sample(numbers, count))
    if not held:
        raise UserError("too few labelled rows to hold some out for validation: name task.valid=FILE")
    return held


# --- what is shown before training ------------------------------------------------------------------------------------


def overview(task: TaskConfig, splits: Mapping[str, Sequence[Example]]) -> list[str]:
    """Lines that tell which columns were taken, how often each label occurs, empty texts, and the first rows."""
    answered = f"; answers {', '.join(task.choices)}" if task.choices else ""
    lines = [f"columns: texts {', '.join(task.columns)}{answered}; label {task.label}"]
    for name, examples in splits.items():
        labels = [example.label for example in examples if example.label is not None]
        if task.classes and labels:
            counts = Counter(task.labels[int(label)] for label in labels)
            lines.append(f"{name}: " + ", ".join(f"{label} {counts[label]:,}" for label in task.labels))
            alike = [f"{a} and {b}" for a, b in itertools.combinations(task.labels, 2) if a.lower() == b.lower()]
            if name == "train" and alike:
                lines.append(f"different labels, though their letters differ in case alone: {', '.join(alike)}")
        elif labels:
            lines.append(f"{name}: scores {min(labels):g} to {max(labels):g}, mean {sum(labels) / len(labels):.3g}")
        if empty := [example.id for example in examples if lacks_text(example)]:
            lines.append(f"{name}: {len(empty):,} with an empty text, the first of them {empty[0]}")
    for example in itertools.islice(splits["train"], 3):
        texts = " | ".join(textwrap.shorten(text, 80) for text in (*example.texts, *example.choices))
        label = task.labels[int(example.label or 0)] if task.classes else f"{example.label:g}"
        lines.append(f"  {label} <- {texts}")
    return lines
