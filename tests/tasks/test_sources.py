"""Labelled data sets: rows to examples, the names of classes, and the rules for rows without a label."""

from __future__ import annotations

import collections
import csv
import importlib
import random
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import yaml
from sklearn.model_selection import train_test_split

from gpt1cli import tasks
from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.data import demo_world
from gpt1cli.data import hub as data_hub
from gpt1cli.tasks import splits as tasks_splits
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.layouts import LAYOUTS, special_tokens

CONF = Path(__file__).parents[2] / "conf/task"
DEMO = sorted(path.stem for path in CONF.glob("demo_*.yaml"))
OWN = {path.stem for path in CONF.glob("*.yaml") if "\nsource: file\n" in path.read_text()}


def configured(option: str, **changes: object) -> TaskConfig:
    """The task of conf/task/<option>.yaml."""
    data = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    return build(TaskConfig, data.get("task", data) | changes)


def write(hub: Path, task: TaskConfig, splits: dict[str, dict], classes: Sequence[str] | None = None) -> str:
    """A hub folder with the task's data set, of splits named SPLIT or SUBSET/SPLIT.

    `classes` are the names that the data set itself gives to its ids.
    """
    files: dict[str, list[str]] = {}
    for split, columns in splits.items():
        *other, name = split.split("/")
        subset = other[0] if other else task.subset
        folder = hub / task.repo / subset
        folder.mkdir(parents=True, exist_ok=True)
        rows = datasets.Dataset.from_dict(columns)
        if classes:
            rows = rows.cast_column(task.label, datasets.ClassLabel(names=list(classes)))
        rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")
        files.setdefault(subset, []).append(f"  - split: {name}\n    path: {subset}/{name}-*")
    configs = [line for subset in files for line in (f'- config_name: "{subset}"\n  data_files:', *files[subset])]
    (hub / task.repo / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    return str(hub)


def rows(*labels: int | None) -> dict:
    return {"sentence": [f"sentence {i}" for i in range(len(labels))], "label": list(labels)}


SST2 = ["negative", "positive"]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_become_examples(tmp_path):
    rte = configured("rte")
    columns = {"sentence1": ["It rains.", "It snows."], "sentence2": ["It is wet.", "It is hot."], "label": [0, 1]}
    hub = write(tmp_path, rte, {"train": columns, "validation": columns}, ["entailment", "not_entailment"])
    assert tasks_splits.load_labelled(rte, "train", hub, tmp_path / "cache") == (
        [Example("0", ("It rains.", "It is wet."), 0), Example("1", ("It snows.", "It is hot."), 1)],
        0,
    )


def test_unlabelled_rows_are_skipped_and_counted_but_a_wholly_unlabelled_test_split_is_kept(tmp_path):
    sst2 = configured("sst2")
    splits = {"train": rows(1, -1, 0, -1), "validation": rows(-1, 1), "test": rows(-1, -1)}
    hub = write(tmp_path / "one", sst2, splits, SST2)
    train = tasks_splits.load_labelled(sst2, "train", hub, tmp_path)
    assert [example.id for example in train.examples] == ["0", "2"] and train.unlabelled == 2
    assert [example.label for example in train.examples] == [1, 0]
    assert tasks_splits.load_labelled(sst2, "valid", hub, tmp_path) == ([Example("1", ("sentence 1",), 1)], 1)
    test = tasks_splits.load_labelled(sst2, "test", hub, tmp_path)
    assert [example.label for example in test.examples] == [None, None] and test.unlabelled == 0

    hub = write(tmp_path / "two", sst2, splits | {"test": rows(-1, 0)}, SST2)
    assert tasks_splits.load_labelled(sst2, "test", hub, tmp_path) == ([Example("1", ("sentence 1",), 0)], 1)


def test_missing_split_is_none_but_training_and_validation_are_required(tmp_path):
    sst2 = configured("sst2")
    hub = write(tmp_path / "one", sst2, {"train": rows(0, 1)}, SST2)
    assert tasks_splits.load_labelled(sst2, "test", hub, tmp_path) is None
    with pytest.raises(UserError, match=r"split validation of nyu-mll/glue, subset sst2 is missing or empty"):
        tasks_splits.load_labelled(sst2, "valid", hub, tmp_path)
    hub = write(tmp_path / "two", sst2, {"train": rows(-1, -1), "validation": rows(0, 1)}, SST2)
    with pytest.raises(UserError, match=r"split train of .* has no labelled row"):
        tasks_splits.load_labelled(sst2, "train", hub, tmp_path)


def test_classes_must_be_those_of_the_data_set_in_its_order(tmp_path):
    sst2 = configured("sst2")
    hub = write(tmp_path, sst2, {"train": rows(0, 1), "validation": rows(0, 1)}, ["positive", "negative"])
    with pytest.raises(UserError) as error:
        tasks_splits.load_labelled(sst2, "train", hub, tmp_path / "cache")
    assert "['positive', 'negative']" in str(error.value) and "task.labels=['negative', 'positive']" in str(error.value)
    swapped = configured("sst2", labels=["positive", "negative"])
    assert tasks_splits.load_labelled(swapped, "train", hub, tmp_path / "cache").examples[0].label == 0


def test_class_ids_without_names_must_be_in_range(tmp_path):
    sst2 = configured("sst2")
    hub = write(tmp_path / "one", sst2, {"train": rows(0, 1, None), "validation": rows(0, 2)})
    assert tasks_splits.load_labelled(sst2, "train", hub, tmp_path).unlabelled == 1
    with pytest.raises(UserError, match=r"row 1 has label=2; allowed: 0 \(negative\), 1 \(positive\), or -1"):
        tasks_splits.load_labelled(sst2, "valid", hub, tmp_path)


def test_labels_can_be_class_names_and_unknown_names_are_refused(tmp_path):
    scitail = configured("scitail")
    pairs = {"premise": ["p"] * 4, "hypothesis": ["h"] * 4}
    good, bad = pairs | {"label": ["neutral", "entails", "-", None]}, pairs | {"label": ["neutral", "Entails"] * 2}
    hub = write(tmp_path, scitail, {"train": good, "validation": bad})
    train = tasks_splits.load_labelled(scitail, "train", hub, tmp_path)
    assert [example.label for example in train.examples] == [1, 0] and train.unlabelled == 2
    with pytest.raises(UserError, match=r"row 1 has label='Entails'; allowed: entails, neutral, or -1"):
        tasks_splits.load_labelled(scitail, "valid", hub, tmp_path)


def test_scores_must_be_numbers_in_the_range(tmp_path):
    stsb = configured("stsb")

    def scores(*labels: object) -> dict:
        return {"sentence1": ["a"] * len(labels), "sentence2": ["b"] * len(labels), "label": list(labels)}

    splits = {"train": scores(0.0, 5.0, -1.0, 2.75, None), "validation": scores(4.0, 5.25), "test": scores(-1.0, -1.0)}
    hub = write(tmp_path / "one", stsb, splits)
    train = tasks_splits.load_labelled(stsb, "train", hub, tmp_path)
    assert [example.label for example in train.examples] == [0.0, 5.0, 2.75] and train.unlabelled == 2
    with pytest.raises(UserError, match=r"split validation: row 1 has label=5.25; allowed: 0 to 5"):
        tasks_splits.load_labelled(stsb, "valid", hub, tmp_path)
    test = tasks_splits.load_labelled(stsb, "test", hub, tmp_path)
    assert [example.label for example in test.examples] == [None, None] and test.unlabelled == 0
    for value, label in ((-0.5, "-0.5"), (float("nan"), "nan"), ("3", "'3'")):
        hub = write(tmp_path / label, stsb, {"train": scores(value)})
        with pytest.raises(UserError, match=rf"row 0 has label={label}; allowed: 0 to 5"):
            tasks_splits.load_labelled(stsb, "train", hub, tmp_path)


def test_split_of_another_subset(tmp_path):
    race = configured("race")

    def questions(*names: str) -> dict:
        n = len(names)
        fields = {"article": list(names), "question": ["why ?"] * n, "options": [list("wxyz")] * n, "answer": ["B"] * n}
        return {"example_id": [f"{name}.txt" for name in names], **fields}

    splits = {
        "all/train": questions("a", "b"),
        "all/validation": questions("c", "d"),
        "middle/validation": questions("d"),
    }
    hub = write(tmp_path, race, splits)
    loaded = {
        split: tasks_splits.load_labelled(race, split, hub, tmp_path)
        for split in ("train", "valid", "valid_middle", "test_middle")
    }
    articles = {split: part and [example.texts[0] for example in part.examples] for split, part in loaded.items()}
    assert articles == {"train": ["a", "b"], "valid": ["c", "d"], "valid_middle": ["d"], "test_middle": None}
    assert tasks_splits.load_labelled(race, "valid_high", hub, tmp_path) is None  # treated as a missing split
    data_hub.check_requirements(data_hub.task_requirements(race), hub, tmp_path)
    with pytest.raises(UserError, match=r"no subset college; .*all, middle"):
        tasks_splits.load_labelled(configured("race", subset="college"), "valid", hub, tmp_path)
    middle = configured("race", subset="middle")
    assert [example.texts[0] for example in tasks_splits.load_labelled(middle, "valid", hub, tmp_path).examples] == [
        "d"
    ]


def test_missing_columns_and_texts_are_refused(tmp_path):
    sst2 = configured("sst2")
    hub = write(tmp_path / "one", sst2, {"train": {"text": ["a"], "label": [0], "sentence": [7]}})
    message = (
        r"no column premise, hypothesis; available: text, label, sentence\n.*task\.columns=\[\.\.\.\] task\.label="
    )
    with pytest.raises(UserError, match=message):
        tasks_splits.load_labelled(
            configured("sst2", layout="pair", columns=["premise", "hypothesis"]), "train", hub, tmp_path
        )
    with pytest.raises(UserError, match=r"column sentence must hold texts, but holds"):
        tasks_splits.load_labelled(sst2, "train", hub, tmp_path)
    hub = write(tmp_path / "two", sst2, {"train": {"sentence": ["a", None], "label": [0, 1]}})
    with pytest.raises(UserError, match=r"row 1 has no text in column sentence"):
        tasks_splits.load_labelled(sst2, "train", hub, tmp_path)


def test_wrong_source_and_metrics_are_refused_before_data_is_read():
    wrong = configured("mnli", source="row", metrics=["f1", "acuracy"])
    with pytest.raises(UserError) as error:
        tasks_splits.load_labelled(wrong, "train", "/no/such", "/no/such")
    assert str(error.value).splitlines() == [
        "task.metrics: acuracy: no such metric; did you mean accuracy?",
        "task.source: row: no such source; did you mean rows?",
        "task.metrics=f1 is the F1 of class 1 of two classes, but task.labels="
        "['entailment', 'neutral', 'contradiction']",
    ]
    with pytest.raises(UserError) as error:
        tasks_splits.check_task(configured("stsb", metrics=["pearson", "accuracy", "f1"]))
    assert str(error.value).splitlines() == [
        "task.metrics: accuracy does not fit loss=mse; allowed: pearson, spearmanr",
        "task.metrics: f1 does not fit loss=mse; allowed: pearson, spearmanr",
    ]
    with pytest.raises(UserError, match="pearson does not fit loss=soft_f1; allowed: accuracy, f1, matthews"):
        tasks_splits.check_task(configured("mrpc", loss="soft_f1", metrics=["f1", "pearson"]))
    tasks_splits.check_task(configured("stsb", loss="ordinal", metrics=["spearmanr"]))
    with pytest.raises(UserError, match=r"task\.path=/mine: only task\.source=story_cloze"):
        tasks_splits.check_task(configured("rte", path="/mine"))
    with pytest.raises(UserError, match="f1 is the F1 of class 1 of two classes, but the task is multiple choice"):
        tasks_splits.check_task(configured("story_cloze", metrics=["f1"]))
    with pytest.raises(UserError, match=r"loss=soft_f1 needs a task with exactly two classes, but choices="):
        configured("story_cloze", loss="soft_f1")
    with pytest.raises(UserError, match=r"tset: no such split of task=sst2; did you mean test\?"):
        tasks_splits.load_labelled(configured("sst2"), "tset", "/no/such", "/no/such")
    for source in ("rows", "winograd", "dprd", "blimp", "story_cloze"):
        with pytest.raises(UserError, match=f"task.source={source} needs task.repo="):
            tasks_splits.load_labelled(configured("blimp", source=source, repo=None), "test", "/no/such", "/no/such")


def test_every_source_and_every_configured_task_is_valid():
    for where in tasks.SOURCES.values():
        module, _, function = where.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    for path in CONF.glob("*.yaml"):
        if path.stem in OWN:  # valid only with the user's files: test_file.py
            continue
        task = configured(path.stem)
        tasks_splits.check_task(task)
        assert task.name == path.stem and task.layout in LAYOUTS


# --- each task by hand ------------------------------------------------------------------------------------------------

CLASSES = {  # id -> name as the GLUE paper's and the hub's cards give them; answers to choose from by their number
    "cola": {0: "unacceptable", 1: "acceptable"},
    "sst2": {0: "negative", 1: "positive"},
    "mrpc": {0: "not_equivalent", 1: "equivalent"},
    "qqp": {0: "not_duplicate", 1: "duplicate"},
    "rte": {0: "entailment", 1: "not_entailment"},
    "wnli": {0: "not_entailment", 1: "entailment"},  # NOTE the other way round than in RTE
    "qnli": {0: "entailment", 1: "not_entailment"},
    "mnli": {0: "entailment", 1: "neutral", 2: "contradiction"},
    "ax": {0: "entailment", 1: "neutral", 2: "contradiction"},
    "snli": {0: "entailment", 1: "neutral", 2: "contradiction"},
    "scitail": {0: "entails", 1: "neutral"},
    "race": {0: "A", 1: "B", 2: "C", 3: "D"},
    "story_cloze": {0: "1", 1: "2"},
    "winograd": {0: "0", 1: "1"},
    "dprd": {0: "0", 1: "1"},
    "blimp": {0: "good", 1: "bad"},
}
NAMED = ("cola", "sst2", "mrpc", "qqp", "rte", "wnli", "qnli", "mnli", "ax", "snli", "dprd")  # with names on the hub


@pytest.mark.parametrize("name", CLASSES)
def test_label_maps(name):
    assert dict(enumerate(configured(name).labels)) == CLASSES[name]


def test_every_task_has_a_label_map_and_a_row_by_hand():
    outside = {path.stem for path in CONF.glob("*.yaml")} - set(DEMO) - OWN
    assert outside == CLASSES.keys() | {"stsb"} == HAND.keys()
    assert configured("stsb").labels == [] and configured("stsb").range == [0, 5]
    assert HAND_DEMO.keys() == set(DEMO)


HAND = {  # task: one row in the hub's columns, the rows that the model reads (words stand for tokens), and the label
    "cola": ({"sentence": "The boat sank .", "label": 1, "idx": 0}, ["_start_ The boat sank . _classify_"], 1),
    "sst2": ({"sentence": "a quiet gem", "label": 1, "idx": 0}, ["_start_ a quiet gem _classify_"], 1),
    "mrpc": (
        {"sentence1": "He sold the boat .", "sentence2": "It was sold .", "label": 1, "idx": 0},
        [
            "_start_ He sold the boat . _delimiter_ It was sold . _classify_",
            "_start_ It was sold . _delimiter_ He sold the boat . _classify_",
        ],
        1,
    ),
    "qqp": (
        {"question1": "Why do cats purr ?", "question2": "Do cats bark ?", "label": 0, "idx": 0},
        [
            "_start_ Why do cats purr ? _delimiter_ Do cats bark ? _classify_",
            "_start_ Do cats bark ? _delimiter_ Why do cats purr ? _classify_",
        ],
        0,
    ),
    "stsb": (
        {"sentence1": "A man rows .", "sentence2": "A man rows a boat .", "label": 3.75, "idx": 0},
        [
            "_start_ A man rows . _delimiter_ A man rows a boat . _classify_",
            "_start_ A man rows a boat . _delimiter_ A man rows . _classify_",
        ],
        3.75,
    ),
    "rte": (
        {"sentence1": "Rain fell .", "sentence2": "It was dry .", "label": 1, "idx": 0},
        ["_start_ Rain fell . _delimiter_ It was dry . _classify_"],
        1,
    ),
    "wnli": (
        {
            "sentence1": "The jar fell off the shelf as it broke .",
            "sentence2": "The shelf broke .",
            "label": 1,
            "idx": 0,
        },
        ["_start_ The jar fell off the shelf as it broke . _delimiter_ The shelf broke . _classify_"],
        1,
    ),
    "qnli": (
        {"question": "Who won ?", "sentence": "Ann won by a mile .", "label": 0, "idx": 0},
        ["_start_ Who won ? _delimiter_ Ann won by a mile . _classify_"],
        0,
    ),
    "mnli": (
        {"premise": "Two came .", "hypothesis": "No one came .", "label": 2, "idx": 0},
        ["_start_ Two came . _delimiter_ No one came . _classify_"],
        2,
    ),
    "ax": (
        {"premise": "All came .", "hypothesis": "Some came .", "label": -1, "idx": 0},
        ["_start_ All came . _delimiter_ Some came . _classify_"],
        None,
    ),
    "snli": (
        {"premise": "A cat on a mat .", "hypothesis": "A cat sleeps .", "label": 1},
        ["_start_ A cat on a mat . _delimiter_ A cat sleeps . _classify_"],
        1,
    ),
    "scitail": (
        {"premise": "Ice floats on water .", "hypothesis": "Ice is frozen steam .", "label": "neutral"},
        ["_start_ Ice floats on water . _delimiter_ Ice is frozen steam . _classify_"],
        1,
    ),
    "race": (
        {
            "example_id": "middle1.txt",
            "article": "Ann has a goat .",
            "answer": "C",
            "question": "Ann has a _ .",
            "options": ["cat", "very old dog", "goat", "hen"],
        },
        [
            "_start_ Ann has a goat . Ann has a _ . _delimiter_ cat _classify_",
            "_start_ Ann has a goat . Ann has a _ . _delimiter_ very old dog _classify_",
            "_start_ Ann has a goat . Ann has a _ . _delimiter_ goat _classify_",
            "_start_ Ann has a goat . Ann has a _ . _delimiter_ hen _classify_",
        ],
        2,
    ),
    "story_cloze": (
        {
            "story_id": "0f0f",
            "input_sentence_1": "Bo baked .",
            "input_sentence_2": "He left the oven on .",
            "input_sentence_3": "He slept .",
            "input_sentence_4": "He woke late .",
            "sentence_quiz1": "It was raw .",
            "sentence_quiz2": "It was black .",
            "answer_right_ending": 2,
        },
        [
            "_start_ Bo baked . He left the oven on . He slept . He woke late . _delimiter_ It was raw . _classify_",
            "_start_ Bo baked . He left the oven on . He slept . He woke late . _delimiter_ It was black . _classify_",
        ],
        1,
    ),
    "winograd": (
        {
            "text": "The jar hit the shelf and it broke, for it was thin .",
            "pronoun": "it",
            "pronoun_loc": 40,
            "quote": "it was thin",
            "quote_loc": 40,
            "options": ["the jar", "the old shelf"],
            "label": 0,
            "source": "our own",
        },
        [
            "_start_ The jar hit the shelf and it broke, for _delimiter_ the jar was thin . _classify_",
            "_start_ The jar hit the shelf and it broke, for _delimiter_ the old shelf was thin . _classify_",
        ],
        0,
    ),
    "dprd": (
        {
            "sentence": "Wolves chase sheep because they are weak .",
            "pronoun": "they",
            "candidates": ["Wolves", "sheep"],
            "label": 1,
        },
        [
            "_start_ Wolves chase sheep because _delimiter_ Wolves are weak . _classify_",
            "_start_ Wolves chase sheep because _delimiter_ sheep are weak . _classify_",
        ],
        1,
    ),
    "blimp": (
        {
            "sentence_good": "The cats sleep .",
            "sentence_bad": "The cats sleeps .",
            "field": "morphology",
            "linguistics_term": "subject_verb_agreement",
            "UID": "a_phenomenon",
        },
        ["_start_ _delimiter_ The cats sleep . _classify_", "_start_ _delimiter_ The cats sleeps . _classify_"],
        0,
    ),
}


def read(task: TaskConfig, example: Example) -> list[str]:
    """The rows that the model reads, with a vocabulary of exactly the words of the example."""
    words = list(dict.fromkeys(" ".join([*example.texts, *example.choices]).split()))
    names = [*words, "_start_", "_delimiter_", "_classify_"]
    texts, choices = (
        [[words.index(word) for word in t.split()] for t in part] for part in (example.texts, example.choices)
    )
    rows, truncated, _ = LAYOUTS[task.layout](texts, choices, special_tokens(len(words)), 512)
    assert not truncated
    return [" ".join(names[token] for token in row) for row in rows]


@pytest.mark.parametrize("name", HAND)
def test_one_row_of_each_task_from_columns_to_layout(name, tmp_path):
    task, (row, expected, label) = configured(name), HAND[name]
    columns = {column: [value] for column, value in row.items()}
    split = f"{'a_phenomenon' if task.subset in (None, '*') else task.subset}/{task.splits['test']}"
    hub = write(tmp_path, task, {split: columns}, list(CLASSES[name].values()) if name in NAMED else None)
    ((example,), unlabelled) = tasks_splits.load_labelled(task, "test", hub, tmp_path / "cache")
    assert (read(task, example), example.label, unlabelled) == (expected, label, 0)


HAND_DEMO = {
    "demo_sentiment": ({"text": "Ann was glad .", "label": "positive"}, ["_start_ Ann was glad . _classify_"], 1),
    "demo_acceptability": ({"text": "Ann glad .", "label": "unacceptable"}, ["_start_ Ann glad . _classify_"], 0),
    "demo_entailment": (
        {"premise": "Ann was glad .", "hypothesis": "Ann was sad .", "label": "contradiction"},
        ["_start_ Ann was glad . _delimiter_ Ann was sad . _classify_"],
        2,
    ),
    "demo_similarity": (
        {"text_a": "Ann was glad .", "text_b": "Glad was Ann .", "label": "equivalent"},
        [
            "_start_ Ann was glad . _delimiter_ Glad was Ann . _classify_",
            "_start_ Glad was Ann . _delimiter_ Ann was glad . _classify_",
        ],
        1,
    ),
    "demo_choice": (
        {"context": "Ann won .", "choices": ["She wept .", "She was glad ."], "label": 1},
        [
            "_start_ Ann won . _delimiter_ She wept . _classify_",
            "_start_ Ann won . _delimiter_ She was glad . _classify_",
        ],
        1,
    ),
    "demo_pronoun": (
        {"before": "Ann hugged Bo because", "candidates": ["Ann", "Bo"], "after": "was glad .", "label": 0},
        [
            "_start_ Ann hugged Bo because _delimiter_ Ann was glad . _classify_",
            "_start_ Ann hugged Bo because _delimiter_ Bo was glad . _classify_",
        ],
        0,
    ),
}


@pytest.mark.parametrize("name", HAND_DEMO)
def test_one_row_of_each_demo_task_from_columns_to_layout(name, monkeypatch):
    task, (row, expected, label) = configured(name), HAND_DEMO[name]
    monkeypatch.setattr(demo_world, "examples", lambda task, split: [{"id": "train-0", **row}])
    ((example,), _) = tasks_splits.load_labelled(task, "train", None, "/no/such")
    assert (example.id, read(task, example), example.label) == ("train-0", expected, label)


# --- data sets not available in tests, in the hub's columns -----------------------------------------------------------


@pytest.mark.parametrize(
    "name, labels", [("qnli", [1, 0, 0]), ("wnli", [0, 1, 1]), ("scitail", ["neutral", "entails"])]
)
def test_entailment_with_the_hubs_columns(name, labels, tmp_path):
    task = configured(name)
    texts = {column: [f"{column} {i}" for i in range(len(labels))] for column in task.columns}
    rows = texts | {"label": labels} | ({} if name == "scitail" else {"idx": list(range(len(labels)))})
    hidden = rows if name == "scitail" else rows | {"label": [-1] * len(labels)}
    splits = {"train": rows, "validation": rows, "test": hidden}
    hub = write(tmp_path, task, splits, list(CLASSES[name].values()) if name in NAMED else None)
    a, b = task.columns
    for split in ("train", "valid"):
        examples, unlabelled = tasks_splits.load_labelled(task, split, hub, tmp_path / "cache")
        assert unlabelled == 0 and [example.texts for example in examples] == [
            (f"{a} {i}", f"{b} {i}") for i in range(len(labels))
        ]
        assert [CLASSES[name][example.label] for example in examples] == [
            label if isinstance(label, str) else CLASSES[name][label] for label in labels
        ]
    predicted = {
        example.label for example in tasks_splits.load_labelled(task, "test", hub, tmp_path / "cache").examples
    }
    assert predicted == ({0, 1} if name == "scitail" else {None})


def test_diagnostic_set_can_be_predicted_but_not_trained_on(tmp_path):
    ax = configured("ax")
    rows = {"premise": ["p", "q"], "hypothesis": ["h", "i"], "label": [-1, -1], "idx": [0, 1]}
    hub = write(tmp_path, ax, {"test": rows}, list(CLASSES["ax"].values()))
    assert tasks_splits.load_labelled(ax, "test", hub, tmp_path) == (
        [Example("0", ("p", "h"), None), Example("1", ("q", "i"), None)],
        0,
    )
    with pytest.raises(UserError, match="train: no such split of task=ax"):
        tasks_splits.load_labelled(ax, "train", hub, tmp_path)


def pairs(phenomenon: str, *nouns: str) -> dict:
    good, bad = [f"The {noun}s eat." for noun in nouns], [f"The {noun}s eats." for noun in nouns]
    labels = {"field": ["syntax"] * len(nouns), "linguistics_term": ["agreement"] * len(nouns)}
    return {"sentence_good": good, "sentence_bad": bad, **labels, "UID": [phenomenon] * len(nouns)}


def test_blimp_loads_all_subsets_or_one(tmp_path):
    blimp = configured("blimp")
    hub = write(
        tmp_path, blimp, {"animals/train": pairs("animals", "cat", "dog"), "birds/train": pairs("birds", "owl")}
    )
    one, two, three = (
        Example("animals-0", (), 0, ("The cats eat.", "The cats eats.")),
        Example("animals-1", (), 0, ("The dogs eat.", "The dogs eats.")),
        Example("birds-0", (), 0, ("The owls eat.", "The owls eats.")),
    )
    assert tasks_splits.load_labelled(blimp, "test", hub, tmp_path) == ([one, two, three], 0)
    assert tasks_splits.load_labelled(configured("blimp", subset="birds"), "test", hub, tmp_path) == ([three], 0)
    data_hub.check_requirements(data_hub.task_requirements(blimp), hub, tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"nyu-mll/blimp, all its subsets \(data set of task=blimp\)"):
        data_hub.check_requirements(data_hub.task_requirements(blimp), str(tmp_path / "other"), tmp_path)
    with pytest.raises(UserError, match=r"no subset fish; .*animals, birds"):
        tasks_splits.load_labelled(configured("blimp", subset="fish"), "test", hub, tmp_path)


# --- answers and pronouns ---------------------------------------------------------------------------------------------


def schemas(name: str, **changes: object) -> dict:
    """The row of the task by hand, with changes, as columns."""
    return {column: [value] for column, value in (HAND[name][0] | changes).items()}


@pytest.mark.parametrize("name, column", [("race", "options"), ("winograd", "options"), ("dprd", "candidates")])
def test_number_of_answers_must_equal_number_of_labels_and_none_may_be_missing(name, column, tmp_path):
    task, split = configured(name), configured(name).splits["test"]
    hub = write(tmp_path / "few", task, {split: schemas(name, **{column: ["one"]})})
    with pytest.raises(UserError, match=r"row 0 has 1 answers, but task.labels=\["):
        tasks_splits.load_labelled(task, "test", hub, tmp_path)
    hub = write(tmp_path / "many", task, {split: schemas(name, **{column: ["one", "two", "three", "four", "five"]})})
    with pytest.raises(UserError, match=r"row 0 has 5 answers, but task.labels=\["):
        tasks_splits.load_labelled(task, "test", hub, tmp_path)
    hub = write(tmp_path / "none", task, {split: schemas(name, **{column: ["one", None, "three", "four"]})})
    with pytest.raises(UserError, match=f"row 0 has no text in column {column}"):
        tasks_splits.load_labelled(task, "test", hub, tmp_path)


@pytest.mark.parametrize(
    "name, column",
    [("winograd", "text"), ("dprd", "sentence"), ("blimp", "sentence_bad"), ("story_cloze", "sentence_quiz2")],
)
def test_row_without_a_text_is_refused_by_every_source(name, column, tmp_path):
    task = configured(name, subset="some")
    columns = {key: [value[0], None] if key == column else value * 2 for key, value in schemas(name).items()}
    hub = write(tmp_path, task, {task.splits["test"]: columns})
    with pytest.raises(UserError, match=f"row 1 has no text in column {column}"):
        tasks_splits.load_labelled(task, "test", hub, tmp_path)


@pytest.mark.parametrize("name", ["winograd", "dprd"])
def test_pronoun_tasks_read_the_columns_named_in_the_task(name, tmp_path):
    task = configured(name)
    columns = {{task.columns[0]: "told"}.get(column, column): value for column, value in schemas(name).items()}
    hub = write(tmp_path, task, {task.splits["test"]: columns})
    with pytest.raises(UserError, match=f"no column {task.columns[0]}; available: told, pronoun"):
        tasks_splits.load_labelled(task, "test", hub, tmp_path)
    renamed = configured(name, columns=["told", "pronoun"])
    (example,) = tasks_splits.load_labelled(renamed, "test", hub, tmp_path).examples
    assert read(renamed, example) == HAND[name][1]


@pytest.mark.parametrize("place", [39, 41, 400])
def test_schema_with_a_wrong_pronoun_position_is_refused(place, tmp_path):
    winograd = configured("winograd")
    hub = write(tmp_path, winograd, {"test": schemas("winograd", pronoun_loc=place)})
    with pytest.raises(UserError, match=f"split test: row 0 has no 'it' at character {place} of 'The jar hit"):
        tasks_splits.load_labelled(winograd, "test", hub, tmp_path)


@pytest.mark.parametrize(
    "sentence, pronoun, candidates, before",
    [  # `before`: all up to the pronoun that a reader would resolve
        ("Ann thanked Eve for she had helped.", "she", ["Ann", "Eve"], "Ann thanked Eve for"),
        ("As he is kind, Bo told Max that he had won.", "he", ["Bo", "Max"], "As he is kind, Bo told Max that"),
        ("The hen saw the owl, so she hid, for she was shy.", "she", ["the hen", "the owl"], "The hen saw the owl, so"),
        ("When he woke, Bo thanked Max.", "he", ["Bo", "Max"], "When"),  # none after both names: the last one
        ("The thin man left the fat man because he was hot.", "he", ["thin man", "fat man"],
         "The thin man left the fat man because"),  # not in `The`, `the`
    ],
)  # fmt: skip
def test_pronoun_without_a_position_is_the_first_after_both_names(sentence, pronoun, candidates, before, tmp_path):
    dprd = configured("dprd")
    rows = {"sentence": [sentence], "pronoun": [pronoun], "candidates": [candidates], "label": [0]}
    hub = write(tmp_path, dprd, {"train": rows, "test": rows}, ["0", "1"])
    after = sentence.removeprefix(f"{before} {pronoun} ")
    assert tasks_splits.load_labelled(dprd, "test", hub, tmp_path) == (
        [Example("0", (before, after), 0, tuple(candidates))],
        0,
    )


def test_pronoun_search_ignores_case_and_possessives_are_replaced_by_possessives(tmp_path):
    dprd = configured("dprd")
    sentences = ["Ann met Eve. She waved.", "Jim saw the boys and took their hats, and James's."]
    rows = {"sentence": sentences, "pronoun": ["she", "their"], "candidates": [["Ann", "Eve"], ["Jim's", "the boys"]]}
    hub = write(tmp_path, dprd, {"test": rows | {"label": [1, 1]}}, ["0", "1"])
    one, two = tasks_splits.load_labelled(dprd, "test", hub, tmp_path).examples
    assert one == Example("0", ("Ann met Eve.", "waved."), 1, ("Ann", "Eve"))
    assert two.texts == ("Jim saw the boys and took", "hats, and James's.")
    assert two.choices == ("Jim's", "the boys's")


def test_sentence_without_its_pronoun_is_refused(tmp_path):
    dprd = configured("dprd")
    hub = write(tmp_path, dprd, {"test": schemas("dprd", pronoun="hey")})  # in `they`, but not a word
    with pytest.raises(UserError, match="split test: row 0 has no 'hey' in 'Wolves chase"):
        tasks_splits.load_labelled(dprd, "test", hub, tmp_path)


# --- Story Cloze ------------------------------------------------------------------------------------------------------

HUB_STORY = [*(f"input_sentence_{i}" for i in (1, 2, 3, 4)), "sentence_quiz1", "sentence_quiz2", "answer_right_ending"]
CSV_STORY = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
).split(",")
CSV_FILES = {
    "validation": "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
    "test": "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
}


