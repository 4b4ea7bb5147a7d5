"""The byte-level tokenizer against transformers' GPT-2 tokenizer and a textbook encoder; text is restored exactly."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import hard_text
import numpy as np
import pytest
import regex
from hypothesis import given, settings
from transformers import GPT2Tokenizer

from gpt1cli.config.data import CorpusConfig, TokenizerConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data import demo_world
from gpt1cli.runs.console import Progress
from gpt1cli.text import bpe, bytelevel, corpus, documents, workers
from gpt1cli.text.bpe import ByteTokenizer, Tokenizer, load, train_bytes

DIFFICULT = [
    "",
    " ",
    "\n",
    "\r\n\r\n \t\t\n",
    "Don't DON'T don'T it'S IT'LL we'Ve I'm i'M they'RE 'tis ''s",
    "two  blanks   three    four and at the end   ",
    "   at the beginning\n\n\nlines \n with \n blanks",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 and 👍🏽",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "caf\u00e9 against cafe\u0301, \ufb01ne \u1e9e \u0130 \u01c5",
    "\x00\x01\x07\x1b[1mbold\x1b[0m\x7f\x85\u2028\u2029\ufeff\u200b\u00ad\xa0",
    "x = 10**6 + 3.14e-5; /* C */ <b>&amp;</b> https://a.b/c?d=e#f x@y.org",
    "ÀÉÎõü ¡¿ «quotes» “curly” ‘ones’ – — …",
    "عربي עברית ไทย हिन्दी \u202eright to left\u202c",
    "a" * 300,
    "１２３ ² ½ Ⅷ 12345678",
    "\u0120\u010a are symbols of the files themselves",
]


@pytest.fixture(scope="module")
def trained() -> ByteTokenizer:
    """A tokenizer with 400 merges trained on the demo corpus, with capitals, and on the difficult texts."""
    stories = [story.capitalize().replace(" i ", " I ") for story in demo_world.documents(count=60)]
    return train_bytes([*stories, *DIFFICULT * 2], 400)


@pytest.fixture(scope="module")
def theirs(trained, tmp_path_factory) -> GPT2Tokenizer:
    folder = tmp_path_factory.mktemp("theirs")
    trained.save(folder)
    return GPT2Tokenizer.from_pretrained(folder)


def textbook(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Callable[[str], list[int]]:
    """Return text -> ids by GPT-2's paper and the released encoder; it shares nothing with the code under test."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = dict(zip(visible, map(chr, visible), strict=True))
    letters |= {byte: chr(256 + n) for n, byte in enumerate(sorted({*range(256)} - {*visible}))}
    rank = {pair: n for n, pair in enumerate(merges)}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def encode(text: str) -> list[int]:
        ids = []
        for word in words.findall(text):
            parts = [letters[byte] for byte in word.encode()]
            while pairs := set(pairwise(parts)) & rank.keys():
                best, joined = min(pairs, key=rank.__getitem__), []
                while parts:
                    two = len(parts) > 1 and (parts[0], parts[1]) == best
                    joined.append("".join(parts[: 1 + two]))
                    parts = parts[1 + two :]
                parts = joined
            ids += [vocabulary[part] for part in parts]
        return ids

    return encode


# --- ids --------------------------------------------------------------------------------------------------------------


def test_difficult_text_has_the_ids_of_transformers_and_of_the_textbook(trained, theirs):
    assert len(trained.merges) == 400
    plain = textbook(trained.vocabulary, trained.merges)
    for text in DIFFICULT:
        assert trained.encode(text) == theirs(text)["input_ids"] == plain(text), text
    assert trained.encode_batch(DIFFICULT) == [trained.encode(text) for text in DIFFICULT]
    assert sum(index > 255 for text in DIFFICULT for index in trained.encode(text)) > 50  # merges were used


@settings(max_examples=150, deadline=None)
@given(text=hard_text.texts)
def test_any_text_is_restored_and_has_the_ids_of_transformers(trained, theirs, text):
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # a lone surrogate is not a character
    ids = trained.encode(text)
    assert trained.decode(ids) == valid
    assert ids == theirs(valid)["input_ids"]


