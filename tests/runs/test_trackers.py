"""Trackers: what their own readers find is what metrics.jsonl holds, also of a run that was killed and resumed.

wandb has no reader of its offline files: the one here follows the format, LevelDB's log of protobuf records.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import served
from worlds import SMALL, STORY

from gpt1cli.cli.hydra_loader import Composer
from gpt1cli.cli.main import main
from gpt1cli.cli.resolve import compose
from gpt1cli.config.commands import TrainConfig
from gpt1cli.config.schema import UserError
from gpt1cli.config.training import LoggerConfig
from gpt1cli.runs import files, trackers
from gpt1cli.runs import folder as runs_folder
from gpt1cli.runs import record as runs_record
from gpt1cli.runs.trackers import Tracker
from gpt1cli.studies import transfer
from gpt1cli.studies.cells import differences
from gpt1cli.training import collective

pytestmark = pytest.mark.usefixtures("undrawn")

NAMES = ["tensorboard", "wandb", "mlflow", "trackio"]
AT_HOME = {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE"}
Curves = dict[str, list[tuple[int, float]]]

LINES = [  # of thirty updates; the split that is validated alone comes first, as where a run evaluates first
    {"step": 0, "split": "valid", "loss": 5.5, "seconds": 0.0},
    *(
        line
        for step in (10, 20, 25, 30)
        for line in (
            {"step": step, "split": "train", "loss": 50 / (step + 7), "lr": step / 1e5, "seconds": step / 4},
            {"step": step, "split": "valid", "loss": 60 / (step + 7), "accuracy": step / 31, "seconds": step / 4},
        )
    ),
]
RESULT = {"status": "finished", "steps": 30, "seconds": 7.5, "best": {"step": 20, "loss": 2.0}, "examples": {"test": 9},
          "valid": {"loss": 2.0, "accuracy": 0.7}, "test": {"loss": 2.5, "accuracy": 0.625}}  # fmt: skip


def curves(lines: Sequence[dict]) -> Curves:
    """Name -> (step, value), as a line has them."""
    found: Curves = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "split"):
                found.setdefault(f"{line['split']}/{name}", []).append((line["step"], value))
    return found


WHOLE = curves([*LINES, {"step": 30, "split": "test", "loss": 2.5, "accuracy": 0.625, "seconds": 7.5}])


# --- the readers ------------------------------------------------------------------------------------------------------


def read_tensorboard(root: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    [text] = found.Tensors("config/text_summary")
    words = text.tensor_proto.string_val[0].decode().splitlines()
    config = dict(line[4:].split(": ", 1) for line in words)
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}, config


def wandb_records(data: bytes) -> Iterator[Any]:
    """The records of an offline file."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert data.startswith(b":W&B")
    place, record = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no header fits into the rest of a block
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record, place = record + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def read_wandb(root: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    records, until = [], time.monotonic() + 60
    while not any(record.HasField("exit") for record in records):  # a process of wandb's own writes it
        assert time.monotonic() < until
        records = list(wandb_records(path.read_bytes()))
    config = {}
    for run in [record.run for record in records if record.HasField("run")]:
        assert (run.run_group, run.display_name) == (str(Path(run.display_name).parent), str(folder.relative_to(root)))
        config |= {item.key: json.loads(item.value_json) for item in run.config.update}
    found: Curves = {}
    for record in records:
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for key in [key for key in items if "/" in key and not key.endswith("/step")]:
            found.setdefault(key, []).append((items[f"{key.rpartition('/')[0]}/step"], items[key]))
    return found, trackers.words(config)


def read_mlflow(root: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gpt1")
    [run] = client.search_runs([experiment.experiment_id], f"tags.folder = '{folder}'")
    name = str(folder.relative_to(root))
    assert (run.info.run_name, run.data.tags["group"]) == (name, str(Path(name).parent))
    assert run.info.status == ("FINISHED" if (folder / "result.json").exists() else "FAILED")
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted((m.step, m.value) for m in each) for name, each in histories.items()}, run.data.params


def read_trackio(root: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    from trackio.sqlite_storage import SQLiteStorage

    found: Curves = {}
    name = str(folder.relative_to(root))
    assert SQLiteStorage.get_runs("gpt1").count(name) == 1
    for row in SQLiteStorage.get_logs("gpt1", name):
        for key in row.keys() - {"step", "timestamp"}:
            found.setdefault(key, []).append((row["step"], row[key]))
    config = SQLiteStorage.get_run_config("gpt1", name)
    assert config.pop("_Group") == str(Path(name).parent)
    return found, config


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}


def assert_same(found: Curves, wanted: Curves) -> None:
    """The same points, each once; TensorBoard keeps single precision, and seconds may be those of a killed session."""
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        if not name.endswith(("seconds", "per_second")):
            assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


# --- runs that are told by hand ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory) -> Path:
    """Where the runs of these tests lie: trackio knows one folder in a process. Nobody is logged in anywhere."""
    root = tmp_path_factory.mktemp("out").resolve()
    with pytest.MonkeyPatch.context() as patched:
        for name in AT_HOME:
            patched.delenv(name, raising=False)
        patched.setenv("TRACKIO_DIR", str(root / "trackio"))
        patched.setenv("NETRC", str(root / "netrc"))
        patched.setenv("WANDB_CONFIG_DIR", str(root / "wandb"))
        yield root


@pytest.fixture(scope="module")
def plain(root) -> TrainConfig:
    words = ["model=tiny", "corpus=demo", "steps=30", f"out='{root}'"]
    return compose(Composer("pretrain"), words).config


def followed(config: TrainConfig, name: str) -> TrainConfig:
    project = None if name in ("none", "tensorboard") else "gpt1"
    return dataclasses.replace(config, logger=LoggerConfig(name, project))


def begun(config: TrainConfig, folder: Path) -> Path:
    """The folder of a run that has begun."""
    folder.mkdir(parents=True)
    runs_record.record(folder, dataclasses.asdict(config), ["pretrain"], {"command": "pretrain"})
    return folder


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_killed_and_resumed_has_one_whole_curve(root, plain, name, monkeypatch):
    """Killed between what the update 25 had to tell and the validation behind it; its checkpoint was of update 10."""
    config, told = followed(plain, name), []
    folder = begun(config, root / "pretrain" / "demo" / f"killed-{name}")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trackers.Follower, "close", lambda *_, **__: None)
        with trackers.recording(config, folder, print) as log:
            for line in LINES[:6]:
                log(line)
            raise Killed
    if name == "wandb":  # its process ends with ours, and the name of its file tells seconds
        importlib.import_module("wandb").teardown(exit_code=1)
        time.sleep(1)
    runs_folder.cut_metrics(folder / "metrics.jsonl", 10)
    with trackers.recording(config, folder, told.append) as log:
        for line in LINES[3:]:
            log({**line, "seconds": line["seconds"] + 0.5})
        runs_folder.finish(folder, RESULT)
    found, settings = READERS[name](root, folder)
    assert_same(found, WHOLE)
    assert settings["model.n_layer"] == str(plain.model.n_layer) and settings["corpus.name"] == "demo"
    assert settings["optimizer.weight_decay"] == str(plain.optimizer.weight_decay) and settings["init"] == "none"
    assert len(told) == 1 and told[0].startswith(f"{name}: ")
    if name == "wandb":
        assert "offline (nobody is logged in); wandb sync" in told[0]