def stories(count: int, kind: str = "story") -> list[tuple]:
    """Stories in the order of both kinds of columns, with a comma and quotation marks that need quoting."""
    return [
        (
            f"{kind}-{i}",
            f"Bo, {i}, sat.",
            "He ate.",
            'He said "no".',
            "He rose.",
            f"He left {i}.",
            "It rained.",
            1 + i % 2,
        )
        for i in range(count)
    ]


def write_csv(folder: Path, file: str, rows: list[tuple], header: Sequence[str] = CSV_STORY, name: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / (name or CSV_FILES[file])).open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([header, *rows])
    return folder


def story_hub(hub: Path, **splits: list[tuple]) -> str:
    names = ["story_id", *HUB_STORY]
    columns = {
        split: dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) for split, rows in splits.items()
    }
    return write(hub, configured("story_cloze"), columns)


@pytest.fixture(scope="module")
def all_stories(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """As many stories as in Story Cloze: a hub folder, and a folder with the authors' two files."""
    folder = tmp_path_factory.mktemp("stories")
    for file in CSV_FILES:
        write_csv(folder / "csv", file, stories(1871, file))
    return story_hub(folder / "hub", validation=stories(1871, "validation"), test=stories(1871, "test")), folder / "csv"


def test_validation_file_is_split_into_train_and_valid_as_released(all_stories, tmp_path):
    """Released code, datasets.py: train_test_split(..., test_size=374, random_state=3535999445)."""
    task = configured("story_cloze")
    train, valid = train_test_split([f"validation-{i}" for i in range(1871)], test_size=374, random_state=3535999445)
    assert (len(train), len(valid)) == (1497, 374)
    for split, ids in (("train", train), ("valid", valid), ("test", [f"test-{i}" for i in range(1871)])):
        examples, unlabelled = tasks_splits.load_labelled(task, split, all_stories[0], tmp_path)
        assert [example.id for example in examples] == ids and unlabelled == 0
        for example in examples:  # nothing but the order has changed
            i = int(example.id.partition("-")[2])
            text, endings = f'Bo, {i}, sat. He ate. He said "no". He rose.', (f"He left {i}.", "It rained.")
            assert (example.texts, example.choices, example.label) == ((text,), endings, i % 2)


def test_authors_csv_files_give_the_same_stories_as_the_hub(all_stories, tmp_path):
    hub, folder = all_stories
    by_path = configured("story_cloze", path=str(folder))
    for split in ("train", "valid", "test"):
        assert tasks_splits.load_labelled(by_path, split, "/no/such", tmp_path) == tasks_splits.load_labelled(
            configured("story_cloze"), split, hub, tmp_path
        )


def test_authors_file_may_begin_with_a_byte_order_mark(tmp_path):
    folder = write_csv(tmp_path, "test", stories(3))
    plain = tasks_splits.load_labelled(configured("story_cloze", path=str(folder)), "test", None, tmp_path)
    (folder / CSV_FILES["test"]).write_bytes(b"\xef\xbb\xbf" + (folder / CSV_FILES["test"]).read_bytes())
    assert tasks_splits.load_labelled(configured("story_cloze", path=str(folder)), "test", None, tmp_path) == plain


def refusal(folder: Path, split: str) -> str:
    with pytest.raises(UserError) as error:
        tasks_splits.load_labelled(configured("story_cloze", path=str(folder)), split, None, folder / "cache")
    return str(error.value)


@pytest.mark.parametrize("split, file", [("train", "val"), ("valid", "val"), ("test", "test")])
def test_exactly_one_authors_file_is_required(split, file, tmp_path):
    problem = f"it must contain one file cloze_test_{file}*.csv, but contains"
    assert refusal(tmp_path / "no_such", split) == f"task.path={tmp_path / 'no_such'}: no such folder"
    other = write_csv(tmp_path / "other", {"val": "test", "test": "validation"}[file], stories(3))
    assert refusal(other, split) == f"task.path={other}: {problem} none"
    for name in (f"cloze_test_{file}.csv", f"cloze_test_{file} (1).csv"):
        write_csv(tmp_path / "twice", "", stories(3), name=name)
    assert refusal(tmp_path / "twice", split) == f"task.path={tmp_path / 'twice'}: {problem} 2"
    write_csv(tmp_path / "twice", "", stories(400), name=f"cloze_test_{file}__spring2016.csv")
    assert tasks_splits.load_labelled(
        configured("story_cloze", path=str(tmp_path / "twice")), split, None, tmp_path
    ).examples


def test_authors_file_must_have_the_columns_and_valid_answers(tmp_path):
    header = [name.replace("InputSentence3", "Sentence3") for name in CSV_STORY]
    message = refusal(write_csv(tmp_path / "column", "test", stories(3), header), "test")
    assert "cloze_test_ALL_test.csv: no column InputSentence3; available: InputStoryid, InputSentence1" in message
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / CSV_FILES["test"]).write_text("")
    assert "no column InputStoryid, InputSentence1" in refusal(tmp_path / "empty", "test")
    for odd in ("3", "0", "one", ""):
        folder = write_csv(tmp_path / f"odd{odd}", "test", [*stories(2), (*stories(1)[0][:-1], odd)])
        message = refusal(folder, "test")
        assert message.startswith(str(folder / CSV_FILES["test"]))
        assert f"row 2 has AnswerRightEnding='{odd}'; allowed: 1, 2, or -1 for no label" in message
    message = refusal(write_csv(tmp_path / "short", "test", [("id", "one", "two")]), "test")
    assert "row 0 has AnswerRightEnding=''" in message


