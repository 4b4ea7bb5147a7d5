"""task=file: columns, labels and splits inferred from the user's files, held-out rows, and the messages."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pandas
import pytest

from gpt1cli.config import options
from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks import splits
from gpt1cli.tasks.sources import file


def task_of(tmp_path, rows, kind, name="train.jsonl", **more) -> TaskConfig:
    """The task of these rows before anything is inferred."""
    path = tmp_path / name
    frame = pandas.DataFrame(rows)
    if name.endswith("csv"):
        frame.to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build(TaskConfig, {**options.values("task", "file"), "train": str(path), "kind": kind, **more})


def load(task, split):
    loaded = splits.load_labelled(task, split, None, "")
    return loaded and loaded.examples


REVIEWS = [{"Review": f"text {n}", "stars": "good" if n % 3 else "bad"} for n in range(30)]


def test_classification_infers_columns_and_labels_and_holds_out_rows_of_each_class(tmp_path):
    task = file.infer_task(task_of(tmp_path, REVIEWS, "classification", "train.csv"))
    assert (task.columns, task.label, task.labels) == (["Review"], "stars", ["bad", "good"])
    assert (task.layout, task.metrics, task.splits) == (
        "single", ["accuracy", "matthews_correlation"], {"train": "train", "valid": "valid"},
    )  # fmt: skip
    train, valid = load(task, "train"), load(task, "valid")
    assert Counter(example.label for example in valid) == {0: 1, 1: 2}  # a tenth of 10 and of 20
    assert sorted([*train, *valid], key=lambda e: int(e.id)) == sorted(
        (type(train[0])(str(n + 2), (row["Review"],), int(row["stars"] == "good")) for n, row in enumerate(REVIEWS)),
        key=lambda e: int(e.id),
    )
    assert [example.id for example in valid] == [example.id for example in load(task, "valid")]
    assert load(task, "test") is None if "test" in task.splits else True


def test_inferred_task_is_not_inferred_again(tmp_path):
    task = file.infer_task(task_of(tmp_path, REVIEWS, "classification"))
    (tmp_path / "train.jsonl").unlink()
    assert file.infer_task(task) == task


def test_own_files_for_validation_and_test(tmp_path):
    parts = {}
    for name in ("valid", "test"):
        parts[name] = str(tmp_path / f"{name}.csv")
        rows = [{"text": f"{name} {n}", "class": n % 2} for n in range(4)]
        pandas.DataFrame(rows).drop(columns="class" if name == "test" else []).to_csv(parts[name], index=False)
    rows = [{"text": f"t {n}", "class": n % 2} for n in range(8)]
    task = file.infer_task(task_of(tmp_path, rows, "classification", **parts))
    assert task.labels == ["0", "1"] and task.splits == {"train": "train", "valid": "valid", "test": "test"}
    assert [len(load(task, name)) for name in task.splits] == [8, 4, 4]
    assert [example.label for example in load(task, "test")] == [None] * 4  # kept for prediction


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        ("premise hypothesis gold_label", "pair", (["premise", "hypothesis"], "gold_label")),
        ("id question1 question2 label", "pair", (["question1", "question2"], "label")),
        ("left right label", "pair", (["left", "right"], "label")),
        ("sentence1 sentence2 score", "similarity", (["sentence1", "sentence2"], "score")),
        ("title text label", "classification", (["text"], "label")),
        ("Utterance Class", "classification", (["Utterance"], "Class")),
    ],
)
def test_common_column_names_are_found(tmp_path, names, kind, expected):
    rows = [{name: f"{name} {n}" for name in names.split()[:-1]} | {names.split()[-1]: n % 2} for n in range(8)]
    task = file.infer_task(task_of(tmp_path, rows, kind))
    assert (task.columns, task.label) == expected


def test_named_columns_override_common_names(tmp_path):
    rows = [{"text": "a", "note": f"b {n}", "label": 1, "mood": n % 2} for n in range(8)]
    task = file.infer_task(task_of(tmp_path, rows, "classification", text="note", label="mood"))
    assert (task.columns, task.label, task.labels) == (["note"], "mood", ["0", "1"])


def test_score_range_covers_all_files(tmp_path):
    rows = [{"text": f"a {n}", "rating": 1.5 + n} for n in range(4)]
    more = str(tmp_path / "valid.csv")
    pandas.DataFrame([{"text": "b", "rating": -0.2}]).to_csv(more, index=False)
    task = file.infer_task(task_of(tmp_path, rows, "regression", valid=more))
    assert (task.range, task.loss, task.layout) == ([-1, 5], "mse", "single")
    assert [example.label for example in load(task, "train")] == [1.5, 2.5, 3.5, 4.5]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([0, 2, 1], ["0", "1", "2"], [0, 2, 1]),
        ([1, 3, 2], ["1", "2", "3"], [0, 2, 1]),
        (["A", "C", "B"], ["A", "B", "C"], [0, 2, 1]),
        (["x0", "z1", "y2"], ["1", "2", "3"], [0, 2, 1]),  # labels are the texts of the answers
    ],
)
def test_right_answer_by_number_letter_or_text(tmp_path, labels, names, expected):
    rows = [
        {"question": f"q {n}", "choices": [f"x{n}", f"y{n}", f"z{n}"], "label": label} for n, label in enumerate(labels)
    ]
    task = file.infer_task(task_of(tmp_path, rows, "choice", holdout=0.01))
    assert (task.labels, task.columns, task.choices) == (names, ["question"], ["choices"])
    examples = load(dataclasses_with(task, valid=task.train), "train")
    assert [example.label for example in examples] == expected
    assert examples[1].choices == ("x1", "y1", "z1")


def dataclasses_with(task, **changes):
    return build(TaskConfig, {**dataclasses.asdict(task), **changes})


def test_numbered_columns_of_answers(tmp_path):
    rows = [{"story": f"s {n}", "ending1": "a", "ending2": "b", "answer": 1 + n % 2} for n in range(6)]
    task = file.infer_task(task_of(tmp_path, rows, "choice", "train.csv"))
    assert (task.columns, task.choices, task.labels) == (["story"], ["ending1", "ending2"], ["1", "2"])


@pytest.mark.parametrize(
    ("rows", "kind", "more", "problem"),
    [
        (
            [{"a": "x", "b": "y", "c": "z"}] * 3,
            "classification", {}, "not found for task.kind=classification:\n  the text column: set task.text=",
        ),
        ([{"a": "x", "b": "y", "c": "z"}] * 3, "pair", {}, "set task.text= and task.text_b="),
        ([{"text": "x", "b": "y"}] * 3, "classification", {}, "the label column: set task.label="),
        ([{"text": "x", "label": "y"}] * 3, "classification", {}, "every label in column label is y; two different"),
        ([{"text": "x", "label": None}] * 3, "classification", {}, "no row has a label in column label"),
        ([{"text": "x", "label": "y"}] * 3, "classification", {"text": "z"}, "no column z; available: text, label"),
        ([{"text": "x", "label": n / 7} for n in range(99)], "classification", {}, "for scores: task.kind=regression"),
        ([{"text": "x", "label": "high"}] * 3, "regression", {}, "line 1: label=high is not a number"),
        ([{"text": "x", "label": 1}] * 3, "regression", {}, "needs at least two different scores"),
        (
            [{"question": "q", "choices": ["a", "b", "c"], "label": n} for n in (1, 2)],
            "choice", {}, "can count from 0 or from 1; set task.labels=[0,1,2] or [1,2,3]",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_inferred_must_be_named(tmp_path, rows, kind, more, problem):
    with pytest.raises(UserError) as refused:
        file.infer_task(task_of(tmp_path, rows, kind, **more))
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("row", "more", "problem"),
    [
        ({"text": "x", "label": "c"}, {}, "line 9: label=c is not a label of the task; allowed: a, b"),
        ({"text": None, "label": "a"}, {}, "line 9: no text in column text"),
        ({"text": 5, "label": "a"}, {}, "line 9: a number or a list, not a text, in column text"),
        ({"text": "x", "label": "a", "n": 3}, {"id": "n"}, "line 9: n=3 is also in line 4"),
    ],
)
def test_row_that_does_not_fit_is_refused_with_its_line(tmp_path, row, more, problem):
    rows = [{"text": f"t {n}", "label": "ab"[n % 2], "n": n} for n in range(8)]
    task = file.infer_task(task_of(tmp_path, rows, "classification", **more))
    with open(task.train, "a") as out:
        out.write(json.dumps(row) + "\n")
    with pytest.raises(UserError) as refused:
        load(task, "train")
    assert problem in str(refused.value)


def task_with_three_files(tmp_path, **more) -> TaskConfig:
    """A task with a file for each split, of eight rows: n, text, label."""
    rows = [{"n": n, "text": f"t {n}", "label": "ab"[n % 2]} for n in range(8)]
    for split in ("valid", "test"):
        pandas.DataFrame(rows).to_csv(tmp_path / f"{split}.csv", index=False)
    parts = {split: str(tmp_path / f"{split}.csv") for split in ("valid", "test")}
    return file.infer_task(task_of(tmp_path, rows, "classification", "train.csv", **parts, **more))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("8,t 8,c", r"line 10: label=c is not a label of the task; allowed: a, b; correct it, empty it"),
        ("3,t 8,a", r"line 10: n=3 is also in line 5; ids must be unique; without task\.id="),
    ],
)
def test_unknown_label_and_repeated_id_are_refused_in_every_file(tmp_path, split, row, problem):
    task = task_with_three_files(tmp_path, id="n")
    with open(getattr(task, split), "a") as out:
        out.write(row + "\n")
    with pytest.raises(UserError, match=rf"{split}\.csv, {problem}"):
        load(task, split)
    for other in {"train", "valid", "test"} - {split}:
        assert len(load(task, other)) == 8


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_file_with_changed_columns_is_refused_with_its_columns(tmp_path, split):
    task = task_with_three_files(tmp_path)
    path = tmp_path / f"{split}.csv"
    path.write_text(path.read_text().replace("text,label", "words,mood"))
    with pytest.raises(UserError) as refused:
        load(task, split)
    lost = "text" if split == "test" else "text, label"  # a test file may have no labels
    problem = f"{split}.csv: no column {lost}; available: n, words, mood\nrestore the file, or name its columns"
    assert problem in str(refused.value)
    renamed = file.infer_task(dataclasses_with(task, text="words", label="mood"))
    assert len(load(renamed, split)) == 8  # as the message says


def test_some_empty_texts_are_allowed_but_not_all(tmp_path):
    rows = [{"text": "" if n else "t", "label": "ab"[n % 2]} for n in range(8)]
    loaded = load(file.infer_task(task_of(tmp_path, rows, "classification", "train.csv", holdout=0.2)), "train")
    assert [example.texts for example in loaded].count(("",)) >= 5
    rows[0]["text"] = "  "
    task = file.infer_task(task_of(tmp_path, rows, "classification", "train.csv"))
    with pytest.raises(UserError, match=r"every row has an empty text in column text; .*task\.text="):
        load(task, "train")


def test_rows_without_a_label_are_skipped_and_counted(tmp_path):
    rows = [{"text": f"t {n}", "label": ["a", "b", None, ""][n % 4]} for n in range(8)]
    task = file.infer_task(task_of(tmp_path, rows, "classification", valid=None))
    both = [splits.load_labelled(task, name, None, "") for name in ("train", "valid")]
    assert sum(len(split.examples) for split in both) == 4 and sum(split.unlabelled for split in both) == 4


def test_summary_before_training(tmp_path):
    task = file.infer_task(task_of(tmp_path, [*REVIEWS, {"Review": " ", "stars": "bad"}], "classification"))
    summary = "\n".join(file.summarize_data(task, {name: load(task, name) for name in ("train", "valid")}))
    assert "columns: texts Review; label stars" in summary and "valid: bad 1, good 2" in summary
    assert "1 with an empty text" in summary and "  bad <- text 0" in summary and "upper and lower case" not in summary
    task = file.infer_task(task_of(tmp_path, [*REVIEWS, {"Review": "x", "stars": "Bad"}], "classification"))
    summary = file.summarize_data(task, {name: load(task, name) for name in ("train", "valid")})
    assert "different labels that differ only in upper and lower case: Bad and bad" in summary


def test_later_files_may_have_other_column_names(tmp_path):
    task = file.infer_task(task_of(tmp_path, REVIEWS, "classification"))
    pandas.DataFrame([{"words": "a", "stars": "bad"}]).to_csv(tmp_path / "test.csv", index=False)
    later = file.infer_task(dataclasses_with(task, test=str(tmp_path / "test.csv"), text="words"))
    assert [example.texts for example in load(later, "test")] == [("a",)]
