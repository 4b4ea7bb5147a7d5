"""Documents, shards, splits and windows."""

from __future__ import annotations

import fcntl
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from gpt1cli.config.data import CorpusConfig, TokenizerConfig
from gpt1cli.config.schema import UserError
from gpt1cli.runs.console import Progress
from gpt1cli.text import bpe, corpus, documents, workers
from gpt1cli.text import windows as text_windows

QUIET = functools.partial(Progress, None, mode="none")


def text_corpus(path: Path, column: str = "text") -> CorpusConfig:
    return CorpusConfig("text", "text", str(path), column, None, None, "rows", 64)


@pytest.fixture(scope="module")
def vocabulary() -> bpe.Tokenizer:
    words = "the quick brown fox jumps over the lazy dog . one two three four five six seven eight nine ten".split()
    return bpe.train(Counter(words * 9), merges=60)


def shards_of(path: Path, vocabulary, cache: Path) -> corpus.Shards:
    source = documents.find_corpus(text_corpus(path), None, str(cache))
    return corpus.prepare_shards(source, "text", vocabulary, str(cache), QUIET)


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
    offsets = np.load(shards.folder / "train-documents.npy")
    assert offsets.tolist() == [0, *np.cumsum([len(x) for i, x in enumerate(ids) if i not in (19, 39)])]


def test_with_few_documents_the_last_twentieth_of_the_tokens_is_for_validation(tmp_path, vocabulary):
    path = tmp_path / "one.txt"
    path.write_text("the quick brown fox . " * 200)
    shards = shards_of(path, vocabulary, tmp_path / "cache")
    whole = vocabulary.encode(path.read_text())
    assert len(shards.valid) == len(whole) // 20
    assert np.load(shards.folder / "train-documents.npy").tolist() == [0, len(shards.train)]
    assert np.load(shards.folder / "valid-documents.npy").tolist() == [0, len(shards.valid)]
    assert shards.train.tolist() + shards.valid.tolist() == whole


