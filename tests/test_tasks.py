"""Labelled data sets: rows into examples, classes string by string, and the rules for rows without a label."""

from __future__ import annotations

import collections
import importlib
import random
from pathlib import Path

import datasets
import pytest
import yaml

from gpt1cli import tasks
from gpt1cli.config import InputError, TaskConfig, build
from gpt1cli.tasks.layouts import LAYOUTS, Example, special

CONF = Path(__file__).parents[1] / "conf/task"
REAL = ("cola", "sst2", "rte", "mnli", "snli")


def configured(option: str, **changes: object) -> TaskConfig:
    """The task of conf/task/<option>.yaml."""
    data = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    return build(TaskConfig, data.get("task", data) | changes)


def write(hub: Path, task: TaskConfig, splits: dict[str, dict], classes: list[str] | None = None) -> str:
    """A hub folder with the task's data set; `classes` are the names that the data set itself gives to its ids."""
    folder = hub / task.repo / task.subset
    folder.mkdir(parents=True)
    lines = ["---", "configs:", f'- config_name: "{task.subset}"', "  data_files:"]
    for split, columns in splits.items():
        rows = datasets.Dataset.from_dict(columns)
        if classes:
            rows = rows.cast_column("label", datasets.ClassLabel(names=classes))
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: {task.subset}/{split}-*"]
    (hub / task.repo / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(hub)


def rows(*labels: int | None) -> dict:
    return {"sentence": [f"sentence {i}" for i in range(len(labels))], "label": list(labels)}


SST2 = ["negative", "positive"]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_become_examples(tmp_path):
    rte = configured("rte")
    columns = {"sentence1": ["It rains.", "It snows."], "sentence2": ["It is wet.", "It is hot."], "label": [0, 1]}
    hub = write(tmp_path, rte, {"train": columns, "validation": columns}, ["entailment", "not_entailment"])
    assert tasks.load(rte, "train", hub, tmp_path / "cache") == (
        [Example("0", ("It rains.", "It is wet."), 0), Example("1", ("It snows.", "It is hot."), 1)],
        0,
    )


def test_rows_without_a_label_are_dropped_and_counted_but_a_test_split_without_any_is_predicted(tmp_path):
    sst2 = configured("sst2")
    splits = {"train": rows(1, -1, 0, -1), "validation": rows(-1, 1), "test": rows(-1, -1)}
    hub = write(tmp_path / "one", sst2, splits, SST2)
    train = tasks.load(sst2, "train", hub, tmp_path)
    assert [example.id for example in train.examples] == ["0", "2"] and train.dropped == 2
    assert [example.label for example in train.examples] == [1, 0]
    assert tasks.load(sst2, "valid", hub, tmp_path) == ([Example("1", ("sentence 1",), 1)], 1)
    test = tasks.load(sst2, "test", hub, tmp_path)
    assert [example.label for example in test.examples] == [None, None] and test.dropped == 0

    hub = write(tmp_path / "two", sst2, splits | {"test": rows(-1, 0)}, SST2)
    assert tasks.load(sst2, "test", hub, tmp_path) == ([Example("1", ("sentence 1",), 0)], 1)


def test_an_absent_split_is_none_but_training_and_validation_must_be_there(tmp_path):
    sst2 = configured("sst2")
    hub = write(tmp_path / "one", sst2, {"train": rows(0, 1)}, SST2)
    assert tasks.load(sst2, "test", hub, tmp_path) is None
    with pytest.raises(InputError, match=r"split validation of nyu-mll/glue, subset sst2 is missing or empty"):
        tasks.load(sst2, "valid", hub, tmp_path)
    hub = write(tmp_path / "two", sst2, {"train": rows(-1, -1), "validation": rows(0, 1)}, SST2)
    with pytest.raises(InputError, match=r"split train of .* has no labelled row"):
        tasks.load(sst2, "train", hub, tmp_path)


def test_classes_must_be_the_data_sets_own_in_its_order(tmp_path):
    sst2 = configured("sst2")
    hub = write(tmp_path, sst2, {"train": rows(0, 1), "validation": rows(0, 1)}, ["positive", "negative"])
    with pytest.raises(InputError) as error:
        tasks.load(sst2, "train", hub, tmp_path / "cache")
    assert "['positive', 'negative']" in str(error.value) and "task.labels=['negative', 'positive']" in str(error.value)
    swapped = configured("sst2", labels=["positive", "negative"])
    assert tasks.load(swapped, "train", hub, tmp_path / "cache").examples[0].label == 0


def test_ids_without_names_must_lie_in_range(tmp_path):
    sst2 = configured("sst2")
    hub = write(tmp_path / "one", sst2, {"train": rows(0, 1, None), "validation": rows(0, 2)})
    assert tasks.load(sst2, "train", hub, tmp_path).dropped == 1
    with pytest.raises(InputError, match=r"row 1 has label=2; right would be 0 \(negative\), 1 \(positive\), or -1"):
        tasks.load(sst2, "valid", hub, tmp_path)
    texts = {"sentence": ["a", "b"], "label": ["negative", "positive"]}
    hub = write(tmp_path / "two", sst2, {"train": texts, "validation": texts})
    with pytest.raises(InputError, match=r"row 0 has label='negative'"):
        tasks.load(sst2, "train", hub, tmp_path)


def test_columns_are_checked_against_those_there(tmp_path):
    sst2 = configured("sst2")
    hub = write(tmp_path / "one", sst2, {"train": {"text": ["a"], "label": [0], "sentence": [7]}})
    with pytest.raises(InputError, match=r"no column premise, hypothesis; there: text, label, sentence"):
        tasks.load(configured("sst2", layout="pair", columns=["premise", "hypothesis"]), "train", hub, tmp_path)
    with pytest.raises(InputError, match=r"column sentence holds no text"):
        tasks.load(sst2, "train", hub, tmp_path)
    hub = write(tmp_path / "two", sst2, {"train": {"sentence": ["a", None], "label": [0, 1]}})
    with pytest.raises(InputError, match=r"row 1 has no text in column sentence"):
        tasks.load(sst2, "train", hub, tmp_path)


def test_what_the_configuration_cannot_know_is_refused_before_any_data_is_read():
    wrong = configured("mnli", source="row", metrics=["f1", "acuracy"])
    with pytest.raises(InputError) as error:
        tasks.load(wrong, "train", "/no/such", "/no/such")
    assert str(error.value).splitlines() == [
        "task.metrics: acuracy: no such metric; did you mean accuracy?",
        "task.source: row: no such source; did you mean rows?",
        "task.metrics=f1 is that of class 1 of two, but task.labels=['entailment', 'neutral', 'contradiction']",
    ]
    with pytest.raises(InputError, match=r"task\.metrics: pearson is for scores"):
        tasks.load(configured("sst2", metrics=["accuracy", "pearson"]), "train", "/no/such", "/no/such")
    with pytest.raises(InputError, match=r"tset: no such split of task=sst2; did you mean test\?"):
        tasks.load(configured("sst2"), "tset", "/no/such", "/no/such")


def test_every_source_and_every_configured_task_is_in_order():
    for where in tasks.SOURCES.values():
        module, _, function = where.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    for path in CONF.glob("*.yaml"):
        task = configured(path.stem)
        tasks.check(task)
        assert task.name == path.stem and task.layout in LAYOUTS


HAND = {  # one row of each task: columns, and what the model reads; words stand for tokens
    "cola": ({"sentence": "The boat sank ."}, "_start_ The boat sank . _classify_"),
    "sst2": ({"sentence": "a quiet gem"}, "_start_ a quiet gem _classify_"),
    "rte": (
        {"sentence1": "Rain fell .", "sentence2": "It was wet ."},
        "_start_ Rain fell . _delimiter_ It was wet . _classify_",
    ),
    "mnli": (
        {"hypothesis": "No one came .", "premise": "Two came ."},
        "_start_ Two came . _delimiter_ No one came . _classify_",
    ),
    "snli": (
        {"hypothesis": "A cat sleeps .", "premise": "A cat on a mat ."},
        "_start_ A cat on a mat . _delimiter_ A cat sleeps . _classify_",
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_one_row_of_each_task_from_its_columns_to_its_layout(name, tmp_path):
    task, (texts, read) = configured(name), HAND[name]
    columns = {column: [text] for column, text in texts.items()} | {"label": [1], "idx": [0]}
    hub = write(tmp_path, task, {"train": columns}, list(CLASSES[name].values()))
    (example,) = tasks.load(task, "train", hub, tmp_path / "cache").examples
    words = list(dict.fromkeys(" ".join(example.texts).split()))
    ids = [[words.index(word) for word in text.split()] for text in example.texts]
    (row,), cut = LAYOUTS[task.layout](ids, special(len(words)), 512)
    names = [*words, "_start_", "_delimiter_", "_classify_"]
    assert (" ".join(names[token] for token in row), cut, example.label) == (read, False, 1)


# --- the first n of a seeded shuffle ----------------------------------------------------------------------------------


def test_limit_is_the_start_of_one_shuffle():
    examples = [Example(str(i), (f"text {i}",), i % 2) for i in range(100)]
    order = list(range(100))
    random.Random(3).shuffle(order)
    assert [int(example.id) for example in tasks.limit(examples, 10, seed=3)] == order[:10]
    assert tasks.limit(examples, 20, seed=3)[:10] == tasks.limit(examples, 10, seed=3)
    assert tasks.limit(examples, 10, seed=4) != tasks.limit(examples, 10, seed=3)
    assert tasks.limit(examples, None, seed=3) == examples
    assert sorted(tasks.limit(examples, 1000, seed=3), key=lambda example: int(example.id)) == examples


def test_limit_on_every_machine():
    """Pinned: the same rows whatever the version of Python."""
    first = tasks.limit([Example(str(i), (), None) for i in range(10)], 5, seed=0)
    assert [int(example.id) for example in first] == [7, 8, 1, 5, 3]


# --- the demo world ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("demo_*.yaml")))
def test_demo_tasks(name):
    task = configured(name)
    for split in ("train", "valid", "test"):
        examples, dropped = tasks.load(task, split, None, "/no/such")
        counts = collections.Counter(task.labels[example.label] for example in examples)
        assert dropped == 0 and counts.keys() == set(task.labels)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert all(len(example.texts) == len(task.columns) and all(example.texts) for example in examples)
        assert len({example.id for example in examples}) == len(examples)


def test_demo_tasks_refuse_what_the_world_does_not_have():
    with pytest.raises(InputError, match=r"demo_sentimental: no such task .* did you mean demo_sentiment"):
        tasks.load(configured("demo_sentiment", name="demo_sentimental"), "train", None, "/no/such")
    with pytest.raises(InputError, match="no column txt; there: id, text, label"):
        tasks.load(configured("demo_sentiment", columns=["txt"]), "train", None, "/no/such")
    with pytest.raises(InputError, match=r"examples labelled \w+, but task.labels=\['bad', 'good'\]"):
        tasks.load(configured("demo_sentiment", labels=["bad", "good"]), "train", None, "/no/such")


# --- real data --------------------------------------------------------------------------------------------------------

SIZES = {  # labelled rows: the official counts, or those that the folder's notes give for its samples
    "cola": {"train": 8551, "valid": 1043, "test": 1063},
    "sst2": {"train": 67349, "valid": 872, "test": 1821},
    "rte": {"train": 2490, "valid": 277, "test": 3000},
    "mnli": {"train": 9999, "valid": 9815, "valid_mismatched": 1000, "test": None, "test_mismatched": None},
    "snli": {"train": 9999, "test": 9824},
}
UNLABELLED_TEST = ("cola", "sst2", "rte")
CLASSES = {  # id -> name as the GLUE paper's and the hub's cards give them
    "cola": {0: "unacceptable", 1: "acceptable"},
    "sst2": {0: "negative", 1: "positive"},
    "rte": {0: "entailment", 1: "not_entailment"},
    "mnli": {0: "entailment", 1: "neutral", 2: "contradiction"},
    "snli": {0: "entailment", 1: "neutral", 2: "contradiction"},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", REAL)
def test_label_maps(name):
    assert dict(enumerate(configured(name).labels)) == CLASSES[name]


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_sizes_of_real_splits(name, test_hub, prepared):
    for split, size in SIZES[name].items():
        loaded = tasks.load(configured(name), split, test_hub, prepared)
        assert (loaded and len(loaded.examples)) == size, split
        if split == "test" and name in UNLABELLED_TEST:
            assert {example.label for example in loaded.examples} == {None} and loaded.dropped == 0


@pytest.mark.realdata
def test_snli_rows_without_a_gold_label_are_dropped(test_hub, prepared):
    valid = tasks.load(configured("snli"), "valid", test_hub, prepared)
    assert valid.dropped > 0 and len(valid.examples) + valid.dropped == 1289


COUNTS = {  # of the splits that are complete here: the majority classes behind the published baselines
    ("cola", "valid"): {"acceptable": 721, "unacceptable": 322},
    ("sst2", "valid"): {"positive": 444, "negative": 428},
    ("rte", "valid"): {"entailment": 146, "not_entailment": 131},
    ("mnli", "valid"): {"entailment": 3479, "contradiction": 3213, "neutral": 3123},
    ("snli", "test"): {"entailment": 3368, "contradiction": 3237, "neutral": 3219},
}


@pytest.mark.realdata
@pytest.mark.parametrize("name, split", COUNTS)
def test_classes_of_real_splits(name, split, test_hub, prepared):
    task = configured(name)
    examples, _ = tasks.load(task, split, test_hub, prepared)
    assert collections.Counter(task.labels[example.label] for example in examples) == COUNTS[name, split]
