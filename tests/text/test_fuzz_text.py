"""Any text is encoded to the same ids in both ways, and any ids are decoded to text."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import changed, drawn, examples, files, texts

from gpt1cli.config.schema import UserError
from gpt1cli.text import bpe, normalise
from gpt1cli.text.bpe import UNKNOWN, Tokenizer

TRAINED = bpe.train({"the": 9, "cat": 5, "sat": 4, "then": 3, "é": 2, "'s": 2, "...": 2}, merges=12)


@examples(6, 1000)
def test_encode_and_encode_plain_give_the_same_ids(count):
    @drawn(count)
    @given(st.lists(texts, min_size=1, max_size=3))
    @example(["\ud83d\ude00", "\ude00\ud83d"])
    def check(batch):
        plain = [TRAINED.encode_plain(text) for text in batch]
        assert TRAINED.encode_batch(batch) == plain
        assert [TRAINED.encode(text) for text in batch] == plain
        assert all(0 <= index < len(TRAINED) for ids in plain for index in ids)

    check()


@examples(60, 1000)
def test_any_ids_are_decoded_to_text(count):
    @drawn(count)
    @given(st.lists(st.integers(0, len(TRAINED) + 2), max_size=20), texts)
    def check(ids, text):
        TRAINED.decode(ids).encode("utf-8")
        encoded = TRAINED.encode(text)
        TRAINED.decode(encoded).encode("utf-8")  # it can be printed
        assert UNKNOWN not in text or 0 in encoded or "<" in TRAINED.vocabulary

    check()


@examples(20, 300)
def test_word_counts_agree_with_the_words(count):
    @drawn(count)
    @given(texts)
    def check(text):
        words = normalise.split_words(text)
        assert sum(normalise.count_words(text).values()) == len(words)

    check()


@examples(30, 500)
def test_damaged_tokenizer_files_are_loaded_or_refused(tmp_path, count):
    TRAINED.save(tmp_path / "whole")
    vocabulary, merges = ((tmp_path / "whole" / name).read_bytes() for name in ("vocab.json", "merges.txt"))
    broken = tmp_path / "broken"
    broken.mkdir()

    @drawn(count)
    @given(
        st.just(vocabulary) | files(vocabulary) | changed(json.loads(vocabulary)).map(lambda x: json.dumps(x).encode()),
        st.just(merges) | files(merges),
    )
    def check(first, second):
        (broken / "vocab.json").write_bytes(first)
        (broken / "merges.txt").write_bytes(second)
        try:
            tokenizer = bpe.load(broken)
        except UserError as error:
            assert "no usable tokenizer" in str(error)
            return
        for text in ("the cat sat.\n", "<unk> é \ud800"):
            assert tokenizer.encode(text) == tokenizer.encode_plain(text)

    check()


@examples(20, 150)
def test_a_vocabulary_can_be_trained_on_any_words(count):
    @drawn(count)
    @given(
        st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), st.integers(1, 5), max_size=8)
    )
    def check(counts):
        try:
            tokenizer = bpe.train(counts, merges=5)
        except UserError as error:
            assert "no words" in str(error)
            return
        for word in counts:
            assert tokenizer.encode(word) == tokenizer.encode_plain(word)

    check()


@pytest.mark.parametrize("value", [None])
@examples(10, 60)
def test_random_tables_are_accepted_or_refused(value, count):
    @drawn(count)
    @given(
        st.dictionaries(st.text(max_size=3), st.integers(-1, 5), max_size=4),
        st.lists(st.tuples(st.text(max_size=2), st.text(max_size=2)), max_size=3),
    )
    def check(vocabulary, merges):
        with contextlib.suppress(UserError):
            Tokenizer(vocabulary, merges)

    check()
