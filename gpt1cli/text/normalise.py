"""Raw text -> words, by the rules the GPT-1 vocabulary was built with.

Four steps, always in this order: ftfy repairs the Unicode (mojibake, entities, control characters, curly quotes), a
standardisation spaces out the punctuation, spaCy's rule tokenizer for English cuts the words, each word is lower-cased.
Source: "Improving Language Understanding by Generative Pre-Training", section 4.1, and the released encoder
(openai/finetune-transformer-lm, text_utils.py), whose behaviour is kept where it surprises.

`words` does just that, slowly. The second half of this file finds the same words thirty times as fast and more: ftfy
is asked only where it could act (`repaired`), and what stands between two blanks, a chunk, is cut once, however often
it comes (`parts`, `part_words`; lookup.py). Why that is exact is said at each step, and the tests compare the two ways.

ftfy and spaCy are imported when the first text arrives: a run whose data is prepared waits for neither.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from spacy.tokenizer import Tokenizer

V = TypeVar("V")

NEWLINE = "\n "
"""The word of a line break, as spaCy cuts it: the newline and the blank that the standardisation put after it."""

LONG = 256
"""Characters of a word for which spaCy's own search for suffixes is too slow: 67 s for one of 16,000 apostrophes."""

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
    with _torch_unseen():
        import spacy

    return spacy.blank("en").tokenizer


@cache
def _english_long() -> Tokenizer:
    """The same for words longer than LONG: they are cut alike, in time that does not grow with their length squared."""
    from spacy.tokenizer import Tokenizer

    known = _english()
    affixes = known.prefix_search, _nearby(known.suffix_search), known.infix_finditer
    return Tokenizer(known.vocab, known.rules, *affixes, known.token_match, known.url_match)


def _nearby(suffix_search: Callable[[str], re.Match[str] | None]) -> Callable[[str], re.Match[str] | None]:
    """spaCy's search for a suffix, which looks through the whole word for every mark at its end, begun near that end.

    Of spaCy's suffixes a run of full stops alone is longer than a few characters. One that begins where the search
    begins may be the rest of such a run: only then the whole word is looked through.
    """
    pattern = suffix_search.__self__  # type: ignore[attr-defined]  # the method of a compiled pattern

    def search(word: str) -> re.Match[str] | None:
        begin = max(0, len(word) - LONG)
        found = pattern.search(word, begin)  # NOTE: what stands before `begin` is seen by a pattern that looks back
        return pattern.search(word) if found and found.start() == begin > 0 else found

    return search


@contextlib.contextmanager
def _torch_unseen() -> Iterator[None]:
    """spaCy imports torch where it finds it, for models we have none of: 1.6 s and 180 MB of each worker process."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it is an ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]


def _tokens(english: Tokenizer, line: str) -> list[str]:
    return [token.text for token in english(line)]


def _forget() -> None:
    # NOTE: spaCy's own means of forgetting, memory_zone(), throws away its cache of words too: a zone for every text
    # made books take twice as long and short texts ten times.
    if len(_english().vocab.strings) > STRINGS_KEPT:
        for made in (_english, _english_long, _english_unmatched):
            made.cache_clear()


def words(text: str) -> list[str]:
    """The lower-cased words of a text; a break between two lines is the word NEWLINE."""
    import ftfy

    return words_of_repaired(ftfy.fix_text(text))


def words_of_repaired(text: str) -> list[str]:
    """`words` of a text that ftfy has been over."""
    line = standardise(text)
    long = len(line) > LONG and max(map(len, line.split(" "))) > LONG
    found = [token.lower() for token in _tokens(_english_long() if long else _english(), line)]
    _forget()
    return found


def versions() -> dict[str, str]:
    """The installed versions of the two libraries whose rules decide the words: other versions, other ids."""
    return {library: importlib.metadata.version(library) for library in ("ftfy", "spacy")}


# --- the same words, fast ---------------------------------------------------------------------------------------------

PORTION = 1 << 13
"""Characters that are repaired at a time, then on to the end of the line: a line that ftfy might mend holds few up."""

LOOKED_UP = 1 << 16
"""Characters that are looked up at a time: with all that is made of them, as much as stays in a processor's cache."""

BREAK, END = "\n", "\x01"
"""The end of a line and, which no repaired text holds, that of a text."""

CHUNKS = 1 << 18
CHUNK_SYMBOLS = 64
"""At most 262,144 chunks of at most 64 symbols are remembered, those that came first: with their ids, and those of the
parts they have, about 90 MB where text is English."""

# What ftfy leaves alone, but for quotes and line breaks: ASCII without its control characters and without entities, and
# beside it the characters of any one set, of which no sequence is to ftfy a sign of mojibake.
HARMLESS = bytes({*range(0x20, 0x7F), *b"\t\n\f\r"})
ENTITY = re.compile("&#?[0-9A-Za-z]{1,24};")
TOGETHER = "‘’“”–—…", "’–—…áàâäãåæçéèêëíìîïñóòôöõøúùûüý", "’–—…£"


def repaired(text: str) -> Iterator[str]:
    """ftfy.fix_text(text), a portion of whole lines at a time; ftfy is asked only about lines that it might mend.

    ftfy takes line after line by itself. All it carries along is that from the first line with a "<" on entities stay.
    """
    entities: str | bool = "auto"
    for portion in _whole_lines(text, PORTION):
        yield _uncurled(portion) if _harmless(portion) else "".join(_repaired_lines(portion, entities))
        entities = entities and "<" not in portion and "auto"


def _repaired_lines(portion: str, entities: str | bool) -> Iterator[str]:
    import ftfy

    for line in _whole_lines(portion, 0):
        yield _uncurled(line) if _harmless(line) else ftfy.fix_text(line, unescape_html=entities)
        entities = entities and "<" not in line and "auto"


