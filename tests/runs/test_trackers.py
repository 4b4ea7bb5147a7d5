"""Trackers contain the same values as metrics.jsonl, also after a run was killed and resumed.

wandb has no reader for its offline files; the one here reads the format, LevelDB's log of protobuf records.
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
from fakes import wandb_server
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
from gpt1cli.studies.cells import config_differences

pytestmark = pytest.mark.usefixtures("no_pictures")

NAMES = ["tensorboard", "wandb", "mlflow", "trackio"]
TRACKER_VARIABLES = {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE"}
Curves = dict[str, list[tuple[int, float]]]

LINES = [  # of thirty steps; as in a run that evaluates first, the validation at step 0 comes first
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
    """`<split>/<metric>` -> (step, value)."""
    points: Curves = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "split"):
                points.setdefault(f"{line['split']}/{name}", []).append((line["step"], value))
    return points


COMPLETE = curves([*LINES, {"step": 30, "split": "test", "loss": 2.5, "accuracy": 0.625, "seconds": 7.5}])


# --- the readers ------------------------------------------------------------------------------------------------------


def read_tensorboard(root: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    [text] = events.Tensors("config/text_summary")
    words = text.tensor_proto.string_val[0].decode().splitlines()
    config = dict(line[4:].split(": ", 1) for line in words)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, config


def wandb_records(data: bytes) -> Iterator[Any]:
    """The records in an offline file."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert data.startswith(b":W&B")
    position, record = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # the rest of a block is too short for a header
            position += 32768 - position % 32768
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record, position = record + data[position + 7 : position + 7 + size], position + 7 + size
        if kind in (1, 4):  # complete, or the last part
            yield Record.FromString(record)
            record = b""


def read_wandb(root: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    records, until = [], time.monotonic() + 60
    while not any(record.HasField("exit") for record in records):  # wandb writes it in its own process
        assert time.monotonic() < until
        records = list(wandb_records(path.read_bytes()))
    config = {}
    for run in [record.run for record in records if record.HasField("run")]:
        assert (run.run_group, run.display_name) == (str(Path(run.display_name).parent), str(folder.relative_to(root)))
        config |= {item.key: json.loads(item.value_json) for item in run.config.update}
    points: Curves = {}
    for record in records:
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for key in [key for key in items if "/" in key and not key.endswith("/step")]:
            points.setdefault(key, []).append((items[f"{key.rpartition('/')[0]}/step"], items[key]))
    return points, trackers.flat_texts(config)


def read_mlflow(root: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gpt1")
    [run] = client.search_runs([experiment.experiment_id], f"tags.folder = '{folder}'")
    name = str(folder.relative_to(root))
    assert (run.info.run_name, run.data.tags["group"]) == (name, str(Path(name).parent))
    assert run.info.status == ("FINISHED" if (folder / "result.json").exists() else "FAILED")
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted((m.step, m.value) for m in history) for name, history in histories.items()}, run.data.params


def read_trackio(root: Path, folder: Path) -> tuple[Curves, dict[str, str]]:
    from trackio.sqlite_storage import SQLiteStorage

    points: Curves = {}
    name = str(folder.relative_to(root))
    assert SQLiteStorage.get_runs("gpt1").count(name) == 1
    for row in SQLiteStorage.get_logs("gpt1", name):
        for key in row.keys() - {"step", "timestamp"}:
            points.setdefault(key, []).append((row["step"], row[key]))
    config = SQLiteStorage.get_run_config("gpt1", name)
    assert config.pop("_Group") == str(Path(name).parent)
    return points, config


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}


