"""Documents, shards, splits and windows."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from gpt1cli import corpus, documents, tokenizer
from gpt1cli.config import CorpusConfig, InputError, TokenizerConfig
from gpt1cli.loggers import Progress

QUIET = functools.partial(Progress, None, mode="none")


def text_corpus(path: Path, column: str = "text") -> CorpusConfig:
    return CorpusConfig("text", "text", str(path), column, None, None, "rows", 64)


@pytest.fixture(scope="module")
def vocabulary() -> tokenizer.Tokenizer:
    words = "the quick brown fox jumps over the lazy dog . one two three four five six seven eight nine ten".split()
    return tokenizer.train(Counter(words * 9), merges=60)


def shards_of(path: Path, vocabulary, cache: Path) -> corpus.Shards:
    source = documents.find(text_corpus(path), None, str(cache))
    return corpus.prepare(source, "text", vocabulary, str(cache), QUIET)


def test_every_twentieth_document_is_for_validation(tmp_path, vocabulary):
    books = tmp_path / "books"
    books.mkdir()
    texts = {f"{i:02}.txt": f"one two {'three ' * (i + 1)}." for i in range(40)}
    for name, text in texts.items():
        (books / name).write_text(text)
    shards = shards_of(books, vocabulary, tmp_path / "cache")
    ids = [vocabulary.encode(texts[name]) for name in sorted(texts)]
    assert shards.documents == 40
    assert shards.valid.tolist() == ids[19] + ids[39]
    assert shards.train.tolist() == [token for i, x in enumerate(ids) if i not in (19, 39) for token in x]
    borders = np.load(shards.folder / "train-documents.npy")
    assert borders.tolist() == [0, *np.cumsum([len(x) for i, x in enumerate(ids) if i not in (19, 39)])]


def test_few_documents_give_the_last_twentieth_of_the_tokens(tmp_path, vocabulary):
    path = tmp_path / "one.txt"
    path.write_text("the quick brown fox . " * 200)
    shards = shards_of(path, vocabulary, tmp_path / "cache")
    whole = vocabulary.encode(path.read_text())
    assert len(shards.valid) == len(whole) // 20
    assert np.load(shards.folder / "train-documents.npy").tolist() == [0, len(shards.train)]
    assert np.load(shards.folder / "valid-documents.npy").tolist() == [0, len(shards.valid)]
    assert shards.train.tolist() + shards.valid.tolist() == whole


def test_a_document_cut_into_parts_gives_the_ids_of_the_whole(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr(documents, "PART", 40)
    text = "\n\n\nthe quick brown fox\njumps over\n\n\n the lazy dog . " * 12 + "one two three " * 30 + "\n \n"
    path = tmp_path / "one.txt"
    path.write_text(text)
    assert len(list(documents.parts([[text]]))) > 10
    shards = shards_of(path, vocabulary, tmp_path / "cache")
    assert shards.train.tolist() + shards.valid.tolist() == vocabulary.encode(text)


def test_a_long_line_is_cut_between_words(monkeypatch):
    monkeypatch.setattr(documents, "PART", 50)
    cut = list(documents.parts([["Title\n" + "word " * 100]]))
    assert len(cut) > 5 and all(part.text.strip().split(" ")[-1] == "word" for part in cut)
    assert "".join(part.text for part in cut) == "Title\n" + "word " * 100


def test_a_corpus_is_known_by_what_is_read_from_it(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": "one", "b": "two"}\n')
    (tmp_path / "rows.txt").write_text('{"a": "one", "b": "two"}\n')
    configs = [("rows.jsonl", "a"), ("rows.jsonl", "b"), ("rows.txt", "a"), ("rows.txt", "b")]
    digests = [
        documents.find(text_corpus(tmp_path / name, column), None, str(tmp_path)).digest for name, column in configs
    ]
    assert len(set(digests)) == 3 and digests[2] == digests[3]  # of a plain text no column is read


def test_worker_processes_give_the_same_shards(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr(documents, "PART", 200)
    path = tmp_path / "one.txt"
    path.write_text("the quick brown fox jumps over the lazy dog .\n" * 100)
    monkeypatch.setattr(corpus, "FEW_JOBS", 2)
    many = shards_of(path, vocabulary, tmp_path / "many")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    alone = shards_of(path, vocabulary, tmp_path / "alone")
    assert many.train.tolist() == alone.train.tolist() and many.valid.tolist() == alone.valid.tolist()


def test_prepared_once_and_again_when_the_content_changes(tmp_path, vocabulary, monkeypatch):
    path = tmp_path / "one.txt"
    path.write_text("one two three " * 50)
    first = shards_of(path, vocabulary, tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(corpus, "_write", lambda *_: pytest.fail("prepared twice"))
        assert shards_of(path, vocabulary, tmp_path / "cache").folder == first.folder
    path.write_text("one two four " * 50)
    assert shards_of(path, vocabulary, tmp_path / "cache").folder != first.folder
    assert not list((tmp_path / "cache" / "corpora").glob(".*"))


def test_a_failed_preparation_leaves_nothing(tmp_path, vocabulary):
    path = tmp_path / "blank.txt"
    path.write_text(" \n \n")
    with pytest.raises(InputError, match="empty"):
        shards_of(path, vocabulary, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "corpora").iterdir())


def test_jsonl_and_parquet_rows_are_documents(tmp_path):
    rows = ["one two", "three\nfour", "five"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    pyarrow.parquet.write_table(pa.table({"text": rows}), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        source = documents.find(text_corpus(tmp_path / name), None, str(tmp_path))
        assert ["".join(blocks) for blocks in source.documents()] == rows


def test_wikitext_lines_become_articles():
    lines = ["", " = Valkyria = \n", " text one \n", " = = Plot = = \n", " text two \n", " = Tower = \n", " three \n"]
    articles = ["".join(blocks).split() for blocks in documents._articles(lines)]
    assert articles == ["= Valkyria = text one = = Plot = = text two".split(), "= Tower = three".split()]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", b"caf\xe9", "not UTF-8 .byte 0xe9"),
        ("bad.jsonl", b'{"text": "a"}\n{"text"', "line 2: not JSON"),
        ("bad.jsonl", b'{"body": "a"}\n', "no text under corpus.column=text; there is: body"),
        ("bad.parquet", b"PAR1 nonsense", "not a readable parquet file"),
        ("bad.doc", b"text", "none of .txt, .jsonl, .parquet"),
    ],
)
def test_bad_files_are_told_plainly(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        source = documents.find(text_corpus(tmp_path / name), None, str(tmp_path))
        for document in source.documents():
            list(document)


def test_a_path_that_names_nothing(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        documents.find(text_corpus(tmp_path / "absent"), None, str(tmp_path))


def test_tokenizer_trained_on_the_corpus_is_cached(tmp_path, monkeypatch):
    path = tmp_path / "one.txt"
    path.write_text("low low low lower lowest newer newest wider " * 20)
    source = documents.find(text_corpus(path), None, str(tmp_path))
    wanted = TokenizerConfig("bpe", "corpus", None, 20)
    trained = corpus.tokenizer_of(wanted, source, None, str(tmp_path / "cache"), QUIET)
    monkeypatch.setattr(tokenizer, "train", lambda *_: pytest.fail("trained twice"))
    assert corpus.tokenizer_of(wanted, source, None, str(tmp_path / "cache"), QUIET).identity == trained.identity
    with pytest.raises(InputError, match="has none"):
        corpus.tokenizer_of(wanted, None, None, str(tmp_path), QUIET)


def test_unigram_loss_by_hand(tmp_path):
    shards = corpus.Shards(tmp_path, np.array([0, 0, 0, 1]), np.array([0, 1]), 2)  # (3+1)/7, (1+1)/7, (0+1)/7
    assert corpus.unigram_loss(shards, 3) == pytest.approx(-(np.log(4 / 7) + np.log(2 / 7)) / 2)


def test_windows_are_contiguous_and_follow_from_seed_and_step():
    tokens = np.arange(1000, dtype=np.uint16)
    windows = corpus.random_windows(tokens, 16, 8, seed=3, step=5)
    assert windows.shape == (8, 17) and (np.diff(windows.astype(int), axis=1) == 1).all()
    assert (windows == corpus.random_windows(tokens, 16, 8, seed=3, step=5)).all()
    assert (windows != corpus.random_windows(tokens, 16, 8, seed=3, step=6)).any()
    assert (windows != corpus.random_windows(tokens, 16, 8, seed=4, step=5)).any()


def test_random_windows_reach_both_ends():
    tokens = np.arange(20, dtype=np.uint16)
    starts = {int(w[0]) for step in range(50) for w in corpus.random_windows(tokens, 16, 8, 0, step)}
    assert starts == {0, 1, 2, 3}


def test_validation_windows_predict_each_token_once():
    tokens = np.arange(100, dtype=np.uint16)
    windows = corpus.spread_windows(tokens, context=10, limit=10**6)
    assert windows[:, 1:].flatten().tolist() == list(range(1, 91))
    assert len(corpus.spread_windows(tokens, context=10, limit=30)) == 3
