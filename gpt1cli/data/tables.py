"""Reads the rows of a user's file, one at a time: csv, tsv, jsonl, parquet, or plain text with one text per line.

Errors in a file are reported with their line. A .csv is separated by commas, semicolons or tabs, as in its first line,
and quoted as in RFC 4180; a .tsv has no quoting, so a quote in a text is an ordinary character.
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
PARQUET_BATCH_ROWS = 1024  # rows of a parquet file read at a time
MAX_FIELD_BYTES = 2**31 - 1  # the csv module's default limit is 128 KiB, too short for some texts


@dataclass(frozen=True)
class FileRows:
    """The columns of a file, and its rows, which can be iterated once."""

    name: str
    columns: list[str]
    rows: Iterator[tuple[int, Mapping[str, Any]]]  # line number (parquet: row number from 1), column -> value


def file_format(path: str) -> str:
    """Return the format of a file by its suffix. Raises UserError for an unknown suffix."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown format; the file name must end in {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


@contextlib.contextmanager
def open_table(path: str, file_type: str | None = None, header: Sequence[str] = ()) -> Iterator[FileRows]:
    """Open a file, or stdin for `-`. Its format is `file_type`, by default that of its suffix.

    `header` names the columns of a csv or tsv without a header line; such a csv is separated by commas.
    Raises UserError, here or when a row is read, with the line and what is wrong with it.
    """
    file_type = file_type or file_format(path)
    if path != "-" and not Path(path).is_file():
        raise UserError(f"{path}: {'this is a folder' if Path(path).is_dir() else 'no such file'}")
    file_name = "stdin" if path == "-" else path
    try:
        file = open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-")  # noqa: SIM115
    except OSError as error:  # does not cover errors in the use of the rows
        raise UserError(f"{file_name} cannot be read: {error.strerror or error}") from error
    with file:
        if header and file_type in ("csv", "tsv"):
            yield _read_separated(file_name, file, file_type, header)
        else:
            yield READERS[file_type](file_name, file)


def _read_lines(file_name: str, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines of a file in UTF-8, with their line ends."""
    for number, raw in enumerate(file, start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in raw:
            raise UserError(f"{file_name}, line {number}: a NUL byte, as in UTF-16; convert the file to UTF-8")
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"byte {raw[error.start]:#04x} is not UTF-8"
            raise UserError(
                f"{file_name}, line {number}: {problem}; convert the file, for example with iconv -t utf-8"
            ) from None


def _read_separated(file_name: str, file: BinaryIO, file_type: str, header: Sequence[str] = ()) -> FileRows:
    """Read csv or tsv: a line of column names, then one row per line; a quoted csv field may span several lines."""
    lines = _read_lines(file_name, file)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{file_name} is empty: its first line must {'be a row' if header else 'name the columns'}")
    separator = "\t" if file_type == "tsv" else "," if header else max(SEPARATORS, key=first[1].count)
    csv.field_size_limit(MAX_FIELD_BYTES)
    texts = (text for _, text in itertools.chain([first], lines))
    quoting: Any = {"quoting": csv.QUOTE_NONE} if file_type == "tsv" else {"strict": True}
    reader = csv.reader(texts, delimiter=separator, **quoting)
    columns = list(header) or _next_row(file_name, reader) or []
    _check_column_names(file_name, columns)

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        while True:
            line = reader.line_num + 1
            values = _next_row(file_name, reader)
            if values is None:
                return
            if not values:  # an empty line
                continue
            if len(values) != len(columns):
                source = "task.header" if header else "the first line"
                problem = f"{len(values)} fields, but {source} names {len(columns)}: {display(', '.join(columns))}"
                raise UserError(f"{file_name}, line {line}: {problem}")
            yield line, dict(zip(columns, values, strict=True))

    return FileRows(file_name, columns, rows())


def _next_row(file_name: str, reader: Any) -> list[str] | None:
    line = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        rule = "a field with quotes in it must be quoted, and its quotes doubled"
        raise UserError(f"{file_name}, line {line}: {error} ({rule})") from None


def _read_json_lines(file_name: str, file: BinaryIO) -> FileRows:
    """Read one JSON object per line."""
    rows = _read_objects(file_name, file)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file_name} is empty: one JSON object per line is expected")
    columns = list(first[1])
    _check_column_names(file_name, columns)
    return FileRows(file_name, columns, itertools.chain([first], rows))


def _read_objects(file_name: str, file: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, text in _read_lines(file_name, file):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file_name}, line {number}: not JSON ({display(error)})") from None
        if not isinstance(row, dict):
            raise UserError(f"{file_name}, line {number}: expected a JSON object, not {display(text.strip())}")
        if "\\ud" in text.lower() and not _is_encodable(row):
            raise UserError(f"{file_name}, line {number}: a lone surrogate (such as \\ud800) is not a character")
        yield number, row


def _is_encodable(row: Mapping[str, Any]) -> bool:
    """Return whether the row can be encoded as UTF-8: JSON can escape a lone surrogate, which UTF-8 cannot encode."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(file_name: str, file: BinaryIO) -> FileRows:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = list(table.schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file_name} is not a complete parquet file: {display(str(error).splitlines()[0])}") from None
    _check_column_names(file_name, columns)

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        try:
            yield from enumerate(
                (row for batch in table.iter_batches(PARQUET_BATCH_ROWS) for row in batch.to_pylist()), start=1
            )
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{file_name} is damaged: {display(str(error).splitlines()[0])}") from None

    return FileRows(file_name, columns, rows())


def _read_text(file_name: str, file: BinaryIO) -> FileRows:
    """Read one text per line."""
    return FileRows(
        file_name, ["text"], ((number, {"text": text.rstrip("\r\n")}) for number, text in _read_lines(file_name, file))
    )


def _check_column_names(file_name: str, columns: Iterable[str]) -> None:
    names = list(columns)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{file_name}: several columns have the name {display(', '.join(repeated))}")
    if not any(name.strip() for name in names):
        raise UserError(f"{file_name}: its first line has no column names")


READERS = {
    "csv": lambda file_name, file: _read_separated(file_name, file, "csv"),
    "tsv": lambda file_name, file: _read_separated(file_name, file, "tsv"),
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
    "text": _read_text,
}
