"""The tokenizer against a second, slow implementation of the published rules, and training worked out by hand."""

import json
import os
import pickle
import random
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import ftfy
import hard_text
import numpy as np
import pytest
import spacy
from hypothesis import given, settings

from gpt1cli.config.schema import UserError
from gpt1cli.text import chunk_cache, normalise
from gpt1cli.text.bpe import Tokenizer, load, train

# --- the reference: the published rules once more, step by step, as the released code orders them ---------------------


def reference_encoder(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Callable[[str], list[int]]:
    """text -> ids by the textbook loop over pairs; nothing is shared with the code under test."""
    rank = {pair: number for number, pair in enumerate(merges)}
    english = spacy.blank("en")

    @cache
    def pieces(word: str) -> list[str]:
        if len(word) == 1:
            return [word + "</w>"]
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = set(pairwise(parts)) & rank.keys()
            if not pairs:
                break
            left, right = min(pairs, key=rank.__getitem__)
            joined: list[str] = []
            rest = list(reversed(parts))
            while rest:
                part = rest.pop()
                if part == left and rest and rest[-1] == right:
                    part += rest.pop()
                joined.append(part)
            parts = joined
        if parts == ["\n", " </w>"]:
            return ["\n</w>"]
        return " ".join(parts).split(" ")

    def encode(text: str) -> list[int]:
        text = ftfy.fix_text(text)
        for old, new in (("—", "-"), ("–", "-"), ("―", "-"), ("…", "..."), ("´", "'")):
            text = text.replace(old, new)
        for mark in '-~!";?+,)(/*[]}{|_':  # no backslash
            text = re.sub(f"({re.escape(mark)}+)", r" \1 ", text)
        text = re.sub(r"\s*\n\s*", " \n ", text)
        text = re.sub(r"[^\S\n]+", " ", text).strip()
        return [vocabulary.get(piece, 0) for token in english(text) for piece in pieces(token.text.lower())]

    return encode


ORDINARY = [
    "The old man sat down by the fire, and nobody spoke.",
    "Don't you think it's what they'd have said? I'll say we're sure; you can't, won't, shouldn't've.",
    "Mr. Smith paid $3.50 (about 5%) on 12/03/1998 at 10:30 a.m. in the U.S.A.",
    "Look at https://example.org/a_b?c=d&e=f#g or write to some.body@example.com!",
    "A well-known, half-eaten -- if not stolen --- apple: it is, as they say, 'good'.",
    "THE END",
]
UGLY = {
    "empty": "",
    "blanks": "  \t \u00a0 \u3000 ",
    "newlines only": "\n\r\n\n",
    "mojibake": "The cafÃ© was â€œcloseâ€\x9d, naÃ¯ve âœ” Ã¼ber â€” it´s",
    "emoji": "I 😀 you 👩\u200d👩\u200d👧 ❤️!😀😀",
    "tabs": "one\ttwo\t\tthree\n\tfour",
    "controls": "a\x00b\x01c\x07\x0b\x0c\x1bd\x1c\x1d\x1e\x1f e\x7f\x85f\x1b[31mred\x1b[0m",
    "long word": "".join(random.Random(0).choices("etaoinshrdlu", k=5000)),
    "long run": "a" * 300 + "!" * 300 + "." * 300,
    "windows newlines": "one\r\ntwo\r\n\r\nthree\rfour",
    "many newlines": "\n\n\none\n\n \n\t\n two\n",
    "unicode newlines": "one\u2028two\u2029three\x85four",
    "cjk": "我们 去 学校。これはテストです 한국어",
    "entities": "salt &amp; pepper &lt;b&gt; &eacute; &#x41; &nbsp; &bogus;",
    "entities after a tag": "<p>salt &amp; pepper\n&eacute; &lt;",
    "entities before a tag": "salt &amp; pepper\n<p>salt &amp; pepper",
    "backslashes": "C:\\new\\table \\n \\t \\\\ a\\b \\",
    "quotes": "“curly” ‘quotes’ „low‟ «guillemets» it’s ''double'' ``ticks``",
    "ellipsis": "wait… what.... .. …",
    "accents": "e\u0301 a\u030a o\u0308\u0301 n\u0303o\u0336 İstanbul ẞ ǅ ﬁne ﬃ ＡＢＣ ½",
    "zero width": "a\u200bb \u200c\u200d \ufeffc \u2060d\u00ade",
    "surrogates": "a\ud800b \ud83d\ude00 &#xD800;",
    "marks": "<unk> a<unk>b </w> _start_ _classify_ a</w> :-) :'( ^_^ o_O (a) [b] {c} |d| ~e~ *f* +g+ =h=",
}


def random_texts(count: int) -> list[str]:
    """Texts drawn from the pieces that the rules treat apart."""
    symbols = "aenst' .,!?-_\"()/\\\n\t<>&;:…—´’“\u00a0\u200b\u0301\x00\u2028éÃ©😀日"
    alphabet = [*symbols, " ", "\r\n", "n't", "&amp;", "'s", "the"]
    chance = random.Random(1)
    return ["".join(chance.choices(alphabet, k=chance.randrange(40))) for _ in range(count)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A small vocabulary over the ordinary texts: it knows their symbols and no emoji, accent or CJK."""
    return train(Counter(word for line in ORDINARY * 3 for word in normalise.words(line)), merges=300)


def spelling(symbols: str, filler: int = 0) -> Tokenizer:
    """No merges: the ids spell every word, and so tell each cut between two words, with `filler` entries in between."""
    entries = ["<unk>", *(chr(0x20000 + number) for number in range(filler)), *symbols]
    entries += [*(symbol + "</w>" for symbol in symbols), "\n</w>"]
    return Tokenizer({entry: number for number, entry in enumerate(entries)}, [])


SPELLING = spelling("".join(map(chr, range(33, 127))) + "éñ½°…")


@pytest.fixture(scope="module")
def published() -> Tokenizer:
    return load(_published_folder())


def _published_folder() -> Path:
    if "GPT1_TEST_HUB" not in os.environ:
        pytest.skip("GPT1_TEST_HUB is unset: a folder with openai-community/openai-gpt, the published vocabulary")
    return Path(os.environ["GPT1_TEST_HUB"]) / "openai-community" / "openai-gpt"


# --- ids --------------------------------------------------------------------------------------------------------------


def assert_ids_equal_the_reference(tokenizer: Tokenizer, texts: list[str]) -> None:
    expected = reference_encoder(tokenizer.vocabulary, tokenizer.merges)
    for text in texts:
        ids = expected(text)
        assert tokenizer.encode_plain(text) == ids, ascii(text[:200])
        assert tokenizer.encode(text) == ids, ascii(text[:200])
        assert tokenizer.encode(text) == ids, f"from the cache: {text[:200]!a}"


@pytest.mark.parametrize("name", UGLY)
def test_ugly_text_equals_the_reference(trained: Tokenizer, name: str) -> None:
    assert_ids_equal_the_reference(trained, [UGLY[name], f"Before {UGLY[name]} after", f"x{UGLY[name]}y"])


def test_ordinary_and_random_text_equals_the_reference(trained: Tokenizer) -> None:
    assert_ids_equal_the_reference(trained, [*ORDINARY, "\n".join(ORDINARY), *random_texts(300)])


def test_a_vocabulary_of_repeated_letters_equals_the_reference() -> None:
    """Overlapping pairs: joined from the left, all occurrences of one merge before the next merge is looked for."""
    letters = random.Random(2)
    counts = Counter("".join(letters.choices("ab", weights=(3, 1), k=letters.randrange(1, 14))) for _ in range(500))
    tokenizer = train(counts, merges=200)
    assert_ids_equal_the_reference(tokenizer, [" ".join(counts), "a" * 100, "ab" * 50, "aab" * 50])


def test_words_by_hand() -> None:
    entries = ["<unk>", "t", "h", "e", "t</w>", "h</w>", "e</w>", "th", "the</w>", "\n</w>"]
    tokenizer = Tokenizer({entry: number for number, entry in enumerate(entries)}, [("t", "h"), ("th", "e</w>")])
    assert tokenizer.encode("The") == [8]
    assert tokenizer.encode("e het\nthe") == [6, 2, 3, 4, 9, 8]
    assert tokenizer.encode("thx x") == [7, 0, 0]  # an unknown symbol, inside a word and alone
    assert tokenizer.encode_batch(["the", "", "e"]) == [[8], [], [6]]
    assert len(tokenizer) == 10


def test_random_trouble_equals_the_reference() -> None:
    expected = reference_encoder(SPELLING.vocabulary, [])

    @settings(max_examples=300, derandomize=True, deadline=None)
    @given(hard_text.texts)
    def check(text: str) -> None:
        assert SPELLING.encode(text) == SPELLING.encode_plain(text) == expected(text)

    check()


@pytest.mark.slow
def test_much_random_trouble_has_the_ids_of_the_plain_way() -> None:
    @settings(max_examples=8_000, derandomize=True, deadline=None)
    @given(hard_text.texts)
    def check(text: str) -> None:
        assert SPELLING.encode(text) == SPELLING.encode_plain(text)

    check()


def test_every_exception_within_marks_has_the_ids_of_the_plain_way() -> None:
    """All exceptions of spaCy's, alone and as neighbours, in shuffled order and with marks that take them apart."""
    exceptions, marks = (
        sorted(normalise._english().rules),
        ["", "", "'", "''", ".", ".'", "'.", ":", "'s", "..", ",", '"'],
    )
    chance = random.Random(3)
    for _ in range(6):
        chance.shuffle(exceptions)
        words = [chance.choice(marks) + exception + chance.choice(marks) for exception in exceptions]
        text = "\n".join(" ".join(words[start : start + 9]) for start in range(0, len(words), 9))
        assert SPELLING.encode(text) == SPELLING.encode_plain(text)


def test_a_line_that_must_be_cut_as_a_whole() -> None:
    lines = ["They were the boys.", "", "'Call the boys' 'em.'", "boys' 'em.'", "'em.'"]
    expected = reference_encoder(SPELLING.vocabulary, [])
    for text in ("\n".join(lines), "\n".join([*lines * 400, lines[0]]), lines[2], lines[4] + "\n", "\n" + lines[3]):
        assert SPELLING.encode(text) == expected(text)


@pytest.mark.parametrize(("filler", "width"), [(0, np.uint16), (70_000, np.uint32)])
def test_an_array_of_ids(filler: int, width: type) -> None:
    tokenizer = spelling("abc", filler)
    a, b, _, last_a, last_b, last_c, newline = range(filler + 1, filler + 8)
    for text, ids in {
        "": [],
        "\n \n": [],
        "abc": [a, b, last_c],
        "a\n\n b c\n": [last_a, newline, last_b, last_c],
        "\n\na\r\n\u2028c, ab": [last_a, newline, last_c, 0, a, last_b],
    }.items():
        (array,) = tokenizer.encode_arrays([text])
        assert array.dtype == width
        assert array.tolist() == tokenizer.encode(text) == ids
        array[:] = 0  # the caller's own: nothing remembered changes with it
        assert tokenizer.encode(text) == ids


def test_a_line_break_without_an_entry_is_unknown_and_not_lost_among_the_unknown() -> None:
    tokenizer = Tokenizer({"<unk>": 0, "a": 1, "a</w>": 2}, [])
    assert tokenizer.encode("x\ny\n\na x") == tokenizer.encode_plain("x\ny\n\na x") == [0, 0, 0, 0, 2, 0]


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(ORDINARY)
    expected = SPELLING.encode(text)
    monkeypatch.setattr(normalise, "CHUNKS", 20)
    monkeypatch.setattr(chunk_cache, "CHUNKS", 20)
    tokenizer = spelling("".join(map(chr, range(33, 127))) + "éñ½°…")
    assert tokenizer.encode(text) == tokenizer.encode(text) == expected
    assert len(tokenizer._lookup) == len(tokenizer._parts) == 20
    monkeypatch.undo()
    assert tokenizer.encode("") == []  # a chunk for the end of a text
    word = "the" * normalise.CHUNK_SYMBOLS
    assert tokenizer.encode(word) == tokenizer.encode(word) == SPELLING.encode(word)
    assert (len(tokenizer._lookup), len(tokenizer._parts)) == (21, 20)


@pytest.mark.parametrize(
    ("row_bits", "looked_up", "chunks"),
    [(18, 1 << 16, 1 << 18), (1, 1 << 16, 1 << 18), (6, 40, 1 << 18), (18, 1 << 16, 20)],
)
def test_many_texts_at_once_get_the_ids_of_each_alone(
    monkeypatch: pytest.MonkeyPatch, row_bits: int, looked_up: int, chunks: int
) -> None:
    """Whether chunks have a row or share it or are not remembered, and wherever a text is cut for the look-up."""
    monkeypatch.setattr(chunk_cache, "CHUNKS", chunks)
    monkeypatch.setattr(chunk_cache, "ROW_BITS", row_bits)
    monkeypatch.setattr(normalise, "LOOKED_UP", looked_up)
    tokenizer = spelling("".join(map(chr, range(33, 127))) + "éñ½°…")
    entangled = ["'Call the boys' 'em.'\nand the others", "x\nboys' 'em.' unheard-of"]
    long = ["a" * 15, "a" * 16, "a" * 17, "a" * 15 + "b", "b" * 300]
    odd = ["\x01", "a\x01b", "\x00", " ", "  a  b  ", "\n", "\na"]
    texts = ["", *entangled, *long, *odd, *ORDINARY, "", *random_texts(300), "".join(random_texts(300)), ""]
    expected = [tokenizer.encode_plain(text) for text in texts]
    for _ in range(2):
        assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode_batch([]) == [] and tokenizer.encode_batch([""]) == [[]]


def test_an_interrupted_look_up_leaves_nothing_half_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = spelling("".join(map(chr, range(33, 127)))), " ".join(ORDINARY)
    original, calls = normalise.part_words, []

    def interrupting(part: str) -> list[str]:
        calls.append(part)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return original(part)

    with monkeypatch.context() as patched:
        patched.setattr(normalise, "part_words", interrupting)
        with pytest.raises(KeyboardInterrupt):
            tokenizer.encode(text)
    assert tokenizer.encode(text) == tokenizer.encode(text) == tokenizer.encode_plain(text)


def test_threads_may_share_a_tokenizer() -> None:
    tokenizer, texts = spelling("".join(map(chr, range(33, 127))) + "éñ½°…"), random_texts(400)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(tokenizer.encode, texts))
    assert found == [SPELLING.encode_plain(text) for text in texts]


def test_two_tokenizers_share_nothing(trained: Tokenizer) -> None:
    text = "The old man, the fire."
    ids, spelled = trained.encode(text), SPELLING.encode(text)
    assert ids != spelled
    assert trained.encode(text) == ids


@pytest.mark.realdata
def test_published_vocabulary(published: Tokenizer) -> None:
    entries = list(published.vocabulary)
    assert len(published) == 40478
    assert len(published.merges) == 40000
    assert [published.vocabulary[entry] for entry in ("<unk>", "n't</w>", "\n</w>")] == [0, 538, 40477]
    assert [entry + "</w>" for entry in entries[1:239]] == entries[239:477]
    assert [left + right for left, right in published.merges] == entries[477:40477]
    assert published.encode("Don't\n\nstop") == [587, 538, 40477, entries.index("stop</w>")]
    assert published.encode("naïve café") == [entries.index("naïve</w>"), entries.index("café</w>")]


@pytest.mark.realdata
def test_published_ids_equal_the_reference(published: Tokenizer) -> None:
    assert_ids_equal_the_reference(published, [*ORDINARY, *UGLY.values(), *random_texts(200)])


@pytest.mark.slow
@pytest.mark.realdata
def test_two_megabytes_of_books_equal_the_reference(published: Tokenizer) -> None:
    if "GPT1_TEST_BOOKS" not in os.environ:
        pytest.skip("GPT1_TEST_BOOKS is unset: a folder of .txt files, real text of 2 MB or more")
    texts, size = [], 0
    for file in sorted(Path(os.environ["GPT1_TEST_BOOKS"]).glob("*.txt")):
        content = file.read_text(encoding="utf-8", errors="replace")[: 2_000_000 - size]
        texts.append(content)
        size += len(content)
    expected = reference_encoder(published.vocabulary, published.merges)
    assert size == 2_000_000
    for text, ids in zip(texts, published.encode_batch(texts), strict=True):
        assert ids == expected(text), text[:100]
        assert normalise.count_words(text) == Counter(normalise.words(text)), text[:100]


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_decode_reads_like_text(trained: Tokenizer) -> None:
    assert trained.decode([]) == ""
    assert trained.decode(trained.encode("The old man\n\nsat  down.")) == "the old man\nsat down ."
    assert trained.decode(trained.encode("I don't")) == "i do n't"
    assert trained.decode(trained.encode("the 日 man")) == "the <unk> man"
    newline = len(trained) - 1
    assert trained.decode([newline, *trained.encode("man"), newline, newline]) == "\nman\n\n"


def test_plain_text_decoded_and_encoded_again_has_the_same_ids(trained: Tokenizer) -> None:
    ids = trained.encode(ORDINARY[0] + "\nI don't.")
    assert trained.encode(trained.decode(ids)) == ids


def test_decode_knows_the_three_special_rows_and_no_more(trained: Tokenizer) -> None:
    rows = len(trained)
    man = trained.encode("man")
    assert trained.decode([rows, *man, rows + 1, *man, rows + 2]) == "_start_ man _delimiter_ man _classify_"
    for beyond in (rows + 3, -1):
        with pytest.raises(ValueError, match=f"id {beyond} is not in the vocabulary"):
            trained.decode([beyond])


# --- training ---------------------------------------------------------------------------------------------------------

# The example of Sennrich et al.: every merge below was worked out on paper from these counts.
LOW = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
LOW_SYMBOLS = list("ewstlondir")  # 17 16 9 9 7 7 6 3 3 2 times; equal counts in code point order
LOW_MERGES = [
    ("e", "s"),  # 9, as often as s t</w>; the lower ids win
    ("es", "t</w>"),  # 9
    ("l", "o"),  # 7
    ("e", "w"),  # 6, as n e and w est</w>
    ("n", "ew"),  # 6, as ew est</w>
    ("new", "est</w>"),  # 6
    ("lo", "w</w>"),  # 5
    ("w", "i"),  # 3, as i d and d est</w>
    ("d", "est</w>"),  # 3, as wi d
    ("wi", "dest</w>"),  # 3
    ("e", "r</w>"),  # 2, as lo w and w e
    ("w", "er</w>"),  # 2, as lo w
    ("lo", "wer</w>"),  # 2
]


def test_training_by_hand() -> None:
    tokenizer = train(LOW, merges=7)
    assert tokenizer.merges == LOW_MERGES[:7]
    entries = ["<unk>", *LOW_SYMBOLS, *(symbol + "</w>" for symbol in LOW_SYMBOLS)]
    entries += ["es", "est</w>", "lo", "ew", "new", "newest</w>", "low</w>", "\n</w>"]
    assert tokenizer.vocabulary == {entry: number for number, entry in enumerate(entries)}
    assert list(tokenizer.vocabulary) == entries


def test_training_stops_where_no_pair_is_seen_twice() -> None:
    assert train(LOW, merges=1000).merges == LOW_MERGES
    assert train({"abc": 1}, merges=1000).merges == []


def test_training_depends_on_counts_not_on_their_order(trained: Tokenizer) -> None:
    words = [word for line in ORDINARY * 3 for word in normalise.words(line)]
    for seed in range(3):
        random.Random(seed).shuffle(words)
        assert train(Counter(words), merges=300).vocabulary == trained.vocabulary


def test_a_count_larger_than_one_portion_counts_in_full() -> None:
    assert train({"ab": 10_000, "cd": 9_999}, merges=1).merges == [("a", "b</w>")]
    assert train({"ab": 9_999, "cd": 10_000}, merges=1).merges == [("c", "d</w>")]


def test_the_alphabet_keeps_the_238_most_frequent_symbols() -> None:
    symbols = [chr(0x4E00 + number) for number in range(240)]
    counts = {symbol: 2 for symbol in symbols} | {symbols[239] + symbols[0]: 3, symbols[238] + symbols[0]: 9}
    kept = train(counts, merges=5)
    # 0 is seen 14 times, 238 11 times, 239 5 times, all others twice: of those the first 235 in code point order stay.
    assert list(kept.vocabulary)[1:239] == [symbols[0], symbols[238], symbols[239], *symbols[1:236]]
    assert len(kept) == 2 + 2 * 238 + 2
    assert kept.encode(symbols[236]) == [0]


def test_a_word_with_a_rare_symbol_teaches_no_merge() -> None:
    common = {chr(0x4E00 + number): 100 for number in range(236)}
    tokenizer = train(common | {"a": 100, "b": 100, "axb": 50, "ab": 3}, merges=5)
    assert "x" not in tokenizer.vocabulary
    assert tokenizer.merges == [("a", "b</w>")]


def test_line_breaks_and_marks_of_the_vocabulary_are_no_words() -> None:
    tokenizer = train({normalise.NEWLINE: 50, "a<unk>b": 9, "a</w>b": 9, "ab": 2}, merges=50)
    assert tokenizer.merges == [("a", "b</w>")]
    assert tokenizer.encode("ab\nab") == [len(tokenizer) - 2, len(tokenizer) - 1, len(tokenizer) - 2]


@pytest.mark.parametrize("counts", [{}, {normalise.NEWLINE: 7}])
def test_an_empty_corpus_is_the_users_error(counts: dict[str, int]) -> None:
    with pytest.raises(UserError, match="no word to train a vocabulary on"):
        train(counts, merges=10)


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_save_and_load(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    again = load(tmp_path)
    assert (again.vocabulary, again.merges, again.identity) == (trained.vocabulary, trained.merges, trained.identity)
    assert again.encode(ORDINARY[1]) == trained.encode(ORDINARY[1])
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").split("\n")
    assert (lines[0], lines[1], lines[-1]) == ("#version: 0.2", " ".join(trained.merges[0]), "")


def test_symbols_that_look_like_line_ends_survive_the_file(tmp_path: Path) -> None:
    tokenizer = train({"a\u200bb": 5, "é\ufeff": 4, "\x01\x02": 3}, merges=10)
    tokenizer.save(tmp_path)
    assert load(tmp_path).merges == tokenizer.merges


def test_transformers_reads_the_saved_files(trained: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    trained.save(tmp_path)
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(tmp_path)
    plain = "the old man sat down by the fire"  # a text on which their simpler rules agree with the published ones
    assert theirs.get_vocab() == trained.vocabulary
    assert theirs(plain)["input_ids"] == trained.encode(plain)


def test_a_pickled_tokenizer_is_the_same(trained: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(trained))
    assert again.identity == trained.identity
    assert again.encode(ORDINARY[2]) == trained.encode(ORDINARY[2])


def test_identity_follows_everything_that_decides_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train(LOW, merges=7)
    assert tokenizer.identity == train(LOW, merges=7).identity
    assert re.fullmatch("[0-9a-f]{16}", tokenizer.identity)
    assert train(LOW, merges=6).identity != tokenizer.identity
    first, second, third, fourth, *rest = tokenizer.merges
    reordered = Tokenizer(tokenizer.vocabulary, [first, second, fourth, third, *rest])
    assert reordered.identity != tokenizer.identity
    monkeypatch.setattr(normalise, "versions", lambda: {"ftfy": "0", "spacy": "0"})
    assert train(LOW, merges=7).identity != tokenizer.identity


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vocab.json", None, "no file vocab.json"),
        ("merges.txt", None, "no file merges.txt"),
        ("vocab.json", "{", "vocab.json is not whole JSON"),
        ("vocab.json", "[]", "vocab.json does not map entries to whole numbers"),
        ("vocab.json", '{"<unk>": "0"}', "vocab.json does not map entries to whole numbers"),
        ("vocab.json", '{"a": 0, "a</w>": 1}', "entry 0 should be <unk>"),
        ("vocab.json", '{"<unk>": 0, "a": 2}', "the ids of 2 entries should be 0 to 1, each once"),
        ("vocab.json", b"\xff\xfe", "vocab.json cannot be read"),
        ("merges.txt", "", "none of its 0 merges makes 7 of the entries of vocab.json, such as 'es'"),
        ("merges.txt", "#version: 0.2\ne s\nes", "merges.txt, line 3: expected two symbols and one blank, found 'es'"),
        ("merges.txt", "#version: 0.2\ne s\nes t</w>\n", "none of its 2 merges makes 5 of"),  # cut off at a line's end
        ("merges.txt", "#version: 0.2\ne s\nes t</", "merge 2 ('es', 't</')"),  # cut off within a line
        ("merges.txt", "#version: 0.2\ne s\ne s\n", "merge 2 ('e', 's')"),
        ("merges.txt", "#version: 0.2\nes t</w>\ne s\n", "merge 1 ('es', 't</w>')"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str | bytes | None, message: str) -> None:
    train(LOW, merges=7).save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        load(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "copy both again" in str(raised.value)


def test_published_file_order_does_not_matter(tmp_path: Path) -> None:
    """The published vocab.json lists <unk> last."""
    tokenizer = train(LOW, merges=7)
    tokenizer.save(tmp_path)
    entries = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    entries["<unk>"] = entries.pop("<unk>")
    (tmp_path / "vocab.json").write_text(json.dumps(entries), encoding="utf-8")
    assert load(tmp_path).identity == tokenizer.identity
