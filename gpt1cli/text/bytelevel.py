"""Byte-level byte-pair encoding, which restores any text exactly (Radford et al. 2019, GPT-2, section 2.2).

The symbols are the 256 bytes of UTF-8: nothing is unknown, and case, blanks and line breaks are kept. A text is first
split into words with the blank before them, numbers, and runs of punctuation and of white space; merges stay within
these. The two files of a vocabulary write each byte as a visible character: the character itself if it is visible in
Latin-1, else one from U+0100 on ("Ġ" is the blank, "Ċ" the line break).

The layout of a vocabulary trained here (V tokens):

    0 .. 255              the bytes, in the order of their characters
    256 .. V-2            one token per merge, in the order of the merges
    V-1                   <|endoftext|>
    V, V+1, V+2           the special tokens that fine-tuning adds; they are not part of the vocabulary
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Pipeline

END_OF_TEXT = "<|endoftext|>"
"""Separates documents. No text is encoded as this token."""

MIN_PAIR_COUNT = 2
"""Training stops at pairs seen less often than this."""

BATCH_TEXTS = 1024
"""Texts encoded at a time: the library needs about 100 bytes per token."""

NO_BLANK_BEFORE = ".,;:!?)]}'’\"”"
"""Punctuation that follows a word without a blank."""


def byte_characters() -> dict[int, str]:
    """Return byte -> the visible character that the vocabulary files write for it."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = (byte for byte in range(256) if byte not in visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


CHARACTER_BYTES = {character: byte for byte, character in byte_characters().items()}


def is_bytelevel(vocabulary: Mapping[str, int]) -> bool:
    """Return whether the vocabulary has a token for every byte."""
    return CHARACTER_BYTES.keys() <= vocabulary.keys()


def token_bytes(token: str) -> bytes:
    """Return the bytes of a token; for one that is not made of bytes, such as <|endoftext|>, its name in UTF-8."""
    if token == END_OF_TEXT or not CHARACTER_BYTES.keys() >= set(token):
        return token.encode()
    return bytes(CHARACTER_BYTES[character] for character in token)


def build_encoder(vocabulary: Mapping[str, int], merges: list[tuple[str, str]]) -> Pipeline:
    """Build the library's encoder: split, bytes to characters, merges."""
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import models, pre_tokenizers

    encoder = Pipeline(models.BPE(dict(vocabulary), merges))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return encoder


def encode_texts(encoder: Pipeline, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the ids of each text. "<|endoftext|>" in a text is encoded as ordinary characters."""
    remaining = iter(texts)
    while batch := [replace_lone_surrogates(text) for text in itertools.islice(remaining, BATCH_TEXTS)]:
        yield from (encoding.ids for encoding in encoder.encode_batch_fast(batch, add_special_tokens=False))


def replace_lone_surrogates(text: str) -> str:
    """Return the text with U+FFFD instead of lone surrogates, which UTF-8 cannot encode."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def train_tables(texts: Iterable[str], merges: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train a vocabulary and at most `merges` merges on the unchanged texts. Deterministic."""
    from tokenizers import trainers

    alphabet = sorted(CHARACTER_BYTES)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges,
        min_frequency=MIN_PAIR_COUNT,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    encoder = build_encoder({}, [])
    encoder.train_from_iterator(map(replace_lone_surrogates, texts), trainer)
    learned = [(left, right) for left, right in json.loads(encoder.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(left + right for left, right in learned), END_OF_TEXT]
    return {token: index for index, token in enumerate(tokens)}, learned
