"""Files for the GLUE server, byte for byte, and the zip of all files."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from runs import task_config, write_run
from worlds import read

from gpt1cli.cli.main import main
from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks import glue, splits

GLUE = "ax cola mnli mrpc qnli qqp rte sst2 stsb wnli".split()


def submitted(tmp_path: Path, task: str, predictions: list, split: str = "test") -> str:
    """The name and content of the submission file for a run's predictions."""
    lines = [(str(i), None, prediction) for i, prediction in enumerate(predictions)]
    run = write_run(tmp_path / f"{task}-{split}", task, {"valid": {}}, {split: lines})
    assert "submission/" in glue.write_submission(run, build(TaskConfig, task_config(task)), split, None)
    (path,) = (run / "submission").iterdir()
    return f"{path.name}: {path.read_bytes().decode()}"


def test_submission_files_have_the_servers_format(tmp_path):
    two = "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    three = "index\tprediction\n0\tcontradiction\n1\tneutral\n2\tentailment\n"
    numbers = "index\tprediction\n0\t1\n1\t0\n"
    nli = ["contradiction", "neutral", "entailment"]
    assert submitted(tmp_path, "cola", ["acceptable", "unacceptable"]) == f"CoLA.tsv: {numbers}"
    assert submitted(tmp_path, "sst2", ["positive", "negative"]) == f"SST-2.tsv: {numbers}"
    assert submitted(tmp_path, "mrpc", ["equivalent", "not_equivalent"]) == f"MRPC.tsv: {numbers}"
    assert submitted(tmp_path, "qqp", ["duplicate", "not_duplicate"]) == f"QQP.tsv: {numbers}"
    assert submitted(tmp_path, "wnli", ["entailment", "not_entailment"]) == f"WNLI.tsv: {numbers}"
    assert submitted(tmp_path, "qnli", ["not_entailment", "entailment"]) == f"QNLI.tsv: {two}"
    assert submitted(tmp_path, "rte", ["not_entailment", "entailment"]) == f"RTE.tsv: {two}"
    assert submitted(tmp_path, "ax", nli) == f"AX.tsv: {three}"
    assert submitted(tmp_path, "mnli", nli) == f"MNLI-m.tsv: {three}"
    assert submitted(tmp_path, "mnli", nli, "test_mismatched") == f"MNLI-mm.tsv: {three}"
    scores = "index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n"
    assert submitted(tmp_path, "stsb", [-0.3, 2.34567, 5.2]) == f"STS-B.tsv: {scores}"


def test_tasks_of_conf_give_all_eleven_files():
    files = [name for task in GLUE for name in read(f"task/{task}.yaml")["submission"].values()]
    assert sorted(files) == sorted(glue.FILES) and len(files) == 11
    for task in GLUE:
        splits.check_task(build(TaskConfig, task_config(task)))


def test_limited_and_other_splits_give_no_submission(tmp_path):
    run = write_run(tmp_path / "a", "rte", {"valid": {}}, {"test": [("5", None, "entailment")]})
    task = build(TaskConfig, task_config("rte"))
    assert "limit.test=1 leaves only a part" in glue.write_submission(run, task, "test", 1)
    assert glue.write_submission(run, task, "valid", None) is None
    assert not (run / "submission").exists()


def test_submission_file_with_other_labels_is_refused():
    with pytest.raises(UserError, match="SST-2 needs 2 labels, the task has 3"):
        splits.check_task(build(TaskConfig, task_config("snli") | {"submission": {"test": "SST-2"}}))
    with pytest.raises(UserError, match="submission: dev: only the splits test"):
        build(TaskConfig, task_config("snli") | {"submission": {"dev": "RTE"}})
    with pytest.raises(UserError, match="did you mean CoLA"):
        build(TaskConfig, task_config("cola") | {"submission": {"test": "CoLa"}})


def wnli(root: Path, seed: int, accuracy: float, prediction: str, rows: int = 146) -> None:
    """Write a run with the same prediction for every test row."""
    run = write_run(root / f"wnli{seed}", "wnli", {"valid": {"accuracy": accuracy}}, seed=seed)
    (run / "submission").mkdir()
    (run / "submission/WNLI.tsv").write_text(glue.submission_text([prediction] * rows))


def test_zip_has_eleven_files_and_reports_the_fillers(tmp_path, capsys):
    wnli(tmp_path / "runs", 0, 0.5, "0")
    wnli(tmp_path / "runs", 1, 0.6, "1")  # the better one on validation
    wnli(tmp_path / "runs", 2, 0.4, "0")
    short = write_run(tmp_path / "runs/rte", "rte", {"valid": {"accuracy": 0.5}})
    (short / "submission").mkdir()
    (short / "submission/RTE.tsv").write_text(glue.submission_text(["entailment"] * 10))
    words = ["report", f"runs=[{tmp_path / 'runs'}]", f"submission={tmp_path / 'all.zip'}"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'report'}"]) == 0
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        names = archive.namelist()
        sizes = {name: archive.read(name).count(b"\n") - 1 for name in names}
        assert archive.read("WNLI.tsv") == b"index\tprediction\n" + b"".join(b"%d\t1\n" % i for i in range(146))
        assert archive.read("STS-B.tsv").splitlines()[1379] == b"1378\t2.500"
    assert sizes == {
        "CoLA.tsv": 1063, "SST-2.tsv": 1821, "MRPC.tsv": 1725, "STS-B.tsv": 1379, "QQP.tsv": 390965, "MNLI-m.tsv": 9796,
        "MNLI-mm.tsv": 9847, "QNLI.tsv": 5463, "RTE.tsv": 3000, "WNLI.tsv": 146, "AX.tsv": 1104,
    }  # fmt: skip
    page = (tmp_path / "report/report.md").read_text()
    assert f"| WNLI | {tmp_path / 'runs/wnli1/submission/WNLI.tsv'} |" in page
    assert "| CoLA | filler, always 1: no run predicted it |" in page
    assert f"| RTE | filler, always entailment: {short / 'submission/RTE.tsv'} has 10 rows, not 3,000 |" in page

    capsys.readouterr()
    before = hashlib.sha256((tmp_path / "all.zip").read_bytes()).digest()
    assert main([*words, f"hydra.run.dir={tmp_path / 'again'}"]) == 2
    assert "already exists: name another file" in capsys.readouterr().err
    assert before == hashlib.sha256((tmp_path / "all.zip").read_bytes()).digest()


def test_runs_without_submission_files_give_no_zip(tmp_path, capsys):
    write_run(tmp_path / "runs/a", "rte", {"valid": {"accuracy": 0.5}})
    words = ["report", f"runs=[{tmp_path / 'runs'}]", f"submission={tmp_path / 'all.zip'}"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'report'}"]) == 2
    message = capsys.readouterr().err
    assert f"submission={tmp_path / 'all.zip'}: no run has a file" in message and "without limit.test" in message
    assert not (tmp_path / "all.zip").exists()
    assert main([*words[:2], "submission=all.tar", f"hydra.run.dir={tmp_path / 'no'}"]) == 2


def test_stored_task_of_an_older_gpt1_has_no_submission():
    task = json.loads(json.dumps(task_config("rte")))
    del task["submission"]
    assert build(TaskConfig, task).submission == {}
