"""What the fuzz tests feed gpt1, and what they hold it to whatever they feed it.

A command ends with exit status 0 or 2 and without a traceback; a file that was there before is what it was; a
result.json is there whole or not at all; nothing is left half written; nothing is written outside of the folder given.

Examples are drawn from a fixed seed. `make test` tries a few of each; the same tests marked slow try thousands.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import io
import json
import os
import pkgutil
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas
import pytest
import yaml
from hard_text import STRINGS
from hydra.types import RunMode
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

import gpt1cli
from gpt1cli.cli import hydra_loader
from gpt1cli.cli.hydra_loader import Composer
from gpt1cli.cli.main import main
from gpt1cli.config.data import TokenizerConfig
from gpt1cli.config.model import Finetuning, ModelConfig, Pretraining
from gpt1cli.config.schema import UserError
from gpt1cli.config.training import OptimizerConfig
from gpt1cli.models.transformer import Transformer
from gpt1cli.text import bpe
from gpt1cli.training import checkpoint
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.state import TrainingState

QUIET = ("runtime.threads=1", "runtime.progress=none")
ROWS = [{"text": f"a {'good' * (n % 2)} cat {n}", "label": ['not, "happy"', "happy"][n % 2]} for n in range(8)]
LOAD, LOADED = Composer.load, dict[Any, Any]()

# Hypothesis draws constants that stand in the modules of ours that are loaded: all are, before the first one is drawn.
for _, _name, _ in pkgutil.walk_packages(gpt1cli.__path__, "gpt1cli."):
    if _name != "gpt1cli.__main__":
        importlib.import_module(_name)

# --- how many, and from which seed ------------------------------------------------------------------------------------


def examples(few: int, many: int) -> pytest.MarkDecorator:
    """The test's `count` of examples: few in every run of the tests, many in that of the slow ones, which take minutes.

    GPT1_FUZZ=10 draws ten times as many in the latter.
    """
    times = int(os.environ.get("GPT1_FUZZ", "1"))
    slow = [pytest.mark.slow, pytest.mark.timeout(30 * 60 * times)]
    return pytest.mark.parametrize("count", [few, pytest.param(many * times, marks=slow)])


def drawn(count: int) -> Callable[[Any], Any]:
    """So many examples, always the same; a failure is shown as it came, for making it smaller takes minutes."""
    checks = [
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    ]
    return settings(
        max_examples=count,
        phases=[Phase.explicit, Phase.generate],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=checks,
    )


# --- what a command does ----------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def ran(*words: str) -> Ended:
    """gpt1 on these words, in this process, with streams that are as strict as those of a terminal in UTF-8."""
    out, err = io.BytesIO(), io.BytesIO()
    stdout = io.TextIOWrapper(out, encoding="utf-8", errors="strict", write_through=True)
    stderr = io.TextIOWrapper(err, encoding="utf-8", errors="backslashreplace", write_through=True)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = main(list(words))
    return Ended(status, *(stream.getvalue().decode() for stream in (out, err)))


def accepted_or_refused(*words: str) -> int:
    """The exit status, which is 0 or 2; a refusal says something, and neither shows a traceback."""
    ended = ran(*words)
    assert ended.status in (0, 2), (words, ended.err)
    assert "Traceback" not in ended.err, (words, ended.err)
    assert ended.status == 0 or ended.err.strip(), words
    return ended.status


def state_of(folder: Path) -> dict[str, str]:
    """Every file, link and folder below: what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = "folder"
    return found


