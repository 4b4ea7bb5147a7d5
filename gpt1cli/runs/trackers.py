"""Experiment trackers: TensorBoard, Weights & Biases, MLflow or Trackio on the heels of metrics.jsonl.

metrics.jsonl is the truth, and a tracker is fed from its very lines. It first gets what the file holds and it lacks: of
a run that goes on, of one that names it only now, of one that is finished. A tracker that fails costs nothing but a
warning. Each library is imported when its tracker is opened.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

from gpt1cli.config.commands import FewshotConfig, TrainConfig, ZeroshotConfig
from gpt1cli.config.schema import UserError, display, flat
from gpt1cli.config.training import LoggerConfig
from gpt1cli.runs.files import append_jsonl, read_config, read_json, read_jsonl, write_json
from gpt1cli.runs.record import environment

Line = Mapping[str, Any]
Log = Callable[[Line], None]

NEEDED = {  # tracker -> what is imported for it: its extra in pyproject.toml
    "none": (),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
}
ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # would have trackio send what gpt1 writes to its folder
FURTHER = re.compile(r"(valid|test)(_\w+)?")  # splits whose scores may stand in result.json alone
UNNAMEABLE = r"[^\w/ .:-]"  # what MLflow does not take in the name of a metric
AT_ONCE = 50  # lines in one request to MLflow, which takes a thousand numbers


@dataclass(frozen=True)
class Row:
    """A line of metrics.jsonl as a tracker takes it."""

    where: str  # its split; where one run asks several others, behind the label of that other
    step: int
    time: float  # seconds since 1970, as if all sessions of the run had followed its beginning without a pause
    values: dict[str, float]  # `<where>/<metric>` -> number


@dataclass(frozen=True)
class Run:
    """What a tracker is told of a run."""

    id: str  # under which every tracker knows it
    name: str  # its folder below out
    group: str  # the folder around that one
    folder: Path
    out: Path
    project: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Tracker:
    """An open tracker."""

    told: str  # where the run is to be seen
    send: Callable[[Sequence[Row]], object]
    close: Callable[[bool], object]  # whether the run has ended well
    seen: Mapping[str, int] = field(default_factory=dict)  # where -> the last update that it has already


def check(config: LoggerConfig) -> None:
    """UserError where the tracker is not installed, or told to send what gpt1 leaves on this machine."""
    specs = [importlib.util.find_spec(name) for name in NEEDED[config.name]]
    if not all(spec and spec.origin for spec in specs):  # without an origin it is a mere folder of that name
        way = f"pip install 'gpt1[{config.name}]', or name logger=none"
        raise UserError(f"logger={config.name}: it is not installed; {way}")
    if config.name == "trackio" and (named := [name for name in ELSEWHERE if os.environ.get(name)]):
        raise UserError(
            f"logger=trackio writes to a folder of this machine, but {' and '.join(named)} is set: unset it;"
            " trackio sync sends that folder to a Space"
        )


@contextlib.contextmanager
def recording(
    config: TrainConfig | ZeroshotConfig | FewshotConfig,
    folder: Path,
    say: Callable[[str], object],
    labels: Mapping[str, str] | None = None,
    send: bool = True,
) -> Iterator[Log]:
    """Where a run's metrics go: a function that appends a line to metrics.jsonl and sends it to the run's tracker.

    The scores that result.json alone holds follow at the end. `say` takes what there is to tell; `labels` tell lines of
    several `init`, or of several `seed`, apart. Without `send` nothing goes to the tracker:
    of several processes only one sends.
    """
    follower = Follower(config, folder, say, labels or {}, send)

    def log(line: Line) -> None:
        append_jsonl(folder / "metrics.jsonl", line)
        follower.send([line])

    try:
        yield log
    except BaseException:
        follower.close(well=False)
        raise
    follower.close(well=True)


class Follower:
    """The tracker of a run until it fails, which is told once; from then on, as without one, nothing is sent."""

    def __init__(
        self,
        config: TrainConfig | ZeroshotConfig | FewshotConfig,
        folder: Path,
        say: Callable[[str], object],
        labels: Mapping[str, str],
        send: bool,
    ) -> None:
        self.config, self.folder, self.say, self.labels = config, folder, say, labels
        self.tracker: Tracker | None = None
        if config.logger.name != "none" and send:
            self._attempt(self._open)

    def send(self, lines: Iterable[Line]) -> None:
        """Send what the tracker does not have yet."""
        if tracker := self.tracker:
            self._attempt(lambda: self._send(tracker, lines))

    def close(self, well: bool) -> None:
        """Send what result.json adds, where the run has ended well, and close the tracker."""
        if well:
            self.send(ends(self.folder))
        if tracker := self.tracker:
            self.tracker = None
            self._attempt(lambda: tracker.close(well))

    def _attempt(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # whatever a library of somebody else's stumbles over
            self.tracker = None
            why = display(" ".join(f"{type(error).__name__}: {error}".split()))
            later = f", and resume={self.folder} sends the rest" if hasattr(self.config, "resume") else ""
            self.say(
                f"warning: logger={self.config.logger.name} failed, and the run goes on without it: {why};"
                f" metrics.jsonl has everything{later}"
            )

    def _open(self) -> None:
        self.began = datetime.fromisoformat(environment(self.folder)["date"]).timestamp()
        self.tracker = TRACKERS[self.config.logger.name](run_of(self.config, self.folder))
        self.say(f"{self.config.logger.name}: {self.tracker.told}")
        if (path := self.folder / "metrics.jsonl").exists():
            self._send(self.tracker, read_jsonl(path))

    def _send(self, tracker: Tracker, lines: Iterable[Line]) -> None:
        rows = [row_of(line, self.began, self.labels) for line in lines]
        if fresh := [row for row in rows if row.step > tracker.seen.get(row.where, -1)]:
            tracker.send(fresh)


def ends(folder: Path) -> Iterator[Line]:
    """The scores of result.json for splits that metrics.jsonl has no line of, at the last update."""
    if (folder / "result.json").exists():
        result = read_json(folder / "result.json")
        there = {line["split"] for line in read_jsonl(folder / "metrics.jsonl")}
        for name in result:
            if FURTHER.fullmatch(name) and name not in there:
                yield {"step": result["steps"], "split": name, "seconds": result["seconds"], **result[name]}


def run_of(config: TrainConfig | ZeroshotConfig | FewshotConfig, folder: Path) -> Run:
    """What a tracker is told of a run; the id that it has with all of them is made the first time, and kept."""
    path = folder / "tracker.json"
    if not path.exists():
        write_json(path, {"id": uuid.uuid4().hex[:16]})
    home, out = folder.resolve(), Path(config.out).resolve()
    place = home.relative_to(out) if home.is_relative_to(out) else home
    return Run(
        id=read_json(path)["id"],
        name=str(place),
        group=str(place.parent),
        folder=home,
        out=out,
        project=config.logger.project or "",
        config=read_config(folder / "config.yaml"),
    )


def row_of(line: Line, began: float, labels: Mapping[str, str]) -> Row:
    """A line of metrics.jsonl as a tracker takes it; what has no number of updates, as published weights, is at 0."""
    label = labels.get(str(line.get("init", line.get("seed", ""))))
    where = f"{re.sub(UNNAMEABLE, '_', label)}/{line['split']}" if label else line["split"]
    numbers = {name: value for name, value in line.items() if type(value) in (int, float) and name != "step"}
    values = {f"{where}/{name}": float(value) for name, value in numbers.items()}
    return Row(where, line["step"] or 0, began + line.get("seconds", 0.0), values)


def words(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration, flat, each value as text of one line."""
    plain = {key: isinstance(value, str) and "\n" not in value for key, value in flat(config)}
    return {key: value if plain[key] else json.dumps(value) for key, value in flat(config)}