def test_a_tracker_that_is_named_later_gets_what_was_before(root, plain):
    """Another one at each resumption, and one of them a second time."""
    folder = begun(plain, root / "pretrain" / "demo" / "changing")
    for name, lines in (("none", LINES[:3]), ("mlflow", LINES[3:5]), ("trackio", LINES[5:7]), ("mlflow", LINES[7:])):
        with trackers.recording(followed(plain, name), folder, print) as log:
            for line in lines:
                log(line)
    runs_folder.finish(folder, RESULT)
    for name in ("trackio", "mlflow", "tensorboard", "mlflow"):  # of a finished run too
        with trackers.recording(followed(plain, name), folder, print):
            pass
    for name in ("mlflow", "trackio", "tensorboard"):
        assert_same(READERS[name](root, folder)[0], WHOLE)


def test_wandb_online_goes_on_from_what_its_server_has(root, plain, monkeypatch):
    import wandb

    config, told, folder = followed(plain, "wandb"), [], root / "pretrain" / "demo" / "online"
    begun(config, folder)
    wandb.teardown()  # it has read its settings already
    with served() as server, monkeypatch.context() as patched:
        patched.setenv("WANDB_BASE_URL", server.url)
        patched.setenv("WANDB_API_KEY", "0" * 40)
        with pytest.raises(Killed), trackers.recording(config, folder, told.append) as log:
            for line in LINES[:6]:
                log(line)
            raise Killed
        sent = len(server.files["wandb-history.jsonl"])
        runs_folder.cut_metrics(folder / "metrics.jsonl", 10)
        with trackers.recording(config, folder, told.append) as log:
            for line in LINES[3:]:
                log({**line, "seconds": line["seconds"] + 0.5})
            runs_folder.finish(folder, RESULT)
        wandb.teardown()
    assert sent == 6 and told == [f"wandb: {server.url}/me/gpt1/runs/{server.run}"] * 2
    found: Curves = {}
    for items in map(json.loads, server.files["wandb-history.jsonl"]):
        for key in [key for key in items if "/" in key and not key.endswith("/step")]:
            found.setdefault(key, []).append((items[f"{key.rpartition('/')[0]}/step"], items[key]))
    assert_same(found, WHOLE)


