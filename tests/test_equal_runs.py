"""Small runs of every command give the numbers, names and answers that are stored: nothing changes for users.

data/equal_runs.json.xz holds what commit d801a04 computed. A difference is a change that users notice. Where it is
meant, read what this test tells of it, and write the file anew with whichever gpt1cli is importable:

    python tests/test_equal_runs.py --write        # the file, from RUNS below
    GPT1_EQUAL_EXACT=1 pytest -m slow tests/test_equal_runs.py

Processors round differently, so numbers are compared with a relative tolerance of 1e-5. With GPT1_EQUAL_EXACT=1 they
must be the same to the last bit, weights too: what a rearrangement of the code must pass where the file was written.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import lzma
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EXPECTED = Path(__file__).resolve().parent / "data" / "equal_runs.json.xz"
EXACT = os.environ.get("GPT1_EQUAL_EXACT") == "1"
RELATIVE = 1e-5
ABSOLUTE = 2e-6  # probabilities have six digits, and the last one may be rounded differently

# Keys whose values may differ; the presence of the key is still compared. The notes of tables are masked in mask_notes.
EXCEPTED = {
    "seconds": "a time",
    "tokens_per_second": "a rate",
    "peak_memory_bytes": "memory, of the process and its libraries",
    "date": "when it ran",
    "git": "the commit of the source",
    "versions": "of the packages that are installed",
    "platform": "the machine's system",
    "cpus": "the machine's cores",
}
# Differ where numbers differ in the last bit, so they are compared under GPT1_EQUAL_EXACT=1 alone.
ONLY_EXACT = "exact: "

# --- the runs ---------------------------------------------------------------------------------------------------------

STORY = "the cat sat on the mat . the dog ran to the cat . a bird sang , and the dog sat down .\n"
LINES = "the cat sat on the mat .\n\nA dog, and a bird!\ncafé\n" + "the dog ran to the cat . " * 8 + "\n"
REVIEWS = [
    ("a lovely film, and short", "good"), ("two hours of nothing", "bad"), ("the dog sang", "good"),
    ("nobody laughed", "bad"), ("a bird, a cat, a joy", "good"), ("the mat was better", "bad"),
    ("merry and glad", "good"), ("gloomy", "bad"), ("it shines", "good"), ("it rains", "bad"),
]  # fmt: skip

ALONE = ("runtime.threads=1", "runtime.progress=none", "runtime.device=cpu", "cache=cache", "out=out")
FP32 = (*ALONE, "runtime.precision=fp32")
MODEL = (
    "model=tiny", "model.n_layer=2", "model.d_model=16", "model.n_head=2", "model.d_ff=64", "model.n_positions=64",
    "model.lstm_units=24", "model.pretraining.context=32", "batch_size=4",
    "model.init_std=0.15",  # so that scores of two texts differ by more than rounding after a few steps
)  # fmt: skip
TEXT = ("corpus=text", "corpus.path=story.txt", "tokenizer=bytes", "tokenizer.merges=40")
LIMIT = ("limit.train=24", "limit.valid=16", "limit.test=16")
TUNED = (*LIMIT, "batch_size=8", "log_every=2")
OWN = [*MODEL, "model.n_positions=96", *TEXT, "steps=3", "keep_checkpoints=[1]"]
STUDY = (f"study.pretraining={json.dumps(OWN)}", "batch_size=8", "lr=3e-3")

RUNS: dict[str, tuple[str, ...]] = {
    "prepare": ("prepare", *TEXT, *ALONE),
    "pretrain": (
        "pretrain", *FP32, *MODEL, "corpus=demo", "steps=24", "eval_every=8", "eval_tokens=4096", "lr=3e-3",
        "warmup_steps=4", "keep_checkpoints=[8]", "log_every=4",
    ),
    "pretrain-lstm": (
        "pretrain", *FP32, *MODEL, *TEXT, "model.architecture=lstm", "steps=12", "eval_every=6", "schedule=linear",
        "log_every=3",
    ),
    "pretrain-gpt2": (
        "pretrain", *FP32, *MODEL, *TEXT, "model.norm=pre", "steps=8", "eval_every=4", "schedule=constant", "seed=3",
        "runtime.micro_batch=2",
    ),
    "pretrain-bf16": (
        "pretrain", *ALONE, "runtime.precision=bf16", *MODEL, *TEXT, "steps=4", "eval_every=2", "log_every=1",
    ),
    "finetune": (
        "finetune", *FP32, "task=demo_sentiment", "init=runs/pretrain", *TUNED, "lr=3e-3", "epochs=3",
        "score_train=true",
    ),
    "finetune-prompt": (
        "finetune", *FP32, "task=demo_entailment", "init=runs/pretrain", "method=prompt", "shots=4", "demos=similar",
        "demo_sets=2", "steps=4", "eval_every=2", "limit.test=12", "batch_size=4", "seed=13", "log_every=1",
    ),
    "finetune-lstm": (
        "finetune", *FP32, "task=demo_similarity", "init=runs/pretrain-lstm", *TUNED, "lr=3e-3", "epochs=2",
    ),
    "finetune-choice": (
        "finetune", *FP32, "task=demo_choice", "init=runs/pretrain", *TUNED, "lr=3e-3", "steps=12",
        "eval_every=12", "ablation=no_aux_lm",
    ),
    "finetune-file": (
        "finetune", *FP32, "task=file", "task.train=reviews.csv", "task.kind=classification", "task.holdout=0.4",
        "init=runs/pretrain", "batch_size=4", "epochs=4", "lr=3e-3", "log_every=1",
    ),
    "finetune-regression": (
        "finetune", *FP32, "task=file", "task.train=scores.csv", "task.kind=regression", "task.holdout=0.4",
        "init=runs/pretrain-gpt2", "batch_size=4", "epochs=6", "lr=1e-2",
    ),
    "sweeps-demo": (
        "sweeps", *FP32, "study=demo", *STUDY, *LIMIT, "study.transfer=[demo_sentiment]",
        "study.zeroshot=[demo_choice]", "tasks=[demo_sentiment]", "seeds=[0,1]", "steps=3", "variants=[full,lstm]",
    ),
    "sweeps-lmbff": (
        "sweeps", *FP32, "study=lmbff_demo", STUDY[0], "tasks=[demo_sentiment]", "seeds=[13]", "shots=3", "steps=2",
        "eval_every=1", "demos=random", "demo_sets=2", "grid.batch_size=[4]", "grid.lr=[1e-3,1e-2]", "limit.test=12",
        "variants=[zeroshot,incontext,head,auto_demos]", "study.search=['what=words','pieces=3','tune=2']",
    ),
    "evaluate": ("evaluate", *FP32, "run=runs/finetune", "split=train", "limit.train=20"),
    "evaluate-ensemble": (
        "evaluate", *FP32, "runs=[runs/finetune,runs/sweeps-demo/cells/demo_sentiment-full-seed0]", "split=valid",
        "limit.valid=12",
    ),
    "predict": ("predict", *FP32, "run=runs/finetune-file", "input=reviews.csv", "output=answers.csv"),
    "predict-text": ("predict", *FP32, "run=runs/finetune-prompt", "text=the cat sat", "text_b=the cat sat down"),
    "export": ("export", *FP32, "run=runs/finetune", "out=exported"),
    "export-gpt2": ("export", *FP32, "run=runs/pretrain-gpt2", "out=exported-gpt2"),
    "score": ("score", *FP32, "init=runs/pretrain", "input=lines.txt"),
    "generate": ("generate", *FP32, "init=runs/pretrain-gpt2", "prompt=the cat", "tokens=70", "top_p=0.9", "samples=2"),
    "generate-greedy": ("generate", *FP32, "init=exported-gpt2", "prompt=the cat", "tokens=12", "temperature=0"),
    "zeroshot": (
        "zeroshot", *FP32, "task=demo_acceptability", "init=runs/pretrain", "checkpoint=all", "limit.train=16",
        "limit.valid=16", "limit.test=16",
    ),
    "fewshot": (
        "fewshot", *FP32, "task=demo_sentiment", "init=runs/pretrain", "shots=[0,2]", "seeds=[13,21]", "split=valid",
        "limit.valid=12",
    ),
    "search": (
        "search", *FP32, "task=demo_sentiment", "init=runs/pretrain", "what=templates", "beam=4", "length=3", "shots=3",
        "tune=2", "steps=2", "eval_every=1", "batch_size=4", "limit.test=8",
    ),
    "report": ("report", *FP32, "runs=[runs]"),
}  # fmt: skip
ROUGH = ("pretrain-bf16",)  # rounds so coarsely that processors agree on two digits: compared exactly, or not at all
FAILED = "failed"
PRINTED = ("predict-text", "generate", "generate-greedy")  # what these print is what was asked for
BESIDE = {"prepare": "cache", "predict": "answers.csv", "export": "exported", "export-gpt2": "exported-gpt2"}


def results(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run all of RUNS in a folder, and yield what each of them wrote; of one that fails, what it said."""
    (root / "story.txt").write_text(STORY * 120, encoding="utf-8")
    (root / "lines.txt").write_text(LINES, encoding="utf-8")
    with open(root / "reviews.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *REVIEWS])
    with open(root / "scores.csv", "w", encoding="utf-8", newline="") as file:
        scores = [(text, len(text) / 10 + (label == "good")) for text, label in REVIEWS]
        csv.writer(file).writerows([("text", "score"), *scores])
    for name, words in RUNS.items():
        folder = f"{'rough' if name in ROUGH else 'runs'}/{name}"  # the report is on runs/
        try:
            printed = gpt1(root, *words, f"hydra.run.dir={folder}")
        except AssertionError as error:
            yield name, {FAILED: str(error)}
            continue
        found = contents(root / folder, root)
        if name in PRINTED:
            found["stdout"] = [json.loads(x) if x.startswith("{") else x for x in printed.splitlines()]
        if name in BESIDE:
            found |= {f"beside/{path}": content for path, content in contents(root / BESIDE[name], root).items()}
        yield name, found


def source() -> Path:
    """The folder that gpt1cli is imported from, for processes that must take the same."""
    found = importlib.util.find_spec("gpt1cli")
    assert found is not None and found.origin is not None
    return Path(found.origin).resolve().parents[1]


def gpt1(root: Path, *words: str) -> str:
    """What a command prints, in a process of its own that sees no network and none of the user's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GPT1_")}
    own = {"PYTHONPATH": str(source()), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "gpt1cli", *words], cwd=root, env={**kept, **own}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"gpt1 {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- what a run wrote -------------------------------------------------------------------------------------------------


def contents(place: Path, root: Path) -> dict[str, Any]:
    """Every file of a run by its path: data as data, of pages, pictures and logs that they are there."""
    if place.is_file():
        return {place.name: neutral(content(place), root)}
    paths = sorted(path for path in place.rglob("*") if not path.is_dir())
    links = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_symlink()}
    found = {path.relative_to(place).as_posix(): neutral(content(path), root) for path in paths}
    return found | {path: f"-> {os.readlink(link)}" for path, link in links.items()}


def content(path: Path) -> Any:
    """What a file holds, in a form that JSON keeps."""
    if ".hydra" in path.parts:
        return None
    if path.name == "checksums.json":
        found = {name: ONLY_EXACT + value for name, value in json.loads(path.read_bytes()).items()}
        # these two are compared as what they hold, and hold seconds and, of a task of the user's own files, paths
        return found | dict.fromkeys(("state.json", "config.json"), "(excepted)")
    if path.name == "environment.json":
        found = json.loads(path.read_bytes())
        sums = {name: ONLY_EXACT + value for name, value in found.get("checksums", {}).items()}
        return found | ({"checksums": sums} if sums else {})  # a vocabulary's counts the versions of ftfy and spaCy in
    if path.suffix == ".json" and path.name != "vocab.json":
        return json.loads(path.read_bytes())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            return mask_notes([[number(cell) for cell in row] for row in csv.reader(file)])
    if path.suffix == ".safetensors":
        return tensors(path)
    if path.suffix in (".bin", ".npy") or path.name in ("vocab.json", "merges.txt"):
        return digest(path)
    return None


def mask_notes(table: list[list[Any]]) -> list[list[Any]]:
    """Return a table without the sentences of its column `notes`, which people read; whether there is one is kept."""
    if not table or "notes" not in table[0]:
        return table
    notes = table[0].index("notes")
    return [table[0], *([*row[:notes], "(a note)" if row[notes] else "", *row[notes + 1 :]] for row in table[1:])]


def number(cell: str) -> str | float:
    """A cell of a table as a number, if it is one."""
    try:
        return float(cell)
    except ValueError:
        return cell


def digest(path: Path) -> str:
    """A checksum of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def tensors(path: Path) -> dict[str, Any]:
    """Return names, types, shapes and metadata of the tensors in a file, and a checksum of all their bits."""
    with safe_open(path, "pt") as file:
        about = {name: ONLY_EXACT + value for name, value in (file.metadata() or {}).items()}
    found, bits = load_file(path), hashlib.sha256()  # not of the file: the order of its metadata changes
    for _, tensor in sorted(found.items()):
        bits.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    shapes = {name: f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for name, x in found.items()}
    return {"bits": ONLY_EXACT + bits.hexdigest()[:16], "about": about, "tensors": shapes}


def neutral(value: Any, root: Path) -> Any:
    """Mask the keys of EXCEPTED, and replace the test's folder in paths by ROOT."""
    if isinstance(value, dict):
        masked = {key: "(excepted)" if key in EXCEPTED else neutral(part, root) for key, part in value.items()}
        return {key.replace(str(root), "ROOT"): part for key, part in masked.items()}
    if isinstance(value, list):
        return [neutral(part, root) for part in value]
    return value.replace(str(root), "ROOT") if isinstance(value, str) else value


# --- comparing --------------------------------------------------------------------------------------------------------


def differences(expected: Any, found: Any, where: str, exact: bool) -> Iterator[str]:
    """Yield a line for every difference between two contents."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected.keys() | found.keys():
            if key not in found or key not in expected:
                yield f"{where}: {key} is {'missing' if key in expected else 'new'}"
            else:
                yield from differences(expected[key], found[key], f"{where}: {key}", exact)
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{where}: {len(expected)} entries expected, {len(found)} found"
        for place, (a, b) in enumerate(zip(expected, found, strict=False)):
            yield from differences(a, b, f"{where}[{place}]", exact)
    elif not same(expected, found, exact):
        yield f"{where}: {expected!r} expected, {found!r} found"


def same(expected: Any, found: Any, exact: bool) -> bool:
    """Whether two plain values are equal: numbers nearly so unless exactly is asked for."""
    if type(expected) is not type(found):
        return False
    if isinstance(expected, float) and not exact:
        return math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE) or expected != expected != found
    if isinstance(expected, str) and expected.startswith(ONLY_EXACT) and found.startswith(ONLY_EXACT) and not exact:
        return True
    return bool(expected == found)


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads(lzma.decompress(EXPECTED.read_bytes()))


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the runs give now."""
    return dict(results(tmp_path_factory.mktemp("equal")))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_what_is_stored(stored: dict[str, Any], computed: dict[str, Any], name: str) -> None:
    assert FAILED not in computed[name], computed[name][FAILED]
    if name in ROUGH and not EXACT:
        pytest.skip("bf16 is compared under GPT1_EQUAL_EXACT=1 alone")
    found = json.loads(json.dumps(computed[name]))
    told = sorted(differences(stored[name], found, name, EXACT))
    assert not told, "\n".join([f"{len(told)} differences", *told[:40]])


def test_what_is_stored_is_what_is_run(stored: dict[str, Any]) -> None:
    assert list(stored) == list(RUNS)


def test_the_record_names_the_commit_where_there_is_one(tmp_path: Path) -> None:
    """The value of git is excepted above, so this looks at what kind of value it is."""
    (tmp_path / "story.txt").write_text(STORY * 60)
    gpt1(tmp_path, *RUNS["prepare"], "hydra.run.dir=run")
    git = json.loads((tmp_path / "run" / "environment.json").read_text())["git"]
    assert (set(git) == {"commit", "dirty"}) if (source() / ".git").exists() else git is None


def test_a_difference_is_seen() -> None:
    a = {"x": [1.0, {"y": "b"}], "z": 1}
    told = {
        "x[0]": {"x": [1.0001, {"y": "b"}], "z": 1}, "y": {"x": [1.0, {"y": "c"}], "z": 1}, "z": {"x": a["x"]},
        "w": {**a, "w": 1}, "z: 1 expected": {**a, "z": 1.0}, "2 entries": {"x": [1.0], "z": 1},
    }  # fmt: skip
    assert not list(differences(a, {"x": [1.0 + 1e-7, {"y": "b"}], "z": 1}, "", exact=False))
    assert list(differences(a, {"x": [1.0 + 1e-15, {"y": "b"}], "z": 1}, "", exact=True))
    for word, other in told.items():
        (line,) = differences(a, other, "", exact=False)
        assert word in line


def write(target: Path) -> None:
    """Run everything, and store what came out."""
    with tempfile.TemporaryDirectory() as folder:
        found = dict(results(Path(folder).resolve()))
    if told := [files[FAILED] for files in found.values() if FAILED in files]:
        sys.exit("\n".join(told))
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(lzma.compress(json.dumps(found, ensure_ascii=False).encode(), preset=9))
    print(f"{target}: {target.stat().st_size:,} bytes, by {source()}")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"]:
        sys.exit("usage: python tests/test_equal_runs.py --write [FILE]")
    write(Path(sys.argv[2]) if sys.argv[2:] else EXPECTED)
