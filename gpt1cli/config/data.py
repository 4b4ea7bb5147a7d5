"""The tokenizer and corpus groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from gpt1cli.config.schema import Field
from gpt1cli.config.training import NAME_PATTERN


@dataclass(frozen=True)
class TokenizerConfig:
    """Where the byte-pair vocabulary comes from, and the symbols that its merges join."""

    name: Annotated[str, Field("name of the tokenizer")]
    source: Annotated[
        Literal["hub", "corpus", "demo"],
        Field("hub: published vocabulary; corpus or demo: merges trained on that text"),
    ]
    repo: Annotated[str | None, Field("hub repository with vocab.json and merges.txt (source=hub)")]
    merges: Annotated[int | None, Field("number of merges to train (source=corpus, demo)", at_least=1)]
    level: Annotated[
        Literal["words", "bytes"],
        Field("words: characters of cleaned, lower-cased words (GPT-1); bytes: bytes of the unchanged text (GPT-2)"),
    ] = "words"

    def problems(self) -> Iterator[str]:
        if self.source == "hub" and not self.repo:
            yield "repo is needed with source=hub"
        if self.source == "hub" and self.merges:
            yield f"merges={self.merges} needs a tokenizer trained here: add tokenizer=bpe or tokenizer=bytes"
        if self.source in ("corpus", "demo") and not self.merges:
            yield f"merges is needed with source={self.source}"


@dataclass(frozen=True)
class CorpusConfig:
    """Raw text for pretraining, as documents."""

    name: Annotated[str, Field("name of the corpus", pattern=NAME_PATTERN)]
    source: Annotated[
        Literal["text", "hub", "demo"], Field("text: files; hub: a hub data set; demo: the built-in demo world")
    ]
    path: Annotated[str | None, Field("file, folder or glob of UTF-8 .txt, .jsonl or .parquet (source=text)")]
    column: Annotated[str | None, Field("text column of .jsonl, .parquet and hub rows")]
    repo: Annotated[str | None, Field("hub data set (source=hub)")]
    subset: Annotated[str | None, Field("configuration name of the hub data set")]
    documents: Annotated[
        Literal["rows", "articles"], Field("rows: one document per row; articles: the lines below each = title =")
    ]
    eval_tokens: Annotated[int, Field("tokens scored in each validation of pretraining", at_least=1)]

    def problems(self) -> Iterator[str]:
        if self.source != "text" and self.path:
            yield f"path={self.path} needs source=text: add corpus=text"
        if self.source != "hub" and self.documents == "articles":
            yield f"documents=articles needs a hub data set: source=hub, not source={self.source}"
        if self.source == "text" and not self.path:
            yield "path is needed with source=text: a file, a folder or a glob, as in corpus.path=books/"
        if self.source == "hub" and not (self.repo and self.column):
            yield "repo and column are needed with source=hub"
