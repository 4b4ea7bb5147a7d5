"""Access to data: a folder with the layout of the hub, the caches, the short check. Nothing leaves this machine."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from worlds import data_set

from gpt1cli.config.data import CorpusConfig, TokenizerConfig
from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.data import hub
from gpt1cli.data.hub import Requirement
from gpt1cli.pretrained import locate

ROWS = {"sentence": ["a fine day", "no day at all", "fine"], "label": [1, 0, -1]}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    data_set(tmp_path / "hub/org/set", {"one": {"train": ROWS, "validation": ROWS}, "two": {"train": ROWS}})
    return tmp_path / "hub"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, empty caches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "shared/hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "shared/datasets")
    return tmp_path


def data_requirement(repo: str, subset: str | None = None, *remedies: str) -> Requirement:
    return Requirement("purpose", repo, subset, None, remedies)


# --- a folder with the layout of the hub ------------------------------------------------------------------------------


def test_rows_and_splits_are_read_from_a_folder(mirror, tmp_path):
    assert hub.split_names("org/set", "one", str(mirror), tmp_path / "cache") == ["train", "validation"]
    rows = hub.load_split("org/set", "one", "validation", str(mirror), tmp_path / "cache")
    assert rows[:] == ROWS
    assert rows.cache_files[0]["filename"].startswith(str(tmp_path / "cache/datasets"))  # memory-mapped Arrow


def test_a_missing_subset_or_split_is_reported_with_those_that_exist(mirror, tmp_path):
    with pytest.raises(UserError, match=r"org/set: no subset three; its subsets: one, two"):
        hub.load_split("org/set", "three", "train", str(mirror), tmp_path)
    with pytest.raises(UserError, match=r"org/set: a subset must be named; its subsets: one, two"):
        hub.load_split("org/set", None, "train", str(mirror), tmp_path)
    with pytest.raises(UserError, match=r"org/set, subset two: no split test; its splits: train"):
        hub.load_split("org/set", "two", "test", str(mirror), tmp_path)
    with pytest.raises(UserError, match=r"org/other: no such folder"):
        hub.load_split("org/other", None, "train", str(mirror), tmp_path)


def test_changed_files_and_other_folders_are_read_again(mirror, tmp_path):
    """The library's own cache key depends only on the README."""

    def read(folder: Path) -> list[str]:
        return hub.load_split("org/set", "two", "train", str(folder), tmp_path / "cache")["sentence"][:]

    assert read(mirror) == ROWS["sentence"]
    other = shutil.copytree(mirror, tmp_path / "other")
    data_set(other / "org/set", {"one": {"train": ROWS}, "two": {"train": {"sentence": ["other"], "label": [0]}}})
    shutil.copy(mirror / "org/set/README.md", other / "org/set/README.md")
    assert read(other) == ["other"]
    shutil.copy(other / "org/set/two/train-00000-of-00001.parquet", mirror / "org/set/two/")
    assert read(mirror) == ["other"]


@pytest.mark.parametrize("damage", ["half", "middle", "empty"])
def test_a_damaged_file_is_reported(mirror, tmp_path, damage, capfd):
    path = mirror / "org/set/two/train-00000-of-00001.parquet"
    many = {"sentence": [f"sentence {i} {i * i}" for i in range(5000)], "label": [0, 1] * 2500}
    datasets.Dataset.from_dict(many).to_parquet(path)
    whole = path.read_bytes()
    third = len(whole) // 3
    broken = {"half": whole[: 2 * third], "middle": whole[:third] + bytes(third) + whole[2 * third :], "empty": b""}
    path.write_bytes(broken[damage])
    with pytest.raises(UserError) as error:
        hub.load_split("org/set", "two", "train", str(mirror), tmp_path / "cache")
    assert str(error.value).startswith(f"{path}: cannot be read (") and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    path.write_bytes(whole)
    assert hub.load_split("org/set", "two", "train", str(mirror), tmp_path / "cache")[:] == many


def test_a_local_folder_of_the_same_name_is_not_read_instead_of_the_hub(mirror, offline, monkeypatch):
    monkeypatch.chdir(mirror)
    with pytest.raises(UserError, match=r"org/set: .* has a folder of this name; use hub=\. to read it"):
        hub.load_split("org/set", "one", "train", None, offline / "cache")
    assert hub.load_split("org/set", "one", "train", ".", offline / "cache")[:] == ROWS


