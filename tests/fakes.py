"""Fakes: a small W&B server that keeps the history it receives; models and tokenizers that are known by heart."""

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
from gpt1cli.models.transformer import Past
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.text.normalise import words as words_of

NEXT = [  # p(next letter | this one)
    [0.1, 0.2, 0.3, 0.4],
    [0.25, 0.25, 0.25, 0.25],
    [0.7, 0.1, 0.1, 0.1],
    [0.4, 0.3, 0.2, 0.1],
]


class Server(ThreadingHTTPServer):
    """The server, and the lines of each file that a run has sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, list[str]] = {}
        self.run: str | None = None

    def graphql(self, asked: str, given: dict[str, Any]) -> dict[str, Any]:
        """What wandb-core asks for; what is not here it does without."""
        project = {"id": "p", "name": "gpt1", "entity": {"id": "e", "name": "me"}}
        if asked == "UpsertBucket":
            inserted, self.run = self.run is None, given["name"]
            return {"upsertBucket": {"bucket": {"name": self.run, "project": project}, "inserted": inserted}}
        if asked == "RunResumeStatus":
            history, summary = self.files.get("wandb-history.jsonl", []), self.files.get("wandb-summary.json", ["{}"])
            run = {
                "name": self.run, "summaryMetrics": summary[-1], "historyLineCount": len(history),
                "historyTail": json.dumps(history[-1:]), "eventsTail": "[]", "eventsLineCount": 0, "logLineCount": 0,
                "config": "{}", "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"model": {**project, "bucket": run if self.run else None}}
        if asked == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}


class Handler(BaseHTTPRequestHandler):
    """Requests: GraphQL, the stream of files, and files put as a whole."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}"
        found = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = found.get("operationName") or found["query"].split()[1]
            answer = {"data": self.server.graphql(asked, found.get("variables") or {})}
        for name, part in (found.get("files") or {}).items() if "file_stream" in self.path else ():
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
def served() -> Iterator[Server]:
    """The server, running."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@functools.cache
def vocabulary() -> Tokenizer:
    """A vocabulary of letters, which has no merges but those of "xyz" and of the demo world's commonest words."""
    counts = {"xyz": 4}
    for document in demo_world.documents(count=40):
        for word in words_of(document):
            counts[word] = counts.get(word, 0) + 1
    return bpe.train(counts, 300)


def task_of(option: str, **prompt: Any) -> TaskConfig:
    """A task of conf/ with another prompt; of the keys that are not named the yaml's own."""
    content = read(f"task/{option}.yaml")
    content = content.get("task", content)
    files = {"train": "rows.csv"} if content["source"] == "file" else {}  # which only the user can name
    task = build(TaskConfig, {**content, **files, "prompt": {**content["prompt"], **prompt}})
    if problems := list(task.misprompted()):
        raise UserError("\n".join(problems))
    return task


class Spelling:
    """A byte-level vocabulary, as far as blanks are concerned: an id is a character's code."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def encode_batch(self, texts) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def __len__(self) -> int:
        return 256


class Letters(Spelling):
    """The letters a, b, c, d; nothing else is seen."""

    def encode(self, text: str) -> list[int]:
        return ["abcd".index(c) for c in text if c in "abcd"]

    def __len__(self) -> int:
        return 4


class Bigrams(nn.Module):
    """Knows nothing but the last letter; its table is the identity, so that its states are the logits."""

    branches = True

    def __init__(self, n_positions: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding.from_pretrained(torch.eye(4))
        self.config = dataclasses.replace(model_config(), n_positions=n_positions)

    def forward(self, tokens: Tensor, *_: Tensor | None, past: Past | None = None, lengths: Any = None) -> Tensor:
        return torch.tensor(NEXT).log()[tokens]


def chain(letters: str) -> float:
    """The probability of all but the first letter."""
    return math.prod(NEXT["abcd".index(one)]["abcd".index(two)] for one, two in itertools.pairwise(letters))
