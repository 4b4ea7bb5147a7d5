"""gpt1 predict: answers for new rows equal those of the run's own scoring, in order, from and to every format."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import pandas
import pytest
from worlds import SMALL, STORY

from gpt1cli.cli.main import main
from gpt1cli.commands import predict
from gpt1cli.runs import files

pytestmark = pytest.mark.usefixtures("undrawn")

QUIET = ("runtime.threads=1", "runtime.progress=none")
SHAPE = [word for word in SMALL if not word.startswith("batch_size")]


def own_task(root, name, kind, rows, *more):
    """A run fine-tuned on these rows, in root/name."""
    path = root / f"{name}.csv"
    pandas.DataFrame(rows).to_csv(path, index=False)
    words = ["finetune", "task=file", f"task.train={path}", f"task.kind={kind}", "init=none", "tokenizer=demo", *SHAPE]
    words += [f"cache={root / 'cache'}", f"out={root / 'out'}", f"hydra.run.dir={root / name}", "steps=1", *more]
    assert main(words) == 0
    return root / name


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    rows = [{"text": f"a {'good' * (n % 2)} cat {n}", "label": ["not happy", "happy"][n % 2]} for n in range(20)]
    own_task(root, "single", "classification", rows)
    rows = [
        {"question": f"the cat {n}", "option_a": "sat", "option_b": "ran", "answer": "AB"[n % 2]} for n in range(20)
    ]
    own_task(root, "choice", "choice", rows)
    own_task(root, "scores", "regression", [{"text": f"the cat {n}", "score": n / 4} for n in range(20)])
    return root


def predicted(root, run, *words):
    """The lines that predict writes to a file."""
    target = root / "answers.jsonl"
    target.unlink(missing_ok=True)
    assert main(["predict", f"run={root / run}", f"out={root / 'out'}", *QUIET, *words, f"output={target}"]) == 0
    return files.read_jsonl(target)


@pytest.mark.parametrize("run", ["single", "choice", "scores"])
def test_answers_are_those_of_the_runs_own_scoring(world, run):
    valid = files.read_jsonl(world / run / "predictions" / "valid.jsonl")
    found = {line["id"]: line for line in predicted(world, run, f"input={world / f'{run}.csv'}")}
    assert len(found) == 20 and valid
    for line in valid:
        same = found[line["id"]]
        assert same.get("scores", {}) == pytest.approx(line.get("scores", {}), abs=1e-3)
        if run == "scores":
            assert same["prediction"] == pytest.approx(line["prediction"], abs=1e-2)


def test_every_format_gives_the_same_answers_in_the_order_of_the_rows(world, monkeypatch):
    monkeypatch.setattr(predict, "ROWS", 3)
    frame = pandas.DataFrame([{"text": f"cat {n} " * (1 + n % 4)} for n in range(10)])
    frame.to_csv(world / "new.csv", index=False)
    frame.to_parquet(world / "new.parquet")
    frame.to_json(world / "new.jsonl", orient="records", lines=True)
    (world / "new.txt").write_text("\n".join(frame.text) + "\n")
    expected = predicted(world, "single", f"input={world / 'new.csv'}")
    assert [line["id"] for line in expected] == [str(n) for n in range(2, 12)]
    for name in ("new.parquet", "new.jsonl", "new.txt"):
        found = predicted(world, "single", f"input={world / name}")
        assert [line["id"] for line in found] == [str(n) for n in range(1, 11)]
        assert [line["scores"] for line in found] == [line["scores"] for line in expected]
    assert all(sum(line["scores"].values()) == pytest.approx(1, abs=1e-5) for line in expected)
    assert {line["prediction"] for line in expected} <= {"happy", "not happy"}


def test_a_table_of_answers(world):
    target = world / "answers.csv"
    words = [f"input={world / 'single.csv'}", f"output={target}", f"out={world / 'out'}", *QUIET]
    assert main(["predict", f"run={world / 'single'}", *words]) == 0
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert list(rows[0]) == ["id", "prediction", "probability of happy", "probability of not happy"] and len(rows) == 20
    assert main(["predict", f"run={world / 'single'}", *words]) == 2  # nothing is written over


def test_from_stdin_to_stdout(world, monkeypatch, capsys):
    (world / "lines").write_text("a cat\n\nanother cat\n")
    with open(world / "lines") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        words = [f"run={world / 'single'}", "input=-", "format=text", "output=-", f"out={world / 'out'}", *QUIET[:1]]
        capsys.readouterr()
        assert main(["predict", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1", "2", "3"]


def test_one_example(world, capsys):
    out = [f"out={world / 'out'}", *QUIET]
    assert main(["predict", f"run={world / 'choice'}", "text=the cat, a, b", "choices=[sat,ran]", *out]) == 0
    assert json.loads(capsys.readouterr().out)["scores"].keys() == {"A", "B"}


def test_other_names_of_columns_are_found_where_the_runs_own_are_not_there(world):
    pandas.DataFrame([{"sentence": "the cat", "n": 1}]).to_csv(world / "other.csv", index=False)
    assert len(predicted(world, "single", f"input={world / 'other.csv'}")) == 1


@pytest.mark.parametrize(
    ("run", "words", "told"),
    [
        ("single", [], "input=FILE or text=... says what is to be predicted: name one of them"),
        ("single", ["input=none.csv", "text=a"], "name one of them"),
        ("single", ["input=none.csv"], "none.csv: no such file"),
        ("single", ["input=-"], "input=- tells nothing by its name: add format="),
        ("single", ["text=a", "format=csv"], "format=csv says how input= is read: there is none"),
        ("single", ["text=a", "text_b=b"], "of which an example is text="),
        ("single", ["text=a", "choices=[a,b]"], "which has no choices"),
        ("choice", ["text=a"], "chooses among 2 answers: name choices=[...]"),
        ("single", ["text=a", "output=answers.xml"], "a file that ends in .jsonl, .csv, .tsv is wanted"),
        ("single", ["text=a", "output=nowhere/a.csv"], "there is no folder"),
        ("out", ["text=a"], "run="),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(world, monkeypatch, capsys, run, words, told):
    monkeypatch.chdir(world)
    before = sorted(path.name for path in world.iterdir())
    assert main(["predict", f"run={world / run}", *words, f"out={world / 'out'}"]) == 2
    assert told in capsys.readouterr().err and sorted(path.name for path in world.iterdir()) == before


def test_a_row_that_cannot_be_read_leaves_no_half_written_answers(world, capsys):
    (world / "broken.csv").write_text("text\nfine\nnot,fine\n")
    target = world / "never.jsonl"
    words = [f"run={world / 'single'}", f"input={world / 'broken.csv'}", f"output={target}", f"out={world / 'out'}"]
    assert main(["predict", *words, *QUIET]) == 2
    assert "broken.csv, line 3: 2 fields" in capsys.readouterr().err
    assert not target.exists() and not list(world.glob(".never*"))


# --- what was seen in training, and what was not ----------------------------------------------------------------------


def evaluated(root, *words):
    """The exit status of an evaluation of a file of one's own, in a folder that is new."""
    return main(["evaluate", f"run={root / 'single'}", "split=test", f"out={root / 'fresh'}", *QUIET, *words])