def assert_same(actual: Curves, expected: Curves) -> None:
    """Compare points; TensorBoard has single precision, and seconds may be those of a killed session."""
    assert actual.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in actual[name]] == [step for step, _ in points], name
        if not name.endswith(("seconds", "per_second")):
            assert [value for _, value in actual[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


# --- runs without training ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory) -> Path:
    """The folder of all runs of these tests: trackio uses one folder per process. No tracker is logged in."""
    root = tmp_path_factory.mktemp("out").resolve()
    with pytest.MonkeyPatch.context() as patched:
        for name in TRACKER_VARIABLES:
            patched.delenv(name, raising=False)
        patched.setenv("TRACKIO_DIR", str(root / "trackio"))
        patched.setenv("NETRC", str(root / "netrc"))
        patched.setenv("WANDB_CONFIG_DIR", str(root / "wandb"))
        yield root


@pytest.fixture(scope="module")
def config(root) -> TrainConfig:
    words = ["model=tiny", "corpus=demo", "steps=30", f"out='{root}'"]
    return compose(Composer("pretrain"), words).config


def with_tracker(config: TrainConfig, name: str) -> TrainConfig:
    project = None if name in ("none", "tensorboard") else "gpt1"
    return dataclasses.replace(config, logger=LoggerConfig(name, project))


def start_run(config: TrainConfig, folder: Path) -> Path:
    """Create the folder of a run that has started."""
    folder.mkdir(parents=True)
    runs_record.write_record(folder, dataclasses.asdict(config), ["pretrain"], {"command": "pretrain"})
    return folder


class Killed(BaseException):
    """Like SIGKILL: no code after it runs."""


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_run_has_one_complete_curve(root, config, name, monkeypatch):
    """Killed between the training metrics of step 25 and its validation; the last checkpoint was of step 10."""
    tracked, messages = with_tracker(config, name), []
    folder = start_run(tracked, root / "pretrain" / "demo" / f"killed-{name}")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trackers.TrackerFeed, "close", lambda *_, **__: None)
        with trackers.metrics_log(tracked, folder, print) as log:
            for line in LINES[:6]:
                log(line)
            raise Killed
    if name == "wandb":  # its process ends with ours, and its file name contains the seconds
        importlib.import_module("wandb").teardown(exit_code=1)
        time.sleep(1)
    runs_folder.truncate_metrics(folder / "metrics.jsonl", 10)
    with trackers.metrics_log(tracked, folder, messages.append) as log:
        for line in LINES[3:]:
            log({**line, "seconds": line["seconds"] + 0.5})
        runs_folder.finish_run(folder, RESULT)
    actual, settings = READERS[name](root, folder)
    assert_same(actual, COMPLETE)
    assert settings["model.n_layer"] == str(config.model.n_layer) and settings["corpus.name"] == "demo"
    assert settings["optimizer.weight_decay"] == str(config.optimizer.weight_decay) and settings["init"] == "none"
    assert len(messages) == 1 and messages[0].startswith(f"{name}: ")
    if name == "wandb":
        assert "offline (not logged in); wandb sync" in messages[0]


def test_tracker_that_is_added_later_gets_earlier_metrics(root, config):
    """Another tracker at each resumption, and one of them twice."""
    folder = start_run(config, root / "pretrain" / "demo" / "changing")
    for name, lines in (("none", LINES[:3]), ("mlflow", LINES[3:5]), ("trackio", LINES[5:7]), ("mlflow", LINES[7:])):
        with trackers.metrics_log(with_tracker(config, name), folder, print) as log:
            for line in lines:
                log(line)
    runs_folder.finish_run(folder, RESULT)
    for name in ("trackio", "mlflow", "tensorboard", "mlflow"):  # also of a finished run
        with trackers.metrics_log(with_tracker(config, name), folder, print):
            pass
    for name in ("mlflow", "trackio", "tensorboard"):
        assert_same(READERS[name](root, folder)[0], COMPLETE)


def test_wandb_online_continues_after_the_last_step_on_the_server(root, config, monkeypatch):
    import wandb

    tracked, messages, folder = with_tracker(config, "wandb"), [], root / "pretrain" / "demo" / "online"
    start_run(tracked, folder)
    wandb.teardown()  # it has already read its settings
    with wandb_server() as server, monkeypatch.context() as patched:
        patched.setenv("WANDB_BASE_URL", server.url)
        patched.setenv("WANDB_API_KEY", "0" * 40)
        with pytest.raises(Killed), trackers.metrics_log(tracked, folder, messages.append) as log:
            for line in LINES[:6]:
                log(line)
            raise Killed
        sent = len(server.files["wandb-history.jsonl"])
        runs_folder.truncate_metrics(folder / "metrics.jsonl", 10)
        with trackers.metrics_log(tracked, folder, messages.append) as log:
            for line in LINES[3:]:
                log({**line, "seconds": line["seconds"] + 0.5})
            runs_folder.finish_run(folder, RESULT)
        wandb.teardown()
    assert sent == 6 and messages == [f"wandb: {server.url}/me/gpt1/runs/{server.run}"] * 2
    points: Curves = {}
    for items in map(json.loads, server.files["wandb-history.jsonl"]):
        for key in [key for key in items if "/" in key and not key.endswith("/step")]:
            points.setdefault(key, []).append((items[f"{key.rpartition('/')[0]}/step"], items[key]))
    assert_same(points, COMPLETE)


def test_several_runs_in_one_have_their_labels(root, config):
    folder = start_run(config, root / "zeroshot" / "rte" / "two")
    with trackers.metrics_log(with_tracker(config, "mlflow"), folder, print, {"a/x=1": "a/x=1", "b": "b"}) as log:
        log({"init": "a/x=1", "step": 100, "split": "test", "accuracy": 0.5})
        log({"init": "b", "step": None, "split": "test", "accuracy": 0.75})
    with pytest.raises(AssertionError, match="FAILED"):  # it has no result.json, but it succeeded
        read_mlflow(root, folder)
    runs_folder.finish_run(folder, {"runs": {}})
    actual, _ = read_mlflow(root, folder)
    assert actual == {"a/x_1/test/accuracy": [(100, 0.5)], "b/test/accuracy": [(0, 0.75)]}


def test_metrics_log_with_send_false_only_writes_the_file(config, tmp_path):
    with trackers.metrics_log(with_tracker(config, "tensorboard"), tmp_path, print, send=False) as log:
        log(LINES[0])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# --- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_tracker_that_is_not_installed_is_refused_with_its_extra(tmp_path, monkeypatch, capsys, name):
    find = importlib.util.find_spec
    absent = trackers.REQUIRED_PACKAGES[name][-1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == absent else find(name, *of))
    assert main(["pretrain", "model=tiny", "corpus=demo", f"logger={name}", f"out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert f"logger={name}: not installed" in message and f"pip install 'gpt1[{name}]'" in message
    assert "logger=none" in message
    assert not (tmp_path / "out").exists()


def test_folder_with_the_name_of_a_tracker_is_not_a_tracker(tmp_path, monkeypatch):
    (tmp_path / "no_such_tracker").mkdir()  # as wandb leaves one in the working folder
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers.REQUIRED_PACKAGES, "wandb", ("no_such_tracker",))
    with pytest.raises(UserError, match="not installed"):
        trackers.check_tracker(LoggerConfig("wandb", "gpt1"))


def test_trackio_is_refused_if_it_would_send_data_elsewhere(monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    with pytest.raises(UserError, match="TRACKIO_SPACE_ID is set: unset it"):
        trackers.check_tracker(LoggerConfig("trackio", "gpt1"))


def test_failed_tracker_is_reported_once_and_changes_nothing_else(root, config, monkeypatch):
    """Its database becomes unwritable."""
    import trackio.sqlite_storage as storage

    folder, messages = start_run(config, root / "pretrain" / "demo" / "failing"), []
    with trackers.metrics_log(with_tracker(config, "trackio"), folder, messages.append) as log:
        for number, line in enumerate(LINES):
            if number == 3:
                monkeypatch.setattr(storage, "TRACKIO_DIR", root / "netrc" / "a file is no folder")
                (root / "netrc").write_text("")
            log(line)
        runs_folder.finish_run(folder, RESULT)
    assert files.read_jsonl(folder / "metrics.jsonl") == LINES
    assert len(messages) == 2 and messages[1].startswith("warning: logger=trackio failed, ")
    assert "the run continues without it" in messages[1] and f"resume={folder} sends the rest" in messages[1]
    monkeypatch.undo()
    with trackers.metrics_log(with_tracker(config, "trackio"), folder, print):
        pass
    assert_same(read_trackio(root, folder)[0], COMPLETE)


def test_unreachable_server_is_reported_and_the_run_continues(root, config, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder, messages = start_run(config, root / "pretrain" / "demo" / "unreachable"), []
    with trackers.metrics_log(with_tracker(config, "mlflow"), folder, messages.append) as log:
        log(LINES[0])
    assert files.read_jsonl(folder / "metrics.jsonl") == LINES[:1]
    assert len(messages) == 1 and "logger=mlflow failed" in messages[0] and "127.0.0.1" in messages[0]


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


def test_failed_tracker_does_not_stop_fine_tuning_and_another_gets_all_metrics(world, monkeypatch):
    words = ["finetune", "task=demo_sentiment", "init=none", *SMALL, "tokenizer.merges=60", "limit.train=8"]
    words += ["limit.valid=8", "limit.test=9", "steps=3", "log_every=1", f"cache={world / 'cache'}", f"out={world}"]
    folder = world / "finetune" / "demo_sentiment" / "tuned"

    def send(rows):
        raise ConnectionError("nobody\nanswers")

    with monkeypatch.context() as patched:
        patched.setitem(trackers.TRACKERS, "trackio", lambda run: Tracker("somewhere", send, pytest.fail))
        assert main([*words, "logger=trackio", f"hydra.run.dir={folder}"]) == 0
    log = (folder / "run.log").read_text()
    assert log.count("warning: logger=") == 1
    assert "logger=trackio failed, and the run continues without it: ConnectionError: nobody answers;" in log
    lines, result = files.read_jsonl(folder / "metrics.jsonl"), files.read_json(folder / "result.json")
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3] and "accuracy" in result["test"]

    expected = curves([*lines, {"step": 3, "split": "test", **result["test"], "seconds": result["seconds"]}])
    before = (folder / "metrics.jsonl").read_bytes()
    for name in ("tensorboard", "trackio"):
        assert main(["finetune", f"resume={folder}", f"logger={name}"]) == 0
        assert_same(READERS[name](world, folder)[0], expected)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert files.read_config(folder / "config.yaml")["logger"] == {"name": "trackio", "project": "gpt1"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pretraining_resumed_after_sigkill_has_the_undisturbed_curve(world, name):
    words = ("steps=400", "log_every=5", "eval_every=40", "checkpoint_every=40", f"logger={name}")
    whole, folder = world / f"{name}-undisturbed", world / f"{name}-disturbed"
    assert main(pretrain(world, whole.name, *words)) == 0
    command = [sys.executable, "-m", "gpt1cli", *pretrain(world, folder.name, *words)]
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # starts its own process
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        until = time.monotonic() + 240
        while not ((folder / "metrics.jsonl").exists() and len(files.read_jsonl(folder / "metrics.jsonl")) > 20):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (folder / "result.json").exists()
    assert main(["pretrain", f"resume={folder}", f"cache={world / 'cache'}"]) == 0
    actual, expected = READERS[name](world, folder)[0], READERS[name](world, whole)[0]
    assert_same(actual, curves(files.read_jsonl(folder / "metrics.jsonl")))
    assert_same(actual, expected)


def test_run_from_before_trackers_existed_is_resumed_and_repeated(root, config):
    path = start_run(config, root / "pretrain" / "demo" / "old") / "config.yaml"
    stored = files.read_config(path)
    assert stored.pop("logger") == {"name": "none", "project": None}
    path.write_text(yaml.safe_dump(stored))
    composer = Composer("pretrain")
    assert compose(composer, [f"config='{path}'"]).config.logger.name == "none"
    assert compose(composer, [f"config='{path}'", "logger=trackio"]).config.logger == LoggerConfig("trackio", "gpt1")
    more = compose(composer, [f"resume='{path.parent}'", "logger=wandb", "logger.project=mine"]).config
    assert more.logger == LoggerConfig("wandb", "mine")


def test_study_passes_its_tracker_to_its_cells(tmp_path):
    words = ["study=demo", "tasks=[demo_sentiment]", "variants=[full]", "seeds=[0]", f"out='{tmp_path}'"]
    study = compose(Composer("ablation"), [*words, "logger=mlflow", "logger.project=x"]).config
    cells = [*transfer.pretraining_cells(study), *transfer.finetuning_cells(study, None)]
    assert len(cells) > 1 and {cell.config.logger for cell in cells} == {LoggerConfig("mlflow", "x")}
    stored = dataclasses.asdict(dataclasses.replace(cells[0].config, logger=LoggerConfig("none", None)))
    assert config_differences(cells[0], stored) == []  # it may continue with another tracker


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate run=x logger=wandb", "logger: no such key"),
        ("report runs=[x] logger=tensorboard", "logger: no such key"),
        ("pretrain corpus=demo logger=tensorbord", "did you mean tensorboard?"),
        ("pretrain corpus=demo logger=tensorboard logger.project=x", "logger=tensorboard has no projects"),
        ("pretrain corpus=demo logger.project=x", "logger=none has no projects"),
        ("pretrain corpus=demo logger=wandb logger.project=null", "project is needed with logger=wandb"),
        ("pretrain corpus=demo logger=wandb dry_run=true", "dry_run=true has no metrics to log: use logger=none"),
        ("sweeps study=demo logger=wandb dry_run=true", "dry_run=true has no metrics to log: use logger=none"),
    ],
)
def test_tracker_without_metrics_is_refused(capsys, words, message):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