def test_authors_file_must_be_readable_text(tmp_path):
    csv.field_size_limit(2**17)  # csv's default; earlier tests with task=file set another limit
    for name, text in (("latin", "Zoë".encode("latin-1")), ("endless", b'"' + b"word " * 30_000)):
        folder = write_csv(tmp_path / name, "test", stories(2))
        with (folder / CSV_FILES["test"]).open("ab") as lines:
            lines.write(text + b",a,b,c,d,e,f,1\r\n")
        assert refusal(folder, "test").startswith(f"{folder / CSV_FILES['test']}: cannot be read (")


def test_too_small_validation_file_is_refused(tmp_path):
    message = "374 rows are used for validation, but there are only 374"
    assert message in refusal(write_csv(tmp_path / "csv", "validation", stories(374)), "train")
    hub = story_hub(tmp_path / "hub", validation=stories(374))
    with pytest.raises(UserError, match=message):
        tasks_splits.load_labelled(configured("story_cloze"), "valid", hub, tmp_path)


def test_unlabelled_stories_are_kept_for_prediction_and_wrong_answers_refused(tmp_path):
    task = configured("story_cloze")
    hidden = [(*story[:-1], -1) for story in stories(3)]
    hub = story_hub(tmp_path / "hidden", validation=stories(375), test=hidden)
    assert [example.label for example in tasks_splits.load_labelled(task, "test", hub, tmp_path).examples] == [None] * 3
    hub = story_hub(tmp_path / "odd", validation=stories(375), test=[(*story[:-1], 3) for story in stories(3)])
    with pytest.raises(UserError, match="row 0 has answer_right_ending='3'; allowed: 1, 2"):
        tasks_splits.load_labelled(task, "test", hub, tmp_path)
    hub = write(tmp_path / "names", task, {"test": {"story_id": ["a"], "input_sentence_1": ["b"]}})
    with pytest.raises(
        UserError, match=r"no column input_sentence_2, .*, answer_right_ending; available: story_id, input"
    ):
        tasks_splits.load_labelled(task, "test", hub, tmp_path)


