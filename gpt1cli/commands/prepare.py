"""gpt1 prepare: raw text -> token shards in the cache, ready for pretraining."""

from __future__ import annotations

import functools
import time
from pathlib import Path

from gpt1cli.config.commands import PrepareConfig
from gpt1cli.data.hub import Need, corpus_needs, tokenizer_needs
from gpt1cli.runs.console import Progress
from gpt1cli.runs.folder import finish
from gpt1cli.text import corpus, documents


def needs(config: PrepareConfig) -> list[Need]:
    """What must be at hand before the run starts."""
    return corpus_needs(config.corpus) + tokenizer_needs(config.tokenizer)


def run(config: PrepareConfig, folder: Path) -> None:
    """Tokenise the corpus unless that was done before, look whether it is whole, and say where it lies."""
    began = time.perf_counter()
    reporting = functools.partial(Progress, folder, mode=config.runtime.progress)
    source = documents.find(config.corpus, config.hub, config.cache)
    vocabulary = corpus.tokenizer_of(config.tokenizer, source, config.hub, config.cache, reporting)
    shards = corpus.prepare(source, config.corpus.name, vocabulary, config.cache, reporting)
    corpus.check(shards.folder, corpus.described(shards.folder))  # whole, also where it was prepared long ago
    with reporting(total=1) as progress:
        sizes = f"{len(shards.train):,} tokens to train on, {len(shards.valid):,} to validate"
        progress.say(f"{shards.documents:,} documents, {sizes}")
        progress.say(f"shards: {shards.folder}")
    finish(
        folder,
        {
            "status": "finished",
            "command": "prepare",
            "name": config.name,
            "seed": config.seed,
            "seconds": round(time.perf_counter() - began, 3),
            "shards": str(shards.folder),
            "documents": shards.documents,
            "train_tokens": len(shards.train),
            "valid_tokens": len(shards.valid),
            "vocabulary": len(vocabulary),
        },
    )
