"""Files of strangers: tables of rows, checkpoints, configurations, exported folders, OpenAI's shards, each damaged.

What is read from them is answered or refused through the door itself; what stands beside them stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pandas
import pytest
from hydra.types import RunMode
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    accepted_or_refused,
    changed,
    damaged,
    drawn,
    examples,
    files,
    plain_texts,
    some_of,
    unharmed,
)

from gpt1cli.cli import hydra_loader
from gpt1cli.cli.hydra_loader import Composer
from gpt1cli.cli.main import main
from gpt1cli.commands import finetune
from gpt1cli.config.data import TokenizerConfig
from gpt1cli.config.model import Finetuning, ModelConfig, Pretraining
from gpt1cli.config.schema import InputError
from gpt1cli.config.training import OptimizerConfig
from gpt1cli.data import tables
from gpt1cli.models.transformer import Transformer
from gpt1cli.text import bpe
from gpt1cli.training import checkpoint
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.state import State

LOAD, LOADED = Composer.load, dict[Any, Any]()
QUIET = ("runtime.threads=1", "runtime.progress=none")
ROWS = [{"text": f"a {'good' * (n % 2)} cat {n}", "label": ['not, "happy"', "happy"][n % 2]} for n in range(8)]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A pretrained and a fine-tuned run, what was exported of the second, shards in OpenAI's layout; rows in files."""
    root = tmp_path_factory.mktemp("world")
    pandas.DataFrame(ROWS).to_csv(root / "rows.csv", index=False)
    pandas.DataFrame(ROWS).to_csv(root / "rows.tsv", index=False, sep="\t")
    pandas.DataFrame(ROWS).to_parquet(root / "rows.parquet")
    pandas.DataFrame(ROWS).to_json(root / "rows.jsonl", orient="records", lines=True)
    places = [f"cache={root / 'cache'}", f"out={root / 'out'}"]
    pretrained(root / "pretrained")
    words = ["finetune", "task=file", f"task.train={root / 'rows.csv'}", "task.kind=classification"]
    words += [f"init={root / 'pretrained'}", "steps=1", "batch_size=4", *places, *QUIET]
    assert main([*words, f"hydra.run.dir={root / 'run'}"]) == 0
    assert main(["export", f"run={root / 'run'}", f"out={root / 'exported'}", f"hydra.run.dir={root / 'export'}"]) == 0
    shutil.rmtree(root / "out", ignore_errors=True)
    for name in ("out", "broken"):
        (root / name).mkdir()
    return root