# --- limits: the first n of a seeded shuffle --------------------------------------------------------------------------


def test_limit_takes_the_start_of_one_shuffle():
    examples = [Example(str(i), (f"text {i}",), i % 2) for i in range(100)]
    order = list(range(100))
    random.Random(3).shuffle(order)
    assert [int(example.id) for example in tasks_splits.sample_examples(examples, 10, seed=3)] == order[:10]
    assert tasks_splits.sample_examples(examples, 20, seed=3)[:10] == tasks_splits.sample_examples(examples, 10, seed=3)
    assert tasks_splits.sample_examples(examples, 10, seed=4) != tasks_splits.sample_examples(examples, 10, seed=3)
    assert tasks_splits.sample_examples(examples, None, seed=3) == examples
    assert sorted(tasks_splits.sample_examples(examples, 1000, seed=3), key=lambda example: int(example.id)) == examples


def test_limit_takes_the_same_rows_on_every_machine():
    """Pinned: the same rows for every version of Python."""
    first = tasks_splits.sample_examples([Example(str(i), (), None) for i in range(10)], 5, seed=0)
    assert [int(example.id) for example in first] == [7, 8, 1, 5, 3]


# --- the demo world ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEMO)
def test_demo_tasks_are_balanced_and_complete(name):
    task = configured(name)
    for split in ("train", "valid", "test"):
        examples, unlabelled = tasks_splits.load_labelled(task, split, None, "/no/such")
        counts = collections.Counter(task.labels[example.label] for example in examples)
        assert unlabelled == 0 and counts.keys() == set(task.labels)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert all(len(example.texts) == len(task.columns) and all(example.texts) for example in examples)
        answers = len(task.labels) if task.choices else 0
        assert all(len(set(example.choices)) == len(example.choices) == answers for example in examples)
        assert len({example.id for example in examples}) == len(examples)