class Watch:
    """Which paths this process opens for writing, makes, moves or removes, as the interpreter's audit events tell."""

    CHANGES: ClassVar = {"os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.symlink": (1,)}
    CHANGES |= {"os.link": (1,), "os.truncate": (0,), "os.chmod": (0,), "shutil.rmtree": (0,), "shutil.move": (0, 1)}
    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        sys.addaudithook(self._told)  # for good: no hook can be taken out again

    def _told(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.seen is None:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & self.WRITING:
            self._note(arguments[0])
        elif event in self.CHANGES and not any(isinstance(a, int) and a >= 0 for a in arguments[1:]):  # no dir_fd
            for place in self.CHANGES[event]:
                self._note(arguments[place])

    def _note(self, path: Any) -> None:
        if self.seen is not None and isinstance(path, (str, bytes, os.PathLike)):
            self.seen.append(os.path.abspath(os.fsdecode(path)))


WATCH = Watch()
ALLOWED = ("/dev/", "/proc/")
COMPILED = re.compile(r"\.pyc(\.\d+)?$")  # of a module that is imported for the first time


@contextlib.contextmanager
def unharmed(world: Path, fresh: Path, own: Path | None = None) -> Iterator[None]:
    """What was in `world` before stays as it is; what is new lies in `fresh`, holds whole results, and is removed.

    Below `own`, a run that is gone on with, anything may change.
    """
    before = state_of(world)
    WATCH.seen = []
    try:
        yield
    finally:
        touched, WATCH.seen = WATCH.seen, None
    after = state_of(world)
    kept = {path for path in before if own is None or not Path(path).is_relative_to(own)}
    assert {path: after.get(path) for path in kept} == {path: before[path] for path in kept}
    made = [Path(path) for path in after if path not in before]
    for path in made:
        assert path.is_relative_to(fresh) or (own and path.is_relative_to(own)), f"{path} is new"
        assert not re.fullmatch(r"\..+-\d+", path.name), f"{path} is half written"
        if path.name == "result.json":
            assert json.loads(path.read_bytes())["status"] == "finished"
    outside = [path for path in touched if not Path(path).is_relative_to(world) and not path.startswith(ALLOWED)]
    assert not [path for path in outside if not COMPILED.search(path)], outside
    for path in made:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # one of them may lie in another
        else:
            path.unlink(missing_ok=True)


# --- texts ------------------------------------------------------------------------------------------------------------

characters = st.characters(codec=None, exclude_categories=())  # with surrogates and unassigned ones
long = st.tuples(st.sampled_from("a .'é我\ud800\0\n"), st.sampled_from([120, 1000, 20_000])).map(lambda x: x[0] * x[1])
texts = st.one_of(
    st.text(characters, max_size=40),
    st.lists(st.sampled_from(STRINGS), max_size=30).map("".join),
    st.tuples(st.text(characters, max_size=5), long, st.text(characters, max_size=5)).map("".join),
)
"""Any text there can be in Python, also such as no file can hold."""

plain_texts = st.text(st.characters(codec="utf-8"), max_size=30)
"""Any text that UTF-8 can hold."""

# --- plain data -------------------------------------------------------------------------------------------------------

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([-(2**70), 2**31, 2**63, 10**30, 1e300, -1e-320, 0.5, float("nan"), float("inf"), -0.0]),
    st.sampled_from(["", "none", "null", "../..", "/", "~", "\0", "\ud800", "${seed}", "???", "1e-4"]),
    st.just(5000).map(lambda count: "a" * count),
    plain_texts,
)
nested = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_texts, inner, max_size=3), max_leaves=6
)
deep = st.sampled_from([60, 400]).map(lambda depth: _nest(depth))
values = st.one_of(leaves, nested, deep)


def _nest(depth: int) -> Any:
    found: Any = 1
    for level in range(depth):
        found = [found] if level % 2 else {"a": found}
    return found


@st.composite
def changed(draw: st.DrawFn, plain: Any, most: int = 3) -> Any:
    """Plain data in which one to three values are others, are missing, stand elsewhere, or are there besides."""
    found = copy.deepcopy(plain)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(found))
        if not places:
            return draw(values)
        owner, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "swap", "retype"]))
        if how == "remove":
            del owner[key]
        elif how == "add":
            added = draw(values)
            owner.insert(key, added) if isinstance(owner, list) else owner.update({draw(plain_texts): added})
        elif how == "swap":
            other, place = draw(st.sampled_from(places))
            owner[key] = copy.deepcopy(other[place])
        elif how == "retype":
            owner[key] = draw(st.sampled_from([str, lambda x: [x], lambda x: {"a": x}, bool]))(owner[key])
        else:
            owner[key] = draw(values)
    return found


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of plain data that holds a value: the list or mapping, and the value's index or key in it."""
    if isinstance(plain, (list, dict)):
        for key in plain if isinstance(plain, dict) else range(len(plain)):
            yield plain, key
            yield from _places(plain[key])


