"""Raw text -> words, by the rules the GPT-1 vocabulary was built with.

Four steps, always in this order: ftfy repairs the Unicode (mojibake, entities, control characters, curly quotes), a
standardisation spaces out the punctuation, spaCy's rule tokenizer for English cuts the words, each word is lower-cased.
Source: "Improving Language Understanding by Generative Pre-Training", section 4.1, and the released encoder
(openai/finetune-transformer-lm, text_utils.py), whose behaviour is kept where it surprises.

`words` does just that, at about 1 MB/s. The second half of this file finds the same words many times as fast: a text is
repaired only where ftfy could change it (`repaired`) and taken apart into chunks that recur (`chunks`), each of which is
cut once (`parts`, `part_words`). What keeps that exact stands at each step, and the tests compare the two halves.

ftfy and spaCy are imported when the first text arrives: a run whose data is prepared waits for neither.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.tokenizer import Tokenizer

NEWLINE = "\n "
"""The word of a line break, as spaCy cuts it: the newline and the blank that the standardisation put after it."""

STRINGS_KEPT = 100_000
"""spaCy keeps every string it has met, about 400 bytes each; beyond so many (40 MB) it starts anew."""

REPLACED = str.maketrans(
    {
        "\N{EM DASH}": "-",
        "\N{EN DASH}": "-",
        "\N{HORIZONTAL BAR}": "-",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{ACUTE ACCENT}": "'",
    }
)

# A run of one of these marks becomes a word of its own.
# NOTE: no backslash. The released pattern means to have it, but is no raw string, so its backslash alternative reads as
# a second plus. Later ports repaired that, and their ids of a text with a backslash are not those of the released code.
MARKS = '-~!";?+,)(/*[]}{|_'
PIECE = re.compile(rf"[^\s{re.escape(MARKS)}]+|" + "|".join(re.escape(mark) + "+" for mark in MARKS))


def standardise(text: str) -> str:
    """Plain dashes, ellipses and apostrophes, blanks around marks; a run of white space is " \\n " or one blank."""
    lines = (" ".join(PIECE.findall(line)) for line in text.translate(REPLACED).split("\n"))
    return " \n ".join(line for line in lines if line)


@cache
def _english() -> Tokenizer:
    """spaCy's English without any model: the rule tokenizer and its table of exceptions."""
    import spacy

    return spacy.blank("en").tokenizer


def _tokens(english: Tokenizer, line: str) -> list[str]:
    return [token.text for token in english(line)]


def _forget() -> None:
    # NOTE: spaCy's own means of forgetting, memory_zone(), throws away its cache of words too: a zone for every text made
    # books take twice as long and short texts ten times.
    if len(_english().vocab.strings) > STRINGS_KEPT:
        _english.cache_clear()
        _english_unmatched.cache_clear()


def words(text: str) -> list[str]:
    """The lower-cased words of a text; a break between two lines is the word NEWLINE."""
    import ftfy

    return words_of_repaired(ftfy.fix_text(text))


def words_of_repaired(text: str) -> list[str]:
    """`words` of a text that ftfy has been over."""
    # Line by line, because spaCy stops filling its cache of words at the first exception ("don't") of a call: half the
    # time for a book, and the same words, since no exception reaches over a line break.
    found = []
    for line in standardise(text).split(" \n "):
        found += [token.lower() for token in _tokens(_english(), line)]
        found.append(NEWLINE)
    _forget()
    return found[:-1]


def versions() -> dict[str, str]:
    """The installed versions of the two libraries whose rules decide the words: other versions, other ids."""
    return {library: importlib.metadata.version(library) for library in ("ftfy", "spacy")}


# --- the same words, fast ---------------------------------------------------------------------------------------------

# Characters that ftfy leaves alone or replaces one by one whatever stands beside them: ASCII without "&", which may
# begin an entity, and without the control characters it deletes; dashes, the ellipsis, and the quotes it uncurls. None of
# its signs of mojibake is spelled by these alone.
DUBIOUS = re.compile("[^\t\n\f\r -%'-~–—…‘’“”]")
UNCURLED = (("‘", "'"), ("’", "'"), ("“", '"'), ("”", '"'), ("\r\n", "\n"), ("\r", "\n"))


def repaired(text: str) -> str:
    """ftfy.fix_text(text), where ftfy is asked only about lines that hold a dubious character.

    ftfy looks at line after line, by itself. All that it carries along is that entities are left as they are from the
    first line with a "<" on.
    """
    done, at = [], 0
    while dubious := DUBIOUS.search(text, at):
        start = text.rfind("\n", at, dubious.start()) + 1 or at
        end = text.find("\n", dubious.end()) + 1 or len(text)
        if text[dubious.start()] == "\n":
            raise AssertionError
        done += _uncurled(text[at:start]), _fixed(text, start, end)
        at = end
    done.append(_uncurled(text[at:]))
    return "".join(done)