def test_demo_tasks_refuse_unknown_tasks_columns_and_labels():
    with pytest.raises(UserError, match=r"demo_sentimental: no such task .* did you mean demo_sentiment"):
        tasks_splits.load_labelled(configured("demo_sentiment", name="demo_sentimental"), "train", None, "/no/such")
    with pytest.raises(UserError, match="no column txt; available: id, text, label"):
        tasks_splits.load_labelled(configured("demo_sentiment", columns=["txt"]), "train", None, "/no/such")
    with pytest.raises(UserError, match="no column endings; available: id, context, choices, label"):
        tasks_splits.load_labelled(configured("demo_choice", choices=["endings"]), "train", None, "/no/such")
    with pytest.raises(UserError, match=r"the data has the label [01], but task.labels=\['1', '2'\]"):
        tasks_splits.load_labelled(configured("demo_choice", labels=["1", "2"]), "train", None, "/no/such")
    assert (
        tasks_splits.load_labelled(configured("demo_choice", splits={"test": "hidden"}), "test", None, "/no/such")
        is None
    )
    with pytest.raises(UserError, match=r"the data has the label \w+, but task.labels=\['bad', 'good'\]"):
        tasks_splits.load_labelled(configured("demo_sentiment", labels=["bad", "good"]), "train", None, "/no/such")


