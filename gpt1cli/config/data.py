"""The tokenizer and corpus groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from gpt1cli.config.schema import Field
from gpt1cli.config.training import NAME


@dataclass(frozen=True)
class TokenizerConfig:
    """Where the byte-pair vocabulary comes from, and what its pieces are made of."""

    name: Annotated[str, Field("name of the tokenizer")]
    source: Annotated[Literal["hub", "corpus", "demo"], Field("published vocabulary, or merges trained on the corpus")]
    repo: Annotated[str | None, Field("hub repository with vocab.json and merges.txt (source=hub)")]
    merges: Annotated[int | None, Field("merges to train (source=corpus, demo)", at_least=1)]
    level: Annotated[
        Literal["words", "bytes"],
        Field("symbols of cleaned, lower-cased words (GPT-1), or bytes of the text as it is (GPT-2)"),
    ] = "words"

    def problems(self) -> Iterator[str]:
        if self.source == "hub" and not self.repo:
            yield "repo is needed with source=hub"
        if self.source == "hub" and self.merges:
            yield f"merges={self.merges} is for merges trained here: name tokenizer=bpe or tokenizer=bytes too"
        if self.source in ("corpus", "demo") and not self.merges:
            yield f"merges is needed with source={self.source}"


@dataclass(frozen=True)
class CorpusConfig:
    """Raw text for pretraining, as documents."""

    name: Annotated[str, Field("name of the corpus", pattern=NAME)]
    source: Annotated[Literal["text", "hub", "demo"], Field("files, a hub data set, or the built-in demo world")]
    path: Annotated[str | None, Field("file, folder or glob of UTF-8 .txt, .jsonl or .parquet (source=text)")]
    column: Annotated[str | None, Field("column that holds the text of .jsonl, .parquet and hub rows")]
    repo: Annotated[str | None, Field("hub data set (source=hub)")]
    subset: Annotated[str | None, Field("configuration of the hub data set")]
    documents: Annotated[Literal["rows", "articles"], Field("a document is a row, or the lines under a = title =")]
    eval_tokens: Annotated[int, Field("validation tokens scored at a time in pretraining", at_least=1)]

    def problems(self) -> Iterator[str]:
        if self.source != "text" and self.path:
            yield f"path={self.path} is read with source=text alone: name corpus=text too"
        if self.source != "hub" and self.documents == "articles":
            yield "documents=articles is for the rows of a hub data set: source=hub"
        if self.source == "text" and not self.path:
            yield "path is needed with source=text: a file, a folder or a glob, as in corpus.path=books/"
        if self.source == "hub" and not (self.repo and self.column):
            yield "repo and column are needed with source=hub"