def test_code_in_a_data_set_is_not_executed(tmp_path):
    folder = tmp_path / "hub/org/set"
    folder.mkdir(parents=True)
    (folder / "set.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(UserError, match=r"org/set: cannot be read \(Dataset scripts are no longer supported"):
        hub.load_split("org/set", None, "train", str(tmp_path / "hub"), tmp_path / "cache")
    assert not (tmp_path / "executed").exists()


def test_files_of_a_model(tmp_path):
    folder = tmp_path / "org/model"
    folder.mkdir(parents=True)
    (folder / "pytorch_model.bin").touch()
    names = ("model.safetensors", "pytorch_model.bin")
    assert hub.find_file("org/model", "pytorch_model.bin", str(tmp_path), tmp_path) == folder / "pytorch_model.bin"
    assert hub.find_file("org/model", names, str(tmp_path), tmp_path) == folder / "pytorch_model.bin"
    (folder / "model.safetensors").touch()
    assert hub.find_file("org/model", names, str(tmp_path), tmp_path) == folder / "model.safetensors"
    with pytest.raises(UserError, match=r"org/model: no file vocab\.json"):
        hub.find_file("org/model", "vocab.json", str(tmp_path), tmp_path)


def test_the_fingerprint_depends_only_on_the_rows(tmp_path):
    def read(name: str, columns: dict) -> str:
        data_set(tmp_path / name / "org/set", {"x": {"train": columns}})
        return hub.dataset_fingerprint(hub.load_split("org/set", "x", "train", str(tmp_path / name), tmp_path))

    rows = {"text": [f"book {i}" for i in range(3000)]}
    first = read("a", rows)
    assert first == read("b", rows)
    assert first != read("c", {"text": rows["text"][::-1]})
    assert first != read("d", {"text": rows["text"][:-1]})
    assert first != read("e", {"words": rows["text"]})
    assert first == hub.dataset_fingerprint(datasets.Dataset.from_dict(rows).select(range(3000)))


# --- the short check --------------------------------------------------------------------------------------------------


def test_all_that_is_missing_is_listed_and_each_remedy_once(offline):
    requirements = [
        data_requirement("org/set", "one", "a remedy"),
        Requirement("the vocabulary", "org/model", None, "vocab.json", ("a remedy", "another")),
        Requirement("the weights", "org/model", None, ("model.safetensors", "pytorch_model.bin"), ()),
    ]
    with pytest.raises(UserError) as error:
        hub.check_requirements(requirements, None, offline / "cache")
    lines = str(error.value).splitlines()
    assert "cannot be reached" in lines[0] and "127.0.0.1" in lines[0]
    assert lines[1:4] == [
        "  org/set, subset one (purpose)",
        "  org/model, vocab.json (the vocabulary)",
        "  org/model, model.safetensors or pytorch_model.bin (the weights)",
    ]
    remedies = [hub.HUB_FOLDER_HINT, "a remedy", "another", hub.DEMO_HINT]
    assert lines[4:] == ["What you can do:", *(f"  {remedy}" for remedy in remedies)]


def test_in_a_folder_the_reason_is_given_for_each_requirement(mirror, tmp_path):
    file = Requirement("it", "org/set", None, "x.json", ())
    requirements = [
        data_requirement("org/set", "one"),
        data_requirement("org/set", "three"),
        data_requirement("org/none"),
        file,
    ]
    with pytest.raises(UserError) as error:
        hub.check_requirements(requirements, str(mirror), tmp_path / "cache")
    lines = str(error.value).splitlines()
    assert f"hub={mirror} does not have" in lines[0]
    assert [line.partition("): ")[0] for line in lines[1:4]] == [
        "  org/set, subset three (purpose",
        "  org/none (purpose",
        "  org/set, x.json (it",
    ]
    assert lines[1].endswith("no subset three; its subsets: one, two")
    assert "org/set, subset one" not in str(error.value)


def test_a_hub_that_is_not_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"hub=/no/such: no such folder"):
        hub.check_requirements([], "/no/such", tmp_path)
    with pytest.raises(UserError, match=r"file: this is a file"):
        hub.check_requirements([], str(tmp_path / "file"), tmp_path)


def test_the_network_is_only_checked_if_something_is_missing(offline, monkeypatch):
    calls = []
    monkeypatch.setattr(hub, "connection_error", lambda: calls.append(1) or "silent")
    hub.check_requirements([], None, offline / "cache")
    assert calls == []
    with pytest.raises(UserError, match="silent"):
        hub.check_requirements([data_requirement("org/set", "one")], None, offline / "cache")
    assert calls == [1]


def test_if_the_hub_answers_nothing_is_refused(offline, monkeypatch):
    requests = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        hub.check_requirements([data_requirement("org/set", "one")], None, offline / "cache")
        server.shutdown()
    assert len(requests) == 1


@pytest.mark.parametrize(("answer", "reason"), [("half", "received 999 bytes, expected 40000"), ("refused", "403")])
def test_a_failed_download_keeps_no_partial_file_and_can_be_repeated(offline, monkeypatch, answer, reason):
    content, answers = b'{"a": 1}' * 5000, [answer]

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403 if answers[-1] == "refused" else 200)
            for name, value in (("Content-Length", "40000"), ("ETag", '"abc"'), ("X-Repo-Commit", "a" * 40)):
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content[:999] if answers[-1] == "half" else content)

        def log_message(self, *_: object) -> None: ...

    constants = huggingface_hub.constants
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(time, "sleep", lambda _: None)  # between the library's retries
        with pytest.raises(UserError, match=rf"(?s)org/model, vocab\.json: .*{reason}.*try again.*hub=DIR"):
            hub.find_file("org/model", "vocab.json", None, offline / "cache")
        assert not [path for path in (offline / "cache").rglob("*") if path.is_file() and path.stat().st_size > 500]
        answers.append("whole")
        assert hub.find_file("org/model", "vocab.json", None, offline / "cache").read_bytes() == content
        server.shutdown()


