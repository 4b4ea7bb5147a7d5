"""Words -> byte-pair ids and back: the published vocabulary of 40,478 entries, or merges trained on one's own text.

Byte-pair encoding (Sennrich et al., 2016): a word starts as its symbols (characters), the last one marked as the end of
the word; then, while any two neighbours have a merge, all occurrences of the earliest such merge are joined. What is
left is looked up in the vocabulary, and what is not there is the unknown entry, id 0.

The published layout, which a vocabulary trained here follows (V entries, S base symbols, 238 in the published one):

    0                     <unk>
    1 .. S                the base symbols
    S+1 .. 2S             the same symbols at the end of a word: "a</w>"
    2S+1 .. V-2           one entry per merge, in the order of the merges
    V-1                   the line break "\\n</w>"
    V, V+1, V+2           not in the vocabulary: the rows that fine-tuning appends to the embeddings

Beside it GPT-2's kind, whose symbols are bytes (ByteTokenizer; bytelevel.py). Its entries tell which kind one is.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.runs import files
from gpt1cli.text import bytelevel, normalise
from gpt1cli.text.chunk_cache import Lookup

UNKNOWN = "<unk>"
END_OF_WORD = "</w>"
SPECIAL = ("_start_", "_delimiter_", "_classify_")
"""The rows that fine-tuning appends after the vocabulary, in the order of the released code."""

VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
PIPELINE_FILE = "tokenizer.json"  # of transformers 5, which writes the other two no more
RELEASED_FILES = ("encoder_bpe_40000.json", "vocab_40000.bpe")  # the same two in OpenAI's release
MERGES_HEADER = "#version: 0.2"

BASE_SYMBOLS = 238
"""The most base symbols a trained vocabulary keeps: as many as the published one has."""

LEAST_COUNT = 2
"""A pair of symbols seen once teaches nothing: training stops there, as in Sennrich's own code."""

WORDS = 1 << 17
"""`encode_plain`, where it is used, remembers the ids of so many words: about 40 MB."""


