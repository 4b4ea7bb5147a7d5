"""Damaged files of other users: tables of rows, checkpoints, configurations, exported folders, OpenAI's shards.

The commands handle or refuse them; other files stay unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    QUIET,
    accepted_or_refused,
    changed,
    damaged,
    drawn,
    examples,
    files,
    harmed_copy,
    plain_texts,
    remade,
    some_of,
    stopped,
    unharmed,
)

from gpt1cli.commands import finetune
from gpt1cli.config.schema import UserError
from gpt1cli.data import tables

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
            with tables.open_table(str(path)) as table:
                assert all(set(row) <= {*table.columns, *row} for _, row in table.rows)
        except UserError as error:
            assert str(path) in str(error) and len(str(error)) < 1000

    check()


@pytest.mark.parametrize("form", TABLE)
@examples(3, 60)
def test_predict_handles_every_row_or_refuses_the_file(world, quick, form, count):
    path, target = world / "broken" / f"p.{form}", world / "out" / "answers.jsonl"
    words = ["predict", f"run={world / 'run'}", f"input={path}", f"output={target}", f"out={world / 'out'}", *QUIET]

    @drawn(count)
    @given(files((world / TABLE[form]).read_bytes()))
    def check(data):
        path.write_bytes(data)
        with unharmed(world, world / "out"):
            if accepted_or_refused(*words) == 0:
                answers = [json.loads(line) for line in target.read_text().splitlines()]
                with tables.open_table(str(path)) as table:
                    assert len(answers) == len(list(table.rows)) > 0
            else:
                assert not target.exists()

    check()


KINDS = some_of(["classification", "pair", "similarity", "regression", "choice"])


def finetune_words(world: Path, rows: Path, kind: str) -> list[str]:
    """Return the overrides of a fine-tuning on these rows."""
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
def test_a_task_of_user_rows_is_accepted_or_refused(world, quick, form, count, monkeypatch):
    """Up to the first step: files, columns, labels, examples, items, model."""
    path = world / "broken" / f"f.{form}"
    monkeypatch.setattr(finetune, "fit", stopped)
    columns = st.lists(
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
    @given(files((world / TABLE[form]).read_bytes()), KINDS, columns)
    def check(data, kind, more):
        path.write_bytes(data)
        with unharmed(world, world / "out"):
            accepted_or_refused(*finetune_words(world, path, kind), *(word.format(path) for word in more))

    check()


@examples(3, 200)
def test_rows_of_any_texts_and_labels(world, quick, count, monkeypatch):
    """Well-formed files with any text and any label that JSON allows."""
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
            accepted_or_refused(*finetune_words(world, path, kind))

    check()


# --- checkpoints ------------------------------------------------------------------------------------------------------


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
