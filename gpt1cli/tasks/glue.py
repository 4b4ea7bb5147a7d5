"""Predictions in the GLUE server's format: a tsv file for each test set, and all eleven files in one zip.

The files, their label strings and the sizes of the test sets are the benchmark's own (Wang et al. 2019 and its FAQ).
conf/task (submission) says which split of which task gives which file.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.runs.files import name_write_errors, read_jsonl, write_bytes, write_text


class SubmissionFile(NamedTuple):
    """One file of a submission: rows of the test set, label strings in our order (none: scores), a filler."""

    size: int
    labels: tuple[str, ...]
    filler: str  # the class that is more frequent in training, if there is one; the server expects every file


BINARY = ("0", "1")
TWO_CLASS_NLI = ("entailment", "not_entailment")
THREE_CLASS_NLI = ("entailment", "neutral", "contradiction")

FILES = {
    "CoLA": SubmissionFile(1063, BINARY, "1"),
    "SST-2": SubmissionFile(1821, BINARY, "1"),
    "MRPC": SubmissionFile(1725, BINARY, "1"),
    "STS-B": SubmissionFile(1379, (), "2.500"),
    "QQP": SubmissionFile(390965, BINARY, "0"),
    "MNLI-m": SubmissionFile(9796, THREE_CLASS_NLI, "entailment"),
    "MNLI-mm": SubmissionFile(9847, THREE_CLASS_NLI, "entailment"),
    "QNLI": SubmissionFile(5463, TWO_CLASS_NLI, "entailment"),
    "RTE": SubmissionFile(3000, TWO_CLASS_NLI, "entailment"),
    "WNLI": SubmissionFile(146, BINARY, "0"),
    "AX": SubmissionFile(1104, THREE_CLASS_NLI, "entailment"),
}
STSB_RANGE = (0, 5)  # STS-B's


def submission_problems(task: TaskConfig) -> list[str]:
    """Problems of task.submission: files whose labels do not fit the task."""
    return [
        f"task.submission: {name} needs {len(FILES[name].labels) or 'no'} labels, the task has {len(task.labels)}"
        for name in task.submission.values()
        if len(FILES[name].labels) != len(task.labels)
    ]


def write_submission(folder: Path, task: TaskConfig, split: str, limit: int | None) -> str | None:
    """Write a split's predictions as a submission file, if the task has one for it. Returns a message or None."""
    name = task.submission.get(split)
    if name is None:
        return None
    if limit is not None:
        return f"{split}: submission/{name}.tsv not written: limit.test={limit} leaves only a part of the split"
    rows = read_jsonl(folder / "predictions" / f"{split}.jsonl")
    path = folder / "submission" / f"{name}.tsv"
    with name_write_errors(path):
        path.parent.mkdir(exist_ok=True)
    write_text(path, submission_text([_label_string(FILES[name], task, row["prediction"]) for row in rows]))
    return f"{split}: {path}"


def submission_text(predictions: Sequence[str]) -> str:
    """The content of a submission file: a header, then a line for each row of the test set, in its order."""
    return "index\tprediction\n" + "".join(f"{i}\t{prediction}\n" for i, prediction in enumerate(predictions))


def _label_string(file: SubmissionFile, task: TaskConfig, prediction: str | float) -> str:
    if file.labels:
        return file.labels[task.labels.index(str(prediction))]
    return f"{min(max(float(prediction), STSB_RANGE[0]), STSB_RANGE[1]):.3f}"


def pack_submission(target: Path, files: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Write all eleven files to a zip. A file that is missing or has the wrong number of rows gets the filler.

    Returns (file, its source). Raises UserError if there is no file, or the target exists.
    """
    if not files:
        remedy = "first predict a whole GLUE test split, without limit.test"
        raise UserError(f"submission={target}: no run has a file in its folder submission/; {remedy}")
    if target.exists():
        raise UserError(f"submission={target} already exists: name another file, or remove it")
    sources, packed = [], io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in FILES.items():
            content = files[name].read_text(encoding="utf-8") if name in files else ""
            rows = content.count("\n") - 1
            if rows == file.size:
                sources.append((name, str(files[name])))
            else:
                why = f"{files[name]} has {rows:,} rows, not {file.size:,}" if content else "no run predicted it"
                sources.append((name, f"filler, always {file.filler}: {why}"))
                content = submission_text([file.filler] * file.size)
            entry = zipfile.ZipInfo(f"{name}.tsv")  # without a time: the same files give the same bytes
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    write_bytes(target, packed.getvalue())
    return sources
