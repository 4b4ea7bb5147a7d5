"""Finds the corpus that a configuration names, and reads its documents in parts of bounded size.

A .txt file is one document; so is a row of a .jsonl file, a .parquet file or a hub data set. The rows of WikiText are
lines, which are joined into articles. The demo corpus is generated.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from gpt1cli.config.data import CorpusConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data import demo_world, hub

PART_CHARACTERS = 2**18  # characters passed to one worker at a time


@dataclass(frozen=True)
class TextPart:
    """A part of a document. `newline`: a line break separates it from the part before, and is a separate token."""

    text: str
    first: bool
    newline: bool


@dataclass(frozen=True)
class CorpusSource:
    """A corpus: a digest of its content, its approximate length, its documents (each an iterable of strings)."""

    digest: str
    characters: int
    documents: Callable[[], Iterable[Iterable[str]]]


def find_corpus(config: CorpusConfig, hub_folder: str | None, cache: str) -> CorpusSource:
    """Return the corpus of a configuration, not tokenised yet. Raises UserError if it is not found."""
    if config.source == "demo":
        return demo_corpus()
    if config.source == "text":
        files = text_files(config.path or "")
        size = sum(file.stat().st_size for file in files)
        return CorpusSource(
            _files_digest(files, config.column),
            size,
            lambda: itertools.chain.from_iterable(_read_documents(f, config.column) for f in files),
        )
    assert config.repo
    rows = hub.load_split(config.repo, config.subset, "train", hub_folder, cache)
    if config.column not in rows.column_names:
        raise UserError(f"corpus.column={config.column}: {config.repo} has the columns {', '.join(rows.column_names)}")
    if getattr(rows.features[config.column], "dtype", None) not in ("string", "large_string"):
        raise UserError(f"corpus.column={config.column}: this column of {config.repo} is not text")
    texts = lambda: (row[config.column] or "" for row in rows)  # noqa: E731
    read = (lambda: _join_articles(texts())) if config.documents == "articles" else (lambda: ((t,) for t in texts()))
    digest = hashlib.sha256(f"{hub.dataset_fingerprint(rows)} {config.column} {config.documents}".encode()).hexdigest()
    return CorpusSource(digest, rows.data.nbytes, read)


def demo_corpus(count: int = demo_world.DOCUMENTS) -> CorpusSource:
    """Return the first `count` documents of the demo corpus; by default all."""
    digest = demo_world.DIGESTS.get(count)
    if digest is None:
        digest = hashlib.sha256(f"{demo_world.DIGESTS[demo_world.DOCUMENTS]} {count}".encode()).hexdigest()
    characters = demo_world.CHARACTERS * count // demo_world.DOCUMENTS
    return CorpusSource(digest, characters, lambda: ((document,) for document in demo_world.documents(count=count)))


def text_files(path: str) -> list[Path]:
    """Return the files that corpus.path names, sorted: one file, the files in a folder, or the files of a glob."""
    suffixes = (".txt", ".jsonl", ".parquet")
    expanded = Path(path).expanduser()
    if expanded.is_file():
        files = [expanded]
    elif expanded.is_dir():
        files = sorted(f for f in expanded.rglob("*") if f.suffix in suffixes and f.is_file())
    else:
        files = sorted(Path(f) for f in glob(str(expanded), recursive=True) if Path(f).is_file())
    if not files:
        raise UserError(f"corpus.path={path}: no such file, and no folder or glob with {', '.join(suffixes)} files")
    if others := [f for f in files if f.suffix not in suffixes]:
        raise UserError(f"corpus.path={path}: {others[0].name} does not end in {', '.join(suffixes)}")
    return files


def _files_digest(files: list[Path], column: str | None) -> str:
    """Return a digest of what is read: the bytes of the files, their suffixes, and the column if they have columns."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(f"{path.suffix} {'' if path.suffix == '.txt' else column}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _read_documents(path: Path, column: str | None) -> Iterator[Iterable[str]]:
    """Yield the documents of a file: the file itself, or one per row."""
    if path.suffix == ".txt":
        yield _read_blocks(path)
    elif path.suffix == ".jsonl":
        lines = enumerate(_read_lines(path), start=1)
        yield from ((_read_field(line, path, number, column),) for number, line in lines if line.strip())
    else:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            if column not in file.schema_arrow.names:
                raise UserError(f"corpus.column={column}: {path} has the columns {', '.join(file.schema_arrow.names)}")
            dtype = file.schema_arrow.field(column).type
            if not (pyarrow.types.is_string(dtype) or pyarrow.types.is_large_string(dtype)):
                raise UserError(f"corpus.column={column}: this column of {path} is not text but {dtype}")
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                yield from ((value.as_py() or "",) for value in batch.column(0))
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable parquet file ({error})") from error


def _read_blocks(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            while block := file.read(PART_CHARACTERS):
                yield block
    except UnicodeDecodeError as error:
        raise _utf8_error(path, error) from error


def _read_lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise _utf8_error(path, error) from error


def _utf8_error(path: Path, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"{path}: not UTF-8 (byte 0x{byte:02x});"
        f" convert the file first: iconv -f LATIN1 -t UTF-8 '{path.name}' > fixed.txt"
    )


def _read_field(line: str, path: Path, number: int, column: str | None) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{path}, line {number}: no text in corpus.column={column}; the line has: {fields}")
    return row[column]


def _join_articles(lines: Iterable[str]) -> Iterator[Iterable[str]]:
    """Join WikiText's lines into articles: ' = Title = ' starts an article, ' = = Section = = ' does not."""
    article: list[str] = []
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("= ") and stripped.endswith(" =") and not stripped.startswith("= ="):
            if article:
                yield tuple(article)
            article = []
        if stripped or article:
            article.append(line if line.endswith("\n") else line + "\n")
    if article:
        yield tuple(article)


def split_documents(documents: Iterable[Iterable[str]]) -> Iterator[TextPart]:
    """Split documents into parts of about PART_CHARACTERS characters, at line breaks if possible, else at blanks."""
    for blocks in documents:
        text, first, newline = "", True, False
        for block in blocks:
            text += block
            while len(text) > (limit := 2 * PART_CHARACTERS):
                end = next((at for mark in "\n " if (at := text.rfind(mark, PART_CHARACTERS, limit)) > 0), limit)
                yield TextPart(text[:end], first, newline)
                text, first, newline = text[end:], False, text[end] == "\n"
        yield TextPart(text, first, newline)
