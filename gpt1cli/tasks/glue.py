"""Predictions as the GLUE server wants them: a tsv file for each test set, and all eleven of them in one zip.

The files, their label strings and the sizes of the test sets are the benchmark's own (Wang et al. 2019 and its FAQ).
Which split of which task is which file, stands in conf/task (submission).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.runs.files import read_jsonl, write_bytes, write_text, writing


class File(NamedTuple):
    """A file of a submission: rows of the test set, strings of the classes in our order (none: scores), a filler."""

    size: int
    labels: tuple[str, ...]
    filler: str  # the commoner class where training has one; the server wants every file


NUMBERS = ("0", "1")
TWO = ("entailment", "not_entailment")
THREE = ("entailment", "neutral", "contradiction")

FILES = {
    "CoLA": File(1063, NUMBERS, "1"),
    "SST-2": File(1821, NUMBERS, "1"),
    "MRPC": File(1725, NUMBERS, "1"),
    "STS-B": File(1379, (), "2.500"),
    "QQP": File(390965, NUMBERS, "0"),
    "MNLI-m": File(9796, THREE, "entailment"),
    "MNLI-mm": File(9847, THREE, "entailment"),
    "QNLI": File(5463, TWO, "entailment"),
    "RTE": File(3000, TWO, "entailment"),
    "WNLI": File(146, NUMBERS, "0"),
    "AX": File(1104, THREE, "entailment"),
}
SCORES = (0, 5)  # STS-B's


def check(task: TaskConfig) -> list[str]:
    """What is wrong with the files that a task says its predictions are for."""
    return [
        f"task.submission: {name} takes {len(FILES[name].labels) or 'no'} labels, the task has {len(task.labels)}"
        for name in task.submission.values()
        if len(FILES[name].labels) != len(task.labels)
    ]


def write_submission(folder: Path, task: TaskConfig, split: str, limit: int | None) -> str | None:
    """The predictions of a run's split as a file of a submission, if it is for one; what there is to say about it."""
    name = task.submission.get(split)
    if name is None:
        return None
    if limit is not None:
        return f"{split}: no submission/{name}.tsv, for limit.test={limit} left a part of the split"
    rows = read_jsonl(folder / "predictions" / f"{split}.jsonl")
    path = folder / "submission" / f"{name}.tsv"
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    write_text(path, text([_string(FILES[name], task, row["prediction"]) for row in rows]))
    return f"{split}: {path}"


def text(predictions: Sequence[str]) -> str:
    """A file of the server: a header and a line for each row of the test set, in its order."""
    return "index\tprediction\n" + "".join(f"{i}\t{prediction}\n" for i, prediction in enumerate(predictions))


def _string(file: File, task: TaskConfig, prediction: str | float) -> str:
    if file.labels:
        return file.labels[task.labels.index(str(prediction))]
    return f"{min(max(float(prediction), SCORES[0]), SCORES[1]):.3f}"


def pack(target: Path, files: Mapping[str, Path]) -> list[tuple[str, str]]:
    """All eleven files in a zip, a filler where one is missing or has not the test set's size; file -> where from."""
    if not files:
        way = "predict a test split of GLUE whole, without limit.test"
        raise UserError(f"submission={target}: no run has a file in its folder submission/; {way}")
    if target.exists():
        raise UserError(f"submission={target} exists: name another file, or remove it")
    told, packed = [], io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in FILES.items():
            found = files[name].read_text(encoding="utf-8") if name in files else ""
            rows = found.count("\n") - 1
            if rows == file.size:
                told.append((name, str(files[name])))
            else:
                why = f"{files[name]} has {rows:,} rows, not {file.size:,}" if found else "no run predicted it"
                told.append((name, f"filler, always {file.filler}: {why}"))
                found = text([file.filler] * file.size)
            entry = zipfile.ZipInfo(f"{name}.tsv")  # without a time: the same files give the same bytes
            archive.writestr(entry, found, zipfile.ZIP_DEFLATED)
    write_bytes(target, packed.getvalue())
    return told
