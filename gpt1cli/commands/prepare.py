"""gpt1 prepare: raw text -> token shards in the cache, ready for pretraining."""

from __future__ import annotations

import functools
import time
from pathlib import Path

from gpt1cli.config.commands import PrepareConfig
from gpt1cli.data.hub import Requirement, corpus_requirements, tokenizer_requirements
from gpt1cli.runs.console import Progress
from gpt1cli.runs.folder import finish_run
from gpt1cli.text import corpus, documents


def needs(config: PrepareConfig) -> list[Requirement]:
    """Return what the run requires before it starts."""
    return corpus_requirements(config.corpus) + tokenizer_requirements(config.tokenizer)


def run(config: PrepareConfig, folder: Path) -> None:
    """Corpus -> tokenizer -> token shards, from the cache if possible -> check -> result.json."""
    start_time = time.perf_counter()
    open_progress = functools.partial(Progress, folder, mode=config.runtime.progress)
    source = documents.find_corpus(config.corpus, config.hub, config.cache)
    tokenizer = corpus.prepare_tokenizer(config.tokenizer, source, config.hub, config.cache, open_progress)
    shards = corpus.prepare_shards(source, config.corpus.name, tokenizer, config.cache, open_progress)
    corpus.check_shards(shards.folder, corpus.read_meta(shards.folder))  # also checks cached shards
    with open_progress(total=1) as progress:
        sizes = f"{len(shards.train):,} training tokens, {len(shards.valid):,} validation tokens"
        progress.say(f"{shards.documents:,} documents, {sizes}")
        progress.say(f"shards: {shards.folder}")
    finish_run(
        folder,
        {
            "status": "finished",
            "command": "prepare",
            "name": config.name,
            "seed": config.seed,
            "seconds": round(time.perf_counter() - start_time, 3),
            "shards": str(shards.folder),
            "documents": shards.documents,
            "train_tokens": len(shards.train),
            "valid_tokens": len(shards.valid),
            "vocabulary": len(tokenizer),
        },
    )
