"""Splits raw text into words, by the rules with which the GPT-1 vocabulary was built.

Four steps, always in this order: ftfy fixes the Unicode (mojibake, entities, control characters, curly quotes),
`standardise_text` puts blanks around punctuation, spaCy's rule-based English tokenizer splits, words are lower-cased.
Source: "Improving Language Understanding by Generative Pre-Training", section 4.1, and the released encoder
(openai/finetune-transformer-lm, text_utils.py), including its surprising behaviour.

`split_words` does exactly this, slowly. The second half of this file finds the same words at least thirty times as
fast: ftfy only sees lines that it might change (`fix_text`), and each chunk, the text between two blanks, is split only
once (`chunk_parts`, `part_words`; chunk_cache.py). Each step explains why it is exact; tests compare both ways.

ftfy and spaCy are imported with the first text: a run on prepared data does not wait for them.

Longer than 300 lines: the same rules twice, plain and fast.
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

Value = TypeVar("Value")

NEWLINE = "\n "
"""The word that spaCy returns for a line break: the newline and the blank that `standardise_text` puts after it."""

LONG_WORD = 256
"""Characters. spaCy's own suffix search is too slow for longer words: 67 s for 16,000 apostrophes."""

MAX_STRINGS = 100_000
"""spaCy stores every string it sees, about 400 bytes each; beyond this number (40 MB) the store is cleared."""

REPLACEMENTS = str.maketrans(
    {
        "\N{EM DASH}": "-",
        "\N{EN DASH}": "-",
        "\N{HORIZONTAL BAR}": "-",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{ACUTE ACCENT}": "'",
    }
)

# A run of one of these marks becomes a separate word.
# NOTE: no backslash. The released pattern was meant to include it but is not a raw string, so its backslash alternative
# is a second plus. Later ports fixed that, so their ids differ from the released code on texts with a backslash.
MARKS = '-~!";?+,)(/*[]}{|_'
SEGMENT = re.compile(rf"[^\s{re.escape(MARKS)}]+|" + "|".join(re.escape(mark) + "+" for mark in MARKS))


def standardise_text(text: str) -> str:
    """Simplify dashes, ellipses and apostrophes, put blanks around marks, make white space " \\n " or one blank."""
    lines = (" ".join(SEGMENT.findall(line)) for line in text.translate(REPLACEMENTS).split("\n"))
    return " \n ".join(line for line in lines if line)


@cache
def _english() -> Tokenizer:
    """Return spaCy's rule-based English tokenizer with its table of exceptions."""
    with _hide_torch():
        import spacy

    return spacy.blank("en").tokenizer


@cache
def _english_long() -> Tokenizer:
    """Return the tokenizer for words longer than LONG_WORD: same result, but not in time quadratic in the length."""
    from spacy.tokenizer import Tokenizer

    english = _english()
    affixes = english.prefix_search, _search_near_end(english.suffix_search), english.infix_finditer
    return Tokenizer(english.vocab, english.rules, *affixes, english.token_match, english.url_match)


def _search_near_end(suffix_search: Callable[[str], re.Match[str] | None]) -> Callable[[str], re.Match[str] | None]:
    """Return spaCy's suffix search, started near the end of the word instead of at its start.

    Only one of spaCy's suffixes can be longer than a few characters: a run of full stops. If a match begins where the
    search begins, it may be the rest of such a run, and only then the whole word is searched.
    """
    pattern = suffix_search.__self__  # type: ignore[attr-defined]  # the method of a compiled pattern

    def search(word: str) -> re.Match[str] | None:
        begin = max(0, len(word) - LONG_WORD)
        match = pattern.search(word, begin)  # NOTE: lookbehinds of the pattern still see what is before `begin`
        return pattern.search(word) if match and match.start() == begin > 0 else match

    return search