def joined(texts: Iterable[str]) -> Iterator[bytes]:
    """The texts, repaired, each with END in a line of its own behind it; whole lines in portions, as UTF-8."""
    portions: list[str] = []
    characters = 0
    for text in texts:
        for portion in chain(repaired(text), [f"{BREAK}{END}{BREAK}"]):
            portions.append(portion)
            characters += len(portion)
            if characters >= LOOKED_UP:
                yield "".join(portions).encode()
                portions, characters = [], 0
    if portions:
        yield "".join(portions).encode()


def _whole_lines(text: str, characters: int) -> Iterator[str]:
    """The text in slices of so many characters, each extended to the end of its line."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + characters) + 1 or len(text)
        yield text[start:end]
        start = end


def _harmless(text: str) -> bool:
    """Whether ftfy would do no more to the text than `_uncurled` does; in doubt not."""
    for characters in () if text.isascii() else TOGETHER:
        rest = text
        for character in characters:
            rest = rest.replace(character, "")
        if rest.isascii():
            text = rest
            break
    if not text.isascii() or text.encode().translate(None, HARMLESS):
        return False
    return "&" not in text or not ENTITY.search(text)


def _uncurled(text: str) -> str:
    if not text.isascii():
        text = text.replace("‘", "'").replace("’", "'").replace("“", '"').replace("”", '"')
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def chunks(portion: str) -> list[str]:
    """Repaired text cut at its blanks; a line break is the chunk "\n". Some chunks are empty, some hold tabs."""
    return portion.replace("\n", " \n ").split(" ")


class Remembered(dict[str, V]):
    """Chunk -> what `find` makes of it, found at the first look-up and remembered while there is room."""

    def __init__(self, find: Callable[[str], V]) -> None:
        self.find = find

    def __missing__(self, chunk: str) -> V:
        found = self.find(chunk)
        if len(self) < CHUNKS and len(chunk) <= CHUNK_SYMBOLS:
            self[chunk] = found
        return found


# A word of letters, perhaps an apostrophe before it, perhaps one mark behind it: spaCy cuts just there, unless some of
# it is an exception. NOTE: a full stop only behind a small letter: spaCy cuts it off "AA." but not off "A.".
WORD = re.compile("('?)([A-Za-z]+)('s|[:']|(?<=[a-z])[.]|)")


def parts(chunk: str) -> list[str]:
    """What of a chunk is cut into words by itself. The parts of a part are that part."""
    if chunk.isascii() and chunk.isalpha():
        return [chunk]
    found: list[str] = []
    exceptions = _english().rules.keys()
    for piece in PIECE.findall(chunk if chunk.isascii() else chunk.translate(REPLACED)):
        match = None if piece.isalpha() else WORD.fullmatch(piece)
        if match and exceptions.isdisjoint((piece, match[1] + match[2], match[2], match[2] + match[3])):
            found += filter(None, match.groups())
        else:
            found.append(piece)
    return found


class Entangled(Exception):
    """The words of a part may depend on its neighbours: the line has to be cut as a whole."""


def part_words(part: str) -> list[str]:
    """The lower-cased words of a part; Entangled where they may depend on its neighbours.

    spaCy cuts what stands between two blanks by itself, but for a last step, which looks along the line for exceptions
    that the cutting has put asunder, and puts them together: of "'em.'", cut "'" "em" "." "'", it makes "'em" "." "'".
    Among overlapping finds the longest wins, and one that reaches over a blank comes to nothing: in "boys' 'em.'" the
    pair "'" "'" wins, and "'em" stays in two. So the last step does to a part what it does to it alone, or less; only
    a part on which it does something alone depends on its neighbours.
    """
    if part.isascii() and part.isalpha() and part not in _english().rules:
        return [part.lower()]
    tokens = _tokens(_english_long() if len(part) > LONG else _english(), part)
    if len(tokens) > 1 and tokens != _tokens(_english_unmatched(), part):
        raise Entangled
    _forget()
    return [token.lower() for token in tokens]


@cache
def _english_unmatched() -> Tokenizer:
    """spaCy's English without its last step.

    That step knows the exceptions that have an affix by the rules. Nothing else asks for the affixes of an exception,
    since the cutting stops where it meets one: say that they have none, and there is nothing left for the last step.
    """
    from spacy.tokenizer import Tokenizer

    class Unmatched(Tokenizer):
        def find_prefix(self, text: str) -> int:
            return 0 if text in self.rules else super().find_prefix(text)

        def find_suffix(self, text: str) -> int:
            return 0 if text in self.rules else super().find_suffix(text)

        def find_infix(self, text: str) -> list[re.Match[str]]:
            return [] if text in self.rules else super().find_infix(text)

    known = _english()
    affixes = known.prefix_search, _nearby(known.suffix_search), known.infix_finditer
    return Unmatched(known.vocab, known.rules, *affixes, known.token_match, known.url_match)


def count_words(text: str) -> Counter[str]:
    """Counter(words(text))."""
    counts: Counter[str] = Counter()
    lines = 0
    for portion in repaired(text):
        lines += sum(1 for line in portion.split("\n") if line.strip())
        try:
            counts.update(list(chain.from_iterable(map(_chunk_words.__getitem__, chunks(portion)))))
        except Entangled:
            counts.update(words_of_repaired(portion))
    if lines > 1:
        counts[NEWLINE] = lines - 1  # whatever the portions had inside them
    return counts


_chunk_words = Remembered(lambda chunk: tuple(sys.intern(word) for part in parts(chunk) for word in part_words(part)))