# --- real data --------------------------------------------------------------------------------------------------------

SIZES = {  # labelled rows: the official counts, or the counts of the samples in the test hub
    "cola": {"train": 8551, "valid": 1043, "test": 1063},
    "sst2": {"train": 67349, "valid": 872, "test": 1821},
    "mrpc": {"train": 3668, "valid": 408, "test": 1725},
    "qqp": {"train": 8999, "valid": 1000, "test": None},
    "stsb": {"train": 5749, "valid": 1500, "test": 1379},
    "rte": {"train": 2490, "valid": 277, "test": 3000},
    "mnli": {"train": 9999, "valid": 9815, "valid_mismatched": 1000, "test": None, "test_mismatched": None},
    "snli": {"train": 9999, "test": 9824},
    "race": {
        "train": 610, "valid": 203, "valid_middle": 102, "valid_high": 101,
        "test": 187, "test_middle": 86, "test_high": 101,
    },
    "story_cloze": {"train": 1497, "valid": 374, "test": 1871},
    "winograd": {"test": 273},
}  # fmt: skip
UNLABELLED_TEST = ("cola", "sst2", "stsb", "rte")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def column(test_hub: str, task: TaskConfig, split: str, name: str) -> list:
    """A column of a split, read from its file without our code."""
    (file,) = Path(test_hub, task.repo, task.subset).glob(f"{split}-*.parquet")
    return pyarrow.parquet.read_table(file).column(name).to_pylist()


