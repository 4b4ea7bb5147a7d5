"""Experiment trackers: TensorBoard, Weights & Biases, MLflow or Trackio, fed from metrics.jsonl.

metrics.jsonl is the reference, and a tracker receives its lines. It first receives those lines of the file that it does
not have yet: of a resumed run, of a run that sets logger= only now, of a finished run. If a tracker fails, the run
prints a warning and continues. Each library is imported when its tracker is opened.

Longer than 300 lines: four trackers, each with its own way to resume.
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
from gpt1cli.config.schema import UserError, display, flatten
from gpt1cli.config.training import LoggerConfig
from gpt1cli.runs.files import append_jsonl, read_config, read_json, read_jsonl, write_json
from gpt1cli.runs.record import read_environment

Line = Mapping[str, Any]
Log = Callable[[Line], None]

REQUIRED_PACKAGES = {  # tracker -> the packages it imports: its extra in pyproject.toml
    "none": (),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
}
REMOTE_VARIABLES = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # with these trackio would send its folder elsewhere
FINAL_SPLITS = re.compile(r"(valid|test)(_\w+)?")  # splits whose scores may be in result.json only
MLFLOW_FORBIDDEN = r"[^\w/ .:-]"  # characters that MLflow does not allow in the name of a metric
MLFLOW_LINES = 50  # in one request; MLflow accepts a thousand numbers


@dataclass(frozen=True)
class TrackerRow:
    """A line of metrics.jsonl in the form for trackers."""

    series: str  # its split; if a run scores several other runs, LABEL/SPLIT
    step: int
    time: float  # seconds since 1970, as if the run had continued without a pause from its start
    values: dict[str, float]  # `<series>/<metric>` -> number


@dataclass(frozen=True)
class TrackedRun:
    """The description of a run that trackers receive."""

    id: str  # the same in every tracker
    name: str  # its folder, relative to out
    group: str  # the parent of that folder
    folder: Path
    out: Path
    project: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Tracker:
    """An open tracker."""

    location: str  # where the user finds the run: a URL or a command
    send: Callable[[Sequence[TrackerRow]], object]
    close: Callable[[bool], object]  # the argument: whether the run succeeded
    last_steps: Mapping[str, int] = field(default_factory=dict)  # series -> the last step that the tracker already has


def check_tracker(config: LoggerConfig) -> None:
    """Raise UserError if the tracker is not installed, or would send data elsewhere that stays on this machine."""
    specs = [importlib.util.find_spec(name) for name in REQUIRED_PACKAGES[config.name]]
    if not all(spec and spec.origin for spec in specs):  # without an origin it is only a folder with that name
        raise UserError(f"logger={config.name}: not installed; pip install 'gpt1[{config.name}]', or use logger=none")
    if config.name == "trackio" and (variables := [name for name in REMOTE_VARIABLES if os.environ.get(name)]):
        raise UserError(
            f"logger=trackio writes to a folder of this machine, but {' and '.join(variables)} is set: unset it;"
            " afterwards trackio sync can send this folder to a Space"
        )


@contextlib.contextmanager
def metrics_log(
    config: TrainConfig | ZeroshotConfig | FewshotConfig,
    folder: Path,
    say: Callable[[str], object],
    labels: Mapping[str, str] | None = None,
    send: bool = True,
) -> Iterator[Log]:
    """A function that appends a line to metrics.jsonl and sends it to the run's tracker.

    Scores that are only in result.json are sent at the end. `say` prints messages; `labels` are the names of several
    `init`, or of several `seed`, in one run. `send` is False in all but one of several processes: nothing is sent.
    """
    feed = TrackerFeed(config, folder, say, labels or {}, send)

    def log(line: Line) -> None:
        append_jsonl(folder / "metrics.jsonl", line)
        feed.send([line])

    try:
        yield log
    except BaseException:
        feed.close(succeeded=False)
        raise
    feed.close(succeeded=True)


class TrackerFeed:
    """The tracker of a run. After its first error the run prints one warning, and nothing more is sent."""

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
        """Send the lines that the tracker does not have yet."""
        if tracker := self.tracker:
            self._attempt(lambda: self._send(tracker, lines))

    def close(self, succeeded: bool) -> None:
        """If the run succeeded, send the scores of result.json; close the tracker."""
        if succeeded:
            self.send(final_scores(self.folder))
        if tracker := self.tracker:
            self.tracker = None
            self._attempt(lambda: tracker.close(succeeded))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a tracker's library may raise anything
            self.tracker = None
            reason = display(" ".join(f"{type(error).__name__}: {error}".split()))
            later = f"; resume={self.folder} sends the rest" if hasattr(self.config, "resume") else ""
            self.say(
                f"warning: logger={self.config.logger.name} failed, and the run continues without it: {reason};"
                f" metrics.jsonl has all metrics{later}"
            )

    def _open(self) -> None:
        self.start_time = datetime.fromisoformat(read_environment(self.folder)["date"]).timestamp()
        self.tracker = TRACKERS[self.config.logger.name](tracked_run(self.config, self.folder))
        self.say(f"{self.config.logger.name}: {self.tracker.location}")
        if (path := self.folder / "metrics.jsonl").exists():
            self._send(self.tracker, read_jsonl(path))

    def _send(self, tracker: Tracker, lines: Iterable[Line]) -> None:
        rows = [tracker_row(line, self.start_time, self.labels) for line in lines]
        if new_rows := [row for row in rows if row.step > tracker.last_steps.get(row.series, -1)]:
            tracker.send(new_rows)


def final_scores(folder: Path) -> Iterator[Line]:
    """The scores in result.json of splits without a line in metrics.jsonl, as lines at the last step."""
    if (folder / "result.json").exists():
        result = read_json(folder / "result.json")
        logged_splits = {line["split"] for line in read_jsonl(folder / "metrics.jsonl")}
        for name in result:
            if FINAL_SPLITS.fullmatch(name) and name not in logged_splits:
                yield {"step": result["steps"], "split": name, "seconds": result["seconds"], **result[name]}


def tracked_run(config: TrainConfig | ZeroshotConfig | FewshotConfig, folder: Path) -> TrackedRun:
    """The description of a run for trackers. Its id is created the first time and kept in tracker.json."""
    path = folder / "tracker.json"
    if not path.exists():
        write_json(path, {"id": uuid.uuid4().hex[:16]})
    home, out = folder.resolve(), Path(config.out).resolve()
    name = home.relative_to(out) if home.is_relative_to(out) else home
    return TrackedRun(
        id=read_json(path)["id"],
        name=str(name),
        group=str(name.parent),
        folder=home,
        out=out,
        project=config.logger.project or "",
        config=read_config(folder / "config.yaml"),
    )


def tracker_row(line: Line, start_time: float, labels: Mapping[str, str]) -> TrackerRow:
    """A line of metrics.jsonl in the form for trackers; published weights have no step, and are logged at step 0."""
    label = labels.get(str(line.get("init", line.get("seed", ""))))
    series = f"{re.sub(MLFLOW_FORBIDDEN, '_', label)}/{line['split']}" if label else line["split"]
    numbers = {name: value for name, value in line.items() if type(value) in (int, float) and name != "step"}
    values = {f"{series}/{name}": float(value) for name, value in numbers.items()}
    return TrackerRow(series, line["step"] or 0, start_time + line.get("seconds", 0.0), values)


def flat_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration as `key -> one line of text`."""
    plain = {key: isinstance(value, str) and "\n" not in value for key, value in flatten(config)}
    return {key: value if plain[key] else json.dumps(value) for key, value in flatten(config)}


