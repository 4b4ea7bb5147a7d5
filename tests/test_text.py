"""The published text rules, each on an example worked out by hand."""

import importlib.metadata
import subprocess
import sys

import pytest

from gpt1cli import text


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
    assert text.standardise(raw) == standard


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", []),
        (" \n\t ", []),
        ("\n", []),
        ("The CAT sat.", ["the", "cat", "sat", "."]),
        ("Don't! I'm", ["do", "n't", "!", "i", "'m"]),
        ("one\n\n two", ["one", text.NEWLINE, "two"]),
        ("one\r\ntwo\rthree", ["one", text.NEWLINE, "two", text.NEWLINE, "three"]),
        ("“Curly” ‘quotes’", ['"', "curly", '"', "'", "quotes", "'"]),
        ("cafÃ© naÃ¯ve", ["café", "naïve"]),  # mojibake repaired
        ("e\u0301", ["é"]),  # a combining accent composed
        ("a\x00b\x07c", ["abc"]),  # control characters dropped
        ("salt &amp; pepper", ["salt", "&", "pepper"]),
        ("<b> salt &amp; pepper", ["<", "b", ">", "salt", "&", "amp", ";", "pepper"]),  # looks like HTML: entities stay
    ],
)
def test_words(raw: str, expected: list[str]) -> None:
    assert text.words(raw) == expected


def test_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "STRINGS_KEPT", 3000)
    for part in range(4):
        new = [f"new{part}word{number}" for number in range(1000)]
        assert text.words(" ".join(new)) == new
        assert len(text._english().vocab.strings) <= 3000


def test_versions_name_what_is_installed() -> None:
    expected = {"ftfy": importlib.metadata.version("ftfy"), "spacy": importlib.metadata.version("spacy")}
    assert text.versions() == expected


def test_import_and_versions_load_neither_library() -> None:
    code = (
        "import sys, gpt1cli.text, gpt1cli.tokenizer; gpt1cli.text.versions();"
        "print(sorted({'ftfy', 'spacy', 'tokenizers', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
