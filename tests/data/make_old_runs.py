"""Writes old_runs.tar.xz and old_runs.json: runs written by commit d801a04, and the numbers that it computed.

They are never written again by later code, because they represent what users have on their disks. To write them, put a
checkout of that commit first on PYTHONPATH and give a folder that does not exist yet:

    python tests/data/make_old_runs.py /somewhere

The archive contains all that the runs wrote. Paths, the names of machine and system, and the resolution of pictures
(reduced for the size of the archive) are changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file

import gpt1cli

PLACE = "/somewhere"  # replaces the folder of the runs
STORY = "the cat sat on the mat . the dog ran to the cat . a bird sang , and the dog sat down .\n"
STORY += "the quick brown fox jumps over a lazy dog , and very well .\n"  # all letters
LINES = "the cat sat on the mat .\nA dog, and a bird!\n\n" + "the dog ran to the cat . " * 4 + "\n"
ROWS = "text,label\nthe play was great .,positive\nbella wept all night .,negative\nthe mat ran .,positive\n"
ALONE = ("runtime.threads=1", "runtime.progress=none", "runtime.device=cpu", "runtime.precision=fp32")
MODEL = (
    "model=tiny", "model.n_layer=2", "model.d_model=8", "model.n_head=2", "model.d_ff=32", "model.n_positions=96",
    "model.lstm_units=12", "model.pretraining.context=16", "batch_size=4", "eval_tokens=256",
)  # fmt: skip
TEXT = ("corpus=text", "tokenizer=bytes", "tokenizer.merges=16")
LIMIT = ("limit.train=12", "limit.valid=8", "limit.test=8", "batch_size=4", "lr=5e-3")
LONG = ("steps=120", "eval_every=40", "log_every=20", "lr=5e-3", "warmup_steps=10")


def gpt1(*words: str, stop: str | None = None) -> None:
    """Run a command; with `stop`, end it by SIGTERM when that metrics.jsonl has a line."""
    process = subprocess.Popen([sys.executable, "-m", "gpt1cli", *words])
    while stop and process.poll() is None and not (os.path.exists(stop) and os.path.getsize(stop) > 150):
        time.sleep(0.01)
    if stop:
        process.send_signal(signal.SIGTERM)
    status = process.wait()
    if status != (143 if stop else 0):
        raise SystemExit(f"status {status}: gpt1 {' '.join(words)}")


def write_runs(root: Path) -> None:
    """Write the runs of the archive in root/runs, and those to compare with in root/apart."""
    (root / "story.txt").write_text(STORY * 40)
    (root / "lines.txt").write_text(LINES)
    (root / "rows.csv").write_text(ROWS)
    here = (f"cache={root}/cache", f"out={root}/out", *ALONE)
    text = (*MODEL, *TEXT, f"corpus.path={root}/story.txt", *here)
    short = ("schedule=constant", "warmup_steps=0", "eval_every=4", "log_every=2")

    def at(name: str) -> str:
        return f"hydra.run.dir={root}/{name}"

    gpt1("pretrain", *text, *LONG, at("apart/whole"))
    gpt1("pretrain", *text, *LONG, at("runs/part"), stop=f"{root}/runs/part/metrics.jsonl")
    words = ("tokenizer=bpe", "tokenizer.merges=12")
    gpt1("pretrain", *text, *words, *short, "steps=14", at("apart/longer"))
    gpt1("pretrain", *text, *words, *short, "steps=8", at("runs/pre"))
    gpt1("pretrain", *text, *words, *short, "model.architecture=lstm", "steps=8", at("runs/lstm"))
    start = (f"init={root}/runs/pre", *here)
    gpt1("finetune", "task=demo_sentiment", *start, *LIMIT, "steps=4", at("runs/head"))
    few = ("method=prompt", "shots=2", "demos=random", "demo_sets=2", "steps=4", "eval_every=4", "seed=13")
    gpt1("finetune", "task=demo_entailment", *start, *few, "limit.test=8", "batch_size=4", at("runs/prompt"))
    sweep = ("task=demo_sentiment", *start, *LIMIT, "steps=2")
    gpt1("-m", "finetune", *sweep, "pretrained=true,false", f"hydra.sweep.dir={root}/runs/sweep")
    study = (
        "sweeps", "tasks=[demo_sentiment]", "variants=[full,lstm]", "seeds=[0]", *start, f"init_lstm={root}/runs/lstm",
        *LIMIT, "steps=60", "eval_every=20", "log_every=10",
    )  # fmt: skip
    gpt1(*study, at("apart/study"))
    cell = "cells/demo_sentiment-lstm-seed0"
    gpt1(*study, at("runs/study"), stop=f"{root}/runs/study/{cell}/metrics.jsonl")

    where = (f"cache={root}/cache", *ALONE)
    gpt1("score", f"init={root}/runs/pre", f"input={root}/lines.txt", *where, at("apart/score"))
    gpt1("score", f"init={root}/runs/lstm", f"input={root}/lines.txt", *where, at("apart/score-lstm"))
    generate = ("generate", "prompt=the cat", "tokens=40", "samples=2", *where)
    gpt1(*generate, f"init={root}/runs/part", at("apart/generate"))
    gpt1(*generate, f"init={root}/runs/lstm", at("apart/generate-lstm"))
    zeroshot = ("zeroshot", "task=demo_choice", f"runs=[{root}/runs/pre,{root}/runs/lstm]", "limit.valid=12")
    gpt1(*zeroshot, "limit.test=8", *where, at("apart/zeroshot"))
    fewshot = ("fewshot", "task=demo_sentiment", "shots=[0,2]", "seeds=[13]", "split=valid", "limit.valid=12")
    gpt1(*fewshot, f"init={root}/runs/pre", *where, at("apart/fewshot"))
    for name in ("head", "prompt"):
        asked = (f"run={root}/runs/{name}", "limit.valid=16", "split=valid", *where)
        gpt1("evaluate", *asked, at(f"apart/evaluate-{name}"))
        gpt1("export", f"run={root}/runs/{name}", f"out={root}/apart/{name}", *where, at(f"apart/export-{name}"))
    gpt1("predict", f"run={root}/runs/head", f"input={root}/rows.csv", *where, at("apart/predict-head"))
    gpt1(
        "predict", f"run={root}/runs/prompt", "text=the cat sat", "text_b=a cat", f"output={root}/apart/said.jsonl",
        *where, at("apart/predict-prompt"),
    )  # fmt: skip
    gpt1("report", f"runs=[{root}/runs/sweep]", *where, at("apart/report"))


# --- the archive ------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[Any]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected_results(root: Path) -> dict[str, Any]:
    """Return the results of d801a04 on these runs."""
    apart = root / "apart"
    predicted = {
        "head": read_lines(apart / "predict-head" / "predictions.jsonl"),
        "prompt": read_lines(apart / "said.jsonl"),
    }
    evaluated = {name: json.loads((apart / f"evaluate-{name}" / "result.json").read_text()) for name in predicted}
    exported = {name: read_tensors(apart / name / "model.safetensors") for name in predicted}
    return {
        "whole": read_lines(apart / "whole" / "metrics.jsonl"),
        "longer": read_lines(apart / "longer" / "metrics.jsonl"),
        "study": {
            path.parent.name: json.loads(path.read_text()) for path in sorted(apart.glob("study/cells/*/result.json"))
        },
        "study_table": (apart / "study" / "table.csv").read_text(),
        "score": read_lines(apart / "score" / "scores.jsonl"),
        "score_lstm": read_lines(apart / "score-lstm" / "scores.jsonl"),
        "generate": read_lines(apart / "generate" / "generated.jsonl"),
        "generate_lstm": read_lines(apart / "generate-lstm" / "generated.jsonl"),
        "zeroshot": read_lines(apart / "zeroshot" / "metrics.jsonl"),
        "fewshot": read_lines(apart / "fewshot" / "metrics.jsonl"),
        "evaluate": evaluated,
        "predict": predicted,
        "export": {
            name: {"config": json.loads((apart / name / "config.json").read_text()), "tensors": exported[name]}
            for name in predicted
        },
        "report": (apart / "report" / "table.csv").read_text(),
        "logits": compute_logits(root),
    }


def read_tensors(path: Path) -> dict[str, Any]:
    """Return small tensors as lists, and large ones, which are copied and never computed, as a checksum."""
    tensors = {name: tensor.flatten() for name, tensor in load_file(path).items()}
    return {
        name: x.tolist() if len(x) <= 64 else hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16]
        for name, x in tensors.items()
    }


def compute_logits(root: Path) -> dict[str, Any]:
    """Return the logits of the models after a text, through gpt1cli.load."""
    import torch

    results = {}
    for name in ("pre", "part", "lstm"):
        model, tokenizer = gpt1cli.load(root / "runs" / name)
        tokens = tokenizer.encode("the cat sat on")
        with torch.no_grad():
            scores = model.logits(model(torch.tensor([tokens])))[0, -1].tolist()
        results[name] = {"tokens": tokens, "logits": scores}
    return results


def anonymise(path: Path, root: Path) -> bytes:
    """Return the bytes of a file without paths and names of the machine."""
    if path.suffix == ".png":
        picture, out = Image.open(path), io.BytesIO()
        picture.convert("L").resize((picture.width // 8, picture.height // 8)).quantize(4).save(out, "PNG")
        return out.getvalue()
    data = path.read_bytes()
    if path.suffix in (".safetensors", ".bin", ".npy"):
        return data
    source = str(Path(gpt1cli.__file__).resolve().parents[1])
    text = data.decode().replace(str(root), PLACE).replace(source, f"{PLACE}/source")
    text = (
        text.replace(os.getcwd(), PLACE).replace(sys.executable, "python").replace(sys.prefix, f"{PLACE}/environment")
    )
    text = text.replace(f" on {os.uname().nodename}\n", " on machine\n")
    text = re.sub(r"Linux-[\w.+-]+", "Linux", text)
    return text.encode()


def pack(root: Path, target: Path) -> None:
    """Write runs/, the cache and the texts to an archive without user names."""
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root)
            if inside.parts[0] not in ("runs", "cache", "story.txt", "lines.txt", "rows.csv"):
                continue
            entry = archive.gettarinfo(path, str(inside))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            data = anonymise(path, root) if entry.isreg() else b""
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def main() -> None:
    root, data = Path(sys.argv[1]).absolute(), Path(__file__).resolve().parent
    root.mkdir()
    print(gpt1cli.__file__)
    write_runs(root)
    results = json.dumps(expected_results(root), ensure_ascii=False).replace(str(root), PLACE)
    (data / "old_runs.json").write_text(results + "\n", encoding="utf-8")
    pack(root, data / "old_runs.tar.xz")
    shutil.rmtree(root / "apart")


if __name__ == "__main__":
    main()
