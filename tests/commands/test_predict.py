"""gpt1 predict: predictions for new rows equal those of the run, in order, for every format."""

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

pytestmark = pytest.mark.usefixtures("no_pictures")

QUIET = ("runtime.threads=1", "runtime.progress=none")
SHAPE = [word for word in SMALL if not word.startswith("batch_size")]


def own_task(root, name, kind, rows, *more):
    """Fine-tune a run on these rows, in root/name."""
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


def run_predict(root, run, *words):
    """Return the records that predict writes to a file."""
    target = root / "answers.jsonl"
    target.unlink(missing_ok=True)
    assert main(["predict", f"run={root / run}", f"out={root / 'out'}", *QUIET, *words, f"output={target}"]) == 0
    return files.read_jsonl(target)


@pytest.mark.parametrize("run", ["single", "choice", "scores"])
def test_predictions_equal_those_of_the_run(world, run):
    valid = files.read_jsonl(world / run / "predictions" / "valid.jsonl")
    actual = {line["id"]: line for line in run_predict(world, run, f"input={world / f'{run}.csv'}")}
    assert len(actual) == 20 and valid
    for line in valid:
        same = actual[line["id"]]
        assert same.get("scores", {}) == pytest.approx(line.get("scores", {}), abs=1e-3)
        if run == "scores":
            assert same["prediction"] == pytest.approx(line["prediction"], abs=1e-2)


def test_every_format_gives_the_same_predictions_in_the_order_of_the_rows(world, monkeypatch):
    monkeypatch.setattr(predict, "BATCH_ROWS", 3)
    frame = pandas.DataFrame([{"text": f"cat {n} " * (1 + n % 4)} for n in range(10)])
    frame.to_csv(world / "new.csv", index=False)
    frame.to_parquet(world / "new.parquet")
    frame.to_json(world / "new.jsonl", orient="records", lines=True)
    (world / "new.txt").write_text("\n".join(frame.text) + "\n")
    expected = run_predict(world, "single", f"input={world / 'new.csv'}")
    assert [line["id"] for line in expected] == [str(n) for n in range(2, 12)]
    for name in ("new.parquet", "new.jsonl", "new.txt"):
        actual = run_predict(world, "single", f"input={world / name}")
        assert [line["id"] for line in actual] == [str(n) for n in range(1, 11)]
        assert [line["scores"] for line in actual] == [line["scores"] for line in expected]
    assert all(sum(line["scores"].values()) == pytest.approx(1, abs=1e-5) for line in expected)
    assert {line["prediction"] for line in expected} <= {"happy", "not happy"}


def test_a_csv_of_predictions(world):
    target = world / "answers.csv"
    words = [f"input={world / 'single.csv'}", f"output={target}", f"out={world / 'out'}", *QUIET]
    assert main(["predict", f"run={world / 'single'}", *words]) == 0
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert list(rows[0]) == ["id", "prediction", "probability of happy", "probability of not happy"] and len(rows) == 20
    assert main(["predict", f"run={world / 'single'}", *words]) == 2  # no file is overwritten


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


def test_usual_column_names_are_used_if_those_of_the_run_are_missing(world):
    pandas.DataFrame([{"sentence": "the cat", "n": 1}]).to_csv(world / "other.csv", index=False)
    assert len(run_predict(world, "single", f"input={world / 'other.csv'}")) == 1


