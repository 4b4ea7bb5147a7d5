"""Raw text -> words, by the rules the GPT-1 vocabulary was built with.

Four steps, always in this order: ftfy repairs the Unicode (mojibake, entities, control characters, curly quotes), a
standardisation spaces out the punctuation, spaCy's rule tokenizer for English cuts the words, each word is lower-cased.
Source: "Improving Language Understanding by Generative Pre-Training", section 4.1, and the released encoder
(openai/finetune-transformer-lm, text_utils.py), whose behaviour is kept where it surprises.

ftfy and spaCy are imported when the first text arrives: a run whose data is prepared waits for neither.
"""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.language import Language

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
PADDED = re.compile(r"""([-~!";?+,)(/*\[\]}{|_])\1*""")


def standardise(text: str) -> str:
    """Plain dashes, ellipses and apostrophes, blanks around marks; a run of white space is " \\n " or one blank."""
    spaced = PADDED.sub(r" \g<0> ", text.translate(REPLACED))
    lines = (" ".join(line.split()) for line in spaced.split("\n"))
    return " \n ".join(line for line in lines if line)


@cache
def _english() -> Language:
    """spaCy's English without any model: the rule tokenizer and its table of exceptions."""
    import spacy

    return spacy.blank("en")


def words(text: str) -> list[str]:
    """The lower-cased words of a text; a break between two lines is the word NEWLINE."""
    import ftfy

    english = _english()
    # Line by line, because spaCy stops filling its cache of words at the first exception ("don't") of a call: half the
    # time for a book, and the same words, since no exception reaches over a line break.
    found = []
    for line in standardise(ftfy.fix_text(text)).split(" \n "):
        found += [token.text.lower() for token in english.tokenizer(line)]
        found.append(NEWLINE)
    # NOTE: spaCy's own means of forgetting, memory_zone(), throws that cache away with the rest: a zone for every text
    # made books take twice as long and short texts ten times.
    if len(english.vocab.strings) > STRINGS_KEPT:
        _english.cache_clear()
    return found[:-1]


def versions() -> dict[str, str]:
    """The installed versions of the two libraries whose rules decide the words: other versions, other ids."""
    return {library: importlib.metadata.version(library) for library in ("ftfy", "spacy")}
