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

# --- the reference: a second implementation of the published rules, in the order of the released code ----------------


def reference_encoder(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Callable[[str], list[int]]:
    """Return text -> ids by the textbook loop over pairs; it shares nothing with the code under test."""
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
DIFFICULT = {
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
    """Return texts drawn from strings that the rules treat differently."""
    symbols = "aenst' .,!?-_\"()/\\\n\t<>&;:…—´’“\u00a0\u200b\u0301\x00\u2028éÃ©😀日"
    alphabet = [*symbols, " ", "\r\n", "n't", "&amp;", "'s", "the"]
    generator = random.Random(1)
    return ["".join(generator.choices(alphabet, k=generator.randrange(40))) for _ in range(count)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A small vocabulary trained on the ordinary texts: it has their symbols but no emoji, accents or CJK."""
    return train(Counter(word for line in ORDINARY * 3 for word in normalise.split_words(line)), merges=300)


def spelling_tokenizer(symbols: str, filler: int = 0) -> Tokenizer:
    """Return a tokenizer without merges, whose ids show every boundary between words; `filler` tokens raise the ids."""
    entries = ["<unk>", *(chr(0x20000 + number) for number in range(filler)), *symbols]
    entries += [*(symbol + "</w>" for symbol in symbols), "\n</w>"]
    return Tokenizer({entry: number for number, entry in enumerate(entries)}, [])


SPELLING = spelling_tokenizer("".join(map(chr, range(33, 127))) + "éñ½°…")


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


@pytest.mark.parametrize("name", DIFFICULT)
def test_difficult_text_equals_the_reference(trained: Tokenizer, name: str) -> None:
    assert_ids_equal_the_reference(
        trained, [DIFFICULT[name], f"Before {DIFFICULT[name]} after", f"x{DIFFICULT[name]}y"]
    )


def test_ordinary_and_random_text_equals_the_reference(trained: Tokenizer) -> None:
    assert_ids_equal_the_reference(trained, [*ORDINARY, "\n".join(ORDINARY), *random_texts(300)])


def test_a_vocabulary_of_repeated_letters_equals_the_reference() -> None:
    """Overlapping pairs are joined from the left, all occurrences of one merge before the next merge."""
    letters = random.Random(2)
    counts = Counter("".join(letters.choices("ab", weights=(3, 1), k=letters.randrange(1, 14))) for _ in range(500))
    tokenizer = train(counts, merges=200)
    assert_ids_equal_the_reference(tokenizer, [" ".join(counts), "a" * 100, "ab" * 50, "aab" * 50])


def test_ids_worked_out_by_hand() -> None:
    entries = ["<unk>", "t", "h", "e", "t</w>", "h</w>", "e</w>", "th", "the</w>", "\n</w>"]
    tokenizer = Tokenizer({entry: number for number, entry in enumerate(entries)}, [("t", "h"), ("th", "e</w>")])
    assert tokenizer.encode("The") == [8]
    assert tokenizer.encode("e het\nthe") == [6, 2, 3, 4, 9, 8]
    assert tokenizer.encode("thx x") == [7, 0, 0]  # an unknown symbol, inside a word and alone
    assert tokenizer.encode_batch(["the", "", "e"]) == [[8], [], [6]]
    assert len(tokenizer) == 10


def test_random_difficult_text_equals_the_reference() -> None:
    expected = reference_encoder(SPELLING.vocabulary, [])

    @settings(max_examples=300, derandomize=True, deadline=None)
    @given(hard_text.texts)
    def check(text: str) -> None:
        assert SPELLING.encode(text) == SPELLING.encode_plain(text) == expected(text)

    check()


@pytest.mark.slow
def test_many_difficult_texts_have_the_ids_of_encode_plain() -> None:
    @settings(max_examples=8_000, derandomize=True, deadline=None)
    @given(hard_text.texts)
    def check(text: str) -> None:
        assert SPELLING.encode(text) == SPELLING.encode_plain(text)

    check()


def test_all_exceptions_next_to_marks_have_the_ids_of_encode_plain() -> None:
    """All exceptions of spaCy, in random order, with marks that split them."""
    exceptions, marks = (
        sorted(normalise._english().rules),
        ["", "", "'", "''", ".", ".'", "'.", ":", "'s", "..", ",", '"'],
    )
    generator = random.Random(3)
    for _ in range(6):
        generator.shuffle(exceptions)
        words = [generator.choice(marks) + exception + generator.choice(marks) for exception in exceptions]
        text = "\n".join(" ".join(words[start : start + 9]) for start in range(0, len(words), 9))
        assert SPELLING.encode(text) == SPELLING.encode_plain(text)


def test_lines_that_must_be_split_as_a_whole() -> None:
    lines = ["They were the boys.", "", "'Call the boys' 'em.'", "boys' 'em.'", "'em.'"]
    expected = reference_encoder(SPELLING.vocabulary, [])
    for text in ("\n".join(lines), "\n".join([*lines * 400, lines[0]]), lines[2], lines[4] + "\n", "\n" + lines[3]):
        assert SPELLING.encode(text) == expected(text)


@pytest.mark.parametrize(("filler", "width"), [(0, np.uint16), (70_000, np.uint32)])
def test_encode_arrays(filler: int, width: type) -> None:
    tokenizer = spelling_tokenizer("abc", filler)
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
        array[:] = 0  # the caller owns the array: the caches do not change
        assert tokenizer.encode(text) == ids


def test_line_breaks_that_are_not_in_the_vocabulary_become_unknown_tokens() -> None:
    tokenizer = Tokenizer({"<unk>": 0, "a": 1, "a</w>": 2}, [])
    assert tokenizer.encode("x\ny\n\na x") == tokenizer.encode_plain("x\ny\n\na x") == [0, 0, 0, 0, 2, 0]


def test_caches_are_bounded_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(ORDINARY)
    expected = SPELLING.encode(text)
    monkeypatch.setattr(normalise, "MAX_CHUNKS", 20)
    monkeypatch.setattr(chunk_cache, "MAX_CHUNKS", 20)
    tokenizer = spelling_tokenizer("".join(map(chr, range(33, 127))) + "éñ½°…")
    assert tokenizer.encode(text) == tokenizer.encode(text) == expected
    assert len(tokenizer._chunk_cache) == len(tokenizer._part_cache) == 20
    monkeypatch.undo()
    assert tokenizer.encode("") == []  # a chunk for the end of a text
    word = "the" * normalise.MAX_CHUNK_SYMBOLS
    assert tokenizer.encode(word) == tokenizer.encode(word) == SPELLING.encode(word)
    assert (len(tokenizer._chunk_cache), len(tokenizer._part_cache)) == (21, 20)


@pytest.mark.parametrize(
    ("row_bits", "lookup", "chunks"),
    [(18, 1 << 16, 1 << 18), (1, 1 << 16, 1 << 18), (6, 40, 1 << 18), (18, 1 << 16, 20)],
)
def test_a_batch_of_texts_has_the_ids_of_each_text(
    monkeypatch: pytest.MonkeyPatch, row_bits: int, lookup: int, chunks: int
) -> None:
    """With rows of their own, shared rows or a full cache, and wherever a text is split for the lookup."""
    monkeypatch.setattr(chunk_cache, "MAX_CHUNKS", chunks)
    monkeypatch.setattr(chunk_cache, "ROW_BITS", row_bits)
    monkeypatch.setattr(normalise, "LOOKUP_CHARACTERS", lookup)
    tokenizer = spelling_tokenizer("".join(map(chr, range(33, 127))) + "éñ½°…")
    in_context = ["'Call the boys' 'em.'\nand the others", "x\nboys' 'em.' unheard-of"]
    long = ["a" * 15, "a" * 16, "a" * 17, "a" * 15 + "b", "b" * 300]
    odd = ["\x01", "a\x01b", "\x00", " ", "  a  b  ", "\n", "\na"]
    texts = ["", *in_context, *long, *odd, *ORDINARY, "", *random_texts(300), "".join(random_texts(300)), ""]
    expected = [tokenizer.encode_plain(text) for text in texts]
    for _ in range(2):
        assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode_batch([]) == [] and tokenizer.encode_batch([""]) == [[]]


def test_an_interrupted_encoding_leaves_the_caches_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = spelling_tokenizer("".join(map(chr, range(33, 127)))), " ".join(ORDINARY)
    original, calls = normalise.part_words, []

    def interrupt(part: str) -> list[str]:
        calls.append(part)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return original(part)

    with monkeypatch.context() as patched:
        patched.setattr(normalise, "part_words", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tokenizer.encode(text)
    assert tokenizer.encode(text) == tokenizer.encode(text) == tokenizer.encode_plain(text)


def test_threads_can_share_a_tokenizer() -> None:
    tokenizer, texts = spelling_tokenizer("".join(map(chr, range(33, 127))) + "éñ½°…"), random_texts(400)
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(tokenizer.encode, texts))
    assert ids == [SPELLING.encode_plain(text) for text in texts]


def test_tokenizers_do_not_share_caches(trained: Tokenizer) -> None:
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
    assert_ids_equal_the_reference(published, [*ORDINARY, *DIFFICULT.values(), *random_texts(200)])


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
        assert normalise.count_words(text) == Counter(normalise.split_words(text)), text[:100]


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_decode_returns_readable_text(trained: Tokenizer) -> None:
    assert trained.decode([]) == ""
    assert trained.decode(trained.encode("The old man\n\nsat  down.")) == "the old man\nsat down ."
    assert trained.decode(trained.encode("I don't")) == "i do n't"
    assert trained.decode(trained.encode("the 日 man")) == "the <unk> man"
    newline = len(trained) - 1
    assert trained.decode([newline, *trained.encode("man"), newline, newline]) == "\nman\n\n"


def test_decoded_plain_text_is_encoded_as_the_same_ids(trained: Tokenizer) -> None:
    ids = trained.encode(ORDINARY[0] + "\nI don't.")
    assert trained.encode(trained.decode(ids)) == ids


def test_decode_accepts_the_three_special_tokens_and_no_other_ids(trained: Tokenizer) -> None:
    size = len(trained)
    man = trained.encode("man")
    assert trained.decode([size, *man, size + 1, *man, size + 2]) == "_start_ man _delimiter_ man _classify_"
    for unknown in (size + 3, -1):
        with pytest.raises(ValueError, match=f"id {unknown} is not in the vocabulary: 0 to {size - 1}"):
            trained.decode([unknown])


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


def test_merges_worked_out_by_hand() -> None:
    tokenizer = train(LOW, merges=7)
    assert tokenizer.merges == LOW_MERGES[:7]
    entries = ["<unk>", *LOW_SYMBOLS, *(symbol + "</w>" for symbol in LOW_SYMBOLS)]
    entries += ["es", "est</w>", "lo", "ew", "new", "newest</w>", "low</w>", "\n</w>"]
    assert tokenizer.vocabulary == {entry: number for number, entry in enumerate(entries)}
    assert list(tokenizer.vocabulary) == entries


def test_training_stops_if_no_pair_occurs_twice() -> None:
    assert train(LOW, merges=1000).merges == LOW_MERGES
    assert train({"abc": 1}, merges=1000).merges == []


def test_training_does_not_depend_on_the_order_of_the_counts(trained: Tokenizer) -> None:
    words = [word for line in ORDINARY * 3 for word in normalise.split_words(line)]
    for seed in range(3):
        random.Random(seed).shuffle(words)
        assert train(Counter(words), merges=300).vocabulary == trained.vocabulary


def test_a_count_larger_than_one_batch_counts_in_full() -> None:
    assert train({"ab": 10_000, "cd": 9_999}, merges=1).merges == [("a", "b</w>")]
    assert train({"ab": 9_999, "cd": 10_000}, merges=1).merges == [("c", "d</w>")]


def test_training_keeps_the_238_most_frequent_symbols() -> None:
    symbols = [chr(0x4E00 + number) for number in range(240)]
    counts = {symbol: 2 for symbol in symbols} | {symbols[239] + symbols[0]: 3, symbols[238] + symbols[0]: 9}
    kept = train(counts, merges=5)
    # 0 occurs 14 times, 238 11 times, 239 5 times, all others twice: their first 235 in code point order are kept.
    assert list(kept.vocabulary)[1:239] == [symbols[0], symbols[238], symbols[239], *symbols[1:236]]
    assert len(kept) == 2 + 2 * 238 + 2
    assert kept.encode(symbols[236]) == [0]


def test_words_with_a_rare_symbol_give_no_merges() -> None:
    common = {chr(0x4E00 + number): 100 for number in range(236)}
    tokenizer = train(common | {"a": 100, "b": 100, "axb": 50, "ab": 3}, merges=5)
    assert "x" not in tokenizer.vocabulary
    assert tokenizer.merges == [("a", "b</w>")]


def test_line_breaks_and_special_strings_give_no_merges() -> None:
    tokenizer = train({normalise.NEWLINE: 50, "a<unk>b": 9, "a</w>b": 9, "ab": 2}, merges=50)
    assert tokenizer.merges == [("a", "b</w>")]
    assert tokenizer.encode("ab\nab") == [len(tokenizer) - 2, len(tokenizer) - 1, len(tokenizer) - 2]


@pytest.mark.parametrize("counts", [{}, {normalise.NEWLINE: 7}])
def test_an_empty_corpus_is_refused(counts: dict[str, int]) -> None:
    with pytest.raises(UserError, match="no words to train the vocabulary on"):
        train(counts, merges=10)


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_save_and_load(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    again = load(tmp_path)
    assert (again.vocabulary, again.merges, again.identity) == (trained.vocabulary, trained.merges, trained.identity)
    assert again.encode(ORDINARY[1]) == trained.encode(ORDINARY[1])
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").split("\n")
    assert (lines[0], lines[1], lines[-1]) == ("#version: 0.2", " ".join(trained.merges[0]), "")


def test_symbols_that_look_like_line_ends_are_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = train({"a\u200bb": 5, "é\ufeff": 4, "\x01\x02": 3}, merges=10)
    tokenizer.save(tmp_path)
    assert load(tmp_path).merges == tokenizer.merges


def test_transformers_reads_the_saved_files(trained: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    trained.save(tmp_path)
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(tmp_path)
    plain = "the old man sat down by the fire"  # their simpler rules agree with the published ones on this text
    assert theirs.get_vocab() == trained.vocabulary
    assert theirs(plain)["input_ids"] == trained.encode(plain)


def test_a_pickled_tokenizer_is_the_same(trained: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(trained))
    assert again.identity == trained.identity
    assert again.encode(ORDINARY[2]) == trained.encode(ORDINARY[2])


def test_identity_depends_on_all_that_determines_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train(LOW, merges=7)
    assert tokenizer.identity == train(LOW, merges=7).identity
    assert re.fullmatch("[0-9a-f]{16}", tokenizer.identity)
    assert train(LOW, merges=6).identity != tokenizer.identity
    first, second, third, fourth, *rest = tokenizer.merges
    reordered = Tokenizer(tokenizer.vocabulary, [first, second, fourth, third, *rest])
    assert reordered.identity != tokenizer.identity
    monkeypatch.setattr(normalise, "library_versions", lambda: {"ftfy": "0", "spacy": "0"})
    assert train(LOW, merges=7).identity != tokenizer.identity


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vocab.json", None, "no file vocab.json"),
        ("merges.txt", None, "no file merges.txt"),
        ("vocab.json", "{", "vocab.json is not valid JSON"),
        ("vocab.json", "[]", "vocab.json does not map tokens to integers"),
        ("vocab.json", '{"<unk>": "0"}', "vocab.json does not map tokens to integers"),
        ("vocab.json", '{"a": 0, "a</w>": 1}', "vocab.json: token 0 must be <unk>"),
        ("vocab.json", '{"<unk>": 0, "a": 2}', "the ids of 2 tokens must be 0 to 1, each once"),
        ("vocab.json", b"\xff\xfe", "vocab.json cannot be read"),
        ("merges.txt", "", "its 0 merges do not make 7 of the tokens in vocab.json, for example 'es'"),
        ("merges.txt", "#version: 0.2\ne s\nes", "merges.txt, line 3: expected two symbols and one blank, found 'es'"),
        ("merges.txt", "#version: 0.2\ne s\nes t</w>\n", "its 2 merges do not make 5 of"),  # truncated after a line
        ("merges.txt", "#version: 0.2\ne s\nes t</", "merge 2 ('es', 't</')"),  # truncated within a line
        ("merges.txt", "#version: 0.2\ne s\ne s\n", "merge 2 ('e', 's')"),
        ("merges.txt", "#version: 0.2\nes t</w>\ne s\n", "merge 1 ('es', 't</w>')"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, file: str, content: str | bytes | None, message: str) -> None:
    train(LOW, merges=7).save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        load(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "copy both again" in str(raised.value)


def test_the_order_of_the_tokens_in_the_file_does_not_matter(tmp_path: Path) -> None:
    """The published vocab.json lists <unk> last."""
    tokenizer = train(LOW, merges=7)
    tokenizer.save(tmp_path)
    entries = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    entries["<unk>"] = entries.pop("<unk>")
    (tmp_path / "vocab.json").write_text(json.dumps(entries), encoding="utf-8")
    assert load(tmp_path).identity == tokenizer.identity
