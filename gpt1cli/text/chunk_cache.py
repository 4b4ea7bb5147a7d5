"""The ids of all chunks of a text at once: what a dict does for one chunk, numpy does for a portion of text.

The bytes of a chunk, at most 16, are read as two numbers, which are its key. Mixed, they name a row of a table, which
holds the key it was made for and the place of the ids. Chunks that share their row with another one, and longer ones,
are looked up in a dict; what is not there either is found out, once.

n bytes, N chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from gpt1cli.text.normalise import CHUNK_SYMBOLS, CHUNKS, Entangled

KEY = 16  # bytes of the longest chunk that has a row
ROW_BITS = 18  # 262,144 rows of 32 bytes
MASKS = np.frombuffer(b"".join(b"\xff" * length + bytes(KEY - length) for length in range(KEY + 1)), np.uint64)
MASKS = MASKS.reshape(-1, 2)  # what of 16 bytes belongs to a chunk of that length
MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)  # odd, half of the bits set
BLANK, BREAK = 32, 10


class Lookup:
    """Chunks -> ids. At most CHUNKS chunks are remembered, those that came first."""

    def __init__(self, chunk_ids: Callable[[str], bytes], line_ids: Callable[[str], bytes], dtype: np.dtype) -> None:
        """Both give ids of the dtype, as bytes; where `chunk_ids` raises Entangled, `line_ids` is asked instead."""
        self._chunk_ids, self._line_ids = chunk_ids, line_ids
        self._rows = np.zeros((1 << ROW_BITS, 4), np.uint64)  # key, key, place, nothing
        self._places: dict[bytes, int] = {}  # a place: where the ids begin and, in the lower 32 bits, how many they are
        self._ids, self._used = np.empty(1 << 16, dtype), 1  # so that no place is 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many chunks are remembered."""
        return len(self._places)

    def __call__(self, text: bytes) -> np.ndarray:
        """The ids of the chunks of a text, which is not empty, one after the other. n bytes of UTF-8 -> [ids]"""
        with self._lock:
            bounds = _bounds(text)
            lengths = np.diff(bounds)
            window = np.ndarray(len(text), f"V{KEY}", text + bytes(KEY), strides=(1,))
            keys = window[bounds[:-1]].view(np.uint64).reshape(-1, 2)
            keys &= MASKS.take(np.minimum(lengths, KEY), axis=0)
            numbers = (keys[:, 0] * MIX[0] + keys[:, 1] * MIX[1] >> np.uint64(64 - ROW_BITS)).view(np.int64)
            rows = self._rows.take(numbers, axis=0)
            places = rows[:, 2].copy()
            known = (rows[:, 0] == keys[:, 0]) & (rows[:, 1] == keys[:, 1]) & (lengths <= KEY)
            new, new_places = self._look_further(text, bounds, places, np.flatnonzero(~known))
            fits = (lengths[new] <= KEY) & (self._rows[numbers[new], 2] == 0)
            self._rows[numbers[new[fits]], :3] = np.column_stack([keys[new], new_places])[fits]
            return self._gathered(places)

    def _look_further(
        self, text: bytes, bounds: np.ndarray, places: np.ndarray, unknown: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fill in the places of unknown chunks; the numbers and places of those that are remembered from here on.

        bounds int64 [N+1], places uint64 [N], unknown int64 [U] -> int64, uint64, both of at most U
        """
        new: dict[bytes, int] = {}
        numbers, remembered = [], []  # of the new ones the number and the ids
        passing: dict[int, bytes] = {}  # number -> ids of what is not remembered
        lines: dict[int, int] = {}  # that are cut as a whole: where they begin and end
        used, size = self._used, self._ids.itemsize
        for number, begin, end in np.stack([unknown, bounds[unknown], bounds[unknown + 1]], axis=1).tolist():
            chunk = text[begin:end]
            place = self._places.get(chunk) or new.get(chunk)
            if place is None:
                try:
                    ids = self._chunk_ids(chunk.decode().removesuffix(" "))
                except Entangled:
                    line = text.rfind(b"\n", 0, begin) + 1
                    lines[line] = text.find(b"\n", line) % (len(text) + 1)  # not found, -1: the end of the text
                    continue
                if end - begin > CHUNK_SYMBOLS or len(self._places) + len(new) >= CHUNKS:
                    passing[number] = ids
                    continue
                place = new[chunk] = used << 32 | len(ids) // size
                used += len(ids) // size
                numbers.append(number)
                remembered.append(ids)
            places[number] = place
        for begin, end in lines.items():  # their first chunk stands for the whole line
            first, last = np.searchsorted(bounds, [begin, end]).tolist()
            passing |= dict.fromkeys(range(first, last), b"") | {first: self._line_ids(text[begin:end].decode())}
        self._write(b"".join([*remembered, *passing.values()]))
        self._places.update(new)
        self._used = used  # what passes lies behind
        for number, ids in passing.items():
            places[number] = used << 32 | len(ids) // size
            used += len(ids) // size
        return np.array(numbers, np.int64), np.fromiter(new.values(), np.uint64, len(new))

    def _write(self, ids: bytes) -> None:
        found = np.frombuffer(ids, self._ids.dtype)
        end = self._used + len(found)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(end, self._ids.dtype)])
        self._ids[self._used : end] = found

    def _gathered(self, places: np.ndarray) -> np.ndarray:
        """[N] -> [ids]"""
        begins, counts = (places >> np.uint64(32)).astype(np.int64), places.astype(np.uint32).astype(np.int64)
        ends = counts.cumsum()
        where: np.ndarray = np.repeat(begins - (ends - counts), counts)
        where += np.arange(len(where))
        return self._ids.take(where)


def _bounds(text: bytes) -> np.ndarray:
    """Where chunks begin, and the end: behind every blank, on both sides of a line break. int64 [N+1]"""
    symbols = np.frombuffer(text, np.uint8)
    breaks = symbols == BREAK
    last = (symbols == BLANK) | breaks
    last[:-1] |= breaks[1:]
    last[-1] = True
    return np.concatenate([[0], np.flatnonzero(last) + 1])