# --- the trackers -----------------------------------------------------------------------------------------------------


def open_tensorboard(run: TrackedRun) -> Tracker:
    """Event files in the run's folder, rewritten each time: they are derived from metrics.jsonl."""
    from torch.utils.tensorboard import SummaryWriter

    if (folder := run.folder / "tensorboard").exists():
        shutil.rmtree(folder)
    writer = SummaryWriter(folder)
    writer.add_text("config", "".join(f"    {key}: {value}\n" for key, value in flat_texts(run.config).items()))

    def send(rows: Sequence[TrackerRow]) -> None:
        for row in rows:
            for name, value in row.values.items():
                writer.add_scalar(name, value, row.step, row.time)
        writer.flush()

    return Tracker(f"tensorboard --logdir {quote(str(run.out))}", send, lambda _: writer.close())


def open_wandb(run: TrackedRun) -> Tracker:
    """A run on the server if the user is logged in, else a file in the run's folder, rewritten each time."""
    import wandb

    settings = wandb.setup().settings
    logged_out = settings.mode == "online" and not wandb.login(prompt=False, verify=False)
    offline = logged_out or settings.mode == "offline"
    for derived in run.folder.glob("wandb/offline-run-*") if offline else ():
        shutil.rmtree(derived)
    wandb_run = wandb.init(
        project=run.project,
        id=run.id,
        name=run.name[-128:],  # the longest name that the server accepts
        group=run.group[-128:],
        dir=run.folder,
        config=run.config,
        mode="offline" if offline else None,  # None: as the user configured it
        resume=None if offline else "allow",
        reinit="create_new",
        # The console output is not captured, and a server that does not answer does not keep the run from ending.
        settings=wandb.Settings(
            console="off", silent=True, finish_timeout=settings.finish_timeout or 60, finish_timeout_raises=True
        ),
    )
    defined = set()

    def send(rows: Sequence[TrackerRow]) -> None:
        for row in rows:
            if row.series not in defined:  # wandb's own step counts lines; plot each split over its training steps
                wandb_run.define_metric(f"{row.series}/*", step_metric=f"{row.series}/step")
                defined.add(row.series)
            wandb_run.log({f"{row.series}/step": row.step, **row.values, "_timestamp": row.time})

    if offline:
        reason = " (not logged in)" if logged_out else ""
        location = f"offline{reason}; wandb sync {quote(str(Path(wandb_run.dir).parent))} sends the run"
    else:
        location = str(wandb_run.url or settings.mode)
    names = [name for name in wandb_run.summary.keys() if name.endswith("/step")]  # noqa: SIM118 (it is not a dict)
    last_steps = {name.removesuffix("/step"): wandb_run.summary[name] for name in names}
    return Tracker(location, send, lambda succeeded: wandb_run.finish(exit_code=0 if succeeded else 1), last_steps)


