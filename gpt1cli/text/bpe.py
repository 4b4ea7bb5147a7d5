"""Byte-pair encoding: the published vocabulary of 40,478 tokens, or merges trained on a corpus.

Byte-pair encoding (Sennrich et al., 2016): a word starts as its symbols (characters), the last one marked as the end of
the word. While two neighbouring symbols have a merge, all occurrences of the earliest such merge are joined. The
resulting subwords are looked up in the vocabulary; a subword that is not in it becomes the unknown token, id 0.

The layout of the published vocabulary, and of every one trained here (V tokens, S base symbols; published: S=238):

    0                     <unk>
    1 .. S                the base symbols
    S+1 .. 2S             the same symbols at the end of a word: "a</w>"
    2S+1 .. V-2           one token per merge, in the order of the merges
    V-1                   the line break "\\n</w>"
    V, V+1, V+2           the special tokens that fine-tuning adds; they are not part of the vocabulary

ByteTokenizer is GPT-2's variant, whose symbols are bytes (bytelevel.py). `from_tables` recognises the variant.

Longer than 300 lines: training, encoding and the word-level and byte-level variants, which share the merge loop.
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
from gpt1cli.text.chunk_cache import ChunkCache

UNKNOWN = "<unk>"
END_OF_WORD = "</w>"
SPECIAL = ("_start_", "_delimiter_", "_classify_")
"""The special tokens that fine-tuning appends to the vocabulary, in the order of the released code."""

VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
PIPELINE_FILE = "tokenizer.json"  # transformers 5 writes this file instead of the other two
RELEASED_FILES = ("encoder_bpe_40000.json", "vocab_40000.bpe")  # the same two files in OpenAI's release
MERGES_HEADER = "#version: 0.2"

BASE_SYMBOLS = 238
"""Maximum number of base symbols of a trained vocabulary: that of the published one."""

MIN_PAIR_COUNT = 2
"""Training stops at pairs seen less often than this, as in Sennrich's own code."""

PLAIN_CACHE_SIZE = 1 << 17
"""Words whose ids `encode_plain` caches: about 40 MB."""


