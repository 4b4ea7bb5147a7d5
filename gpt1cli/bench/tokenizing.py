"""Text to ids: ours, cold and warm, beside the published rules one after the other and transformers' batches.

The text is the demo world's: short words that come again. Its tokenizer is the published one where `vocabulary` names a
folder with it, else one trained on the text.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from gpt1cli.bench.contest import Contender, Contest, Job, Setting
from gpt1cli.data import demo_world
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.text.normalise import words

HERE = __name__


def tokenize(setting: Setting) -> Iterable[Contest]:
    """Warm, cold, and by two processes; the plain rules on a part of the text; transformers' own tokenizer."""
    source = {"text": setting.text, "vocabulary": setting.vocabulary}
    warm = Contender("gpt1", f"{HERE}:ours", {**source, "processes": 1, "warm": True})
    cold = Contender("gpt1, cold", f"{HERE}:ours", {**source, "processes": 1, "warm": False})
    two = Contender("gpt1, two processes", f"{HERE}:ours", {**source, "processes": 2, "warm": True})
    rules = Contender("the rules one by one", f"{HERE}:plain", source)
    peer = [Contender("transformers", f"{HERE}:theirs", source)] if setting.peer else []
    yield Contest("tokenize", "bytes", [warm, rules, *peer], {rules.name: 30, "transformers": 4.5})
    yield Contest("tokenize, cold", "bytes", [cold, rules], {rules.name: 10})
    yield Contest("tokenize, two processes", "bytes", [two, warm], {warm.name: 1.8})


def ours(text: str | None, vocabulary: str | None, processes: int, warm: bool) -> Job:
    """Our ids of every document; cold: by a tokenizer that has seen nothing yet."""
    texts = documents(text)
    spoken = tokenizer_of(texts, vocabulary)
    if processes == 1:

        def job() -> float:
            reader = spoken if warm else Tokenizer(spoken.vocabulary, spoken.merges)
            reader.encode_arrays(texts)
            return size(texts)
    else:
        shares = [texts[number::processes] for number in range(processes)]
        pools = [ProcessPoolExecutor(1, get_context("spawn"), _start, (spoken, share)) for share in shares]

        def job() -> float:
            for done in [pool.submit(_encode_all) for pool in pools]:
                done.result()
            return size(texts)

    job()
    return job


def plain(text: str | None, vocabulary: str | None) -> Job:
    """The same ids by the rules one after the other, of a 16th of the documents."""
    texts = documents(text)
    spoken, part = tokenizer_of(texts, vocabulary), texts[::16]

    def job() -> float:
        for document in part:
            spoken.encode_plain(document)
        return size(part)

    return job


def theirs(text: str | None, vocabulary: str | None) -> Job:
    """transformers' OpenAIGPTTokenizer on batches of documents; its ids are not those of the published rules."""
    from transformers import OpenAIGPTTokenizer

    texts = documents(text)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_of(texts, vocabulary).save(Path(folder))
        spoken = OpenAIGPTTokenizer.from_pretrained(folder)

    def job() -> float:
        for start in range(0, len(texts), 64):
            spoken(texts[start : start + 64])
        return size(texts)

    return job


_assigned: tuple[Tokenizer, list[str]]


def _start(spoken: Tokenizer, texts: list[str]) -> None:
    global _assigned
    _assigned = spoken, texts


def _encode_all() -> None:
    spoken, texts = _assigned
    spoken.encode_arrays(texts)


def documents(text: str | None) -> list[str]:
    """The paragraphs of a text file, joined to some thousand characters; without one, documents of the demo world."""
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


def size(texts: Iterable[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(text.encode()) for text in texts)


def tokenizer_of(texts: list[str], vocabulary: str | None) -> Tokenizer:
    """The tokenizer of a folder, or one with 2,000 merges trained on the texts."""
    if vocabulary:
        return bpe.load(Path(vocabulary))
    return bpe.train(Counter(word for document in texts[:200] for word in words(document)), 2000)