class Tokenizer:
    """Text -> ids by the published rules, and ids -> readable text.

    It remembers the ids of the chunks of text that it meets, within the bounds stated in text.py.
    """

    level: ClassVar[str] = "words"  # what its symbols are parts of: TokenizerConfig.level

    def __init__(self, vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
        """Entry -> id, and the merges, the earliest first; UserError says where the two do not fit each other."""
        from tokenizers import models

        self.vocabulary = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
        self.merges = [(left, right) for left, right in merges]
        if problems := list(_problems(self.vocabulary, self.merges)):
            raise UserError("\n".join(problems))
        self._bpe = models.BPE(self.vocabulary, self.merges, unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD)
        self._entries = [*self.vocabulary, *SPECIAL]
        self._dtype = np.dtype(np.uint16 if len(self._entries) < (1 << 16) - 1 else np.uint32)
        # No ids are as large: they hold the places of a line break, until it is known what stands around it, and of the
        # end of a text.
        self._break = (1 << 8 * self._dtype.itemsize) - 1
        self._end = self._break - 1
        self._newline = self._bpe.tokenize("\n")[0].id
        self._parts = normalise.Remembered(self._part_ids)
        self._lookup = Lookup(self._chunk_ids, self._line_ids, self._dtype)
        self._remembered_word_ids = lru_cache(WORDS)(self._word_ids)

    def __len__(self) -> int:
        """V, the entries of the vocabulary; the special rows do not count."""
        return len(self.vocabulary)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[dict[str, int], list[tuple[str, str]]]]:
        """A pickled tokenizer is its two tables; what it remembers of texts stays behind."""
        return Tokenizer, (self.vocabulary, self.merges)

    @property
    def newline(self) -> int | None:
        """What stands between two parts of a text that was cut at a line break; None: the text itself has it."""
        return len(self) - 1

    @property
    def opening(self) -> int | None:
        """What opens a document of a corpus; None: nothing."""
        return None

    def running(self, text: str) -> str:
        """The text of an example as it stands behind another one: words are the same ones everywhere."""
        return text

    @cached_property
    def tables(self) -> str:
        """16 hex digits over the two tables alone: whether they are those that a model was trained with."""
        return hashlib.sha256(json.dumps([list(self.vocabulary.items()), self.merges]).encode()).hexdigest()[:16]

    @cached_property
    def identity(self) -> str:
        """16 hex digits over all that decides the ids: vocabulary, merges, and the versions of ftfy and spaCy."""
        tables = json.dumps([list(self.vocabulary.items()), self.merges, normalise.versions()], sort_keys=True)
        return hashlib.sha256(tables.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """The ids of a text. No special token is added, and none can be typed as text."""
        return self.encode_arrays([text])[0].tolist()

    def encode_arrays(self, texts: Iterable[str]) -> list[np.ndarray]:
        """The ids of each text as an array [ids] of uint16, of uint32 where the vocabulary is too large for that."""
        ids = np.concatenate([np.empty(0, self._dtype), *map(self._lookup, normalise.joined(texts))])
        solid = ids < self._end
        kept = ids != self._break
        kept[1:] |= solid[:-1]  # of breaks in a row the first, but none at the start
        ids = ids[kept]
        ids[ids == self._break] = self._newline
        found, begin = [], 0
        for end in np.flatnonzero(ids == self._end).tolist():
            found.append(ids[begin : max(begin, end - 1)])  # before the end stands the break of the text's last line
            begin = end + 1
        return found

    def encode_plain(self, text: str) -> list[int]:
        """The same ids by the rules one after the other, slowly: what the tests and the benchmark compare with."""
        return [index for word in normalise.words(text) for index in self._remembered_word_ids(word)]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, in order."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text: lower case, words apart by one blank, line breaks as such; V, V+1, V+2 are the special rows.

        ValueError for an id that is neither an entry nor a special row.
        """
        pieces = []
        for index in self._known(ids):
            # An unknown piece may have ended its word or not: it is shown as a word, like the special rows.
            whole = index == 0 or index >= len(self)
            pieces.append(self._entries[index] + " " if whole else self._entries[index].replace(END_OF_WORD, " "))
        return re.sub(" *\n *", "\n", "".join(pieces)).strip(" ")

    def _known(self, ids: Iterable[int]) -> Iterator[int]:
        for index in map(int, ids):
            if not 0 <= index < len(self._entries):
                raise ValueError(
                    f"id {index} is not in the vocabulary: 0 to {len(self) - 1} are its entries, "
                    f"{len(self)} to {len(self._entries) - 1} are {', '.join(SPECIAL)}"
                )
            yield index

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The entries themselves, as they stand in the vocabulary: `the</w>`."""
        return [self._entries[index] for index in ids]

    def save(self, folder: Path) -> None:
        """Write the two files of the published format, which other tools read too, into the folder."""
        vocabulary = json.dumps(self.vocabulary, ensure_ascii=False)
        merges = "\n".join([MERGES_HEADER, *(f"{left} {right}" for left, right in self.merges), ""])
        for name, text in ((VOCABULARY_FILE, vocabulary), (MERGES_FILE, merges)):
            with files.writing(folder / name):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text, encoding="utf-8", newline="\n")

    def _chunk_ids(self, chunk: str) -> bytes:
        """The ids of a chunk, alone; text.Entangled where it has to be seen in its line."""
        if chunk in (normalise.BREAK, normalise.END):
            return np.array(self._break if chunk == normalise.BREAK else self._end, self._dtype).tobytes()
        return b"".join(map(self._parts.__getitem__, normalise.parts(chunk)))

    def _part_ids(self, part: str) -> bytes:
        return self._words_ids(normalise.part_words(part))

    def _line_ids(self, line: str) -> bytes:
        return self._words_ids(normalise.words_of_repaired(line))

    def _words_ids(self, words: list[str]) -> bytes:
        return array(self._dtype.char, [index for word in words for index in self._word_ids(word)]).tobytes()

    def _word_ids(self, word: str) -> list[int]:
        return [token.id for token in self._bpe.tokenize("\n" if word == normalise.NEWLINE else word)]


