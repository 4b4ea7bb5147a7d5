"""A cache of the ids of chunks of text, looked up with numpy for many chunks at once.

A chunk of at most 16 bytes is read as two 64-bit numbers, its key. A hash of the key selects a row of the table, which
holds a key and the span of its ids. Chunks whose row holds another key, and longer chunks, are looked up in a dict;
chunks that are not in the dict are encoded, once.

n bytes, N chunks. A span is (start << 32 | count) of ids in one long array.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from gpt1cli.text.normalise import MAX_CHUNK_SYMBOLS, MAX_CHUNKS, NeedsContext

KEY_BYTES = 16  # the longest chunk in the table
ROW_BITS = 18  # 262,144 rows of 32 bytes
KEY_MASKS = np.frombuffer(
    b"".join(b"\xff" * length + bytes(KEY_BYTES - length) for length in range(KEY_BYTES + 1)), np.uint64
)
KEY_MASKS = KEY_MASKS.reshape(-1, 2)  # row n keeps the first n of 16 bytes
HASH_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)  # odd, half of the bits set
BLANK, BREAK = 32, 10


class ChunkCache:
    """Chunks -> ids. The first MAX_CHUNKS chunks are cached."""

    def __init__(self, chunk_ids: Callable[[str], bytes], line_ids: Callable[[str], bytes], dtype: np.dtype) -> None:
        """Set the two encoders, which return ids of `dtype` as bytes.

        If `chunk_ids` raises NeedsContext, `line_ids` encodes the whole line.
        """
        self._chunk_ids, self._line_ids = chunk_ids, line_ids
        self._table = np.zeros((1 << ROW_BITS, 4), np.uint64)  # key, key, span, unused
        self._spans: dict[bytes, int] = {}
        self._ids, self._used = np.empty(1 << 16, dtype), 1  # ids start at 1, so that no span is 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of cached chunks."""
        return len(self._spans)

    def __call__(self, text: bytes) -> np.ndarray:
        """Return the ids of all chunks of a non-empty text, concatenated. n bytes of UTF-8 -> [ids]"""
        with self._lock:
            bounds = _chunk_bounds(text)
            lengths = np.diff(bounds)
            window = np.ndarray(len(text), f"V{KEY_BYTES}", text + bytes(KEY_BYTES), strides=(1,))
            keys = window[bounds[:-1]].view(np.uint64).reshape(-1, 2)
            keys &= KEY_MASKS.take(np.minimum(lengths, KEY_BYTES), axis=0)
            hashes = (keys[:, 0] * HASH_FACTORS[0] + keys[:, 1] * HASH_FACTORS[1] >> np.uint64(64 - ROW_BITS)).view(
                np.int64
            )
            rows = self._table.take(hashes, axis=0)
            spans = rows[:, 2].copy()
            hits = (rows[:, 0] == keys[:, 0]) & (rows[:, 1] == keys[:, 1]) & (lengths <= KEY_BYTES)
            new, new_spans = self._find_missing(text, bounds, spans, np.flatnonzero(~hits))
            fits = (lengths[new] <= KEY_BYTES) & (self._table[hashes[new], 2] == 0)
            self._table[hashes[new[fits]], :3] = np.column_stack([keys[new], new_spans])[fits]
            return self._gather_ids(spans)

    def _find_missing(
        self, text: bytes, bounds: np.ndarray, spans: np.ndarray, missing: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Set the spans of chunks that are not in the table. Returns indices and spans of the newly cached chunks.

        bounds int64 [N+1], spans uint64 [N], missing int64 [U] -> int64, uint64, both of at most U
        """
        new: dict[bytes, int] = {}
        new_numbers, new_ids = [], []  # index and ids of the newly cached chunks
        uncached: dict[int, bytes] = {}  # index -> ids of chunks that are not cached
        lines: dict[int, int] = {}  # lines that are encoded as a whole: start -> end
        used, size = self._used, self._ids.itemsize
        for number, begin, end in np.stack([missing, bounds[missing], bounds[missing + 1]], axis=1).tolist():
            chunk = text[begin:end]
            span = self._spans.get(chunk) or new.get(chunk)
            if span is None:
                try:
                    ids = self._chunk_ids(chunk.decode().removesuffix(" "))
                except NeedsContext:
                    line = text.rfind(b"\n", 0, begin) + 1
                    lines[line] = text.find(b"\n", line) % (len(text) + 1)  # -1, not found -> end of text
                    continue
                if end - begin > MAX_CHUNK_SYMBOLS or len(self._spans) + len(new) >= MAX_CHUNKS:
                    uncached[number] = ids
                    continue
                span = new[chunk] = used << 32 | len(ids) // size
                used += len(ids) // size
                new_numbers.append(number)
                new_ids.append(ids)
            spans[number] = span
        for begin, end in lines.items():  # the first chunk gets the ids of the whole line, the others none
            first, last = np.searchsorted(bounds, [begin, end]).tolist()
            uncached |= dict.fromkeys(range(first, last), b"") | {first: self._line_ids(text[begin:end].decode())}
        self._append_ids(b"".join([*new_ids, *uncached.values()]))
        self._spans.update(new)
        self._used = used  # the ids of uncached chunks follow, to be overwritten by the next call
        for number, ids in uncached.items():
            spans[number] = used << 32 | len(ids) // size
            used += len(ids) // size
        return np.array(new_numbers, np.int64), np.fromiter(new.values(), np.uint64, len(new))

    def _append_ids(self, data: bytes) -> None:
        ids = np.frombuffer(data, self._ids.dtype)
        end = self._used + len(ids)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(end, self._ids.dtype)])
        self._ids[self._used : end] = ids

    def _gather_ids(self, spans: np.ndarray) -> np.ndarray:
        """Return the ids of all spans, concatenated. [N] -> [ids]"""
        begins, counts = (spans >> np.uint64(32)).astype(np.int64), spans.astype(np.uint32).astype(np.int64)
        ends = counts.cumsum()
        indices: np.ndarray = np.repeat(begins - (ends - counts), counts)
        indices += np.arange(len(indices))
        return self._ids.take(indices)


def _chunk_bounds(text: bytes) -> np.ndarray:
    """Return the starts of the chunks and the end: chunks end after a blank, and before and after a line break.

    n bytes -> int64 [N+1]
    """
    symbols = np.frombuffer(text, np.uint8)
    breaks = symbols == BREAK
    last = (symbols == BLANK) | breaks
    last[:-1] |= breaks[1:]
    last[-1] = True
    return np.concatenate([[0], np.flatnonzero(last) + 1])
