"""Fakes: a small W&B server that stores what it receives; models and tokenizers with known outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import itertools
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor, nn
from worlds import model_config, read

from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.data import demo_world
from gpt1cli.models.transformer import KVCache
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.text.normalise import split_words

NEXT_LETTER = [  # p(next letter | this letter), letters a to d
    [0.1, 0.2, 0.3, 0.4],
    [0.25, 0.25, 0.25, 0.25],
    [0.7, 0.1, 0.1, 0.1],
    [0.4, 0.3, 0.2, 0.1],
]


class WandbServer(ThreadingHTTPServer):
    """A W&B server that stores the lines of each file that a run sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), WandbHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, list[str]] = {}
        self.run: str | None = None

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer the operations that wandb-core needs; for all others return {}."""
        project = {"id": "p", "name": "gpt1", "entity": {"id": "e", "name": "me"}}
        if operation == "UpsertBucket":
            inserted, self.run = self.run is None, variables["name"]
            return {"upsertBucket": {"bucket": {"name": self.run, "project": project}, "inserted": inserted}}
        if operation == "RunResumeStatus":
            history, summary = self.files.get("wandb-history.jsonl", []), self.files.get("wandb-summary.json", ["{}"])
            run = {
                "name": self.run, "summaryMetrics": summary[-1], "historyLineCount": len(history),
                "historyTail": json.dumps(history[-1:]), "eventsTail": "[]", "eventsLineCount": 0, "logLineCount": 0,
                "config": "{}", "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"model": {**project, "bucket": run if self.run else None}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}


class WandbHandler(BaseHTTPRequestHandler):
    """Handles GraphQL requests, the file stream, and uploads of whole files."""

    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}"
        request = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            operation = request.get("operationName") or request["query"].split()[1]
            answer = {"data": self.server.graphql(operation, request.get("variables") or {})}
        for name, part in (request.get("files") or {}).items() if "file_stream" in self.path else ():
            self.server.files.setdefault(name, [])[part["offset"] :] = part["content"]
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Run the W&B server in a thread."""
    server = WandbServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@functools.cache
def demo_tokenizer() -> Tokenizer:
    """A tokenizer of letters, with merges for "xyz" and the most frequent words of the demo world."""
    counts = {"xyz": 4}
    for document in demo_world.documents(count=40):
        for word in split_words(document):
            counts[word] = counts.get(word, 0) + 1
    return bpe.train(counts, 300)


def shipped_task(option: str, **prompt: Any) -> TaskConfig:
    """A task of conf/task/ with some keys of its prompt replaced."""
    content = read(f"task/{option}.yaml")
    content = content.get("task", content)
    files = {"train": "rows.csv"} if content["source"] == "file" else {}  # the user must name it
    task = build(TaskConfig, {**content, **files, "prompt": {**content["prompt"], **prompt}})
    if problems := list(task.prompt_problems()):
        raise UserError("\n".join(problems))
    return task


class CharacterTokenizer:
    """Treats spaces as a byte-level tokenizer does: an id is a character's code."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def encode_batch(self, texts) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def __len__(self) -> int:
        return 256


class LetterTokenizer(CharacterTokenizer):
    """The letters a, b, c, d; it ignores all other characters."""

    def encode(self, text: str) -> list[int]:
        return ["abcd".index(c) for c in text if c in "abcd"]

    def __len__(self) -> int:
        return 4


class BigramModel(nn.Module):
    """Predicts from the last letter only; its embeddings are the identity, so its states are the logits."""

    branches = True

    def __init__(self, n_positions: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding.from_pretrained(torch.eye(4))
        self.config = dataclasses.replace(model_config(), n_positions=n_positions)

    def forward(self, tokens: Tensor, *_: Tensor | None, cache: KVCache | None = None, lengths: Any = None) -> Tensor:
        return torch.tensor(NEXT_LETTER).log()[tokens]


def chain_probability(letters: str) -> float:
    """The probability of all letters after the first."""
    return math.prod(NEXT_LETTER["abcd".index(a)]["abcd".index(b)] for a, b in itertools.pairwise(letters))
