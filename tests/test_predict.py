"""gpt1 predict: answers for new rows equal those of the run's own scoring, in order, from and to every format."""

from __future__ import annotations

import csv
import io
import json
import sys

import pandas
import pytest
from small import SMALL

from gpt1cli import rundir
from gpt1cli.cli import main
from gpt1cli.commands import predict

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
    return rundir.read_jsonl(target)


@pytest.mark.parametrize("run", ["single", "choice", "scores"])
def test_answers_are_those_of_the_runs_own_scoring(world, run):
    valid = rundir.read_jsonl(world / run / "predictions" / "valid.jsonl")
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