def test_a_label_unseen_in_training_is_no_hindrance_to_predict_and_told_by_evaluate(world, capsys):
    path = world / "odd.csv"
    path.write_text("text,label\na cat,happy\na dog,furious\n")
    assert len(predicted(world, "single", f"input={path}")) == 2
    assert evaluated(world, f"task.test={path}") == 2
    told = capsys.readouterr().err
    assert f"{path}, line 3: label=furious; the task has happy, not happy, by task.labels=" in told
    assert not list((world / "fresh").rglob("config.yaml"))
    path.write_text("text,label\na cat,happy\na dog,\n")  # as the message says: left out
    assert evaluated(world, f"task.test={path}") == 0
    (result,) = (world / "fresh").rglob("result.json")
    assert json.loads(result.read_text())["examples"] == {"test": 1}
    shutil.rmtree(world / "fresh")


def test_a_split_of_own_files_is_there_where_its_file_is_named(world, capsys):
    assert evaluated(world) == 2
    assert "test: no such split of task=file; known: train, valid" in capsys.readouterr().err


@pytest.fixture(scope="module")
def named(world):
    """A run on rows with ids of their own."""
    rows = [{"text": f"a cat {n}", "label": "ab"[n % 2], "n": n} for n in range(10)]
    return own_task(world, "named", "classification", rows, "task.id=n")


def test_ids_that_stand_twice_are_no_hindrance_to_predict_for_its_ids_are_lines(world, named):
    assert {line["id"] for line in files.read_jsonl(named / "predictions" / "valid.jsonl")} <= set("0123456789")
    pandas.DataFrame([{"text": "a cat", "n": 1}, {"text": "a dog", "n": 1}]).to_csv(world / "twice.csv", index=False)
    assert [line["id"] for line in predicted(world, "named", f"input={world / 'twice.csv'}")] == ["2", "3"]