@contextlib.contextmanager
def _hide_torch() -> Iterator[None]:
    """Make `import torch` fail. spaCy would import it for models we do not use: 1.6 s and 180 MB per worker process."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes its import an ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]


def _spacy_tokens(english: Tokenizer, line: str) -> list[str]:
    return [token.text for token in english(line)]


def _limit_strings() -> None:
    # NOTE: spaCy's own memory_zone() also clears its cache of words: one zone per text made books take twice as long
    # and short texts ten times.
    if len(_english().vocab.strings) > MAX_STRINGS:
        for tokenizer in (_english, _english_long, _english_without_last_step):
            tokenizer.cache_clear()


def split_words(text: str) -> list[str]:
    """Return the lower-cased words of a text; a line break is the word NEWLINE."""
    import ftfy

    return split_fixed_words(ftfy.fix_text(text))


def split_fixed_words(text: str) -> list[str]:
    """Return the words of a text that ftfy has already fixed."""
    line = standardise_text(text)
    long = len(line) > LONG_WORD and max(map(len, line.split(" "))) > LONG_WORD
    words = [token.lower() for token in _spacy_tokens(_english_long() if long else _english(), line)]
    _limit_strings()
    return words


def library_versions() -> dict[str, str]:
    """Return the versions of ftfy and spaCy. Other versions may split differently and give other ids."""
    return {library: importlib.metadata.version(library) for library in ("ftfy", "spacy")}


# --- the same words, faster -------------------------------------------------------------------------------------------

PORTION_CHARACTERS = 1 << 13
"""Characters fixed at a time, extended to the end of the line. Small: one line for ftfy slows only its portion."""

LOOKUP_CHARACTERS = 1 << 16
"""Characters looked up at a time: with all intermediate arrays they fit into a processor's cache."""

LINE_END, TEXT_END = "\n", "\x01"
"""Chunks for the end of a line and the end of a text; fixed text does not contain the latter."""

MAX_CHUNKS = 1 << 18
MAX_CHUNK_SYMBOLS = 64
"""The first 262,144 chunks of at most 64 symbols are cached, with the ids of the chunks and of their parts: about 90 MB
for English text."""

# ftfy changes nothing but quotes and line breaks in ASCII text without control characters and entities, and in such
# text with characters of one of these sets, because no sequence of them looks like mojibake to ftfy.
SAFE_ASCII = bytes({*range(0x20, 0x7F), *b"\t\n\f\r"})
ENTITY = re.compile("&#?[0-9A-Za-z]{1,24};")
SAFE_SETS = "‘’“”–—…", "’–—…áàâäãåæçéèêëíìîïñóòôöõøúùûüý", "’–—…£"


def fix_text(text: str) -> Iterator[str]:
    """Yield ftfy.fix_text(text) in portions of whole lines; ftfy only sees lines that it might change.

    ftfy fixes each line separately. The one state it keeps: after the first line with a "<", entities stay as they are.
    """
    entities: str | bool = "auto"
    for portion in _whole_lines(text, PORTION_CHARACTERS):
        yield straighten_quotes(portion) if _is_harmless(portion) else "".join(_fix_lines(portion, entities))
        entities = entities and "<" not in portion and "auto"


def _fix_lines(portion: str, entities: str | bool) -> Iterator[str]:
    import ftfy

    for line in _whole_lines(portion, 0):
        yield straighten_quotes(line) if _is_harmless(line) else ftfy.fix_text(line, unescape_html=entities)
        entities = entities and "<" not in line and "auto"


def fixed_portions(texts: Iterable[str]) -> Iterator[bytes]:
    """Yield the fixed texts, each followed by a line with TEXT_END, in portions of whole lines, as UTF-8."""
    portions: list[str] = []
    characters = 0
    for text in texts:
        for portion in chain(fix_text(text), [f"{LINE_END}{TEXT_END}{LINE_END}"]):
            portions.append(portion)
            characters += len(portion)
            if characters >= LOOKUP_CHARACTERS:
                yield "".join(portions).encode()
                portions, characters = [], 0
    if portions:
        yield "".join(portions).encode()


