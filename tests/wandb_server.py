"""A W&B server in miniature: it remembers the history that it is sent, and tells it to a run that goes on."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


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