@pytest.mark.parametrize("texts", [["a cat", ""], ["", ""], [" ", "\t"]])
def test_empty_texts_are_answered_and_counted(world, texts):
    pandas.DataFrame([{"text": text, "n": 1} for text in texts]).to_csv(world / "empty.csv", index=False)
    lines = predicted(world, "single", f"input={world / 'empty.csv'}")
    assert [sum(line["scores"].values()) for line in lines] == pytest.approx([1, 1], abs=1e-5)
    newest = max((world / "out" / "predict").rglob("result.json"), key=lambda path: path.parent.name)
    assert json.loads(newest.read_text())["empty"] == len([text for text in texts if not text.strip()])


def test_other_columns_in_the_data_set_of_a_run_end_neither_it_nor_its_evaluation(world, named, capsys):
    path, weights = world / "named.csv", (named / "checkpoints" / "last" / "model.safetensors").read_bytes()
    before = path.read_text()
    path.write_text(before.replace("text,label", "words,mood"))
    evaluate = ["evaluate", f"run={named}", "split=valid", f"out={world / 'out'}", *QUIET]
    resume = ["finetune", f"resume={named}", "steps=2"]
    for words in (evaluate, resume):
        capsys.readouterr()
        assert main(words) == 2
        told = capsys.readouterr().err
        assert f"{path}: no column text, label; there: words, mood, n\nput the file back as it was" in told
    assert json.loads((named / "result.json").read_text())["steps"] == 1
    assert (named / "checkpoints" / "last" / "model.safetensors").read_bytes() == weights
    assert main([*evaluate, "task.text=words", "task.label=mood"]) == 0
    path.write_text(before)
    assert main(resume) == 0


BIG = 10_000_000  # characters


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("piece", [STORY, "a"], ids=["words", "one word"])
def test_a_text_of_ten_megabytes_is_trained_on_answered_and_scored(world, tmp_path, piece):
    """In a process of its own, for its peak of memory: less than 350 bytes a character, in less than ten minutes."""
    text = (piece * (BIG // len(piece) + 1))[:BIG].replace("\n", " ")
    rows = [{"text": text if n == 3 else f"a cat {n}", "label": ["not happy", "happy"][n % 2]} for n in range(8)]
    path, answers = tmp_path / "big.csv", tmp_path / "answers.jsonl"
    pandas.DataFrame(rows).to_csv(path, index=False)
    (tmp_path / "big.txt").write_text(f"{text}\na short line\n")
    out, here = [f"out={tmp_path / 'out'}", *QUIET], f"{world / 'single'}"
    train = ["finetune", "task=file", f"task.train={path}", "task.kind=classification", f"init={here}", "steps=2"]
    for words in (
        ["predict", f"run={here}", f"input={path}", f"output={answers}", *out],
        [*train, f"cache={world / 'cache'}", *out],
        ["score", f"init={here}", f"input={tmp_path / 'big.txt'}", *out],
    ):
        process = subprocess.Popen([sys.executable, "-m", "gpt1cli", *words])
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert used.ru_maxrss * 1024 < 350 * BIG, words[0]
        assert used.ru_utime < 600, words[0]
    assert [line["id"] for line in files.read_jsonl(answers)] == [str(n) for n in range(2, 10)]
    short = [line for line in files.read_jsonl(answers) if line["id"] != "5"]
    frame = pandas.DataFrame([row for n, row in enumerate(rows) if n != 3])
    frame.to_csv(world / "short.csv", index=False)
    alone = predicted(world, "single", f"input={world / 'short.csv'}")
    assert [line["prediction"] for line in alone] == [line["prediction"] for line in short]


def test_a_failure_to_write_is_not_told_of_the_file_that_is_read(world, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict, "predicted", full)
    words = [f"run={world / 'single'}", f"input={world / 'single.csv'}", f"output={world / 'full.jsonl'}"]
    assert main(["predict", *words, f"out={world / 'out'}", *QUIET]) == 2
    told = capsys.readouterr().err
    assert f"{world / 'full.jsonl'} cannot be written: the disk is full" in told and "place by output=" in told
    assert "cannot be read" not in told
    assert not (world / "full.jsonl").exists() and not list(world.glob(".full*"))