@pytest.mark.realdata
@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_real_splits(name, test_hub, prepared):
    task = configured(name)
    for split, size in SIZES[name].items():
        loaded = tasks_splits.load_labelled(task, split, test_hub, prepared)
        assert (loaded and len(loaded.examples)) == size, split
        if split == "test" and loaded:
            assert loaded.unlabelled == 0
            assert ({example.label for example in loaded.examples} == {None}) == (name in UNLABELLED_TEST)


@pytest.mark.realdata
def test_snli_rows_without_a_gold_label_are_skipped(test_hub, prepared):
    valid = tasks_splits.load_labelled(configured("snli"), "valid", test_hub, prepared)
    assert valid.unlabelled > 0 and len(valid.examples) + valid.unlabelled == 1289


COUNTS = {  # of the complete splits: the majority classes of the published baselines
    ("cola", "valid"): {"acceptable": 721, "unacceptable": 322},
    ("sst2", "valid"): {"positive": 444, "negative": 428},
    ("mrpc", "train"): {"equivalent": 2474, "not_equivalent": 1194},
    ("mrpc", "valid"): {"equivalent": 279, "not_equivalent": 129},
    ("mrpc", "test"): {"equivalent": 1147, "not_equivalent": 578},
    ("rte", "valid"): {"entailment": 146, "not_entailment": 131},
    ("mnli", "valid"): {"entailment": 3479, "contradiction": 3213, "neutral": 3123},
    ("snli", "test"): {"entailment": 3368, "contradiction": 3237, "neutral": 3219},
    ("story_cloze", "test"): {"1": 960, "2": 911},  # 51.3% in Mostafazadeh et al. 2016, constant-choose-first
    ("winograd", "test"): {"0": 137, "1": 136},  # schemas come in pairs, one for each answer: 136 pairs and one more
}


