"""Rows of a user's own file, one at a time: csv, tsv, jsonl, parquet, or plain text with a text a line.

Whatever is wrong with a file is told with its line. A .csv may be separated by commas, semicolons or tabs, as its first
line says, and quotes as RFC 4180 has it; a .tsv has no quotes, so that one in a text is a character like any other.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt1cli.config.schema import UserError, display

SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "text",
}  # fmt: skip
SEPARATORS = ",;\t"
ROWS = 1024  # of a parquet file read at a time
LONGEST_FIELD = 2**31 - 1  # bytes: csv's own limit is 128 KiB, which a text may exceed


@dataclass(frozen=True)
class Table:
    """The columns of a file, and its rows, which can be read once."""

    where: str
    columns: list[str]
    rows: Iterator[tuple[int, Mapping[str, Any]]]  # line (of parquet: row, from 1), values by column


def format_of(path: str) -> str:
    """The format that a file's name tells. UserError for another."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: a file ends in {', '.join(SUFFIXES)}, which tells how to read it")
    return SUFFIXES[suffix]


@contextlib.contextmanager
def opened(path: str, form: str | None = None, header: Sequence[str] = ()) -> Iterator[Table]:
    """The table of a file, or of stdin for `-`; its format is that of its name, or the one given.

    `header` names the columns of a csv or tsv whose first line is a row already; what separates a csv is then a comma.
    UserError says what is wrong with the file and in which line, here or when that row is read.
    """
    form = form or format_of(path)
    if path != "-" and not Path(path).is_file():
        raise UserError(f"{path}: {'this is a folder' if Path(path).is_dir() else 'no such file'}")
    where = "stdin" if path == "-" else path
    try:
        file = open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-")  # noqa: SIM115
    except OSError as error:  # not of what is done with the rows
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
    with file:
        yield _separated(where, file, form, header) if header and form in ("csv", "tsv") else READERS[form](where, file)


def _lines(where: str, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """The lines of a text in UTF-8, with their ends."""
    for number, raw in enumerate(file, start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in raw:
            raise UserError(f"{where}, line {number}: a NUL byte; a text in UTF-8 has none (UTF-16 has: convert it)")
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            wrong = f"byte {raw[error.start]:#04x} is not UTF-8"
            raise UserError(f"{where}, line {number}: {wrong}; convert the file, as by iconv -t utf-8") from None


def _separated(where: str, file: BinaryIO, form: str, header: Sequence[str] = ()) -> Table:
    """csv and tsv: a line of names, then a row each; a quoted field of a csv may hold several lines."""
    lines = _lines(where, file)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{where} is empty: its first line {'is a row' if header else 'names the columns'}")
    separator = "\t" if form == "tsv" else "," if header else max(SEPARATORS, key=first[1].count)
    csv.field_size_limit(LONGEST_FIELD)
    texts = (text for _, text in itertools.chain([first], lines))
    quoting: Any = {"quoting": csv.QUOTE_NONE} if form == "tsv" else {"strict": True}
    reader = csv.reader(texts, delimiter=separator, **quoting)
    columns = list(header) or _next(where, reader) or []
    _check_names(where, columns)

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        while True:
            line = reader.line_num + 1
            values = _next(where, reader)
            if values is None:
                return
            if not values:  # an empty line
                continue
            if len(values) != len(columns):
                naming = "task.header" if header else "the first line"
                has = f"{len(values)} fields, but {naming} names {len(columns)}: {display(', '.join(columns))}"
                raise UserError(f"{where}, line {line}: {has}")
            yield line, dict(zip(columns, values, strict=True))

    return Table(where, columns, rows())


def _next(where: str, reader: Any) -> list[str] | None:
    line = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        rule = "a field that holds quotes is quoted, its quotes doubled"
        raise UserError(f"{where}, line {line}: {error} ({rule})") from None


def _json_lines(where: str, file: BinaryIO) -> Table:
    """An object a line."""
    rows = _objects(where, file)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{where} is empty: an object a line is wanted")
    columns = list(first[1])
    _check_names(where, columns)
    return Table(where, columns, itertools.chain([first], rows))


def _objects(where: str, file: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, text in _lines(where, file):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}, line {number}: no JSON ({display(error)})") from None
        if not isinstance(found, dict):
            raise UserError(f"{where}, line {number}: a JSON object is wanted, not {display(text.strip())}")
        if "\\ud" in text.lower() and not _writable(found):
            raise UserError(f"{where}, line {number}: half a surrogate pair (as \\ud800), which is no character")
        yield number, found


def _writable(found: Mapping[str, Any]) -> bool:
    """Whether a row can be written again: JSON may escape half a surrogate pair, which no file can hold as text."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(where: str, file: BinaryIO) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = list(table.schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{where} is no whole parquet file: {display(str(error).splitlines()[0])}") from None
    _check_names(where, columns)

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        try:
            yield from enumerate((row for batch in table.iter_batches(ROWS) for row in batch.to_pylist()), start=1)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{where} is damaged: {display(str(error).splitlines()[0])}") from None

    return Table(where, columns, rows())


def _text(where: str, file: BinaryIO) -> Table:
    """A text a line."""
    return Table(where, ["text"], ((number, {"text": text.rstrip("\r\n")}) for number, text in _lines(where, file)))


def _check_names(where: str, columns: Iterable[str]) -> None:
    names = list(columns)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: several columns are called {display(', '.join(twice))}")
    if not any(name.strip() for name in names):
        raise UserError(f"{where}: its first line names no columns")


READERS = {
    "csv": lambda where, file: _separated(where, file, "csv"),
    "tsv": lambda where, file: _separated(where, file, "tsv"),
    "jsonl": _json_lines,
    "parquet": _parquet,
    "text": _text,
}
