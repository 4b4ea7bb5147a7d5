"""Byte-level byte pairs: text as it is -> ids and back, without any loss (Radford et al. 2019, GPT-2, section 2.2).

The symbols are the 256 bytes of UTF-8, so that nothing is unknown, and case, blanks and line breaks stay what they are.
A text is first cut into words with the blank before them, numbers, runs of marks and of white space, and no pair
reaches over such a cut. In the two files of a vocabulary a byte is written as a visible character: itself where it is
one in Latin-1, else one from U+0100 on ("Ġ" is the blank, "Ċ" the line break).

The layout, which a vocabulary trained here follows (V entries):

    0 .. 255              the bytes, in the order of their characters
    256 .. V-2            one entry per merge, in the order of the merges
    V-1                   <|endoftext|>
    V, V+1, V+2           not in the vocabulary: the rows that fine-tuning appends to the embeddings
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Pipeline

END_OF_TEXT = "<|endoftext|>"
"""The entry that no text gives: it stands where one document ends and the next one begins."""

LEAST_COUNT = 2
"""A pair seen once teaches nothing: training stops there."""

TOGETHER = 1024
"""Texts that the library gets at a time: it makes some 100 bytes of each token before these are ids."""

ATTACHED = ".,;:!?)]}'’\"”"
"""Marks that stand at a word's end, without a blank before them."""


def characters() -> dict[int, str]:
    """Byte -> the visible character that stands for it in the files."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = (byte for byte in range(256) if byte not in visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


BYTES = {character: byte for byte, character in characters().items()}


def is_bytelevel(vocabulary: Mapping[str, int]) -> bool:
    """Whether it has an entry for every byte."""
    return BYTES.keys() <= vocabulary.keys()


def bytes_of(entry: str) -> bytes:
    """What an entry stands for in a text; one that is not made of bytes, as <|endoftext|>, for its own letters."""
    if entry == END_OF_TEXT or not BYTES.keys() >= set(entry):
        return entry.encode()
    return bytes(BYTES[character] for character in entry)


def pipeline(vocabulary: Mapping[str, int], merges: list[tuple[str, str]]) -> Pipeline:
    """The library's encoder: cut, bytes to characters, merges."""
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import models, pre_tokenizers

    found = Pipeline(models.BPE(dict(vocabulary), merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return found


def encoded(pipeline: Pipeline, texts: Iterable[str]) -> Iterator[list[int]]:
    """The ids of each text. <|endoftext|> in a text is letters and marks like others."""
    remaining = iter(texts)
    while some := [whole(text) for text in itertools.islice(remaining, TOGETHER)]:
        yield from (found.ids for found in pipeline.encode_batch_fast(some, add_special_tokens=False))


def whole(text: str) -> str:
    """The text with U+FFFD for half a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def train(texts: Iterable[str], merges: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and at most `merges` merges, learned on the texts as they are. Deterministic."""
    from tokenizers import trainers

    alphabet = sorted(BYTES)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges,
        min_frequency=LEAST_COUNT,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    learning = pipeline({}, [])
    learning.train_from_iterator(map(whole, texts), trainer)
    learned = [(left, right) for left, right in json.loads(learning.to_str())["model"]["merges"]]
    entries = [*alphabet, *(left + right for left, right in learned), END_OF_TEXT]
    return {entry: index for index, entry in enumerate(entries)}, learned