@pytest.fixture
def impatient(offline, monkeypatch) -> Path:
    """No wait between the library's retries, a short timeout, and no connections of earlier tests."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(hub, "STALL_SECONDS", 0.1)
    huggingface_hub.close_session()
    yield offline
    huggingface_hub.close_session()


class Mirror(http.server.BaseHTTPRequestHandler):
    """The pages of the hub for a data set of one parquet file, which is sent whole, half, or half and then nothing."""

    content, sends, commit = b"", "whole", "a" * 40
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = {"path": "train.parquet", "type": "file", "size": len(self.content), "oid": "b" * 40}
        if "/resolve/" in path:
            if path.endswith(".parquet"):
                self.answer(200, self.content, self.sends)
            else:
                self.answer(404, b"", "whole")
        elif "/tree/" in path or "/paths-info/" in path:
            self.answer(200, json.dumps([name]).encode(), "whole")
        elif path.startswith("/api/datasets/org/set"):
            info = {"id": "org/set", "sha": self.commit, "siblings": [{"rfilename": "train.parquet"}]}
            self.answer(200, json.dumps(info).encode(), "whole")
        else:
            self.answer(404, b"", "whole")

    def answer(self, status: int, body: bytes, sends: str) -> None:
        self.send_response(status)
        headers = {"Content-Length": len(body), "ETag": '"abc"', "X-Repo-Commit": self.commit}
        for header, value in (headers | ({"X-Error-Code": "EntryNotFound"} if status == 404 else {})).items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sends == "whole" else body[: len(body) // 2])
            self.wfile.flush()
            if sends == "hang":
                self.server.over.wait(20)
        if sends != "whole":
            self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def serve(monkeypatch, handler: type) -> Iterator[str]:
    """A hub on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.over = True, threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        redirect_hub(monkeypatch, endpoint)
        yield endpoint
        server.over.set()
        server.shutdown()


def redirect_hub(monkeypatch, endpoint: str) -> None:
    """Make all libraries use this endpoint as the hub."""
    constants, template = huggingface_hub.constants, endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)


RETRY = r"(.|\n)*try again \(no partial file is kept\), or use hub=DIR"


def test_a_hub_that_accepts_requests_and_sends_nothing_is_given_up(impatient, monkeypatch):
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        redirect_hub(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UserError, match=r"org/model, vocab\.json: " + RETRY):
            hub.find_file("org/model", "vocab.json", None, impatient / "cache")
        with pytest.raises(UserError, match=r"org/set, subset one: cannot be read \(" + RETRY):
            hub.load_split("org/set", "one", "train", None, impatient / "cache")
        assert time.monotonic() - start < 15


@pytest.mark.parametrize("sends", ["half", "hang"])
def test_a_partial_data_set_is_refused_and_the_next_try_works(impatient, monkeypatch, tmp_path, sends):
    datasets.Dataset.from_dict(ROWS).to_parquet(tmp_path / "rows.parquet")
    handler = type("Hub", (Mirror,), {"content": (tmp_path / "rows.parquet").read_bytes(), "sends": sends})
    with serve(monkeypatch, handler):
        start = time.monotonic()
        with pytest.raises(UserError, match=r"org/set: cannot be read \(" + RETRY):
            hub.load_split("org/set", None, "train", None, impatient / "cache")
        assert time.monotonic() - start < 15
        handler.sends = "whole"
        assert hub.load_split("org/set", None, "train", None, impatient / "cache")[:] == ROWS