def test_several_runs_in_one_are_told_apart(root, plain):
    folder = begun(plain, root / "zeroshot" / "rte" / "two")
    with trackers.recording(followed(plain, "mlflow"), folder, print, {"a/x=1": "a/x=1", "b": "b"}) as log:
        log({"init": "a/x=1", "step": 100, "split": "test", "accuracy": 0.5})
        log({"init": "b", "step": None, "split": "test", "accuracy": 0.75})
    with pytest.raises(AssertionError, match="FAILED"):  # it has no result.json, and yet has ended well
        read_mlflow(root, folder)
    runs_folder.finish(folder, {"runs": {}})
    found, _ = read_mlflow(root, folder)
    assert found == {"a/x_1/test/accuracy": [(100, 0.5)], "b/test/accuracy": [(0, 0.75)]}


def test_the_first_of_several_processes_alone_sends(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(collective, "rank", lambda: 1)
    with trackers.recording(followed(plain, "tensorboard"), tmp_path, print) as log:
        log(LINES[0])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_not_installed_names_its_extra_before_a_folder_is_made(tmp_path, monkeypatch, capsys, name):
    find = importlib.util.find_spec
    absent = trackers.NEEDED[name][-1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == absent else find(name, *of))
    assert main(["pretrain", "model=tiny", "corpus=demo", f"logger={name}", f"out={tmp_path / 'out'}"]) == 2
    told = f"gpt1: logger={name}: it is not installed; pip install 'gpt1[{name}]', or name logger=none\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "out").exists()


def test_a_folder_of_a_trackers_name_is_no_tracker(tmp_path, monkeypatch):
    (tmp_path / "no_such_tracker").mkdir()  # as wandb leaves one where it is called
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers.NEEDED, "wandb", ("no_such_tracker",))
    with pytest.raises(UserError, match="it is not installed"):
        trackers.check(LoggerConfig("wandb", "gpt1"))


