"""Rows of a user's files, compared with pandas, and the messages for damaged files."""

from __future__ import annotations

import json
import sys

import pandas
import pytest

from gpt1cli.config.schema import UserError
from gpt1cli.data import tables

ROWS = [
    {"text": 'she said "no", and left', "label": "a"},
    {"text": "two\nlines; a\ttab", "label": "b b"},
    {"text": "", "label": "ça"},
]


def read(path, file_type=None):
    with tables.open_table(str(path), file_type) as table:
        return table.columns, list(table.rows)


def values(path, file_type=None):
    return [dict(row) for _, row in read(path, file_type)[1]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_written_by_pandas(tmp_path, separator):
    path = tmp_path / "rows.csv"
    pandas.DataFrame(ROWS).to_csv(path, sep=separator, index=False)
    assert read(path)[0] == ["text", "label"] and values(path) == ROWS
    assert [line for line, _ in read(path)[1]] == [2, 3, 5]  # the second row spans two lines


def test_parquet_and_json_lines_written_by_pandas(tmp_path):
    frame = pandas.DataFrame(ROWS * 1000)
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    assert values(tmp_path / "rows.parquet") == ROWS * 1000 == values(tmp_path / "rows.jsonl")
    assert [line for line, _ in read(tmp_path / "rows.parquet")[1]][-1] == 3000


def test_quotes_in_a_tsv_are_ordinary_characters(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"the end\tno\nan inch: 1"\tyes\n')
    assert values(path) == [{"text": '"the end', "label": "no"}, {"text": 'an inch: 1"', "label": "yes"}]


def test_byte_order_mark_and_windows_and_empty_lines(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\na,b\r\n\r\nc,d\r\n")
    assert values(path) == [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]


def test_one_text_per_line(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("one\n\nthree")
    assert [row["text"] for row in values(path)] == ["one", "", "three"]


def test_a_text_of_ten_megabytes(tmp_path):
    path, text = tmp_path / "rows.csv", "word " * 2_000_000
    path.write_text(f"text,label\n{text},a\n")
    assert values(path)[0]["text"] == text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"", "a.csv is empty: its first line must name the columns"),
        ("a.csv", b"text,label\na,b\nc\n", "a.csv, line 3: 1 fields, but the first line names 2: text, label"),
        ("a.csv", b"text,label\na,b,c\n", "a.csv, line 2: 3 fields"),
        ("a.csv", b'text,label\n"a,b\n', "a.csv, line 2: unexpected end of data"),
        ("a.csv", b'text,label\n"a"b,c\n', "a.csv, line 2: ',' expected after '\"'"),
        ("a.csv", b"text,text\na,b\n", "several columns have the name text"),
        ("a.csv", b"text,label\na\0,b\n", "a.csv, line 2: a NUL byte"),
        ("a.csv", "text,label\ncafé,b\n".encode("latin-1"), "a.csv, line 2: byte 0xe9 is not UTF-8; convert the file"),
        (
            "a.csv",
            "text,label\na,b\n".encode("utf-16"),
            "a.csv, line 1: a NUL byte, as in UTF-16; convert the file to UTF-8",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl, line 2: expected a JSON object, not [1]"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud83d\\ude00"}\n{"text": "\\uD800"}', "a.jsonl, line 2: a lone surrogate"),
        ("a.jsonl", b"\n\n", "a.jsonl is empty"),
        ("a.parquet", b"PAR1 not really", "a.parquet is not a complete parquet file"),
        ("a.xlsx", b"", "a.xlsx: unknown format; the file name must end in .csv, .tsv, .jsonl"),
    ],
)
def test_a_damaged_file_is_reported_with_the_line(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert expected in str(error.value)


def test_a_truncated_or_damaged_parquet_file_is_refused(tmp_path):
    pandas.DataFrame(ROWS * 1000).to_parquet(tmp_path / "whole.parquet", compression="snappy")
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "short.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"short\.parquet is not a complete parquet file"):
        read(tmp_path / "short.parquet")
    (tmp_path / "flipped.parquet").write_bytes(whole[:4] + bytes(b ^ 0xFF for b in whole[4:60]) + whole[60:])
    with pytest.raises(UserError, match=r"flipped\.parquet"):
        read(tmp_path / "flipped.parquet")


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder\.csv: this is a folder"):
        read(tmp_path / "folder.csv")


def test_rows_are_read_from_stdin(tmp_path, monkeypatch):
    (tmp_path / "rows").write_text(json.dumps({"text": "a"}) + "\n")
    with open(tmp_path / "rows") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert values("-", "jsonl") == [{"text": "a"}]