def test_ids_worked_out_by_hand():
    """Bytes in the order of their characters: "!" is 0, "a" 64, the blank "Ġ" 220, the line break "Ċ" 198."""
    alphabet = sorted(bytelevel.byte_characters().values())
    entries = [*alphabet, "Ġa", "ab", "Ġab", "<|endoftext|>"]
    tokenizer = ByteTokenizer({entry: n for n, entry in enumerate(entries)}, [("Ġ", "a"), ("a", "b"), ("Ġa", "b")])
    assert tokenizer.encode("!ab ab\n a  b") == [0, 257, 258, 198, 256, 220, 220, 65]
    assert tokenizer.subwords([0, 257, 258, 198, 259, 260]) == ["!", "ab", "Ġab", "Ċ", "<|endoftext|>", "_start_"]
    assert tokenizer.encode("é") == [alphabet.index("Ã"), alphabet.index("©")] == [127, 102]
    properties = (len(tokenizer), tokenizer.document_separator, tokenizer.newline, tokenizer.level)
    assert properties == (260, 259, None, "bytes")


def test_text_cannot_contain_the_document_separator(trained):
    ids = trained.encode("the end<|endoftext|>the next")
    assert trained.document_separator not in ids and trained.decode(ids) == "the end<|endoftext|>the next"
    assert trained.decode([trained.document_separator]) == "<|endoftext|>"


def test_decode_accepts_special_tokens_and_incomplete_characters(trained):
    V = len(trained)
    assert trained.decode([V, *trained.encode("a b"), V + 1, V + 2]) == "_start_a b_delimiter__classify_"
    assert trained.decode(textbook(trained.vocabulary, [])("😀")[:3]) == "\ufffd"
    with pytest.raises(ValueError, match=f"id {V + 3} is not in the vocabulary"):
        trained.decode([V + 3])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("the cat", " the cat"), ("", ""), (", he", ", he"), ("'s", "'s"), (" b", " b"), ("(a", " (a"), ("\nx", "\nx")],
)
def test_leading_space_except_before_punctuation(trained, text, expected):
    assert trained.with_leading_space(text) == expected


# --- training and files -----------------------------------------------------------------------------------------------


def test_merges_worked_out_by_hand():
    """In "aab", " aab" (twice) and " b", "aa" and "ab" occur three times; the pair with the lower ids comes first."""
    tokenizer = train_bytes(["aab aab aab b"], 3)
    assert tokenizer.merges == [("a", "a"), ("aa", "b"), ("Ġ", "aab")]
    assert [*tokenizer.vocabulary][256:] == ["aa", "aab", "Ġaab", "<|endoftext|>"]
    assert [*tokenizer.vocabulary][:3] == ["!", '"', "#"] and tokenizer.vocabulary["Ń"] == 255


def test_training_is_deterministic_and_stops_if_no_pair_occurs_twice(trained):
    texts = [*demo_world.documents(count=20)]
    first, second = (train_bytes(iter(texts), 300) for _ in range(2))
    assert (first.vocabulary, first.merges) == (second.vocabulary, second.merges)
    assert train_bytes(["ab ab"], 50).merges == [("a", "b")]
    with pytest.raises(UserError, match="no pair of bytes occurs twice"):
        train_bytes(["", "x"], 50)


def test_a_saved_or_pickled_tokenizer_is_the_same(trained, tmp_path):
    trained.save(tmp_path)
    for again in (load(tmp_path), pickle.loads(pickle.dumps(trained))):
        assert isinstance(again, ByteTokenizer) and again.identity == trained.identity
        assert again.encode_batch(DIFFICULT) == trained.encode_batch(DIFFICULT)
    assert train_bytes(["aab aab"], 2).identity != trained.identity


def test_the_single_file_of_transformers_5_is_read(trained, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "merges.txt").exists()
    again = load(tmp_path)
    assert (again.vocabulary, again.merges) == (trained.vocabulary, trained.merges)
    (tmp_path / "tokenizer.json").write_text('{"model": {"merges": 3}}')
    with pytest.raises(UserError, match=r"tokenizer\.json has no byte-pair vocabulary"):
        load(tmp_path)


def without(vocabulary: dict[str, int], entry: str) -> dict[str, int]:
    kept = [name for name in vocabulary if name != entry]
    return {name: n for n, name in enumerate(kept)}


