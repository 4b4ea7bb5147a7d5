"""Byte-level pieces against transformers' GPT-2 tokenizer and a textbook encoder; text comes back whole."""

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

UGLY = [
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
    """400 merges learned on the demo world in its own spelling, and on the ugly texts."""
    stories = [story.capitalize().replace(" i ", " I ") for story in demo_world.documents(count=60)]
    return train_bytes([*stories, *UGLY * 2], 400)


@pytest.fixture(scope="module")
def theirs(trained, tmp_path_factory) -> GPT2Tokenizer:
    folder = tmp_path_factory.mktemp("theirs")
    trained.save(folder)
    return GPT2Tokenizer.from_pretrained(folder)


def textbook(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Callable[[str], list[int]]:
    """text -> ids as GPT-2's paper and the released encoder have it; nothing is shared with the code under test."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = dict(zip(visible, map(chr, visible), strict=True))
    letters |= {byte: chr(256 + n) for n, byte in enumerate(sorted({*range(256)} - {*visible}))}
    rank = {pair: n for n, pair in enumerate(merges)}
    cut = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def encode(text: str) -> list[int]:
        ids = []
        for word in cut.findall(text):
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


def test_ugly_text_has_the_ids_of_transformers_and_of_the_textbook(trained, theirs):
    assert len(trained.merges) == 400
    plain = textbook(trained.vocabulary, trained.merges)
    for text in UGLY:
        assert trained.encode(text) == theirs(text)["input_ids"] == plain(text), text
    assert trained.encode_batch(UGLY) == [trained.encode(text) for text in UGLY]
    assert sum(index > 255 for text in UGLY for index in trained.encode(text)) > 50  # merges had their part in it


@settings(max_examples=150, deadline=None)
@given(text=hard_text.texts)
def test_any_text_comes_back_whole_and_has_the_ids_of_transformers(trained, theirs, text):
    sound = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a surrogate pair is no character
    ids = trained.encode(text)
    assert trained.decode(ids) == sound
    assert ids == theirs(sound)["input_ids"]


def test_ids_by_hand():
    """Bytes in the order of their characters: "!" is 0, "a" 64, the blank "Ġ" 220, the line break "Ċ" 198."""
    alphabet = sorted(bytelevel.characters().values())
    entries = [*alphabet, "Ġa", "ab", "Ġab", "<|endoftext|>"]
    made = ByteTokenizer({entry: n for n, entry in enumerate(entries)}, [("Ġ", "a"), ("a", "b"), ("Ġa", "b")])
    assert made.encode("!ab ab\n a  b") == [0, 257, 258, 198, 256, 220, 220, 65]
    assert made.pieces([0, 257, 258, 198, 259, 260]) == ["!", "ab", "Ġab", "Ċ", "<|endoftext|>", "_start_"]
    assert made.encode("é") == [alphabet.index("Ã"), alphabet.index("©")] == [127, 102]
    assert (len(made), made.opening, made.newline, made.level) == (260, 259, None, "bytes")


def test_the_entry_between_documents_is_not_typed_as_text(trained):
    ids = trained.encode("the end<|endoftext|>the next")
    assert trained.opening not in ids and trained.decode(ids) == "the end<|endoftext|>the next"
    assert trained.decode([trained.opening]) == "<|endoftext|>"


def test_special_rows_and_half_characters_are_decoded_and_no_more(trained):
    V = len(trained)
    assert trained.decode([V, *trained.encode("a b"), V + 1, V + 2]) == "_start_a b_delimiter__classify_"
    assert trained.decode(textbook(trained.vocabulary, [])("😀")[:3]) == "\ufffd"
    with pytest.raises(ValueError, match=f"id {V + 3} is not in the vocabulary"):
        trained.decode([V + 3])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("the cat", " the cat"), ("", ""), (", he", ", he"), ("'s", "'s"), (" b", " b"), ("(a", " (a"), ("\nx", "\nx")],
)
def test_a_text_behind_another_begins_with_a_blank_but_before_marks(trained, text, wanted):
    assert trained.running(text) == wanted


# --- training and files -----------------------------------------------------------------------------------------------


def test_training_by_hand():
    """Of "aab", twice " aab" and " b": "aa" and "ab" come three times, and the pair of lower ids is the first."""
    made = train_bytes(["aab aab aab b"], 3)
    assert made.merges == [("a", "a"), ("aa", "b"), ("Ġ", "aab")]
    assert [*made.vocabulary][256:] == ["aa", "aab", "Ġaab", "<|endoftext|>"]
    assert [*made.vocabulary][:3] == ["!", '"', "#"] and made.vocabulary["Ń"] == 255


def test_training_is_the_same_each_time_and_stops_where_no_pair_comes_twice(trained):
    texts = [*demo_world.documents(count=20)]
    first, second = (train_bytes(iter(texts), 300) for _ in range(2))
    assert (first.vocabulary, first.merges) == (second.vocabulary, second.merges)
    assert train_bytes(["ab ab"], 50).merges == [("a", "b")]
    with pytest.raises(UserError, match="no two bytes"):
        train_bytes(["", "x"], 50)


def test_saved_loaded_and_pickled_it_is_the_same(trained, tmp_path):
    trained.save(tmp_path)
    for again in (load(tmp_path), pickle.loads(pickle.dumps(trained))):
        assert isinstance(again, ByteTokenizer) and again.identity == trained.identity
        assert again.encode_batch(UGLY) == trained.encode_batch(UGLY)
    assert train_bytes(["aab aab"], 2).identity != trained.identity


def test_the_one_file_of_transformers_5_is_read_too(trained, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "merges.txt").exists()
    again = load(tmp_path)
    assert (again.vocabulary, again.merges) == (trained.vocabulary, trained.merges)
    (tmp_path / "tokenizer.json").write_text('{"model": {"merges": 3}}')
    with pytest.raises(UserError, match=r"tokenizer\.json holds no byte-pair vocabulary"):
        load(tmp_path)


def without(vocabulary: dict[str, int], entry: str) -> dict[str, int]:
    kept = [name for name in vocabulary if name != entry]
    return {name: n for n, name in enumerate(kept)}


def test_damaged_tables_are_named(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "merges.txt").write_text("\n".join((tmp_path / "merges.txt").read_text().split("\n")[:300]) + "\n")
    with pytest.raises(UserError, match=r"none of its 299 merges makes 101 of the entries"):
        load(tmp_path)
    trained.save(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(without(trained.vocabulary, "Ġthe")))
    with pytest.raises(UserError, match="'Ġthe' should be an entry"):
        load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(without(trained.vocabulary, "!")))  # not for every byte an entry
    with pytest.raises(UserError, match="entry 0 should be <unk>"):
        load(tmp_path)


def test_a_vocabulary_of_words_is_none_of_bytes():
    assert not isinstance(bpe.of({"<unk>": 0, "a": 1, "a</w>": 2}, []), ByteTokenizer)


# --- a corpus ---------------------------------------------------------------------------------------------------------


def quiet(folder: Path) -> Callable[..., Progress]:
    folder.mkdir(exist_ok=True)
    return lambda **about: Progress(folder, mode="none", **about)


def text_corpus(path: Path) -> documents.Source:
    config = CorpusConfig("texts", "text", str(path), "text", None, None, "rows", 1000)
    return documents.find(config, None, "")


def test_a_corpus_is_its_documents_each_behind_end_of_text(trained, tmp_path, monkeypatch):
    """In one process and in several, cut into parts at line breaks and not: always the same text."""
    story = "First line.\nSecond  line, 😀 twice.\n" * 40
    rows = [story, " \n", "", "Another one\n", "The last"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    source = text_corpus(tmp_path / "a.jsonl")
    found = []
    for name, part, few in (("whole", 2**18, 2**24), ("parts", 100, 2**24), ("workers", 100, 200)):
        monkeypatch.setattr(documents, "PART", part)
        monkeypatch.setattr(workers, "FEW", few)
        shards = corpus.prepare(source, "texts", trained, str(tmp_path / name), quiet(tmp_path / "run"))
        found.append(np.concatenate([shards.train, shards.valid]).tolist())
    whole, in_parts, in_workers = found
    end = "<|endoftext|>"
    assert trained.decode(whole) == trained.decode(in_parts) == "".join(end + row for row in rows if row)
    assert whole.count(trained.opening) == 4 and in_workers == in_parts


def test_a_vocabulary_trained_on_a_corpus_is_cached_beside_one_of_words(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("The cat SAT on the mat. The cat sat on the hat.\n" * 5)
    source = text_corpus(tmp_path / "a.txt")
    config = TokenizerConfig("bytes", "corpus", None, 10, "bytes")
    made = corpus.tokenizer_of(config, source, None, str(tmp_path), quiet(tmp_path / "run"))
    assert made.level == "bytes" and made.decode(made.encode("A Cat")) == "A Cat" and len(made) == 267
    words = corpus.tokenizer_of(
        TokenizerConfig("bpe", "corpus", None, 10), source, None, str(tmp_path), quiet(tmp_path / "run")
    )
    assert words.level == "words" and words.identity != made.identity
    monkeypatch.setattr(bpe, "train_bytes", lambda *_: pytest.fail("it was trained before"))
    again = corpus.tokenizer_of(config, source, None, str(tmp_path), quiet(tmp_path / "run"))
    assert again.identity == made.identity


def test_a_published_vocabulary_of_the_other_kind_is_refused(trained, tmp_path):
    trained.save(tmp_path / "org" / "name")
    config = TokenizerConfig("mine", "hub", "org/name", None)
    with pytest.raises(UserError, match=r"the vocabulary of org/name is one of bytes; name tokenizer\.level=bytes"):
        corpus.tokenizer_of(config, None, str(tmp_path), str(tmp_path), quiet(tmp_path / "run"))
    found: Tokenizer = corpus.tokenizer_of(
        TokenizerConfig("mine", "hub", "org/name", None, "bytes"), None, str(tmp_path), "", quiet(tmp_path / "run")
    )
    assert found.identity == trained.identity