def remembered(self: Composer, words: list[str], mode: RunMode = RunMode.RUN) -> Any:
    """What Hydra composes of gpt1's own files, the same of the same words: most of a command's time."""
    if self.source.extra:
        return LOAD(self, words, mode)
    key = self.command, self.source, tuple(words), mode
    if key not in LOADED:
        LOADED[key] = LOAD(self, words, mode)
    return LOADED[key]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra composes the same words once, and does not run the command itself: test_fuzz_words has all that."""
    monkeypatch.setattr(Composer, "load", remembered)
    monkeypatch.setattr(hydra_loader, "hydra_main", lambda source, command, words, job: job(None))


def pretrained(folder: Path) -> None:
    """A run with one checkpoint of a very small model."""
    shape = ModelConfig(
        "small", 1, 16, 2, 64, 32, 0.0, 0.0, 0.0, 1e-5, 0.02, Pretraining(4, 16, 1e-3, 2), Finetuning(1e-3)
    )
    vocabulary = bpe.train({"the": 9, "cat": 5, "good": 4, "a": 3, "0": 2}, merges=9)
    model = Transformer(shape, len(vocabulary))
    optimizer = Optimizer(model, OptimizerConfig("adamw", 0.9, 0.999, 1e-8, 0.01, 1.0))
    about = checkpoint.description(shape, TokenizerConfig("bpe", "corpus", None, 9), vocabulary, model)
    folder.mkdir()
    checkpoint.save(folder, State(1, best_step=1), optimizer, about, vocabulary, keep=())


# --- rows -------------------------------------------------------------------------------------------------------------

TABLE = {
    form: f"rows.{suffix}"
    for form, suffix in {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "parquet": "parquet"}.items()
}


@pytest.mark.parametrize("form", TABLE)
@examples(40, 400)
def test_a_table_is_read_or_refused_with_its_line(world, form, count):
    path = world / "broken" / f"t.{form}"

    @drawn(count)
    @given(files((world / TABLE[form]).read_bytes()))
    def check(data):
        path.write_bytes(data)
        try:
            with tables.opened(str(path)) as table:
                assert all(set(row) <= {*table.columns, *row} for _, row in table.rows)
        except InputError as error:
            assert str(path) in str(error) and len(str(error)) < 1000

    check()


@pytest.mark.parametrize("form", TABLE)
@examples(3, 60)
def test_predict_answers_every_row_or_refuses_the_file(world, quick, form, count):
    path, target = world / "broken" / f"p.{form}", world / "out" / "answers.jsonl"
    words = ["predict", f"run={world / 'run'}", f"input={path}", f"output={target}", f"out={world / 'out'}", *QUIET]

    @drawn(count)
    @given(files((world / TABLE[form]).read_bytes()))
    def check(data):
        path.write_bytes(data)
        with unharmed(world, world / "out"):
            if accepted_or_refused(*words) == 0:
                answers = [json.loads(line) for line in target.read_text().splitlines()]
                with tables.opened(str(path)) as table:
                    assert len(answers) == len(list(table.rows)) > 0
            else:
                assert not target.exists()

    check()


KINDS = some_of(["classification", "pair", "similarity", "regression", "choice"])


def tuning(world: Path, rows: Path, kind: str) -> list[str]:
    """The words of a fine-tuning on these rows."""
    init, out = world / "run", world / "out"
    return [
        "finetune",
        "task=file",
        f"task.train={rows}",
        f"task.kind={kind}",
        f"init={init}",
        "steps=1",
        f"out={out}",
        *QUIET,
    ]


@pytest.mark.parametrize("form", TABLE)
@examples(2, 100)
def test_a_task_of_ones_own_rows_is_understood_or_refused(world, quick, form, count, monkeypatch):
    """Up to the first update: the files, their columns and labels, the examples, the items, the model."""
    path = world / "broken" / f"f.{form}"
    monkeypatch.setattr(finetune, "fit", stopped)
    named = st.lists(
        some_of(
            [
                "task.text=text",
                "task.text_b=label",
                "task.label=label",
                "task.id=text",
                "task.valid={}",
                "task.test={}",
                "task.choices=[text,label]",
                "task.labels=[a,b]",
                "task.range=[0,1]",
                "task.loss=ordinal",
            ]
        ),
        max_size=2,
    )

    @drawn(count)
    @given(files((world / TABLE[form]).read_bytes()), KINDS, named)
    def check(data, kind, more):
        path.write_bytes(data)
        with unharmed(world, world / "out"):
            accepted_or_refused(*tuning(world, path, kind), *(word.format(path) for word in more))

    check()


def stopped(**_: Any) -> None:
    """In the place of the training."""
    raise InputError("the training would begin here")


@examples(3, 200)
def test_rows_of_any_texts_and_labels(world, quick, count, monkeypatch):
    """Well-formed files that hold anything: every text and every label there can be in JSON."""
    path = world / "broken" / "any.jsonl"
    monkeypatch.setattr(finetune, "fit", stopped)
    label = st.one_of(
        plain_texts,
        st.integers(-3, 3),
        st.floats(),
        st.booleans(),
        st.none(),
        st.lists(st.integers(), max_size=2),
        st.dictionaries(plain_texts, st.integers(), max_size=1),
        some_of(["\ud800", "a" * 500, 10**400]),
    )
    row = st.fixed_dictionaries(
        {"text": plain_texts | some_of(["\ud800", "", "a " * 3000]), "label": label},
        optional={"text_b": plain_texts, "choices": st.lists(plain_texts, max_size=3)},
    )

    @drawn(count)
    @given(st.lists(row, min_size=1, max_size=8), KINDS)
    @example([{"text": "", "text_b": "", "label": 10**400}], "regression")
    @example([{"text": "a", "label": "\ud800"}, {"text": "b", "label": "b"}], "classification")
    def check(rows, kind):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with unharmed(world, world / "out"):
            accepted_or_refused(*tuning(world, path, kind))

    check()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def remade(folder: Path) -> None:
    """Checksums that fit what the folder holds now, as a stranger would write them."""
    path = folder / "checksums.json"
    told = {
        name: f"{zlib.crc32((folder / name).read_bytes()):08x}"
        for name in json.loads(path.read_text())
        if (folder / name).is_file()
    }
    path.write_text(json.dumps(told))


NAMES = [
    "model.safetensors",
    "training.safetensors",
    "state.json",
    "config.json",
    "vocab.json",
    "merges.txt",
    "checksums.json",
]
USES = [
    ["predict", "run={}", "text=a cat"],
    ["evaluate", "run={}"],
    ["export", "run={}", "out={}-export"],
    ["generate", "init={}", "prompt=the cat", "tokens=2"],
    ["zeroshot", "init={}", "task=demo_acceptability"],
]


@contextlib.contextmanager
def harmed_copy(world: Path, part: str) -> Any:
    """A copy of a part of the world, to be harmed; then removed."""
    copy = world / "broken" / part
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world / part, copy, symlinks=True)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


@pytest.mark.parametrize("use", USES[:4], ids=lambda use: use[0])
@examples(3, 60)
def test_a_damaged_checkpoint_is_used_or_refused(world, quick, use, count):
    step = next(path.name for path in (world / "run" / "checkpoints").iterdir() if path.name.isdigit())
    whole = {name: (world / "run" / "checkpoints" / step / name).read_bytes() for name in NAMES}

    def data_of(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        found = damaged(whole[name])
        if name.endswith(".json"):
            found |= changed(json.loads(whole[name])).map(lambda plain: json.dumps(plain).encode())
        return found.map(lambda data: (name, data))

    @drawn(count)
    @given(some_of(NAMES).flatmap(data_of), st.booleans())
    def check(harm, fitting):
        with harmed_copy(world, "run") as run:
            (run / "checkpoints" / step / harm[0]).write_bytes(harm[1])
            if fitting and harm[0] != "checksums.json":
                remade(run / "checkpoints" / step)
            words = [word.format(run) for word in use]
            out = world / "out"
            words = [word if not word.startswith("out=") else f"out={out / 'exported'}" for word in words]
            places = [f"hydra.run.dir={out / 'r'}", *QUIET] if use[0] != "export" else [f"hydra.run.dir={out / 'r'}"]
            with unharmed(world, out):
                accepted_or_refused(*words, *places)

    check()