@pytest.mark.realdata
@pytest.mark.parametrize("name, split", COUNTS)
def test_classes_of_real_splits(name, split, test_hub, prepared):
    task = configured(name)
    examples, _ = tasks_splits.load_labelled(task, split, test_hub, prepared)
    assert collections.Counter(task.labels[example.label] for example in examples) == COUNTS[name, split]


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mrpc", "qqp", "stsb", "race"])
def test_labels_and_texts_equal_the_file_row_by_row(name, test_hub, prepared):
    task = configured(name)
    for split in ("train", "valid"):
        examples, _ = tasks_splits.load_labelled(task, split, test_hub, prepared)
        labels = column(test_hub, task, task.splits[split], task.label)
        names = CLASSES.get(name)
        assert [names[example.label] if name == "race" else example.label for example in examples] == labels
        for at, text in enumerate(task.columns):
            assert [example.texts[at] for example in examples] == column(test_hub, task, task.splits[split], text)


@pytest.mark.realdata
def test_race_is_the_union_of_middle_and_high(test_hub, prepared):
    for split in ("valid", "test"):
        whole, *schools = (tasks_splits.load_labelled(configured("race"), name, test_hub, prepared).examples
                           for name in (split, f"{split}_middle", f"{split}_high"))  # fmt: skip
        rows = collections.Counter((example.texts, example.choices, example.label) for example in whole)
        assert rows == collections.Counter((e.texts, e.choices, e.label) for school in schools for e in school)


@pytest.mark.realdata
def test_real_stories_have_the_released_split(test_hub, prepared):
    """scikit-learn's split is a permutation by numpy's first generator: 374 for validation, then those for training."""
    task = configured("story_cloze")
    ids = column(test_hub, task, "validation", "story_id")
    order = np.random.RandomState(3535999445).permutation(1871)
    train, valid, test = (
        tasks_splits.load_labelled(task, split, test_hub, prepared).examples for split in ("train", "valid", "test")
    )
    assert [example.id for example in valid] == [ids[i] for i in order[:374]]
    assert [example.id for example in train] == [ids[i] for i in order[374:]]
    assert [example.id for example in test] == column(test_hub, task, "test", "story_id")
    assert sum(example.label == 0 for example in [*train, *valid]) == 962  # 51.4%, constant-choose-first again


@pytest.mark.realdata
def test_real_stories_are_the_same_from_the_authors_columns(test_hub, prepared, tmp_path):
    csv_columns = configured("story_cloze", subset="csv_columns")
    for file in CSV_FILES:
        values = (column(test_hub, csv_columns, file, name) for name in CSV_STORY)
        write_csv(tmp_path, file, list(zip(*values, strict=True)))
    by_path = configured("story_cloze", path=str(tmp_path))
    for split in ("train", "valid", "test"):
        assert tasks_splits.load_labelled(by_path, split, None, prepared) == tasks_splits.load_labelled(
            configured("story_cloze"), split, test_hub, prepared
        )


@pytest.mark.realdata
def test_real_schemas_lose_only_their_pronoun(test_hub, prepared):
    part, whole = (configured("winograd", subset=subset) for subset in ("wsc273", "wsc285"))
    examples = tasks_splits.load_labelled(whole, "test", test_hub, prepared).examples
    assert (
        len(examples) == 285 and tasks_splits.load_labelled(part, "test", test_hub, prepared).examples == examples[:273]
    )
    assert collections.Counter(example.label for example in examples) == {0: 143, 1: 142}
    texts, pronouns = (column(test_hub, whole, "test", name) for name in ("text", "pronoun"))
    for example, text, pronoun in zip(examples, texts, pronouns, strict=True):
        before, after = example.texts
        assert "".join([before, pronoun, after]).replace(" ", "") == text.replace(" ", "")
        assert len(example.choices) == 2