@pytest.mark.parametrize(
    ("run", "words", "fragments"),
    [
        ("single", [], ["input=", "text="]),
        ("single", ["input=none.csv", "text=a"], ["input=", "text="]),
        ("single", ["input=none.csv"], ["none.csv: no such file"]),
        ("single", ["input=-"], ["input=-", "format=", "csv"]),
        ("single", ["text=a", "format=csv"], ["format=csv", "input="]),
        ("single", ["text=a", "text_b=b"], ["single", "an example needs text="]),
        ("single", ["text=a", "choices=[a,b]"], ["no choices", "leave choices= out"]),
        ("choice", ["text=a"], ["choice", "needs 2 choices", "choices=[...]"]),
        ("single", ["text=a", "output=answers.xml"], ["output=answers.xml", ".jsonl, .csv, .tsv"]),
        ("single", ["text=a", "output=nowhere/a.csv"], ["output=nowhere/a.csv", "no such folder: nowhere"]),
        ("out", ["text=a"], ["run="]),
    ],
)
def test_mistakes_are_reported_before_anything_is_read(world, monkeypatch, capsys, run, words, fragments):
    monkeypatch.chdir(world)
    before = sorted(path.name for path in world.iterdir())
    assert main(["predict", f"run={world / run}", *words, f"out={world / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert all(fragment in message for fragment in fragments)
    assert sorted(path.name for path in world.iterdir()) == before


def test_an_unreadable_row_leaves_no_partial_output(world, capsys):
    (world / "broken.csv").write_text("text\nfine\nnot,fine\n")
    target = world / "never.jsonl"
    words = [f"run={world / 'single'}", f"input={world / 'broken.csv'}", f"output={target}", f"out={world / 'out'}"]
    assert main(["predict", *words, *QUIET]) == 2
    assert "broken.csv, line 3: 2 fields" in capsys.readouterr().err
    assert not target.exists() and not list(world.glob(".never*"))


# --- rows that differ from the training rows --------------------------------------------------------------------------


def run_evaluate(root, *words):
    """Return the exit status of an evaluation of user files, in a new folder."""
    return main(["evaluate", f"run={root / 'single'}", "split=test", f"out={root / 'fresh'}", *QUIET, *words])


def test_an_unknown_label_is_ignored_by_predict_and_reported_by_evaluate(world, capsys):
    path = world / "odd.csv"
    path.write_text("text,label\na cat,happy\na dog,furious\n")
    assert len(run_predict(world, "single", f"input={path}")) == 2
    assert run_evaluate(world, f"task.test={path}") == 2
    message = capsys.readouterr().err
    assert f"{path}, line 3: label=furious is not a label of the task; allowed: happy, not happy" in message
    assert not list((world / "fresh").rglob("config.yaml"))
    path.write_text("text,label\na cat,happy\na dog,\n")  # as the message says: skipped
    assert run_evaluate(world, f"task.test={path}") == 0
    (result,) = (world / "fresh").rglob("result.json")
    assert json.loads(result.read_text())["examples"] == {"test": 1}
    shutil.rmtree(world / "fresh")


def test_a_split_exists_if_its_file_is_given(world, capsys):
    assert run_evaluate(world) == 2
    assert "test: no such split of task=file; known: train, valid" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run_with_ids(world):
    """A run on rows with an id column."""
    rows = [{"text": f"a cat {n}", "label": "ab"[n % 2], "n": n} for n in range(10)]
    return own_task(world, "named", "classification", rows, "task.id=n")


def test_duplicate_ids_do_not_stop_predict_which_uses_line_numbers(world, run_with_ids):
    assert {line["id"] for line in files.read_jsonl(run_with_ids / "predictions" / "valid.jsonl")} <= set("0123456789")
    pandas.DataFrame([{"text": "a cat", "n": 1}, {"text": "a dog", "n": 1}]).to_csv(world / "twice.csv", index=False)
    assert [line["id"] for line in run_predict(world, "named", f"input={world / 'twice.csv'}")] == ["2", "3"]


@pytest.mark.parametrize("texts", [["a cat", ""], ["", ""], [" ", "\t"]])
def test_empty_texts_are_predicted_and_counted(world, texts):
    pandas.DataFrame([{"text": text, "n": 1} for text in texts]).to_csv(world / "empty.csv", index=False)
    lines = run_predict(world, "single", f"input={world / 'empty.csv'}")
    assert [sum(line["scores"].values()) for line in lines] == pytest.approx([1, 1], abs=1e-5)
    newest = max((world / "out" / "predict").rglob("result.json"), key=lambda path: path.parent.name)
    assert json.loads(newest.read_text())["empty"] == len([text for text in texts if not text.strip()])


def test_a_data_set_with_other_columns_is_reported_by_evaluate_and_resume(world, run_with_ids, capsys):
    path, weights = world / "named.csv", (run_with_ids / "checkpoints" / "last" / "model.safetensors").read_bytes()
    before = path.read_text()
    path.write_text(before.replace("text,label", "words,mood"))
    evaluate = ["evaluate", f"run={run_with_ids}", "split=valid", f"out={world / 'out'}", *QUIET]
    resume = ["finetune", f"resume={run_with_ids}", "steps=2"]
    for words in (evaluate, resume):
        capsys.readouterr()
        assert main(words) == 2
        message = capsys.readouterr().err
        assert f"{path}: no column text, label; available: words, mood, n\nrestore the file" in message
    assert json.loads((run_with_ids / "result.json").read_text())["steps"] == 1
    assert (run_with_ids / "checkpoints" / "last" / "model.safetensors").read_bytes() == weights
    assert main([*evaluate, "task.text=words", "task.label=mood"]) == 0
    path.write_text(before)
    assert main(resume) == 0


BIG = 10_000_000  # characters


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("piece", [STORY, "a"], ids=["words", "one word"])
def test_a_text_of_ten_megabytes_is_trained_on_predicted_and_scored(world, tmp_path, piece):
    """In its own process, to measure peak memory: below 350 bytes per character, below ten minutes."""
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
    alone = run_predict(world, "single", f"input={world / 'short.csv'}")
    assert [line["prediction"] for line in alone] == [line["prediction"] for line in short]


def test_a_write_error_names_the_output_and_not_the_input(world, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict, "prediction_records", full)
    words = [f"run={world / 'single'}", f"input={world / 'single.csv'}", f"output={world / 'full.jsonl'}"]
    assert main(["predict", *words, f"out={world / 'out'}", *QUIET]) == 2
    message = capsys.readouterr().err
    assert (
        f"{world / 'full.jsonl'} cannot be written: the disk is full" in message
        and "another place with output=" in message
    )
    assert "cannot be read" not in message
    assert not (world / "full.jsonl").exists() and not list(world.glob(".full*"))