def _whole_lines(text: str, characters: int) -> Iterator[str]:
    """Yield the text in slices of at least `characters` characters, each extended to the end of its line."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + characters) + 1 or len(text)
        yield text[start:end]
        start = end


def _is_harmless(text: str) -> bool:
    """Return whether ftfy would change no more than `straighten_quotes` does; False if in doubt."""
    for characters in () if text.isascii() else SAFE_SETS:
        rest = text
        for character in characters:
            rest = rest.replace(character, "")
        if rest.isascii():
            text = rest
            break
    if not text.isascii() or text.encode().translate(None, SAFE_ASCII):
        return False
    return "&" not in text or not ENTITY.search(text)


def straighten_quotes(text: str) -> str:
    """Replace curly quotes by straight ones, and \\r\\n and \\r by \\n."""
    if not text.isascii():
        text = text.replace("‘", "'").replace("’", "'").replace("“", '"').replace("”", '"')
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def split_chunks(portion: str) -> list[str]:
    """Split fixed text at its blanks; a line break is the chunk "\n". Chunks may be empty or contain tabs."""
    return portion.replace("\n", " \n ").split(" ")


class Cache(dict[str, Value]):
    """Chunk -> `compute(chunk)`, computed at the first access and cached while there is room."""

    def __init__(self, compute: Callable[[str], Value]) -> None:
        self.compute = compute

    def __missing__(self, chunk: str) -> Value:
        value = self.compute(chunk)
        if len(self) < MAX_CHUNKS and len(chunk) <= MAX_CHUNK_SYMBOLS:
            self[chunk] = value
        return value


# A word of letters, optionally an apostrophe before it and one mark after it: spaCy splits exactly there, unless a part
# is an exception. NOTE: a full stop only after a lower-case letter: spaCy splits it off "AA." but not off "A.".
WORD = re.compile("('?)([A-Za-z]+)('s|[:']|(?<=[a-z])[.]|)")


def chunk_parts(chunk: str) -> list[str]:
    """Split a chunk into parts that are split into words independently. A part is its own only part."""
    if chunk.isascii() and chunk.isalpha():
        return [chunk]
    parts: list[str] = []
    exceptions = _english().rules.keys()
    for segment in SEGMENT.findall(chunk if chunk.isascii() else chunk.translate(REPLACEMENTS)):
        match = None if segment.isalpha() else WORD.fullmatch(segment)
        if match and exceptions.isdisjoint((segment, match[1] + match[2], match[2], match[2] + match[3])):
            parts += filter(None, match.groups())
        else:
            parts.append(segment)
    return parts


class NeedsContext(Exception):
    """The words of a part may depend on its neighbours: the line must be split as a whole."""


def part_words(part: str) -> list[str]:
    """Return the lower-cased words of a part. Raises NeedsContext if they may depend on its neighbours.

    spaCy splits the text between two blanks independently, except for its last step, which searches the line for
    exceptions that were split and joins them again: "'em.'", split as "'" "em" "." "'", becomes "'em" "." "'".
    The longest of overlapping matches wins, and a match across a blank is ignored: in "boys' 'em.'" the pair "'" "'"
    wins, and "'em" stays split. So within a line the last step joins in a part what it joins in the part alone, or
    less; only a part that it changes alone depends on its neighbours.
    """
    if part.isascii() and part.isalpha() and part not in _english().rules:
        return [part.lower()]
    tokens = _spacy_tokens(_english_long() if len(part) > LONG_WORD else _english(), part)
    if len(tokens) > 1 and tokens != _spacy_tokens(_english_without_last_step(), part):
        raise NeedsContext
    _limit_strings()
    return [token.lower() for token in tokens]


@cache
def _english_without_last_step() -> Tokenizer:
    """Return spaCy's English tokenizer without its last step.

    The last step only joins exceptions that have an affix by the rules. Nothing else asks for the affixes of an
    exception, because splitting stops at one. So if exceptions report no affixes, the last step does nothing.
    """
    from spacy.tokenizer import Tokenizer

    class WithoutLastStep(Tokenizer):
        def find_prefix(self, text: str) -> int:
            return 0 if text in self.rules else super().find_prefix(text)

        def find_suffix(self, text: str) -> int:
            return 0 if text in self.rules else super().find_suffix(text)

        def find_infix(self, text: str) -> list[re.Match[str]]:
            return [] if text in self.rules else super().find_infix(text)

    english = _english()
    affixes = english.prefix_search, _search_near_end(english.suffix_search), english.infix_finditer
    return WithoutLastStep(english.vocab, english.rules, *affixes, english.token_match, english.url_match)


def count_words(text: str) -> Counter[str]:
    """Return Counter(split_words(text)), faster."""
    counts: Counter[str] = Counter()
    lines = 0
    for portion in fix_text(text):
        lines += sum(1 for line in portion.split("\n") if line.strip())
        try:
            counts.update(list(chain.from_iterable(map(_chunk_words.__getitem__, split_chunks(portion)))))
        except NeedsContext:
            counts.update(split_fixed_words(portion))
    if lines > 1:
        counts[NEWLINE] = lines - 1  # instead of the counts per portion
    return counts


_chunk_words = Cache(lambda chunk: tuple(sys.intern(word) for part in chunk_parts(chunk) for word in part_words(part)))