class ByteTokenizer(Tokenizer):
    """Text -> byte-level ids, and ids -> the very same text."""

    level = "bytes"

    def __init__(self, vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
        """Entry -> id, and the merges, the earliest first; UserError says where the two do not fit each other."""
        self.vocabulary = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
        self.merges = [(left, right) for left, right in merges]
        if problems := list(_misfits(self.vocabulary, self.merges, {*bytelevel.BYTES}, {bytelevel.END_OF_TEXT})):
            raise UserError("\n".join(problems))
        self._pipeline = bytelevel.pipeline(self.vocabulary, self.merges)
        self._entries = [*self.vocabulary, *SPECIAL]
        self._bytes = [*map(bytelevel.bytes_of, self.vocabulary), *(name.encode() for name in SPECIAL)]
        self._dtype = np.dtype(np.uint16 if len(self._entries) <= 1 << 16 else np.uint32)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[dict[str, int], list[tuple[str, str]]]]:
        """A pickled tokenizer is its two tables."""
        return ByteTokenizer, (self.vocabulary, self.merges)

    @property
    def newline(self) -> int | None:
        """None: every line break is in the text."""
        return None

    @property
    def opening(self) -> int | None:
        """<|endoftext|>, as in GPT-2's training text; None where the vocabulary has no such entry."""
        return self.vocabulary.get(bytelevel.END_OF_TEXT)

    def running(self, text: str) -> str:
        """With the blank that makes its first word the same entry as in the midst of a text; none before a mark."""
        return text if not text or text[0].isspace() or text[0] in bytelevel.ATTACHED else " " + text

    @cached_property
    def identity(self) -> str:
        """16 hex digits over all that decides the ids: vocabulary and merges."""
        tables = json.dumps([self.level, list(self.vocabulary.items()), self.merges])
        return hashlib.sha256(tables.encode()).hexdigest()[:16]

    def encode_arrays(self, texts: Iterable[str]) -> list[np.ndarray]:
        """The ids of each text as an array [ids] of uint16, of uint32 where the vocabulary is too large for that."""
        return [np.array(ids, self._dtype) for ids in bytelevel.encoded(self._pipeline, texts)]

    def encode_plain(self, text: str) -> list[int]:
        """The same ids: there is one way alone."""
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text itself; U+FFFD for bytes that are no whole character. V, V+1, V+2 are the special rows.

        ValueError for an id that is neither an entry nor a special row.
        """
        return b"".join(self._bytes[index] for index in self._known(ids)).decode(errors="replace")


def of(vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> Tokenizer:
    """The tokenizer of a vocabulary, of the kind that this is."""
    return (ByteTokenizer if bytelevel.is_bytelevel(vocabulary) else Tokenizer)(vocabulary, merges)


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with vocab.json and merges.txt; UserError names a file that is missing or corrupt."""
    released = all((folder / name).is_file() for name in RELEASED_FILES)
    vocabulary, merges = (folder / name for name in (RELEASED_FILES if released else (VOCABULARY_FILE, MERGES_FILE)))
    try:
        missing = [file.name for file in (vocabulary, merges) if not file.is_file()]
        if len(missing) == 2 and (folder / PIPELINE_FILE).is_file():
            return of(*_read_pipeline(folder / PIPELINE_FILE))
        if missing:
            raise UserError(f"no file {' and no '.join(missing)}")
        return of(_read_vocabulary(vocabulary), _read_merges(merges))
    except UserError as error:
        raise UserError(
            f"no usable tokenizer in {folder}:\n{error}\n"
            f"A tokenizer is {VOCABULARY_FILE} and {MERGES_FILE} of one vocabulary: copy both again from their source."
        ) from None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file.name} cannot be read: {error}") from None


def _read_json(file: Path) -> Any:
    content = _read(file)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.name} is not whole JSON: {error}") from None