def open_mlflow(run: TrackedRun) -> Tracker:
    """A run on the server MLFLOW_TRACKING_URI, else in a database in `out`."""
    quiet = {"MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_DISABLE_TELEMETRY": "true"}
    timeouts = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # not 120 s, seven times
    for name, value in {**quiet, **timeouts}.items():
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
        experiment = known.experiment_id  # it already exists
    runs = client.search_runs([experiment], f"tags.gpt1 = '{run.id}'")
    tags = {"gpt1": run.id, "group": run.group, "folder": str(run.folder)}
    mlflow_run = runs[0] if runs else client.create_run(experiment, tags=tags, run_name=run.name)
    run_id = mlflow_run.info.run_id
    client.update_run(run_id, status="RUNNING")
    params = [Param(key, value) for key, value in flat_texts(run.config).items() if key not in mlflow_run.data.params]
    for start in range(0, len(params), 100):  # the most that one request may contain
        client.log_batch(run_id, params=params[start : start + 100])
    last_steps: dict[str, int] = {}
    for name in mlflow_run.data.metrics:
        series, last = name.rpartition("/")[0], max(point.step for point in client.get_metric_history(run_id, name))
        last_steps[series] = max(last, last_steps.get(series, -1))

    def send(rows: Sequence[TrackerRow]) -> None:
        for start in range(0, len(rows), MLFLOW_LINES):
            part = rows[start : start + MLFLOW_LINES]
            metrics = [Metric(n, v, int(row.time * 1000), row.step) for row in part for n, v in row.values.items()]
            client.log_batch(run_id, metrics)

    location = f"mlflow ui --backend-store-uri {quote(uri)}" if files else f"run {run_id} on {uri}"

    def close(succeeded: bool) -> None:
        client.set_terminated(run_id, "FINISHED" if succeeded else "FAILED")

    return Tracker(location, send, close, last_steps)


def open_trackio(run: TrackedRun) -> Tracker:
    """A database in `out`.

    We write to it directly: trackio.init() starts a thread that writes half a second later, hides errors, and loses
    unwritten lines when the process is killed.
    """
    os.environ.setdefault("TRACKIO_DIR", str(run.out / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import TRACKIO_DIR

    SQLiteStorage.validate_project_name(run.project)
    config = [{**flat_texts(run.config), "_Group": run.group}]  # sent with the first lines

    def send(rows: Sequence[TrackerRow]) -> None:
        SQLiteStorage.bulk_log(
            project=run.project,
            run=run.name,
            run_id=run.id,
            metrics_list=[row.values for row in rows],
            steps=[row.step for row in rows],
            timestamps=[datetime.fromtimestamp(row.time, UTC).isoformat() for row in rows],
            log_ids=[f"{run.id}/{row.series}/{row.step}" for row in rows],  # a line that exists already is kept
            config=config.pop() if config else None,
        )

    location = f"TRACKIO_DIR={quote(str(TRACKIO_DIR))} trackio show --project {run.project}"
    return Tracker(location, send, lambda _: None)


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
    "mlflow": open_mlflow,
    "trackio": open_trackio,
}
