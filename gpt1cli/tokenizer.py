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

import numpy as np

from gpt1cli import disk
from gpt1cli import text as rules
from gpt1cli.lookup import Lookup
from gpt1cli.schema import InputError

UNKNOWN = "<unk>"
END_OF_WORD = "</w>"
SPECIAL = ("_start_", "_delimiter_", "_classify_")
"""The rows that fine-tuning appends after the vocabulary, in the order of the released code."""

VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
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

    def __init__(self, vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
        """Entry -> id, and the merges, the earliest first; InputError says where the two do not fit each other."""
        from tokenizers import models

        self.vocabulary = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
        self.merges = [(left, right) for left, right in merges]
        if problems := list(_problems(self.vocabulary, self.merges)):
            raise InputError("\n".join(problems))
        self._bpe = models.BPE(self.vocabulary, self.merges, unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD)
        self._entries = [*self.vocabulary, *SPECIAL]
        self._dtype = np.dtype(np.uint16 if len(self._entries) < (1 << 16) - 1 else np.uint32)
        # No ids are as large: they hold the places of a line break, until it is known what stands around it, and of the
        # end of a text.
        self._break = (1 << 8 * self._dtype.itemsize) - 1
        self._end = self._break - 1
        self._newline = self._bpe.tokenize("\n")[0].id
        self._parts = rules.Remembered(self._part_ids)
        self._lookup = Lookup(self._chunk_ids, self._line_ids, self._dtype)
        self._remembered_word_ids = lru_cache(WORDS)(self._word_ids)

    def __len__(self) -> int:
        """V, the entries of the vocabulary; the special rows do not count."""
        return len(self.vocabulary)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[dict[str, int], list[tuple[str, str]]]]:
        """A pickled tokenizer is its two tables; what it remembers of texts stays behind."""
        return Tokenizer, (self.vocabulary, self.merges)

    @cached_property
    def tables(self) -> str:
        """16 hex digits over the two tables alone: whether they are those that a model was trained with."""
        return hashlib.sha256(json.dumps([list(self.vocabulary.items()), self.merges]).encode()).hexdigest()[:16]

    @cached_property
    def identity(self) -> str:
        """16 hex digits over all that decides the ids: vocabulary, merges, and the versions of ftfy and spaCy."""
        tables = json.dumps([list(self.vocabulary.items()), self.merges, rules.versions()], sort_keys=True)
        return hashlib.sha256(tables.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """The ids of a text. No special token is added, and none can be typed as text."""
        return self.encode_arrays([text])[0].tolist()

    def encode_arrays(self, texts: Iterable[str]) -> list[np.ndarray]:
        """The ids of each text as an array [ids] of uint16, of uint32 where the vocabulary is too large for that."""
        ids = np.concatenate([np.empty(0, self._dtype), *map(self._lookup, rules.joined(texts))])
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
        return [index for word in rules.words(text) for index in self._remembered_word_ids(word)]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, in order."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text: lower case, words apart by one blank, line breaks as such; V, V+1, V+2 are the special rows.

        ValueError for an id that is neither an entry nor a special row.
        """
        pieces = []
        for index in map(int, ids):
            if not 0 <= index < len(self._entries):
                raise ValueError(
                    f"id {index} is not in the vocabulary: 0 to {len(self) - 1} are its entries, "
                    f"{len(self)} to {len(self._entries) - 1} are {', '.join(SPECIAL)}"
                )
            # An unknown piece may have ended its word or not: it is shown as a word, like the special rows.
            whole = index == 0 or index >= len(self)
            pieces.append(self._entries[index] + " " if whole else self._entries[index].replace(END_OF_WORD, " "))
        return re.sub(" *\n *", "\n", "".join(pieces)).strip(" ")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The entries themselves, as they stand in the vocabulary: `the</w>`."""
        return [self._entries[index] for index in ids]

    def save(self, folder: Path) -> None:
        """Write the two files of the published format, which other tools read too, into the folder."""
        vocabulary = json.dumps(self.vocabulary, ensure_ascii=False)
        merges = "\n".join([MERGES_HEADER, *(f"{left} {right}" for left, right in self.merges), ""])
        for name, text in ((VOCABULARY_FILE, vocabulary), (MERGES_FILE, merges)):
            with disk.writing(folder / name):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text, encoding="utf-8", newline="\n")

    def _chunk_ids(self, chunk: str) -> bytes:
        """The ids of a chunk, alone; text.Entangled where it has to be seen in its line."""
        if chunk in (rules.BREAK, rules.END):
            return np.array(self._break if chunk == rules.BREAK else self._end, self._dtype).tobytes()
        return b"".join(map(self._parts.__getitem__, rules.parts(chunk)))

    def _part_ids(self, part: str) -> bytes:
        return self._words_ids(rules.part_words(part))

    def _line_ids(self, line: str) -> bytes:
        return self._words_ids(rules.words_of_repaired(line))

    def _words_ids(self, words: list[str]) -> bytes:
        return array(self._dtype.char, [index for word in words for index in self._word_ids(word)]).tobytes()

    def _word_ids(self, word: str) -> list[int]:
        return [token.id for token in self._bpe.tokenize("\n" if word == rules.NEWLINE else word)]


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with vocab.json and merges.txt; InputError names a file that is missing or corrupt."""
    released = all((folder / name).is_file() for name in RELEASED_FILES)
    vocabulary, merges = (folder / name for name in (RELEASED_FILES if released else (VOCABULARY_FILE, MERGES_FILE)))
    try:
        if missing := [file.name for file in (vocabulary, merges) if not file.is_file()]:
            raise InputError(f"no file {' and no '.join(missing)}")
        return Tokenizer(_read_vocabulary(vocabulary), _read_merges(merges))
    except InputError as error:
        raise InputError(
            f"no usable tokenizer in {folder}:\n{error}\n"
            f"A tokenizer is {VOCABULARY_FILE} and {MERGES_FILE} of one vocabulary: copy both again from their source."
        ) from None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file.name} cannot be read: {error}") from None


def _read_vocabulary(file: Path) -> dict[str, int]:
    content = _read(file)
    try:
        vocabulary = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.name} is not whole JSON: {error}") from None
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise InputError(f"{file.name} does not map entries to whole numbers")
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
            raise InputError(f"{file.name}, line {number}: expected two symbols and one blank, found {line!r}")
    return merges


def _problems(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Iterator[str]:
    """What keeps the two tables from being one byte-pair vocabulary; nothing when they are one.

    Each merge must spell an entry that no earlier merge spells, out of symbols that are there by then. On such tables
    the library, which always joins the leftmost best pair, gives what the published loop gives, which joins all
    occurrences of the best pair before it looks for the next: what a merge makes can only take part in later merges.
    """
    if list(vocabulary.values()) != list(range(len(vocabulary))):
        yield f"{VOCABULARY_FILE}: the ids of {len(vocabulary)} entries should be 0 to {len(vocabulary) - 1}, each once"
    if vocabulary.get(UNKNOWN) != 0:
        yield f"{VOCABULARY_FILE}: entry 0 should be {UNKNOWN}"
    known = {entry for entry in vocabulary if len(entry.removesuffix(END_OF_WORD)) == 1}
    for number, (left, right) in enumerate(merges, start=1):
        made = left + right
        if not {left, right} <= known or made in known or made not in vocabulary:
            yield (
                f"{MERGES_FILE}, merge {number} ({left!r}, {right!r}): both parts should be symbols or made by earlier "
                f"merges, and {made!r} should be an entry of {VOCABULARY_FILE} made by no other merge"
            )
            return
        known.add(made)
    if unmade := vocabulary.keys() - known - {UNKNOWN}:
        yield (
            f"{MERGES_FILE}: none of its {len(merges)} merges makes {len(unmade)} of the entries of {VOCABULARY_FILE}, "
            f"such as {min(unmade, key=vocabulary.__getitem__)!r}"
        )


def train(counts: Mapping[str, int], merges: int) -> Tokenizer:
    """A vocabulary of at most `merges` merges from lower-cased words (`text.words`) and how often each was seen.

    Deterministic: of equally frequent pairs the one with the lower ids is merged first. The base symbols are the
    BASE_SYMBOLS most frequent ones, of equally frequent ones the first in code point order; a word with any other
    symbol takes no part in the merges. A small corpus gives fewer merges: `len(tokenizer.merges)` says how many.
    InputError where there is no word at all.
    """
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import models, trainers

    symbols: Counter[str] = Counter()
    for word, count in counts.items():
        for symbol in word:
            symbols[symbol] += count
    visible = [symbol for symbol in symbols if not symbol.isspace()]  # line breaks have an entry of their own
    if not visible:
        raise InputError("no word to train a vocabulary on: the corpus is empty or only white space")
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


def _occurrences(counts: Mapping[str, int], symbols: set[str], at_once: int = 4096) -> Iterator[list[str]]:
    """Every word that the symbols can spell, as often as it was seen; at most `at_once` occurrences are in memory.

    A word that holds a mark of the vocabulary itself is left out: its merges could spell an entry that means otherwise.
    """
    for word, count in counts.items():
        if symbols.issuperset(word) and UNKNOWN not in word and END_OF_WORD not in word:
            for done in range(0, count, at_once):
                yield [word] * min(at_once, count - done)