def test_a_document_split_into_parts_gives_the_ids_of_the_whole(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr(documents, "PART_CHARACTERS", 40)
    text = "\n\n\nthe quick brown fox\njumps over\n\n\n the lazy dog . " * 12 + "one two three " * 30 + "\n \n"
    path = tmp_path / "one.txt"
    path.write_text(text)
    assert len(list(documents.split_documents([[text]]))) > 10
    shards = shards_of(path, vocabulary, tmp_path / "cache")
    assert shards.train.tolist() + shards.valid.tolist() == vocabulary.encode(text)


def test_a_long_line_is_split_between_words(monkeypatch):
    monkeypatch.setattr(documents, "PART_CHARACTERS", 50)
    parts = list(documents.split_documents([["Title\n" + "word " * 100]]))
    assert len(parts) > 5 and all(part.text.strip().split(" ")[-1] == "word" for part in parts)
    assert "".join(part.text for part in parts) == "Title\n" + "word " * 100


def test_the_digest_depends_on_what_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": "one", "b": "two"}\n')
    (tmp_path / "rows.txt").write_text('{"a": "one", "b": "two"}\n')
    configs = [("rows.jsonl", "a"), ("rows.jsonl", "b"), ("rows.txt", "a"), ("rows.txt", "b")]
    digests = [
        documents.find_corpus(text_corpus(tmp_path / name, column), None, str(tmp_path)).digest
        for name, column in configs
    ]
    assert len(set(digests)) == 3 and digests[2] == digests[3]  # a .txt file has no columns


def test_worker_processes_give_the_same_shards(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr(documents, "PART_CHARACTERS", 200)
    path = tmp_path / "one.txt"
    path.write_text("the quick brown fox jumps over the lazy dog .\n" * 100)
    monkeypatch.setattr(workers, "SERIAL_CHARACTERS", 400)
    many = shards_of(path, vocabulary, tmp_path / "many")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    serial = shards_of(path, vocabulary, tmp_path / "serial")
    assert many.train.tolist() == serial.train.tolist() and many.valid.tolist() == serial.valid.tolist()


def test_a_corpus_is_prepared_once_and_again_if_its_content_changes(tmp_path, vocabulary, monkeypatch):
    path = tmp_path / "one.txt"
    path.write_text("one two three " * 50)
    first = shards_of(path, vocabulary, tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(corpus, "_tokenise_parts", lambda *_: pytest.fail("prepared twice"))
        assert shards_of(path, vocabulary, tmp_path / "cache").folder == first.folder
    path.write_text("one two four " * 50)
    assert shards_of(path, vocabulary, tmp_path / "cache").folder != first.folder
    assert {path.suffix for path in (tmp_path / "cache" / "corpora").glob(".*")} == {".seen"}


def test_a_failed_preparation_leaves_nothing(tmp_path, vocabulary):
    path = tmp_path / "blank.txt"
    path.write_text(" \n \n")
    with pytest.raises(UserError, match="empty"):
        shards_of(path, vocabulary, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "corpora").iterdir())


# --- interrupted and continued ----------------------------------------------------------------------------------------

BOOK = "the quick brown fox\njumps over\n\n the lazy dog . " * 12
FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["a few documents", "many documents"])
def library(request, tmp_path, monkeypatch) -> Path:
    """Texts of several parts each, tokenised in one process, with progress saved after every part."""
    monkeypatch.setattr(documents, "PART_CHARACTERS", 60)
    monkeypatch.setattr(corpus, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "book.txt").write_text(BOOK)
    for i in range(21 if request.param == "many documents" else 2):
        (folder / f"{i:02}.txt").write_text("one two three\n" * (i % 3))
    return folder


def files_of(cache: Path) -> dict[str, bytes]:
    """Return the files of the only prepared corpus in a cache, which has no other files except locks."""
    (folder,) = (path for path in (cache / "corpora").iterdir() if path.suffix not in (".lock", ".seen"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def prepare_files(library: Path, vocabulary, cache: Path) -> dict[str, bytes]:
    shards_of(library, vocabulary, cache)
    return files_of(cache)


def record_calls(monkeypatch, owner, names: str, at: int = 0, act=lambda: None) -> list[str]:
    """Record the calls of some functions, and run `act` before call number `at`."""
    calls: list[str] = []

    def recorded(name, function, *arguments, **settings):
        calls.append(name)
        if len(calls) == at:
            act()
        return function(*arguments, **settings)

    for name in names.split():
        monkeypatch.setattr(owner, name, functools.partial(recorded, name, getattr(owner, name)))
    return calls


def interrupt() -> None:
    raise KeyboardInterrupt


STEPS = "fsync rename truncate unlink"  # what changes the files on disk


def prepare_and_kill(library: Path, vocabulary, cache: Path, at: int) -> bool:
    """Prepare in a process that is killed before step number `at`. Returns False if it finishes before that."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patched:
            record_calls(patched, os, STEPS, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            shards_of(library, vocabulary, cache)

    process = FORK.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("stride", [37, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_preparation_continues_to_the_same_bytes(library, tmp_path, vocabulary, stride):
    whole = prepare_files(library, vocabulary, tmp_path / "whole")
    shards = "train-documents.npy train.bin valid-documents.npy valid.bin"
    assert sorted(whole) == f"merges.txt meta.json {shards} vocab.json".split()
    at = 1
    while prepare_and_kill(library, vocabulary, tmp_path / str(at), at):
        assert prepare_files(library, vocabulary, tmp_path / str(at)) == whole, f"killed before step {at}"
        at += stride
    assert at > 70  # 7 steps to save after a part, and there are more than 10


def test_a_preparation_killed_many_times_continues_to_the_same_bytes(library, tmp_path, vocabulary):
    whole = prepare_files(library, vocabulary, tmp_path / "whole")
    kills = 0
    while prepare_and_kill(library, vocabulary, tmp_path / "often", 25):
        kills += 1
        assert kills < 99, "it makes no progress"
    assert kills > 2 and files_of(tmp_path / "often") == whole


@pytest.mark.parametrize(("before", "left"), [("_encode_parts", 3), ("_finish_build", 0), ("publish_folder", 0)])
def test_finished_parts_are_not_tokenised_again(
    library, tmp_path, vocabulary, monkeypatch, capsys, before: str, left: int
):
    with monkeypatch.context() as patched:
        calls = record_calls(patched, corpus, "_encode_parts")
        whole = prepare_files(library, vocabulary, tmp_path / "whole")
    parts = len(calls)
    with monkeypatch.context() as patched:
        record_calls(patched, corpus, before, at=parts - left + 1 if left else 1, act=interrupt)
        with pytest.raises(KeyboardInterrupt):
            shards_of(library, vocabulary, tmp_path / "cache")
    calls = record_calls(monkeypatch, corpus, "_encode_parts")
    source = documents.find_corpus(text_corpus(library), None, str(tmp_path))
    corpus.prepare_shards(
        source, "text", vocabulary, str(tmp_path / "cache"), functools.partial(Progress, None, mode="plain")
    )
    assert len(calls) == left and files_of(tmp_path / "cache") == whole
    assert ("continuing an interrupted preparation after " in capsys.readouterr().out) == (before != "publish_folder")


@pytest.mark.parametrize("damage", ["missing", "truncated", "other parts", "other version"])
def test_a_preparation_that_cannot_be_continued_starts_again(library, tmp_path, vocabulary, monkeypatch, damage):
    whole = prepare_files(library, vocabulary, tmp_path / "whole")
    with monkeypatch.context() as patched:
        record_calls(patched, corpus, "_encode_parts", at=6, act=interrupt)
        with pytest.raises(KeyboardInterrupt):
            shards_of(library, vocabulary, tmp_path / "cache")
    (temporary,) = (tmp_path / "cache" / "corpora").iterdir()
    if damage == "missing":
        (temporary / "train.begins").unlink()
    elif damage == "truncated":
        os.truncate(temporary / "train.bin", (temporary / "train.bin").stat().st_size - 1)
    elif damage == "other parts":
        monkeypatch.setattr(documents, "PART_CHARACTERS", 50)
    else:
        (temporary / "done.json").write_text('{"of": "another version"}')
    assert prepare_files(library, vocabulary, tmp_path / "cache") == whole


def test_a_second_process_waits_for_the_first(library, tmp_path, vocabulary, monkeypatch):
    whole = prepare_files(library, vocabulary, tmp_path / "whole")
    working, proceed, tokenised = FORK.Event(), FORK.Event(), FORK.Value("i", 0)

    def encode(tokenizer, texts, original=corpus._encode_parts):
        tokenised.value += len(texts)
        working.set()
        assert proceed.wait(60)
        return original(tokenizer, texts)

    monkeypatch.setattr(corpus, "_encode_parts", encode)
    source = documents.find_corpus(text_corpus(library), None, str(tmp_path))
    (log := tmp_path / "run.log").touch()
    reporting = functools.partial(Progress, tmp_path, mode="none")
    prepare = functools.partial(corpus.prepare_shards, source, "text", vocabulary, str(tmp_path / "cache"), reporting)
    first, second, third = (FORK.Process(target=prepare) for _ in range(3))
    first.start()
    assert working.wait(60)
    second.start()
    third.start()
    while log.read_text().count(f"waiting for process {first.pid} on ") < 2:
        assert first.is_alive() and second.is_alive() and third.is_alive(), log.read_text()
        time.sleep(0.01)
    proceed.set()
    for process in (first, second, third):
        process.join()
        assert process.exitcode == 0
    assert files_of(tmp_path / "cache") == whole
    assert tokenised.value == len(list(documents.split_documents(source.documents())))


def test_a_lock_on_a_removed_file_is_taken_again(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    record_calls(monkeypatch, fcntl, "lockf", at=1, act=path.unlink)  # as the previous holder does
    with corpus._lock_file(path, QUIET) as handle:
        assert os.path.samestat(os.fstat(handle.fileno()), path.stat())


def test_without_file_locks_each_process_prepares_separately(library, tmp_path, vocabulary, monkeypatch):
    def fail(*_):
        raise OSError("no locks")

    whole = prepare_files(library, vocabulary, tmp_path / "whole")
    other = FORK.Process(target=shards_of, args=(library, vocabulary, tmp_path / "cache"))
    monkeypatch.setattr("fcntl.lockf", fail)
    record_calls(monkeypatch, corpus, "_encode_parts", at=6, act=lambda: [other.start(), other.join()])
    assert prepare_files(library, vocabulary, tmp_path / "cache") == whole
    assert other.exitcode == 0


SCRIPT = """
import sys
from pathlib import Path
from gpt1cli.text import bpe, corpus, documents, workers
from test_corpus import shards_of

if __name__ == "__main__":
    documents.PART_CHARACTERS, workers.SERIAL_CHARACTERS, corpus.SAVE_EVERY = 2000, 4000, 0.0
    shards_of(Path(sys.argv[1]), bpe.load(Path(sys.argv[2])), Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, vocabulary, number):
    path, cache, script = tmp_path / "long.txt", tmp_path / "cache", tmp_path / "script.py"
    path.write_text("".join(f"the quick brown fox {i} jumps over the lazy dog .\n" for i in range(200_000)))
    vocabulary.save(tmp_path / "vocabulary")
    script.write_text(SCRIPT)
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, script, path, tmp_path / "vocabulary", cache],
        env={**os.environ, **paths}, start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(cache.glob("corpora/.*/done.json")):
        assert parent.poll() is None
        time.sleep(0.01)
    os.killpg(parent.pid, number) if number == signal.SIGINT else parent.kill()
    output = parent.communicate(timeout=60)[1]  # NOTE: returns when the last process that holds stderr has ended
    assert output.count("Traceback") == (number == signal.SIGINT)  # from the parent, none from a worker
    assert shards_of(path, vocabulary, cache).train.tolist() == shards_of(path, vocabulary, tmp_path).train.tolist()


def test_a_worker_loads_no_torch():
    """Not even spaCy, which would import torch if it found it; later imports of torch work."""
    code = (
        "import sys; from gpt1cli.text import corpus, normalise; normalise.split_words('a b');"
        "assert 'spacy' in sys.modules;"
        "assert 'torch' not in sys.modules; import torch; torch.ones(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- file formats -----------------------------------------------------------------------------------------------------


def test_jsonl_and_parquet_rows_are_documents(tmp_path):
    rows = ["one two", "three\nfour", "five"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    pyarrow.parquet.write_table(pa.table({"text": rows}), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        source = documents.find_corpus(text_corpus(tmp_path / name), None, str(tmp_path))
        assert ["".join(blocks) for blocks in source.documents()] == rows


def test_wikitext_lines_become_articles():
    lines = ["", " = Valkyria = \n", " text one \n", " = = Plot = = \n", " text two \n", " = Tower = \n", " three \n"]
    articles = ["".join(blocks).split() for blocks in documents._join_articles(lines)]
    assert articles == ["= Valkyria = text one = = Plot = = text two".split(), "= Tower = three".split()]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", b"caf\xe9", "not UTF-8 .byte 0xe9"),
        ("bad.jsonl", b'{"text": "a"}\n{"text"', "line 2: not JSON"),
        ("bad.jsonl", b'{"body": "a"}\n', "line 1: no text in corpus.column=text; the line has: body"),
        ("bad.parquet", b"PAR1 nonsense", "not a readable parquet file"),
        ("bad.doc", b"text", "bad.doc does not end in .txt, .jsonl, .parquet"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        source = documents.find_corpus(text_corpus(tmp_path / name), None, str(tmp_path))
        for document in source.documents():
            list(document)


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.path=.*absent: no such file"):
        documents.find_corpus(text_corpus(tmp_path / "absent"), None, str(tmp_path))


def test_a_tokenizer_trained_on_the_corpus_is_cached(tmp_path, monkeypatch):
    path = tmp_path / "one.txt"
    path.write_text("low low low lower lowest newer newest wider " * 20)
    source = documents.find_corpus(text_corpus(path), None, str(tmp_path))
    config = TokenizerConfig("bpe", "corpus", None, 20)
    trained = corpus.prepare_tokenizer(config, source, None, str(tmp_path / "cache"), QUIET)
    monkeypatch.setattr(bpe, "train", lambda *_: pytest.fail("trained twice"))
    assert corpus.prepare_tokenizer(config, source, None, str(tmp_path / "cache"), QUIET).identity == trained.identity
    with pytest.raises(
        UserError, match="tokenizer=bpe is trained on a corpus, and this command has no corpus; use init=RUN"
    ):
        corpus.prepare_tokenizer(config, None, None, str(tmp_path), QUIET)


def test_unigram_loss_worked_out_by_hand(tmp_path):
    shards = corpus.Shards(tmp_path, np.array([0, 0, 0, 1]), np.array([0, 1]), 2)  # (3+1)/7, (1+1)/7, (0+1)/7
    assert text_windows.unigram_loss(shards, 3) == pytest.approx(-(np.log(4 / 7) + np.log(2 / 7)) / 2)


def test_windows_are_contiguous_and_depend_on_seed_and_step():
    tokens = np.arange(1000, dtype=np.uint16)
    windows = text_windows.random_windows(tokens, 16, 8, seed=3, step=5)
    assert windows.shape == (8, 17) and (np.diff(windows.astype(int), axis=1) == 1).all()
    assert (windows == text_windows.random_windows(tokens, 16, 8, seed=3, step=5)).all()
    assert (windows != text_windows.random_windows(tokens, 16, 8, seed=3, step=6)).any()
    assert (windows != text_windows.random_windows(tokens, 16, 8, seed=4, step=5)).any()


def test_random_windows_reach_both_ends():
    tokens = np.arange(20, dtype=np.uint16)
    starts = {int(w[0]) for step in range(50) for w in text_windows.random_windows(tokens, 16, 8, 0, step)}
    assert starts == {0, 1, 2, 3}


def test_validation_windows_predict_each_token_once():
    tokens = np.arange(100, dtype=np.uint16)
    windows = text_windows.spread_windows(tokens, context=10, limit=10**6)
    assert windows[:, 1:].flatten().tolist() == list(range(1, 91))
    assert len(text_windows.spread_windows(tokens, context=10, limit=30)) == 3