# --- the trackers -----------------------------------------------------------------------------------------------------


def to_tensorboard(run: Run) -> Tracker:
    """Event files in the run's folder, written anew each time: they are derived."""
    from torch.utils.tensorboard import SummaryWriter

    if (place := run.folder / "tensorboard").exists():
        shutil.rmtree(place)
    writer = SummaryWriter(place)
    writer.add_text("config", "".join(f"    {key}: {value}\n" for key, value in words(run.config).items()))

    def send(rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.values.items():
                writer.add_scalar(name, value, row.step, row.time)
        writer.flush()

    return Tracker(f"tensorboard --logdir {quote(str(run.out))}", send, lambda _: writer.close())


def to_wandb(run: Run) -> Tracker:
    """A run of the server for who is logged in, else a file in the run's folder, written anew each time."""
    import wandb

    settings = wandb.setup().settings
    away = settings.mode == "online" and not wandb.login(prompt=False, verify=False)
    offline = away or settings.mode == "offline"
    for derived in run.folder.glob("wandb/offline-run-*") if offline else ():
        shutil.rmtree(derived)
    opened = wandb.init(
        project=run.project,
        id=run.id,
        name=run.name[-128:],  # the longest that the server takes
        group=run.group[-128:],
        dir=run.folder,
        config=run.config,
        mode="offline" if offline else None,  # None: as the user has set it up
        resume=None if offline else "allow",
        reinit="create_new",
        # of the training alone nothing is captured, and a server that is gone does not keep it from ending
        settings=wandb.Settings(
            console="off", silent=True, finish_timeout=settings.finish_timeout or 60, finish_timeout_raises=True
        ),
    )
    defined = set()

    def send(rows: Sequence[Row]) -> None:
        for row in rows:
            if row.where not in defined:  # wandb's own step counts lines; each split is drawn over its updates
                opened.define_metric(f"{row.where}/*", step_metric=f"{row.where}/step")
                defined.add(row.where)
            opened.log({f"{row.where}/step": row.step, **row.values, "_timestamp": row.time})

    if offline:
        why = " (nobody is logged in)" if away else ""
        told = f"offline{why}; wandb sync {quote(str(Path(opened.dir).parent))} sends the run"
    else:
        told = str(opened.url or settings.mode)
    last = [name for name in opened.summary.keys() if name.endswith("/step")]  # noqa: SIM118 (it is no dict)
    seen = {name.removesuffix("/step"): opened.summary[name] for name in last}
    return Tracker(told, send, lambda well: opened.finish(exit_code=0 if well else 1), seen)


def to_mlflow(run: Run) -> Tracker:
    """A run on the server of MLFLOW_TRACKING_URI, else in a database in `out`."""
    quiet = {"MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_DISABLE_TELEMETRY": "true"}
    patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # it is 120 s, seven times
    for name, value in {**quiet, **patience}.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    uri, files = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        run.out.mkdir(parents=True, exist_ok=True)
        uri, files = f"sqlite:///{run.out / 'mlflow.db'}", (run.out / "mlflow").as_uri()
    client = MlflowClient(uri)
    try:
        experiment = client.create_experiment(run.project, files)
    except MlflowException:
        if (known := client.get_experiment_by_name(run.project)) is None:
            raise
        experiment = known.experiment_id  # it was there before
    found = client.search_runs([experiment], f"tags.gpt1 = '{run.id}'")
    tags = {"gpt1": run.id, "group": run.group, "folder": str(run.folder)}
    opened = found[0] if found else client.create_run(experiment, tags=tags, run_name=run.name)
    number = opened.info.run_id
    client.update_run(number, status="RUNNING")
    params = [Param(key, value) for key, value in words(run.config).items() if key not in opened.data.params]
    for start in range(0, len(params), 100):  # the most it takes in one request
        client.log_batch(number, params=params[start : start + 100])
    seen: dict[str, int] = {}
    for name in opened.data.metrics:
        where, last = name.rpartition("/")[0], max(one.step for one in client.get_metric_history(number, name))
        seen[where] = max(last, seen.get(where, -1))

    def send(rows: Sequence[Row]) -> None:
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            metrics = [Metric(n, v, int(row.time * 1000), row.step) for row in some for n, v in row.values.items()]
            client.log_batch(number, metrics)

    told = f"mlflow ui --backend-store-uri {quote(uri)}" if files else f"run {number} on {uri}"
    return Tracker(told, send, lambda well: client.set_terminated(number, "FINISHED" if well else "FAILED"), seen)


def to_trackio(run: Run) -> Tracker:
    """A database in `out`.

    It is written to directly: behind trackio.init() a thread does that half a second later, keeps errors to itself, and
    loses what it has not written when the process is killed.
    """
    os.environ.setdefault("TRACKIO_DIR", str(run.out / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import TRACKIO_DIR

    SQLiteStorage.validate_project_name(run.project)
    config = [{**words(run.config), "_Group": run.group}]  # told with the first lines

    def send(rows: Sequence[Row]) -> None:
        SQLiteStorage.bulk_log(
            project=run.project,
            run=run.name,
            run_id=run.id,
            metrics_list=[row.values for row in rows],
            steps=[row.step for row in rows],
            timestamps=[datetime.fromtimestamp(row.time, UTC).isoformat() for row in rows],
            log_ids=[f"{run.id}/{row.where}/{row.step}" for row in rows],  # one that is there already is left alone
            config=config.pop() if config else None,
        )

    told = f"TRACKIO_DIR={quote(str(TRACKIO_DIR))} trackio show --project {run.project}"
    return Tracker(told, send, lambda _: None)


TRACKERS: dict[str, Callable[[Run], Tracker]] = {
    "tensorboard": to_tensorboard,
    "wandb": to_wandb,
    "mlflow": to_mlflow,
    "trackio": to_trackio,
}