def test_trackio_is_refused_where_it_would_send(monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    with pytest.raises(UserError, match="TRACKIO_SPACE_ID is set: unset it; trackio sync"):
        trackers.check(LoggerConfig("trackio", "gpt1"))


def test_a_tracker_that_fails_is_told_once_and_costs_nothing(root, plain, monkeypatch):
    """Its database cannot be written to any more."""
    import trackio.sqlite_storage as storage

    folder, told = begun(plain, root / "pretrain" / "demo" / "failing"), []
    with trackers.recording(followed(plain, "trackio"), folder, told.append) as log:
        for number, line in enumerate(LINES):
            if number == 3:
                monkeypatch.setattr(storage, "TRACKIO_DIR", root / "netrc" / "a file is no folder")
                (root / "netrc").write_text("")
            log(line)
        runs_folder.finish(folder, RESULT)
    assert files.read_jsonl(folder / "metrics.jsonl") == LINES
    assert len(told) == 2 and told[1].startswith("warning: logger=trackio failed, and the run goes on without it: ")
    assert told[1].endswith(f"metrics.jsonl has everything, and resume={folder} sends the rest")
    monkeypatch.undo()
    with trackers.recording(followed(plain, "trackio"), folder, print):
        pass
    assert_same(read_trackio(root, folder)[0], WHOLE)


def test_a_server_that_is_not_there_is_told_and_the_run_goes_on(root, plain, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder, told = begun(plain, root / "pretrain" / "demo" / "unreachable"), []
    with trackers.recording(followed(plain, "mlflow"), folder, told.append) as log:
        log(LINES[0])
    assert files.read_jsonl(folder / "metrics.jsonl") == LINES[:1]
    assert len(told) == 1 and "logger=mlflow failed" in told[0] and "127.0.0.1" in told[0]


# --- whole commands ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(root) -> Path:
    (root / "text.txt").write_text(STORY * 200)
    return root


def pretrain(world: Path, run: str, *more: str) -> list[str]:
    return [
        "pretrain", "corpus=text", f"corpus.path={world / 'text.txt'}", "tokenizer=bpe", "tokenizer.merges=40", *SMALL,
        f"cache={world / 'cache'}", f"out={world}", f"hydra.run.dir={world / run}", *more,
    ]  # fmt: skip


def test_a_failing_tracker_does_not_stop_a_fine_tuning_and_another_gets_it_whole(world, monkeypatch):
    words = ["finetune", "task=demo_sentiment", "init=none", *SMALL, "tokenizer.merges=60", "limit.train=8"]
    words += ["limit.valid=8", "limit.test=9", "steps=3", "log_every=1", f"cache={world / 'cache'}", f"out={world}"]
    folder = world / "finetune" / "demo_sentiment" / "tuned"

    def send(rows):
        raise ConnectionError("nobody\nanswers")

    with monkeypatch.context() as patched:
        patched.setitem(trackers.TRACKERS, "trackio", lambda run: Tracker("somewhere", send, pytest.fail))
        assert main([*words, "logger=trackio", f"hydra.run.dir={folder}"]) == 0
    told = (folder / "run.log").read_text()
    assert told.count("warning: logger=") == 1
    assert "logger=trackio failed, and the run goes on without it: ConnectionError: nobody answers;" in told
    lines, result = files.read_jsonl(folder / "metrics.jsonl"), files.read_json(folder / "result.json")
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3] and "accuracy" in result["test"]

    wanted = curves([*lines, {"step": 3, "split": "test", **result["test"], "seconds": result["seconds"]}])
    before = (folder / "metrics.jsonl").read_bytes()
    for name in ("tensorboard", "trackio"):
        assert main(["finetune", f"resume={folder}", f"logger={name}"]) == 0
        assert_same(READERS[name](world, folder)[0], wanted)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert files.read_config(folder / "config.yaml")["logger"] == {"name": "trackio", "project": "gpt1"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_pretraining_ended_by_sigkill_and_resumed_has_the_curve_of_one_that_was_not(world, name):
    words = ("steps=400", "log_every=5", "eval_every=40", "checkpoint_every=40", f"logger={name}")
    whole, folder = world / f"{name}-undisturbed", world / f"{name}-disturbed"
    assert main(pretrain(world, whole.name, *words)) == 0
    command = [sys.executable, "-m", "gpt1cli", *pretrain(world, folder.name, *words)]
    alone = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # with a process of its own
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=alone) as process:
        until = time.monotonic() + 240
        while not ((folder / "metrics.jsonl").exists() and len(files.read_jsonl(folder / "metrics.jsonl")) > 20):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (folder / "result.json").exists()
    assert main(["pretrain", f"resume={folder}", f"cache={world / 'cache'}"]) == 0
    found, wanted = READERS[name](world, folder)[0], READERS[name](world, whole)[0]
    assert_same(found, curves(files.read_jsonl(folder / "metrics.jsonl")))
    assert_same(found, wanted)


def test_a_run_of_before_there_were_trackers_is_resumed_and_repeated(root, plain):
    path = begun(plain, root / "pretrain" / "demo" / "old") / "config.yaml"
    stored = files.read_config(path)
    assert stored.pop("logger") == {"name": "none", "project": None}
    path.write_text(yaml.safe_dump(stored))
    composer = Composer("pretrain")
    assert compose(composer, [f"config='{path}'"]).config.logger.name == "none"
    assert compose(composer, [f"config='{path}'", "logger=trackio"]).config.logger == LoggerConfig("trackio", "gpt1")
    more = compose(composer, [f"resume='{path.parent}'", "logger=wandb", "logger.project=mine"]).config
    assert more.logger == LoggerConfig("wandb", "mine")


def test_a_study_hands_its_tracker_to_its_cells(tmp_path):
    words = ["study=demo", "tasks=[demo_sentiment]", "variants=[full]", "seeds=[0]", f"out='{tmp_path}'"]
    study = compose(Composer("ablation"), [*words, "logger=mlflow", "logger.project=x"]).config
    cells = [*transfer.pretrainings(study), *transfer.finetunings(study, None)]
    assert len(cells) > 1 and {cell.config.logger for cell in cells} == {LoggerConfig("mlflow", "x")}
    stored = dataclasses.asdict(dataclasses.replace(cells[0].config, logger=LoggerConfig("none", None)))
    assert differences(cells[0], stored) == []  # it may go on with another one


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("evaluate run=x logger=wandb", "logger: no such key"),
        ("report runs=[x] logger=tensorboard", "logger: no such key"),
        ("pretrain corpus=demo logger=tensorbord", "did you mean tensorboard?"),
        ("pretrain corpus=demo logger=tensorboard logger.project=x", "logger=tensorboard has no projects"),
        ("pretrain corpus=demo logger.project=x", "logger=none has no projects"),
        ("pretrain corpus=demo logger=wandb logger.project=null", "project is needed with logger=wandb"),
        ("pretrain corpus=demo logger=wandb dry_run=true", "dry_run=true has no metrics to follow: name logger=none"),
        ("sweeps study=demo logger=wandb dry_run=true", "dry_run=true has no metrics to follow: name logger=none"),
    ],
)
def test_a_tracker_that_nothing_would_be_sent_to_is_refused(capsys, words, told):
    assert main(words.split()) == 2
    assert told in capsys.readouterr().err