# --- bytes ------------------------------------------------------------------------------------------------------------

ODD = [b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b'"', b"\n", b"\r", b"\r\n", b"\t", b",", b";", b"\xed\xa0\x80"]
ODD += [b"{", b"[", b"}", b"]", b"\\", b"null", b"NaN", b"1e999", b"-1", b"9" * 5000, b"[" * 3000, b"\x80", b"\x1a"]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, most: int = 4) -> bytes:
    """Bytes of which some are flipped, cut off, left out, doubled, or have something put between them."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, most))):
        how = draw(st.sampled_from(["flip", "flip", "cut", "drop", "double", "insert", "zero"]))
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([1, 2, 8, 100])))
        if how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at:end]
        elif how == "double":
            data[at:at] = data[at:end]
        elif how == "zero":
            data[at:end] = bytes(end - at)
        elif how == "insert":
            data[at:at] = draw(st.sampled_from(ODD))
    return bytes(data)


# What yaml reads as something else than a text, and what it refuses.
YAML = ["&a ", "*a", "<<: *a", "!!python/object/apply:os.getcwd []", "!!binary aGk=", "!!set {a}", "!!int x", "!a b"]
YAML += ["? [1]\n: 2", "- ", "\t", "---\n", "...\n", "%YAML 9.9\n", "2001-01-01", "1:30", "0o7", "0x1f", "1_000", "yes"]
YAML += ["=", ".inf", ".nan", "1e999", "|\n x", "{a: ", "[", "]", "#", "''", "{}", "[]", "${oc.env:HOME}", "${..}"]
YAML += ["${seed}", "???", "null", "{1: 2}", "{null: 1}", "{[1]: 2}", "{_target_: os.getcwd}", "defaults: [x]"]
YAML += ["x: {y: [1, {z: 2}]}"]


@st.composite
def retyped(draw: st.DrawFn, text: str, most: int = 3) -> str:
    """A yaml of which one to three lines have another value, stand elsewhere, are missing, or are new."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, most))):
        at, odd = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(YAML))
        how = draw(st.sampled_from(["value", "value", "key", "indent", "remove", "double", "insert"]))
        key, colon, value = lines[at].partition(": ")
        if how == "value":
            lines[at] = f"{key.rstrip(':')}: {odd}"
        elif how == "key":
            lines[at] = f"{odd}{colon}{value}"
        elif how == "indent":
            lines[at] = lines[at][2:] if lines[at].startswith("  ") else f"  {lines[at]}"
        elif how == "remove" and len(lines) > 1:
            del lines[at]
        elif how == "double":
            lines.insert(at, lines[at])
        else:
            lines.insert(at, odd)
    return "\n".join(lines) + "\n"


def yamls(text: str) -> st.SearchStrategy[bytes]:
    """Bytes of a yaml file that is nearly this one: other values (JSON is yaml too), other lines, other bytes."""
    head = "".join(line for line in text.splitlines(keepends=True)[:1] if line.startswith("# @package"))
    body, plain = text.removeprefix(head), yaml.safe_load(text)
    return st.one_of(
        changed(plain, 1).map(lambda x: (head + json.dumps(x, ensure_ascii=False)).encode("utf-8", "surrogatepass")),
        changed(plain).map(lambda x: (head + json.dumps(x)).encode()),
        retyped(body, 1).map(lambda x: (head + x).encode()),
        retyped(body).map(lambda x: (head + x).encode()),
        damaged(text.encode()),
    )


