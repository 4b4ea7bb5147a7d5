"""The published text rules, each on an example worked out by hand, and the faster way to the same words."""

import importlib.metadata
import subprocess
import sys
from collections import Counter
from itertools import product

import ftfy
import hard_text
import pytest
from ftfy.badness import is_bad
from hypothesis import given, settings

from gpt1cli.text import normalise


@pytest.mark.parametrize(
    ("raw", "standard"),
    [
        ("", ""),
        (" \t\n \u00a0\u2003\n", ""),
        ("plain words", "plain words"),
        ("  two   blanks\tand\u00a0more ", "two blanks and more"),
        ("one\ntwo", "one \n two"),
        ("\n\none  \n \t\n\n  two\n", "one \n two"),
        ("a\r\nb", "a \n b"),
        ("wait...what", "wait...what"),  # spaCy splits full stops
        ("wait…what", "wait...what"),
        ("em—en–bar―end", "em - en - bar - end"),
        ("it´s", "it's"),
        ("no!!! (really?!)", "no !!! ( really ? ! )"),
        ('say "hi";now', 'say " hi " ; now'),
        ("a--b~~c++d,,e", "a -- b ~~ c ++ d ,, e"),
        ("[x]{y}|z_w*v/u", "[ x ] { y } | z _ w * v / u"),
        ("1:2 #3 $4 %5 &6 <7> =8 @9 ^0 `a", "1:2 #3 $4 %5 &6 <7> =8 @9 ^0 `a"),  # these marks stay as they are
        ("C:\\new\\\\dir", "C:\\new\\\\dir"),  # the released code does not change backslashes
    ],
)
def test_standardise(raw: str, standard: str) -> None:
    assert normalise.standardise_text(raw) == standard


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", []),
        (" \n\t ", []),
        ("\n", []),
        ("The CAT sat.", ["the", "cat", "sat", "."]),
        ("Don't! I'm", ["do", "n't", "!", "i", "'m"]),
        ("one\n\n two", ["one", normalise.NEWLINE, "two"]),
        ("one\r\ntwo\rthree", ["one", normalise.NEWLINE, "two", normalise.NEWLINE, "three"]),
        ("“Curly” ‘quotes’", ['"', "curly", '"', "'", "quotes", "'"]),
        ("cafÃ© naÃ¯ve", ["café", "naïve"]),  # mojibake is fixed
        ("e\u0301", ["é"]),  # combining accents are composed
        ("a\x00b\x07c", ["abc"]),  # control characters are removed
        ("salt &amp; pepper", ["salt", "&", "pepper"]),
        (
            "<b> salt &amp; pepper",
            ["<", "b", ">", "salt", "&", "amp", ";", "pepper"],
        ),  # looks like HTML, so entities stay
    ],
)
def test_words(raw: str, expected: list[str]) -> None:
    assert normalise.split_words(raw) == expected


def test_the_string_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalise, "MAX_STRINGS", 3000)
    for part in range(4):
        new = [f"new{part}word{number}" for number in range(1000)]
        assert normalise.split_words(" ".join(new)) == new
        assert len(normalise._english().vocab.strings) <= 3000
        assert normalise.count_words(" ".join(f"{word}.5" for word in new)) == Counter(f"{word}.5" for word in new)
        assert len(normalise._english().vocab.strings) <= 3000


def test_library_versions_are_the_installed_ones() -> None:
    expected = {"ftfy": importlib.metadata.version("ftfy"), "spacy": importlib.metadata.version("spacy")}
    assert normalise.library_versions() == expected


def test_import_and_library_versions_load_neither_library() -> None:
    code = (
        "import sys, gpt1cli.text.normalise, gpt1cli.text.bpe; gpt1cli.text.normalise.library_versions();"
        "print(sorted({'ftfy', 'spacy', 'tokenizers', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the same words, faster -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "\n",
        "no line break at the end\nhere",
        "\r\n\rDOS\r\nand Mac\r",
        "salt &amp; pepper\nsalt &amp; <b>pepper</b>\nsalt &amp; pepper",  # entities stay from the second line on
        "salt &amp; pepper\n" * 600 + "<\n" + "salt &amp; pepper\n" * 600,  # the same over several portions
        "x" * 9000 + " &amp; caf\u00c3\u00a9\n<\n&amp;",
        "&lt;b&gt; &amp;\n&amp;",  # a "<" made by ftfy does not count
        "“Curly,” he said — ‘quotes’…\nna\u00c3\u00afve “curly”\ncaf\u00e9\x00 £5",
        "œ\nœ",
        "a\u2028b\x85c\nd",
    ],
)
def test_fix_text_equals_ftfy(raw: str) -> None:
    assert "".join(normalise.fix_text(raw)) == ftfy.fix_text(raw)