def test_the_check_does_not_wait_for_a_silent_hub(offline, monkeypatch):
    monkeypatch.setattr(hub, "CHECK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UserError, match="cannot be reached"):
            hub.check_requirements([data_requirement("org/set", "one")], None, offline / "cache")
        assert time.monotonic() - start < 3


def test_cached_data_needs_no_network(mirror, offline):
    """Prepared data sets and downloaded files are used from our cache and from Hugging Face's own."""
    rows = hub.load_split("org/set", "one", "train", str(mirror), offline / "elsewhere")
    prepared = Path(rows.cache_files[0]["filename"]).parent
    requirements = [
        data_requirement("org/set", "one"),
        Requirement("it", "org/model", None, ("a.json", "b.json"), ()),
    ]
    for root, files in ((offline / "cache/datasets", "cache/hub"), (offline / "shared/datasets", "shared/hub")):
        snapshot = offline / files / "models--org--model"
        (snapshot / "refs").mkdir(parents=True)
        (snapshot / "refs/main").write_text("0" * 40)
        (snapshot / "snapshots" / ("0" * 40)).mkdir(parents=True)
        (snapshot / "snapshots" / ("0" * 40) / "b.json").write_text("{}")
        half = root / "org___set/one/0.0.0/k.incomplete"  # left by a killed preparation
        shutil.copytree(prepared, half)
        with pytest.raises(UserError, match="org/set"):
            hub.check_requirements(requirements, None, offline / "cache")
        half.rename(half.with_suffix(""))
        hub.check_requirements(requirements, None, offline / "cache")
        assert hub.split_names("org/set", "one", None, offline / "cache") == ["train", "validation"]
        rows = hub.load_split("org/set", "one", "validation", None, offline / "cache")
        assert rows[:] == ROWS and rows.cache_files[0]["filename"].startswith(str(root))
        assert (
            hub.find_file("org/model", ("a.json", "b.json"), None, offline / "cache").parent.parent.parent == snapshot
        )
        shutil.rmtree(root), shutil.rmtree(snapshot)


def test_offline_mode_is_reported_as_the_reason(offline, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"offline mode is enabled.*\n  org/set"):
        hub.check_requirements([data_requirement("org/set")], None, offline / "cache")


def test_the_libraries_print_nothing_when_offline(tmp_path):
    """In a separate process, where the libraries would log their retries on stderr."""
    code = (
        "from gpt1cli.data import hub; from gpt1cli.config.schema import UserError\n"
        "from gpt1cli.pretrained import locate\n"
        "needs = [hub.Requirement('x', 'org/set', 'one', None, ()), *locate.weight_requirements('openai')]\n"
        "try: hub.check_requirements(needs, None, 'cache')\n"
        "except UserError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment["PYTHONPATH"] = str(Path(hub.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("http://127.0.0.1:9", "org/set, subset one", "model.safetensors or pytorch_model.bin"):
        assert part in done.stdout


# --- requirements of each part of a configuration ---------------------------------------------------------------------


def test_requirements_of_the_parts():
    task = dict(name="t", source="rows", layout="single", columns=["x"], choices=[], label="y", labels=["a", "b"])
    task |= dict(path=None, remedy=None, range=None, loss="cross_entropy", metrics=["accuracy"])
    task |= dict(splits={"train": "train", "valid": "validation"})
    (requirement,) = hub.task_requirements(TaskConfig(repo="org/set", subset="one", **task))
    assert (requirement.repo, requirement.subset, requirement.filename) == ("org/set", "one", None)
    assert hub.task_requirements(TaskConfig(repo=None, subset=None, **task)) == []

    published = TokenizerConfig(name="openai", source="hub", repo="org/model", merges=None)
    assert [requirement.filename for requirement in hub.tokenizer_requirements(published)] == [
        "vocab.json",
        "merges.txt",
    ]
    assert hub.tokenizer_requirements(TokenizerConfig(name="bpe", source="corpus", repo=None, merges=10)) == []

    corpus = dict(name="c", path=None, column="text", documents="rows", eval_tokens=64)
    (requirement,) = hub.corpus_requirements(CorpusConfig(source="hub", repo="org/books", subset=None, **corpus))
    assert requirement.repo == "org/books" and "corpus=text corpus.path=" in requirement.remedies[0]
    assert hub.corpus_requirements(CorpusConfig(source="text", repo=None, subset=None, **corpus)) == []

    shape, weights = locate.weight_requirements("openai")
    assert shape.repo == weights.repo == "openai-community/openai-gpt"
    assert (shape.filename, weights.filename) == ("config.json", ("model.safetensors", "pytorch_model.bin"))
    assert "corpus=text corpus.path=" in weights.remedies[0]
    assert locate.weight_requirements("none") == locate.weight_requirements("outputs/pretrain/x/1") == []