def _read_pipeline(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The two tables out of the library's own file, where a merge is a pair, or both parts with a blank between."""
    found = _read_json(file)
    try:
        model = found["model"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        merges = [(str(left), str(right)) for left, right in pairs]
        vocabulary = {str(entry): int(index) for entry, index in model["vocab"].items()}
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise UserError(f"{file.name} holds no byte-pair vocabulary with its merges ({error})") from None
    return vocabulary, merges


def _read_vocabulary(file: Path) -> dict[str, int]:
    vocabulary = _read_json(file)
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise UserError(f"{file.name} does not map entries to whole numbers")
    return vocabulary


def _read_merges(file: Path) -> list[tuple[str, str]]:
    # NOTE: not splitlines(), which also cuts at symbols that a merge may hold (U+2028, U+0085).
    lines = _read(file).rstrip("\n").split("\n")
    if lines[0].startswith("#version"):
        lines[0] = ""
    merges = []
    for number, line in enumerate(lines, start=1):
        pair = line.split(" ")
        if len(pair) == 2 and all(pair):
            merges.append((pair[0], pair[1]))
        elif line or number > 1:
            raise UserError(f"{file.name}, line {number}: expected two symbols and one blank, found {line!r}")
    return merges


def _problems(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Iterator[str]:
    """What keeps the two tables from being one byte-pair vocabulary; nothing when they are one.

    Each merge must spell an entry that no earlier merge spells, out of symbols that are there by then. On such tables
    the library, which always joins the leftmost best pair, gives what the published loop gives, which joins all
    occurrences of the best pair before it looks for the next: what a merge makes can only take part in later merges.
    """
    if vocabulary.get(UNKNOWN) != 0:
        yield f"{VOCABULARY_FILE}: entry 0 should be {UNKNOWN}"
    symbols = {entry for entry in vocabulary if len(entry.removesuffix(END_OF_WORD)) == 1}
    yield from _misfits(vocabulary, merges, symbols, {UNKNOWN})


def _misfits(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], symbols: set[str], others: set[str]
) -> Iterator[str]:
    """What of that no kind of vocabulary does without; `others` are entries that nothing makes."""
    if list(vocabulary.values()) != list(range(len(vocabulary))):
        yield f"{VOCABULARY_FILE}: the ids of {len(vocabulary)} entries should be 0 to {len(vocabulary) - 1}, each once"
    known = set(symbols)
    for number, (left, right) in enumerate(merges, start=1):
        made = left + right
        if not {left, right} <= known or made in known or made not in vocabulary:
            yield (
                f"{MERGES_FILE}, merge {number} ({left!r}, {right!r}): both parts should be symbols or made by earlier "
                f"merges, and {made!r} should be an entry of {VOCABULARY_FILE} made by no other merge"
            )
            return
        known.add(made)
    if unmade := vocabulary.keys() - known - others:
        yield (
            f"{MERGES_FILE}: none of its {len(merges)} merges makes {len(unmade)} of the entries of {VOCABULARY_FILE}, "
            f"such as {min(unmade, key=vocabulary.__getitem__)!r}"
        )


def train(counts: Mapping[str, int], merges: int) -> Tokenizer:
    """A vocabulary of at most `merges` merges from lower-cased words (`text.words`) and how often each was seen.

    Deterministic: of equally frequent pairs the one with the lower ids is merged first. The base symbols are the
    BASE_SYMBOLS most frequent ones, of equally frequent ones the first in code point order; a word with any other
    symbol takes no part in the merges. A small corpus gives fewer merges: `len(tokenizer.merges)` says how many.
    UserError where there is no word at all.
    """
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import models, trainers

    symbols: Counter[str] = Counter()
    for word, count in counts.items():
        for symbol in word:
            symbols[symbol] += count
    visible = [symbol for symbol in symbols if not symbol.isspace()]  # line breaks have an entry of their own
    if not visible:
        raise UserError("no word to train a vocabulary on: the corpus is empty or only white space")
    base = sorted(visible, key=lambda symbol: (-symbols[symbol], symbol))[:BASE_SYMBOLS]

    # NOTE: all symbols are given as special tokens because those get their ids first and in order. Left to itself the
    # trainer numbers "a</w>" in the order of a hash map, which changes from run to run, and breaks ties by these ids.
    first = [UNKNOWN, *base, *(symbol + END_OF_WORD for symbol in base)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + merges,
        min_frequency=LEAST_COUNT,
        special_tokens=first,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    pipeline = Pipeline(models.BPE(unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD))
    pipeline.train_from_iterator(_occurrences(counts, set(base)), trainer)
    learned = [(left, right) for left, right in json.loads(pipeline.to_str())["model"]["merges"]]
    entries = [*first, *(left + right for left, right in learned), "\n" + END_OF_WORD]
    return Tokenizer({entry: index for index, entry in enumerate(entries)}, learned)


def train_bytes(texts: Iterable[str], merges: int) -> ByteTokenizer:
    """A byte-level vocabulary of at most `merges` merges from texts as they are. UserError where there is none."""
    vocabulary, learned = bytelevel.train(texts, merges)
    if not learned:
        raise UserError("no text to train a vocabulary on: no two bytes in it come together twice")
    return ByteTokenizer(vocabulary, learned)


def _occurrences(counts: Mapping[str, int], symbols: set[str], at_once: int = 4096) -> Iterator[list[str]]:
    """Every word that the symbols can spell, as often as it was seen; at most `at_once` occurrences are in memory.

    A word that holds a mark of the vocabulary itself is left out: its merges could spell an entry that means otherwise.
    """
    for word, count in counts.items():
        if symbols.issuperset(word) and UNKNOWN not in word and END_OF_WORD not in word:
            for done in range(0, count, at_once):
                yield [word] * min(at_once, count - done)