def files(*wholes: bytes) -> st.SearchStrategy[bytes]:
    """Bytes of a file: any, odd ones pasted together, and these, damaged."""
    return st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from(ODD) | plain_texts.map(str.encode), max_size=20).map(b"".join),
        *(damaged(whole) for whole in wholes),
    )


def joined(parts: st.SearchStrategy[str], most: int) -> st.SearchStrategy[str]:
    """Several of the parts, one behind the other."""
    return st.lists(parts, max_size=most).map("".join)


def some_of(items: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the items, the earlier ones being the simpler ones."""
    return st.sampled_from(list(items))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A pretrained and a fine-tuned run, what was exported of the second, shards in OpenAI's layout; rows in files."""
    root = tmp_path_factory.mktemp("world")
    pandas.DataFrame(ROWS).to_csv(root / "rows.csv", index=False)
    pandas.DataFrame(ROWS).to_csv(root / "rows.tsv", index=False, sep="\t")
    pandas.DataFrame(ROWS).to_parquet(root / "rows.parquet")
    pandas.DataFrame(ROWS).to_json(root / "rows.jsonl", orient="records", lines=True)
    places = [f"cache={root / 'cache'}", f"out={root / 'out'}"]
    pretrained(root / "pretrained")
    words = ["finetune", "task=file", f"task.train={root / 'rows.csv'}", "task.kind=classification"]
    words += [f"init={root / 'pretrained'}", "steps=1", "batch_size=4", *places, *QUIET]
    assert main([*words, f"hydra.run.dir={root / 'run'}"]) == 0
    assert main(["export", f"run={root / 'run'}", f"out={root / 'exported'}", f"hydra.run.dir={root / 'export'}"]) == 0
    shutil.rmtree(root / "out", ignore_errors=True)
    for name in ("out", "broken"):
        (root / name).mkdir()
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra composes the same words once, and does not run the command itself: test_fuzz_words has all that."""
    monkeypatch.setattr(Composer, "load", remembered)
    monkeypatch.setattr(hydra_loader, "run_hydra", lambda source, command, words, job: job(None))


def stopped(**_: Any) -> None:
    """In the place of the training."""
    raise UserError("the training would begin here")


def remade(folder: Path) -> None:
    """Checksums that fit what the folder holds now, as a stranger would write them."""
    path = folder / "checksums.json"
    told = {
        name: f"{zlib.crc32((folder / name).read_bytes()):08x}"
        for name in json.loads(path.read_text())
        if (folder / name).is_file()
    }
    path.write_text(json.dumps(told))


@contextlib.contextmanager
def harmed_copy(world: Path, part: str) -> Any:
    """A copy of a part of the world, to be harmed; then removed."""
    copy = world / "broken" / part
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world / part, copy, symlinks=True)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def remembered(self: Composer, words: list[str], mode: RunMode = RunMode.RUN) -> Any:
    """What Hydra composes of gpt1's own files, the same of the same words: most of a command's time."""
    if self.source.extra:
        return LOAD(self, words, mode)
    key = self.command, self.source, tuple(words), mode
    if key not in LOADED:
        LOADED[key] = LOAD(self, words, mode)
    return LOADED[key]


def pretrained(folder: Path) -> None:
    """A run with one checkpoint of a very small model."""
    shape = ModelConfig(
        "small", 1, 16, 2, 64, 32, 0.0, 0.0, 0.0, 1e-5, 0.02, Pretraining(4, 16, 1e-3, 2), Finetuning(1e-3)
    )
    vocabulary = bpe.train({"the": 9, "cat": 5, "good": 4, "a": 3, "0": 2}, merges=9)
    model = Transformer(shape, len(vocabulary))
    optimizer = Optimizer(model, OptimizerConfig("adamw", 0.9, 0.999, 1e-8, 0.01, 1.0))
    about = checkpoint.model_description(shape, TokenizerConfig("bpe", "corpus", None, 9), vocabulary, model)
    folder.mkdir()
    checkpoint.save(folder, TrainingState(1, best_step=1), optimizer, about, vocabulary, keep=())