class Tokenizer:
    """The tokenizer of GPT-1: text -> ids by the published rules, and ids -> readable text.

    The ids of chunks of text are cached, within the limits stated in normalise.py.
    """

    level: ClassVar[str] = "words"  # the subwords are parts of words, or bytes: TokenizerConfig.level

    def __init__(self, vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
        """Build from token -> id and the merges, earliest first. Raises UserError if the two do not fit together."""
        from tokenizers import models

        self.vocabulary = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        self.merges = [(left, right) for left, right in merges]
        if problems := list(_table_problems(self.vocabulary, self.merges)):
            raise UserError("\n".join(problems))
        self._bpe = models.BPE(self.vocabulary, self.merges, unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD)
        self._tokens = [*self.vocabulary, *SPECIAL]
        self._dtype = np.dtype(np.uint16 if len(self._tokens) < (1 << 16) - 1 else np.uint32)
        # Two placeholders larger than any id: a line break, until its neighbours are known, and the end of a text.
        self._break = (1 << 8 * self._dtype.itemsize) - 1
        self._end = self._break - 1
        self._newline = self._bpe.tokenize("\n")[0].id
        self._part_cache = normalise.Cache(self._part_ids)
        self._chunk_cache = ChunkCache(self._chunk_ids, self._line_ids, self._dtype)
        self._cached_word_ids = lru_cache(PLAIN_CACHE_SIZE)(self._word_ids)

    def __len__(self) -> int:
        """Return V, the vocabulary size without the special tokens."""
        return len(self.vocabulary)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[dict[str, int], list[tuple[str, str]]]]:
        """Pickle the two tables only, without the caches."""
        return Tokenizer, (self.vocabulary, self.merges)

    @property
    def newline(self) -> int | None:
        """Id to insert between two parts of a text that was split at a line break; None if the text contains it."""
        return len(self) - 1

    @property
    def document_separator(self) -> int | None:
        """Id that precedes every document of a corpus, or None."""
        return None

    def with_leading_space(self, text: str) -> str:
        """Return the text as it is written after another text. Here unchanged: tokens do not depend on the position."""
        return text

    @cached_property
    def tables_digest(self) -> str:
        """16 hex digits of the two tables alone, to check that a model was trained with them."""
        return hashlib.sha256(json.dumps([list(self.vocabulary.items()), self.merges]).encode()).hexdigest()[:16]

    @cached_property
    def identity(self) -> str:
        """16 hex digits of all that determines the ids: vocabulary, merges, and the versions of ftfy and spaCy."""
        tables = json.dumps([list(self.vocabulary.items()), self.merges, normalise.library_versions()], sort_keys=True)
        return hashlib.sha256(tables.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Adds no special token; the text cannot contain one."""
        return self.encode_arrays([text])[0].tolist()

    def encode_arrays(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Return the ids of each text as an array [ids] of uint16, or of uint32 if the vocabulary is too large."""
        ids = np.concatenate([np.empty(0, self._dtype), *map(self._chunk_cache, normalise.fixed_portions(texts))])
        real = ids < self._end
        kept = ids != self._break
        kept[1:] |= real[:-1]  # keep the first of several line breaks, and none at the start
        ids = ids[kept]
        ids[ids == self._break] = self._newline
        arrays, begin = [], 0
        for end in np.flatnonzero(ids == self._end).tolist():
            arrays.append(ids[begin : max(begin, end - 1)])  # without the line break at the end of the text
            begin = end + 1
        return arrays

    def encode_plain(self, text: str) -> list[int]:
        """Return the same ids by applying the rules one by one, slowly: the reference for tests and benchmark."""
        return [index for word in normalise.split_words(text) for index in self._cached_word_ids(word)]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text, in order."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return readable text: lower case, one blank between words, line breaks; V, V+1, V+2 are the special tokens.

        Raises ValueError if an id is neither in the vocabulary nor a special token.
        """
        strings = []
        for index in self._check_ids(ids):
            # An unknown token may or may not end its word: it is written as a word, like the special tokens.
            is_word = index == 0 or index >= len(self)
            strings.append(self._tokens[index] + " " if is_word else self._tokens[index].replace(END_OF_WORD, " "))
        return re.sub(" *\n *", "\n", "".join(strings)).strip(" ")

    def _check_ids(self, ids: Iterable[int]) -> Iterator[int]:
        for index in map(int, ids):
            if not 0 <= index < len(self._tokens):
                raise ValueError(
                    f"id {index} is not in the vocabulary: 0 to {len(self) - 1} are its tokens, "
                    f"{len(self)} to {len(self._tokens) - 1} are {', '.join(SPECIAL)}"
                )
            yield index

    def subwords(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens as the vocabulary writes them: `the</w>`."""
        return [self._tokens[index] for index in ids]

    def save(self, folder: Path) -> None:
        """Write the two files of the published format, which other tools also read, to the folder."""
        vocabulary = json.dumps(self.vocabulary, ensure_ascii=False)
        merges = "\n".join([MERGES_HEADER, *(f"{left} {right}" for left, right in self.merges), ""])
        for name, text in ((VOCABULARY_FILE, vocabulary), (MERGES_FILE, merges)):
            with files.name_write_errors(folder / name):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text, encoding="utf-8", newline="\n")

    def _chunk_ids(self, chunk: str) -> bytes:
        """Return the ids of a chunk on its own. Raises NeedsContext if they may depend on its line."""
        if chunk in (normalise.LINE_END, normalise.TEXT_END):
            return np.array(self._break if chunk == normalise.LINE_END else self._end, self._dtype).tobytes()
        return b"".join(map(self._part_cache.__getitem__, normalise.chunk_parts(chunk)))

    def _part_ids(self, part: str) -> bytes:
        return self._ids_of_words(normalise.part_words(part))

    def _line_ids(self, line: str) -> bytes:
        return self._ids_of_words(normalise.split_fixed_words(line))

    def _ids_of_words(self, words: list[str]) -> bytes:
        return array(self._dtype.char, [index for word in words for index in self._word_ids(word)]).tobytes()

    def _word_ids(self, word: str) -> list[int]:
        return [token.id for token in self._bpe.tokenize("\n" if word == normalise.NEWLINE else word)]


