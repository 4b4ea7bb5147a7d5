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
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, TypeVar

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
PORTION = 1 << 13
CHUNKS = 1 << 18
CHUNK_SYMBOLS = 64
V = TypeVar("V")
UNCURLED = (("‘", "'"), ("’", "'"), ("“", '"'), ("”", '"'), ("\r\n", "\n"), ("\r", "\n"))


def repaired(text: str) -> str:
    """ftfy.fix_text(text), where ftfy is asked only about the lines that hold a dubious character.

    ftfy takes line after line by itself. All it carries along is that from the first line with a "<" on entities stay.
    """
    done, at, tag = [], 0, text.find("<")
    while dubious := DUBIOUS.search(text, at):
        import ftfy

        start = max(at, text.rfind("\n", at, dubious.start()) + 1)
        end = text.find("\n", dubious.start()) + 1 or len(text)
        entities = False if 0 <= tag < start else "auto"
        done += _uncurled(text[at:start]), ftfy.fix_text(text[start:end], unescape_html=entities)
        at = end
    return "".join([*done, _uncurled(text[at:])])


def _uncurled(text: str) -> str:
    for old, new in UNCURLED:
        text = text.replace(old, new)
    return text


def portions(text: str) -> Iterator[str]:
    """Whole lines, about PORTION characters at a time."""
    at = 0
    while at < len(text):
        end = text.find("\n", at + PORTION) + 1 or len(text)
        yield text[at:end]
        at = end


def chunks(text: str) -> list[str]:
    """A repaired text cut at its blanks; a line break is the chunk "\n". Some chunks are empty, some hold tabs."""
    return text.replace("\n", " \n ").split(" ")


class Memory(dict[str, V]):
    """Chunk -> what `find` makes of it, found when first asked for and remembered while there is room."""

    def __init__(self, find: Callable[[str], V]) -> None:
        self.find = find

    def __missing__(self, chunk: str) -> V:
        found = self.find(chunk)
        if len(self) < CHUNKS and len(chunk) <= CHUNK_SYMBOLS:
            self[chunk] = found
        return found


class Entangled(Exception):
    """The words of a part may depend on what stands beside it: its line has to be cut as a whole."""


# A word of letters, a quote before it, one mark behind it: spaCy cuts just there unless its table has it otherwise.
# NOTE: a full stop only behind a small letter. spaCy keeps it on "A." and takes it off "AA.".
WORD = re.compile("('?)([A-Za-z]+)('s|[:']|(?<=[a-z])[.]|)")


def parts(chunk: str) -> list[str]:
    """What of a chunk can be cut into words by itself; a part's only part is itself."""
    if chunk.isascii() and chunk.isalpha():
        return [chunk]
    found = []
    exceptions = _english().rules
    for piece in PIECE.findall(chunk if chunk.isascii() else chunk.translate(REPLACED)):
        match = WORD.fullmatch(piece)
        if match and exceptions.keys().isdisjoint((piece, match[1] + match[2], match[2], match[2] + match[3])):
            found += filter(None, match.groups())
        else:
            found.append(piece)
    return found


@cache
def _english_unmatched() -> Tokenizer:
    """spaCy's English without its last step, which looks for exceptions that the cutting has put asunder.

    An exception enters that step if it has an affix itself. Nothing else asks this of an exception: where the cutting
    meets one, it cuts as the table says.
    """
    from spacy.tokenizer import Tokenizer

    class Unmatched(Tokenizer):
        def find_prefix(self, text: str) -> int:
            return 0 if text in self.rules else super().find_prefix(text)

        def find_suffix(self, text: str) -> int:
            return 0 if text in self.rules else super().find_suffix(text)

        def find_infix(self, text: str) -> list[re.Match[str]]:
            return [] if text in self.rules else super().find_infix(text)

    full = _english()
    return Unmatched(
        full.vocab,
        rules=full.rules,
        prefix_search=full.prefix_search,
        suffix_search=full.suffix_search,
        infix_finditer=full.infix_finditer,
        url_match=full.url_match,
    )


def part_words(part: str) -> list[str]:
    """The lower-cased words of a part; Entangled where they may depend on its neighbours."""
    if part.isascii() and part.isalpha() and part not in _english().rules:
        return [part.lower()]
    tokens = _tokens(_english(), part)
    # spaCy's last step puts exceptions together again ("'em.'" is cut "'" "em" "." "'", then "'em" is found). It looks
    # at a whole line, and what it takes for an exception across a blank it leaves alone, but nothing else is put together
    # there: "boys' 'em.'" has the pair "'" "'", so its "'" "em" stay apart. A part on which the last step does nothing
    # can lose nothing by that.
    if len(tokens) > 1 and tokens != _tokens(_english_unmatched(), part):
        raise Entangled
    _forget()
    return [token.lower() for token in tokens]


def count_words(text: str) -> Counter[str]:
    """Counter(words(text))."""
    counts: Counter[str] = Counter()
    lines = 0
    for portion in portions(repaired(text)):
        lines += sum(1 for line in portion.split("\n") if line.strip())
        for word, count in _count_words(portion).items():
            counts[word] += count
    if lines > 1:
        counts[NEWLINE] = lines - 1
    return counts
