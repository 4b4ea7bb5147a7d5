"""gpt1 score and gpt1 generate on the command line, with a model trained here."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import gpt1cli
from gpt1cli.cli.main import main
from gpt1cli.models.inference import token_log_probabilities
from gpt1cli.runs import files

QUIET = ("runtime.threads=1", "runtime.progress=none", "runtime.precision=fp32")
SHAPE = (
    "model=tiny", "model.n_layer=1", "model.d_model=16", "model.n_head=2", "model.d_ff=64",
    "model.n_positions=16", "model.pretraining.context=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    """A pretraining run of six steps."""
    root = tmp_path_factory.mktemp("language")
    (root / "story.txt").write_text("The old man sat by the sea, and the sea was calm. " * 200)
    words = [f"corpus.path={root / 'story.txt'}", "corpus=text", "tokenizer=bpe", "tokenizer.merges=30", "steps=6"]
    words += ["context=16", "lr=0.01", f"cache={root / 'cache'}", f"hydra.run.dir={root / 'run'}"]
    assert main(["pretrain", *SHAPE, *words, *QUIET]) == 0
    return root / "run"


def run_command(command: str, into: Path, *words: str) -> int:
    return main([command, *words, *QUIET, f"hydra.run.dir={into}"])


# --- score ------------------------------------------------------------------------------------------------------------

LINES = ["The old man sat.", "", "sea", "  Unknown ☃ things, by the sea!  ", "and the sea was calm. " * 9]


def test_every_line_is_scored_in_order(language, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt1cli.commands.score.BATCH_LINES", 2)  # lines read at a time
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    assert run_command("score", tmp_path / "run", f"init={language}", f"input={tmp_path / 'lines.txt'}") == 0
    scored = files.read_jsonl(tmp_path / "run" / "scores.jsonl")
    assert [line["line"] for line in scored] == [1, 2, 3, 4, 5] and [line["text"] for line in scored] == LINES
    model, tokenizer = gpt1cli.load(language)
    everything = []
    for text, line in zip(LINES, scored, strict=True):
        ids = tokenizer.encode(text)
        (values,) = token_log_probabilities(model, [np.array(ids, np.int32)], None, 1000)
        everything += values.tolist()
        assert [tokenizer.vocabulary[token] for token in line["tokens"]] == ids
        assert len(line["log_probabilities"]) == len(ids)
        assert line["log_probabilities"][:1] == [None][: len(ids)]
        assert line["log_probabilities"][1:] == pytest.approx(values.tolist(), abs=1e-4)
        assert line["mean"] == (pytest.approx(np.mean(values), abs=1e-5) if len(values) else None)
        assert line["perplexity"] == (pytest.approx(math.exp(-np.mean(values)), rel=1e-4) if len(values) else None)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["command"], result["lines"]) == ("finished", "score", 5)
    assert result["tokens"] == len(everything)
    assert result["perplexity"] == pytest.approx(math.exp(-np.mean(everything)), rel=1e-5)


def test_lines_from_stdin(language, tmp_path, monkeypatch, capsys):
    (tmp_path / "good").write_bytes(b"The old man.\r\nThe sea.\n")
    (tmp_path / "bad").write_bytes(b"caf\xe9 noir\n")
    with (tmp_path / "good").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run_command("score", tmp_path / "run", f"init={language}", "input=-") == 0
    with (tmp_path / "bad").open(errors="surrogateescape") as stdin:  # as Python opens it in the locale C
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run_command("score", tmp_path / "no", f"init={language}", "input=-") == 2
    assert "input=-: not UTF-8 text" in capsys.readouterr().err
    texts = [line["text"] for line in files.read_jsonl(tmp_path / "run" / "scores.jsonl")]
    assert texts == ["The old man.", "The sea."]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [(None, "no such file"), (b"", "no line has two tokens"), (b"a\n\nb", "no line has two tokens"),
     (b"caf\xe9 noir\n", "not UTF-8 text")],
)  # fmt: skip
def test_an_input_without_texts_is_refused(language, tmp_path, capsys, content, fragment):
    if content is not None:
        (tmp_path / "lines.txt").write_bytes(content)
    assert run_command("score", tmp_path / "run", f"init={language}", f"input={tmp_path / 'lines.txt'}") == 2
    message = capsys.readouterr().err
    assert f"input={tmp_path / 'lines.txt'}: " in message and fragment in message


# --- generate ---------------------------------------------------------------------------------------------------------


def test_printed_text_equals_written_text(language, tmp_path, capsys):
    words = (f"init={language}", "prompt=The old man", "temperature=0", "tokens=12")
    assert run_command("generate", tmp_path / "run", *words) == 0
    output = capsys.readouterr()
    (line,) = files.read_jsonl(tmp_path / "run" / "generated.jsonl")
    assert output.out == line["text"] + "\n" and line["text"].startswith("the old man")
    assert len(line["tokens"]) == 12 and line["prompt"] == "The old man"
    _, tokenizer = gpt1cli.load(language)
    assert tokenizer.decode([*tokenizer.encode("The old man"), *line["tokens"]]) == line["text"]
    assert "tokens/s" in output.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


def test_samples_follow_the_seed(language, tmp_path):
    def texts(name: str, *words: str) -> list[str]:
        shape = ("tokens=10", "samples=3", "temperature=1.5", "top_k=20", "top_p=0.99")
        assert run_command("generate", tmp_path / name, f"init={language}", "prompt=the", *shape, *words) == 0
        return [line["text"] for line in files.read_jsonl(tmp_path / name / "generated.jsonl")]

    first = texts("a")
    assert first == texts("b") and first != texts("c", "seed=1") and len(set(first)) == 3


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["prompt= "], "prompt=  has no tokens"),
        ([], "prompt is needed"),
        (["prompt=a", "init=none"], "init=none: random weights predict nothing useful"),
        (["prompt=a", "init=/no/such"], "init=/no/such: no such folder"),
        (["prompt=a", "temperature=0", "top_k=3"], "remove top_k and top_p"),
        (["prompt=a", "top_p=1.5"], "top_p=1.5 is refused"),
        (["prompt=a", "model=tiny"], "model: no such key"),
    ],
)
def test_invalid_prompts_and_settings_are_refused(language, tmp_path, capsys, words, fragment):
    start = () if any(word.startswith("init") for word in words) else (f"init={language}",)
    assert run_command("generate", tmp_path / "run", *start, *words) == 2
    assert fragment in capsys.readouterr().err and not (tmp_path / "run").exists()
