"""Raw text to documents, each read in blocks and cut into parts of bounded size.

One .txt file is one document, and so is a row of .jsonl, .parquet or of a hub data set; the rows of WikiText are lines,
and its documents are articles; the demo world tells its own.
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

PART = 2**18  # characters handed to one worker at a time


@dataclass(frozen=True)
class Part:
    """A piece of a document. `newline`: it was cut from the one before at a line break, which is a token of its own."""

    text: str
    first: bool
    newline: bool


@dataclass(frozen=True)
class Source:
    """A corpus found: a digest of its content, about how long it is, its documents, each as an iterable of blocks."""

    digest: str
    characters: int
    documents: Callable[[], Iterable[Iterable[str]]]


def find(config: CorpusConfig, hub_folder: str | None, cache: str) -> Source:
    """Look up a corpus without tokenising it. UserError where there is none."""
    if config.source == "demo":
        return demo()
    if config.source == "text":
        files = text_files(config.path or "")
        size = sum(file.stat().st_size for file in files)
        return Source(
            _digest(files, config.column),
            size,
            lambda: itertools.chain.from_iterable(_read(f, config.column) for f in files),
        )
    assert config.repo
    rows = hub.dataset(config.repo, config.subset, "train", hub_folder, cache)
    if config.column not in rows.column_names:
        raise UserError(f"corpus.column={config.column}: {config.repo} has {', '.join(rows.column_names)}")
    if getattr(rows.features[config.column], "dtype", None) not in ("string", "large_string"):
        raise UserError(f"corpus.column={config.column}: {config.repo} has no text in it")
    texts = lambda: (row[config.column] or "" for row in rows)  # noqa: E731
    read = (lambda: _articles(texts())) if config.documents == "articles" else (lambda: ((t,) for t in texts()))
    digest = hashlib.sha256(f"{hub.fingerprint(rows)} {config.column} {config.documents}".encode()).hexdigest()
    return Source(digest, rows.data.nbytes, read)


def demo(count: int = demo_world.DOCUMENTS) -> Source:
    """The demo world's corpus, or its first documents."""
    digest = demo_world.DIGESTS.get(count)
    if digest is None:
        digest = hashlib.sha256(f"{demo_world.DIGESTS[demo_world.DOCUMENTS]} {count}".encode()).hexdigest()
    characters = demo_world.CHARACTERS * count // demo_world.DOCUMENTS
    return Source(digest, characters, lambda: ((document,) for document in demo_world.documents(count=count)))


def text_files(path: str) -> list[Path]:
    """The files that corpus.path names, in order: one file, those of a folder, or those of a glob."""
    kinds = (".txt", ".jsonl", ".parquet")
    expanded = Path(path).expanduser()
    if expanded.is_file():
        files = [expanded]
    elif expanded.is_dir():
        files = sorted(f for f in expanded.rglob("*") if f.suffix in kinds and f.is_file())
    else:
        files = sorted(Path(f) for f in glob(str(expanded), recursive=True) if Path(f).is_file())
    if not files:
        raise UserError(f"corpus.path={path}: no such file, and no folder or glob with {', '.join(kinds)} files in it")
    if odd := [f for f in files if f.suffix not in kinds]:
        raise UserError(f"corpus.path={path}: {odd[0].name} is none of {', '.join(kinds)}")
    return files


def _digest(files: list[Path], column: str | None) -> str:
    """Of what is read: the bytes of the files, as which kind, and from .jsonl and .parquet which column."""
    whole = hashlib.blake2b(digest_size=16)
    for path in files:
        whole.update(f"{path.suffix} {'' if path.suffix == '.txt' else column}\n".encode())
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "blake2b").digest())
    return whole.hexdigest()


def _read(path: Path, column: str | None) -> Iterator[Iterable[str]]:
    """The documents of one file: the file itself, or one a row."""
    if path.suffix == ".txt":
        yield _blocks(path)
    elif path.suffix == ".jsonl":
        yield from ((_field(line, path, i, column),) for i, line in enumerate(_lines(path), start=1) if line.strip())
    else:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            if column not in file.schema_arrow.names:
                raise UserError(f"corpus.column={column}: {path} has {', '.join(file.schema_arrow.names)}")
            kind = file.schema_arrow.field(column).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(f"corpus.column={column}: {path} has no text in it, but {kind}")
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                yield from ((value.as_py() or "",) for value in batch.column(0))
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable parquet file ({error})") from error


def _blocks(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            while block := file.read(PART):
                yield block
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _not_utf8(path: Path, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"{path}: not UTF-8 (byte 0x{byte:02x});"
        f" convert it first, as in: iconv -f LATIN1 -t UTF-8 '{path.name}' > fixed.txt"
    )


def _field(line: str, path: Path, number: int, column: str | None) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{path}, line {number}: no text under corpus.column={column}; there is: {found}")
    return row[column]


def _articles(lines: Iterable[str]) -> Iterator[Iterable[str]]:
    """WikiText's lines gathered into articles: ' = Title = ' opens one, ' = = Section = = ' does not."""
    article: list[str] = []
    for line in lines:
        bare = line.strip()
        if bare.startswith("= ") and bare.endswith(" =") and not bare.startswith("= ="):
            if article:
                yield tuple(article)
            article = []
        if bare or article:
            article.append(line if line.endswith("\n") else line + "\n")
    if article:
        yield tuple(article)


def parts(documents: Iterable[Iterable[str]]) -> Iterator[Part]:
    """Cut every document into parts of about PART characters, at line breaks where there are any, else at blanks."""
    for blocks in documents:
        held, first, newline = "", True, False
        for block in blocks:
            held += block
            while len(held) > 2 * PART:
                cut = next((at for mark in "\n " if (at := held.rfind(mark, PART, 2 * PART)) > 0), 2 * PART)
                yield Part(held[:cut], first, newline)
                held, first, newline = held[cut:], False, held[cut] == "\n"
        yield Part(held, first, newline)