def test_damaged_tables_are_refused(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "merges.txt").write_text("\n".join((tmp_path / "merges.txt").read_text().split("\n")[:300]) + "\n")
    with pytest.raises(UserError, match=r"its 299 merges do not make 101 of the tokens"):
        load(tmp_path)
    trained.save(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(without(trained.vocabulary, "Ġthe")))
    with pytest.raises(UserError, match=r"'Ġthe' must be in vocab\.json"):
        load(tmp_path)
    (tmp_path / "vocab.json").write_text(
        json.dumps(without(trained.vocabulary, "!"))
    )  # not every byte is in the vocabulary
    with pytest.raises(UserError, match="token 0 must be <unk>"):
        load(tmp_path)


def test_a_vocabulary_of_words_gives_no_byte_tokenizer():
    assert not isinstance(bpe.from_tables({"<unk>": 0, "a": 1, "a</w>": 2}, []), ByteTokenizer)


# --- a corpus ---------------------------------------------------------------------------------------------------------


def quiet_reporting(folder: Path) -> Callable[..., Progress]:
    folder.mkdir(exist_ok=True)
    return lambda **about: Progress(folder, mode="none", **about)


def find_text_corpus(path: Path) -> documents.CorpusSource:
    config = CorpusConfig("texts", "text", str(path), "text", None, None, "rows", 1000)
    return documents.find_corpus(config, None, "")


def test_each_document_of_a_corpus_follows_the_separator(trained, tmp_path, monkeypatch):
    """The text is the same with one process or several, and if documents are split into parts."""
    story = "First line.\nSecond  line, 😀 twice.\n" * 40
    rows = [story, " \n", "", "Another one\n", "The last"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    source = find_text_corpus(tmp_path / "a.jsonl")
    streams = []
    for name, part, serial in (("whole", 2**18, 2**24), ("parts", 100, 2**24), ("workers", 100, 200)):
        monkeypatch.setattr(documents, "PART_CHARACTERS", part)
        monkeypatch.setattr(workers, "SERIAL_CHARACTERS", serial)
        shards = corpus.prepare_shards(
            source, "texts", trained, str(tmp_path / name), quiet_reporting(tmp_path / "run")
        )
        streams.append(np.concatenate([shards.train, shards.valid]).tolist())
    whole, in_parts, in_workers = streams
    end = "<|endoftext|>"
    assert trained.decode(whole) == trained.decode(in_parts) == "".join(end + row for row in rows if row)
    assert whole.count(trained.document_separator) == 4 and in_workers == in_parts


def test_trained_vocabularies_of_bytes_and_of_words_are_cached(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("The cat SAT on the mat. The cat sat on the hat.\n" * 5)
    source = find_text_corpus(tmp_path / "a.txt")
    config = TokenizerConfig("bytes", "corpus", None, 10, "bytes")
    trained = corpus.prepare_tokenizer(config, source, None, str(tmp_path), quiet_reporting(tmp_path / "run"))
    assert trained.level == "bytes" and trained.decode(trained.encode("A Cat")) == "A Cat" and len(trained) == 267
    words = corpus.prepare_tokenizer(
        TokenizerConfig("bpe", "corpus", None, 10), source, None, str(tmp_path), quiet_reporting(tmp_path / "run")
    )
    assert words.level == "words" and words.identity != trained.identity
    monkeypatch.setattr(bpe, "train_bytes", lambda *_: pytest.fail("trained twice"))
    again = corpus.prepare_tokenizer(config, source, None, str(tmp_path), quiet_reporting(tmp_path / "run"))
    assert again.identity == trained.identity


def test_a_published_vocabulary_of_the_other_level_is_refused(trained, tmp_path):
    trained.save(tmp_path / "org" / "name")
    config = TokenizerConfig("mine", "hub", "org/name", None)
    with pytest.raises(
        UserError, match=r"tokenizer\.level=words: .* org/name is made of bytes; use tokenizer\.level=bytes"
    ):
        corpus.prepare_tokenizer(config, None, str(tmp_path), str(tmp_path), quiet_reporting(tmp_path / "run"))
    loaded: Tokenizer = corpus.prepare_tokenizer(
        TokenizerConfig("mine", "hub", "org/name", None, "bytes"),
        None,
        str(tmp_path),
        "",
        quiet_reporting(tmp_path / "run"),
    )
    assert loaded.identity == trained.identity