class ByteTokenizer(Tokenizer):
    """The tokenizer of GPT-2: text -> byte-level ids, and ids -> exactly the same text."""

    level = "bytes"

    def __init__(self, vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
        """Build from token -> id and the merges, earliest first. Raises UserError if the two do not fit together."""
        self.vocabulary = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        self.merges = [(left, right) for left, right in merges]
        if problems := list(
            _merge_problems(self.vocabulary, self.merges, {*bytelevel.CHARACTER_BYTES}, {bytelevel.END_OF_TEXT})
        ):
            raise UserError("\n".join(problems))
        self._encoder = bytelevel.build_encoder(self.vocabulary, self.merges)
        self._tokens = [*self.vocabulary, *SPECIAL]
        self._bytes = [*map(bytelevel.token_bytes, self.vocabulary), *(name.encode() for name in SPECIAL)]
        self._dtype = np.dtype(np.uint16 if len(self._tokens) <= 1 << 16 else np.uint32)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[dict[str, int], list[tuple[str, str]]]]:
        """Pickle the two tables only."""
        return ByteTokenizer, (self.vocabulary, self.merges)

    @property
    def newline(self) -> int | None:
        """Return None: the text contains its line breaks."""
        return None

    @property
    def document_separator(self) -> int | None:
        """Id of <|endoftext|>, as in GPT-2's training text; None if it is not in the vocabulary."""
        return self.vocabulary.get(bytelevel.END_OF_TEXT)

    def with_leading_space(self, text: str) -> str:
        """Return the text with a leading blank, which gives its first word the same token as inside a text.

        A text that starts with white space or a punctuation mark stays as it is.
        """
        return text if not text or text[0].isspace() or text[0] in bytelevel.NO_BLANK_BEFORE else " " + text

    @cached_property
    def identity(self) -> str:
        """16 hex digits of all that determines the ids: vocabulary and merges."""
        tables = json.dumps([self.level, list(self.vocabulary.items()), self.merges])
        return hashlib.sha256(tables.encode()).hexdigest()[:16]

    def encode_arrays(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Return the ids of each text as an array [ids] of uint16, or of uint32 if the vocabulary is too large."""
        return [np.array(ids, self._dtype) for ids in bytelevel.encode_texts(self._encoder, texts)]

    def encode_plain(self, text: str) -> list[int]:
        """Return the same ids as `encode`: there is no second implementation."""
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text, with U+FFFD for incomplete characters. V, V+1, V+2 are the special tokens.

        Raises ValueError if an id is neither in the vocabulary nor a special token.
        """
        return b"".join(self._bytes[index] for index in self._check_ids(ids)).decode(errors="replace")


def from_tables(vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> Tokenizer:
    """Build a ByteTokenizer if the vocabulary has a token for every byte, else a Tokenizer."""
    return (ByteTokenizer if bytelevel.is_bytelevel(vocabulary) else Tokenizer)(vocabulary, merges)


def load(folder: Path) -> Tokenizer:
    """Load the tokenizer in a folder. Raises UserError if a file is missing or damaged."""
    released = all((folder / name).is_file() for name in RELEASED_FILES)
    vocabulary, merges = (folder / name for name in (RELEASED_FILES if released else (VOCABULARY_FILE, MERGES_FILE)))
    try:
        missing = [file.name for file in (vocabulary, merges) if not file.is_file()]
        if len(missing) == 2 and (folder / PIPELINE_FILE).is_file():
            return from_tables(*_read_pipeline(folder / PIPELINE_FILE))
        if missing:
            raise UserError(f"no file {' and no '.join(missing)}")
        return from_tables(_read_vocabulary(vocabulary), _read_merges(merges))
    except UserError as error:
        raise UserError(
            f"no usable tokenizer in {folder}:\n{error}\n"
            f"A tokenizer is the files {VOCABULARY_FILE} and {MERGES_FILE}, which belong together: copy both again."
        ) from None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file.name} cannot be read: {error}") from None


def _read_json(file: Path) -> Any:
    content = _read_text(file)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.name} is not valid JSON: {error}") from None