def test_portions_are_whole_lines() -> None:
    portions = list(normalise.fix_text("0123456789" * 81 + "\n" + "a line\n" * 5000))
    assert len(portions) > 3
    assert all(portion.endswith("\n") for portion in portions)
    assert sum(map(len, portions)) == 811 + 7 * 5000


@pytest.mark.parametrize("safe_set", normalise.SAFE_SETS)
def test_no_sequence_of_safe_characters_is_mojibake_to_ftfy(safe_set: str) -> None:
    """ftfy's patterns of more than three characters all contain "Ã", "Â", "Ø", "Ù" or a Cyrillic letter."""
    characters = [*safe_set, *"aZ1 .\n"]
    assert not [triple for triple in map("".join, product(characters, repeat=3)) if is_bad(triple)]
    for pair in map("".join, product(characters, repeat=2)):
        assert normalise._is_harmless(pair)
        assert normalise.straighten_quotes(pair) == ftfy.fix_text(pair)


def test_harmless_ascii_is_what_ftfy_does_not_change() -> None:
    for character in map(chr, range(128)):
        assert normalise._is_harmless(character) == (ftfy.fix_text(character) == normalise.straighten_quotes(character))


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ("", []),
        ("word", ["word"]),
        ("cannot", ["cannot"]),
        ("Word.", ["Word", "."]),
        ("WORD.", ["WORD."]),  # split by spaCy
        ("'Tis", ["'", "Tis"]),
        ("'em", ["'em"]),  # an exception
        ("it's", ["it's"]),
        ("cat's", ["cat", "'s"]),
        ("can't.", ["can't."]),
        ("'s", ["'s"]),
        ("'wed.", ["'wed."]),  # spaCy's last step makes "we" "d."
        ('"Yes!!--no,"', ['"', "Yes", "!!", "--", "no", ",", '"']),
        ("well…\tnow—then", ["well...", "now", "-", "then"]),
        ("3.50", ["3.50"]),
    ],
)
def test_chunk_parts(chunk: str, expected: list[str]) -> None:
    assert normalise.chunk_parts(chunk) == expected
    assert [normalise.chunk_parts(part) for part in expected] == [[part] for part in expected]


def test_words_that_depend_on_their_neighbours_need_context() -> None:
    """spaCy joins the two separate apostrophes to the exception "''", so that 'em is no exception there."""
    assert normalise.split_words("'em.'") == ["'em", ".", "'"]
    assert normalise.split_words("boys' 'em.'") == ["boys", "'", "'", "em", ".", "'"]
    with pytest.raises(normalise.NeedsContext):
        normalise.part_words("'em.'")
    assert normalise.part_words("boys'") == ["boys", "'"]
    assert normalise.count_words("boys' 'em.'\n'em.'") == {
        "boys": 1,
        "'": 4,
        "em": 1,
        ".": 2,
        "'em": 1,
        normalise.NEWLINE: 1,
    }


def test_word_counts_worked_out_by_hand() -> None:
    assert normalise.count_words("") == normalise.count_words(" \n\t\n") == {}
    assert normalise.count_words("a") == {"a": 1}
    assert normalise.count_words("\nThe cat.\n\n \nThe CAT.\n") == {"the": 2, "cat": 2, ".": 2, normalise.NEWLINE: 1}


@settings(max_examples=200, derandomize=True, deadline=None)
@given(hard_text.texts)
def test_the_faster_way_gives_the_same_words(raw: str) -> None:
    assert "".join(normalise.fix_text(raw)) == ftfy.fix_text(raw)
    assert normalise.count_words(raw) == Counter(normalise.split_words(raw))
