"""Tokenization: ours, cold and warm, compared with the plain rules and with batches of transformers' tokenizer.

Without `text` the documents are the demo world's, whose short words repeat often. The tokenizer is the published one if
`vocabulary` is its folder, else one trained on the text.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from gpt1cli.bench.contest import BenchSettings, Candidate, Contest, Job
from gpt1cli.data import demo_world
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.text.normalise import split_words

HERE = __name__


def tokenize(settings: BenchSettings) -> Iterable[Contest]:
    """Warm, cold, and with two processes; the plain rules on a part of the text; transformers' own tokenizer."""
    source = {"text": settings.text, "vocabulary": settings.vocabulary}
    warm = Candidate("gpt1", f"{HERE}:tokenize_job", {**source, "processes": 1, "warm": True})
    cold = Candidate("gpt1, cold", f"{HERE}:tokenize_job", {**source, "processes": 1, "warm": False})
    two = Candidate("gpt1, two processes", f"{HERE}:tokenize_job", {**source, "processes": 2, "warm": True})
    rules = Candidate("the rules one by one", f"{HERE}:plain_rules_job", source)
    peer = [Candidate("transformers", f"{HERE}:peer_tokenize_job", source)] if settings.peer else []
    yield Contest("tokenize", "bytes", [warm, rules, *peer], {rules.name: 30, "transformers": 4.5})
    yield Contest("tokenize, cold", "bytes", [cold, rules], {rules.name: 10})
    yield Contest("tokenize, two processes", "bytes", [two, warm], {warm.name: 1.8})


def tokenize_job(text: str | None, vocabulary: str | None, processes: int, warm: bool) -> Job:
    """Encode all documents with our tokenizer; cold: with an empty cache."""
    texts = read_documents(text)
    tokenizer = build_tokenizer(texts, vocabulary)
    if processes == 1:

        def job() -> float:
            encoder = tokenizer if warm else Tokenizer(tokenizer.vocabulary, tokenizer.merges)
            encoder.encode_arrays(texts)
            return utf8_bytes(texts)
    else:
        shares = [texts[number::processes] for number in range(processes)]
        pools = [ProcessPoolExecutor(1, get_context("spawn"), _assign, (tokenizer, share)) for share in shares]

        def job() -> float:
            for future in [pool.submit(_encode_all) for pool in pools]:
                future.result()
            return utf8_bytes(texts)

    job()
    return job


def plain_rules_job(text: str | None, vocabulary: str | None) -> Job:
    """Encode a 16th of the documents with the plain rules, which give the same ids."""
    texts = read_documents(text)
    tokenizer, part = build_tokenizer(texts, vocabulary), texts[::16]

    def job() -> float:
        for document in part:
            tokenizer.encode_plain(document)
        return utf8_bytes(part)

    return job


def peer_tokenize_job(text: str | None, vocabulary: str | None) -> Job:
    """Encode batches of documents with transformers' OpenAIGPTTokenizer; its ids differ from the published rules."""
    from transformers import OpenAIGPTTokenizer

    texts = read_documents(text)
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer(texts, vocabulary).save(Path(folder))
        tokenizer = OpenAIGPTTokenizer.from_pretrained(folder)

    def job() -> float:
        for start in range(0, len(texts), 64):
            tokenizer(texts[start : start + 64])
        return utf8_bytes(texts)

    return job


_assigned: tuple[Tokenizer, list[str]]


def _assign(tokenizer: Tokenizer, texts: list[str]) -> None:
    global _assigned
    _assigned = tokenizer, texts


def _encode_all() -> None:
    tokenizer, texts = _assigned
    tokenizer.encode_arrays(texts)


def read_documents(text: str | None) -> list[str]:
    """The paragraphs of a text file, joined to documents of a few thousand characters; or those of the demo world."""
    if text is None:
        return list(demo_world.documents(count=2000))
    joined: list[list[str]] = [[]]
    length = 0
    for paragraph in Path(text).read_text(encoding="utf-8").split("\n\n"):
        if length > 3000:
            joined.append([])
            length = 0
        joined[-1].append(paragraph)
        length += len(paragraph)
    return ["\n\n".join(paragraphs) for paragraphs in joined]


def utf8_bytes(texts: Iterable[str]) -> int:
    """The number of bytes in UTF-8."""
    return sum(len(text.encode()) for text in texts)


def build_tokenizer(texts: list[str], vocabulary: str | None) -> Tokenizer:
    """The tokenizer of a folder, or one with 2,000 merges trained on the texts."""
    if vocabulary:
        return bpe.load(Path(vocabulary))
    return bpe.train(Counter(word for document in texts[:200] for word in split_words(document)), 2000)