def _read_pipeline(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read the two tables from tokenizer.json, where a merge is a pair or a string with a blank in it."""
    content = _read_json(file)
    try:
        model = content["model"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        merges = [(str(left), str(right)) for left, right in pairs]
        vocabulary = {str(token): int(index) for token, index in model["vocab"].items()}
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise UserError(f"{file.name} has no byte-pair vocabulary with merges ({error})") from None
    return vocabulary, merges


def _read_vocabulary(file: Path) -> dict[str, int]:
    vocabulary = _read_json(file)
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise UserError(f"{file.name} does not map tokens to integers")
    return vocabulary


def _read_merges(file: Path) -> list[tuple[str, str]]:
    # NOTE: not splitlines(), which also splits at symbols that a merge may contain (U+2028, U+0085).
    lines = _read_text(file).rstrip("\n").split("\n")
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


def _table_problems(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Iterator[str]:
    """Yield what is wrong with the two tables as a byte-pair vocabulary of words.

    Each merge must make a token that no earlier merge makes, from symbols or tokens that already exist. Then the
    library, which always joins the leftmost best pair, gives the same result as the published loop, which joins all
    occurrences of the best pair before it searches the next one: the result of a merge only occurs in later merges.
    """
    if vocabulary.get(UNKNOWN) != 0:
        yield f"{VOCABULARY_FILE}: token 0 must be {UNKNOWN}"
    symbols = {token for token in vocabulary if len(token.removesuffix(END_OF_WORD)) == 1}
    yield from _merge_problems(vocabulary, merges, symbols, {UNKNOWN})


def _merge_problems(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], symbols: set[str], others: set[str]
) -> Iterator[str]:
    """Yield what is wrong with the tables of either variant; `others` are tokens that no merge makes."""
    if list(vocabulary.values()) != list(range(len(vocabulary))):
        yield f"{VOCABULARY_FILE}: the ids of {len(vocabulary)} tokens must be 0 to {len(vocabulary) - 1}, each once"
    known = set(symbols)
    for number, (left, right) in enumerate(merges, start=1):
        merged = left + right
        if not {left, right} <= known or merged in known or merged not in vocabulary:
            yield (
                f"{MERGES_FILE}, merge {number} ({left!r}, {right!r}): both parts must be symbols or results of "
                f"earlier merges, and {merged!r} must be in {VOCABULARY_FILE} and not the result of another merge"
            )
            return
        known.add(merged)
    if missing := vocabulary.keys() - known - others:
        yield (
            f"{MERGES_FILE}: its {len(merges)} merges do not make {len(missing)} of the tokens in {VOCABULARY_FILE}, "
            f"for example {min(missing, key=vocabulary.__getitem__)!r}"
        )


def train(counts: Mapping[str, int], merges: int) -> Tokenizer:
    """Train at most `merges` merges on lower-cased words (`normalise.split_words`) and their counts.

    Deterministic: among equally frequent pairs the one with the lower ids is merged first. The base symbols are the
    BASE_SYMBOLS most frequent ones, ties in code point order; words with other symbols are skipped in training.
    A small corpus gives fewer merges: see `len(tokenizer.merges)`. Raises UserError if there are no words.
    """
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import models, trainers

    symbols: Counter[str] = Counter()
    for word, count in counts.items():
        for symbol in word:
            symbols[symbol] += count
    visible = [symbol for symbol in symbols if not symbol.isspace()]  # the line break is a separate token
    if not visible:
        raise UserError("no words to train the vocabulary on: the corpus is empty or only white space")
    base = sorted(visible, key=lambda symbol: (-symbols[symbol], symbol))[:BASE_SYMBOLS]

    # NOTE: all symbols are passed as special tokens, because these get their ids first and in order. Otherwise the
    # trainer numbers "a</w>" in the order of a hash map, which changes from run to run, and breaks ties by these ids.
    initial = [UNKNOWN, *base, *(symbol + END_OF_WORD for symbol in base)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(initial) + merges,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=initial,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    pipeline = Pipeline(models.BPE(unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD))
    pipeline.train_from_iterator(_repeat_words(counts, set(base)), trainer)
    learned = [(left, right) for left, right in json.loads(pipeline.to_str())["model"]["merges"]]
    tokens = [*initial, *(left + right for left, right in learned), "\n" + END_OF_WORD]
    return Tokenizer({token: index for index, token in enumerate(tokens)}, learned)


def train_bytes(texts: Iterable[str], merges: int) -> ByteTokenizer:
    """Train at most `merges` byte-level merges on the unchanged texts. Raises UserError if there are none."""
    vocabulary, learned = bytelevel.train_tables(texts, merges)
    if not learned:
        raise UserError("no text to train the vocabulary on: no pair of bytes occurs twice")
    return ByteTokenizer(vocabulary, learned)


def _repeat_words(counts: Mapping[str, int], symbols: set[str], batch_size: int = 4096) -> Iterator[list[str]]:
    """Yield each word made of these symbols as often as it was counted, at most `batch_size` occurrences at a time.

    Words that contain "<unk>" or "</w>" are skipped: their merges could make these tokens, which have another meaning.
    """
    for word, count in counts.items():
        if symbols.issuperset(word) and UNKNOWN not in word and END_OF_WORD not in word:
            for done in range(0, count, batch_size):
                yield [word] * min(batch_size, count - done)
