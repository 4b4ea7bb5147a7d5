"""The published text rules, each on an example worked out by hand, and the fast way to the same words."""

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
        ("wait...what", "wait...what"),  # a full stop is spaCy's business
        ("wait…what", "wait...what"),
        ("em—en–bar―end", "em - en - bar - end"),
        ("it´s", "it's"),
        ("no!!! (really?!)", "no !!! ( really ? ! )"),
        ('say "hi";now', 'say " hi " ; now'),
        ("a--b~~c++d,,e", "a -- b ~~ c ++ d ,, e"),
        ("[x]{y}|z_w*v/u", "[ x ] { y } | z _ w * v / u"),
        ("1:2 #3 $4 %5 &6 <7> =8 @9 ^0 `a", "1:2 #3 $4 %5 &6 <7> =8 @9 ^0 `a"),  # marks that are left where they are
        ("C:\\new\\\\dir", "C:\\new\\\\dir"),  # the released code leaves backslashes alone
    ],
)
def test_standardise(raw: str, standard: str) -> None:
    assert normalise.standardise(raw) == standard


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
        ("cafÃ© naÃ¯ve", ["café", "naïve"]),  # mojibake repaired
        ("e\u0301", ["é"]),  # a combining accent composed
        ("a\x00b\x07c", ["abc"]),  # control characters dropped
        ("salt &amp; pepper", ["salt", "&", "pepper"]),
        ("<b> salt &amp; pepper", ["<", "b", ">", "salt", "&", "amp", ";", "pepper"]),  # looks like HTML: entities stay
    ],
)
def test_words(raw: str, expected: list[str]) -> None:
    assert normalise.words(raw) == expected


def test_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalise, "STRINGS_KEPT", 3000)
    for part in range(4):
        new = [f"new{part}word{number}" for number in range(1000)]
        assert normalise.words(" ".join(new)) == new
        assert len(normalise._english().vocab.strings) <= 3000
        assert normalise.count_words(" ".join(f"{word}.5" for word in new)) == Counter(f"{word}.5" for word in new)
        assert len(normalise._english().vocab.strings) <= 3000


def test_versions_name_what_is_installed() -> None:
    expected = {"ftfy": importlib.metadata.version("ftfy"), "spacy": importlib.metadata.version("spacy")}
    assert normalise.versions() == expected


def test_import_and_versions_load_neither_library() -> None:
    code = (
        "import sys, gpt1cli.text.normalise, gpt1cli.text.bpe; gpt1cli.text.normalise.versions();"
        "print(sorted({'ftfy', 'spacy', 'tokenizers', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the fast way -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "\n",
        "no line break at the end\nhere",
        "\r\n\rDOS\r\nand Mac\r",
        "salt &amp; pepper\nsalt &amp; <b>pepper</b>\nsalt &amp; pepper",  # entities stay from the second line on
        "salt &amp; pepper\n" * 600 + "<\n" + "salt &amp; pepper\n" * 600,  # the same, several portions on
        "x" * 9000 + " &amp; caf\u00c3\u00a9\n<\n&amp;",
        "&lt;b&gt; &amp;\n&amp;",  # a "<" that ftfy makes is none
        "“Curly,” he said — ‘quotes’…\nna\u00c3\u00afve “curly”\ncaf\u00e9\x00 £5",
        "œ\nœ",
        "a\u2028b\x85c\nd",
    ],
)
def test_repaired_is_what_ftfy_makes_of_it(raw: str) -> None:
    assert "".join(normalise.repaired(raw)) == ftfy.fix_text(raw)


def test_portions_are_whole_lines() -> None:
    portions = list(normalise.repaired("0123456789" * 81 + "\n" + "a line\n" * 5000))
    assert len(portions) > 3
    assert all(portion.endswith("\n") for portion in portions)
    assert sum(map(len, portions)) == 811 + 7 * 5000


@pytest.mark.parametrize("together", normalise.TOGETHER)
def test_no_sequence_of_these_characters_is_mojibake_to_ftfy(together: str) -> None:
    """Its signs of more than three characters all have "Ã", "Â", "Ø", "Ù" or a Cyrillic letter in them."""
    characters = [*together, *"aZ1 .\n"]
    assert not [triple for triple in map("".join, product(characters, repeat=3)) if is_bad(triple)]
    for pair in map("".join, product(characters, repeat=2)):
        assert normalise._harmless(pair)
        assert normalise._uncurled(pair) == ftfy.fix_text(pair)


def test_harmless_ascii_is_what_ftfy_leaves_alone() -> None:
    for character in map(chr, range(128)):
        assert normalise._harmless(character) == (ftfy.fix_text(character) == normalise._uncurled(character))


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ("", []),
        ("word", ["word"]),
        ("cannot", ["cannot"]),
        ("Word.", ["Word", "."]),
        ("WORD.", ["WORD."]),  # spaCy's business
        ("'Tis", ["'", "Tis"]),
        ("'em", ["'em"]),  # an exception
        ("it's", ["it's"]),
        ("cat's", ["cat", "'s"]),
        ("can't.", ["can't."]),
        ("'s", ["'s"]),
        ("'wed.", ["'wed."]),  # "we", "d." by spaCy's last step
        ('"Yes!!--no,"', ['"', "Yes", "!!", "--", "no", ",", '"']),
        ("well…\tnow—then", ["well...", "now", "-", "then"]),
        ("3.50", ["3.50"]),
    ],
)
def test_parts(chunk: str, expected: list[str]) -> None:
    assert normalise.parts(chunk) == expected
    assert [normalise.parts(part) for part in expected] == [[part] for part in expected]


def test_a_word_that_its_neighbour_changes_is_not_cut_by_itself() -> None:
    """spaCy takes the two apostrophes for the exception "''", although they are apart; 'em is then no exception."""
    assert normalise.words("'em.'") == ["'em", ".", "'"]
    assert normalise.words("boys' 'em.'") == ["boys", "'", "'", "em", ".", "'"]
    with pytest.raises(normalise.Entangled):
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


def test_words_counted_by_hand() -> None:
    assert normalise.count_words("") == normalise.count_words(" \n\t\n") == {}
    assert normalise.count_words("a") == {"a": 1}
    assert normalise.count_words("\nThe cat.\n\n \nThe CAT.\n") == {"the": 2, "cat": 2, ".": 2, normalise.NEWLINE: 1}


@settings(max_examples=200, derandomize=True, deadline=None)
@given(hard_text.texts)
def test_the_fast_way_finds_the_same_words(raw: str) -> None:
    assert "".join(normalise.repaired(raw)) == ftfy.fix_text(raw)
    assert normalise.count_words(raw) == Counter(normalise.words(raw))
