"""A sweep: a job for every combination of values, wherever Hydra's launcher runs them.

    basic                         one after the other in this process (Hydra's own)
    joblib, submitit_local, ray   in child processes, which end with this one
    submitit_slurm                in Slurm's queue: they continue if this process ends

Jobs communicate through files in the sweep's folder, which all of them can read: an exception may not return from the
process that raised it, and its output may end in a file that nobody reads.

Longer than 300 lines: starting, stopping and resuming for five launchers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig

from gpt1cli.cli import execute
from gpt1cli.cli.argv import CommandLine
from gpt1cli.cli.hydra_loader import LAUNCHER_PREFIXES, Composer, ConfigSource, launcher_overrides, run_hydra
from gpt1cli.cli.overrides import quote
from gpt1cli.cli.resolve import RESUMABLE_KEYS, ComposedRun, compose, stored_groups
from gpt1cli.config import options, schema
from gpt1cli.config.schema import UserError, display, flatten
from gpt1cli.runs import files, signals
from gpt1cli.runs.files import read_config, read_json, write_json
from gpt1cli.runs.folder import LOCK, clear_folder, create_folder, is_finished, is_run, lock_folder, lock_owner
from gpt1cli.runs.record import read_environment

SWEEP_FILE = "sweep.json"  # in a sweep's folder: its command and overrides
FAILED_FOLDER = "failed"  # in that folder, for each failed job: its exit status and message
STOP_FILE = "stopped"  # in that folder: no further job may start
CHILD_LAUNCHERS = ("joblib", "submitit_local", "ray")  # launchers whose processes end with this one
RESTART_COUNTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
MAY_DIFFER = (*RESUMABLE_KEYS, "hub")  # may differ: folders, execution and logging


# --- resuming a sweep -------------------------------------------------------------------------------------------------


def find_sweep(line: CommandLine, command: str) -> Path | None:
    """Return the folder of the sweep that resume= names; None if it names no sweep.

    Raises UserError for any other word, except another launcher.
    """
    resumes = [word for word in line.overrides if word.startswith("resume=")]
    folder = Path(resumes[-1].removeprefix("resume=")).expanduser().absolute() if resumes else None
    if folder is None or not (folder / SWEEP_FILE).is_file():
        return None
    flags = [f"{flag} {value}" for flag, value in line.flags.items() if flag.startswith("--config-")]
    allowed = {*resumes, *launcher_overrides(line.overrides)}
    if refused := [*flags, *(word for word in line.overrides if word not in allowed)]:
        raise UserError(f"{resumes[-1]} continues a sweep with its own settings: remove {display(' '.join(refused))}")
    stored = read_json(folder / SWEEP_FILE)
    if stored.get("command") != command:
        raise UserError(f"{folder} is a sweep of gpt1 {display(stored.get('command'))}, not of gpt1 {command}")
    return folder


def read_source(folder: Path) -> ConfigSource:
    """Return the config folders of a stored sweep."""
    stored = read_json(folder / SWEEP_FILE)
    conf, search = stored.get("conf") or str(options.folder()), tuple(map(str, stored.get("search", ())))
    return ConfigSource(conf, stored.get("main"), stored.get("extra"), search)


def resumed_overrides(composer: Composer, folder: Path, words: list[str]) -> list[str]:
    """Return the overrides of a resumed sweep: the stored ones, with the launcher that is named now."""
    overrides = [str(word) for word in read_json(folder / SWEEP_FILE).get("overrides", ())]
    if any(word.startswith(LAUNCHER_PREFIXES[0]) for word in words):
        overrides = [word for word in overrides if word not in launcher_overrides(overrides)]
    overrides += launcher_overrides(words)
    if problems := [*composer.launcher_problems(overrides, sweep=True)]:  # it may no longer be installed
        raise UserError("\n".join(problems))
    return overrides


def _sweep_record(composer: Composer, overrides: list[str]) -> dict[str, Any]:
    """Return the content of sweep.json."""
    source = dataclasses.asdict(composer.source)
    source["conf"] = None if source["conf"] == str(options.folder()) else source["conf"]  # the installed conf/ may move
    return {"command": composer.command, "overrides": overrides, **source, "search": list(composer.source.search)}


# --- running ----------------------------------------------------------------------------------------------------------


def run_sweep(composer: Composer, overrides: list[str], words: list[str], resumed: Path | None = None) -> None:
    """Run one job for every combination of values; `resumed` is the folder of a sweep to continue.

    Raises RunFailed if a job failed.
    """
    stored = stored_groups(composer, overrides)
    folder, launcher = composer.sweep_target([*stored, *overrides])
    if launcher == "submitit_slurm" and not shutil.which("sbatch"):
        raise UserError("hydra/launcher=submitit_slurm: sbatch not found; start the sweep on a machine with Slurm")
    sweep_record = _sweep_record(composer, overrides)
    if not resumed and (reason := restart_reason()) and (folder / SWEEP_FILE).is_file():
        refuse_other_config(folder, reason, read_json(folder / SWEEP_FILE), sweep_record)
        print_once(f"{reason}: resuming {folder}")
        resumed = folder
    folder = resumed or folder
    jobs = composer.list_jobs(overrides)
    if composer.command == "ablation":  # check every cell of every job before the first one runs
        for words_of_job in jobs:
            execute.check_run(composer.command, compose(composer, words_of_job).config)
    job = SweepJob(composer.command, composer.source, tuple(stored), tuple(words), folder)
    pinned = [f"hydra.sweep.dir={quote(str(folder))}"]
    with lock_folder(folder) if resumed else create_folder(folder):
        write_json(folder / SWEEP_FILE, sweep_record)
        shutil.rmtree(folder / FAILED_FOLDER, ignore_errors=True)
        for name in (STOP_FILE, "error.txt"):
            (folder / name).unlink(missing_ok=True)
        try:
            with _supervise_jobs(launcher, folder, len(jobs)):
                run_hydra(composer.source, composer.command, ["--multirun", *stored, *overrides, *pinned], job)
        except (UserError, execute.RunFailed):
            raise
        except (KeyboardInterrupt, SystemExit):
            if launcher not in ("basic", *CHILD_LAUNCHERS):
                execute.print_error(
                    f"gpt1: the jobs continue without this process; when they are done: resume={folder}"
                )
            raise
        except Exception as error:  # the launcher's own: its process was killed, the cluster refuses a job
            if write_error := files.find_write_error(error):
                raise UserError(
                    files.describe_write_error(write_error, next_step=f"continue with resume={folder}")
                ) from error
            execute.print_error(execute.save_traceback(error, folder))
            execute.print_error(
                f"gpt1: hydra/launcher={launcher} failed; when none of its jobs runs, continue with resume={folder}"
            )
            raise execute.RunFailed(1) from error
        finally:
            if composer.command == "ablation":  # one table of all jobs, with any launcher
                from gpt1cli.reporting.report import summarise_sweep

                summarise_sweep(folder)
    if failed := [read_json(path) for path in sorted((folder / FAILED_FOLDER).glob("*.json"))]:
        execute.print_error(f"gpt1: {len(failed)} jobs failed; to retry them: gpt1 {composer.command} resume={folder}")
        for failure in failed if launcher not in ("basic", "joblib") else ():  # these two have printed it already
            execute.print_error(f"gpt1: {failure['told']}")
        raise execute.RunFailed(int(failed[0]["status"]))


@contextlib.contextmanager
def _supervise_jobs(launcher: str, folder: Path, jobs: int) -> Iterator[None]:
    """While child processes run the jobs: on Ctrl-C or SIGTERM end the jobs first, each with its checkpoint.

    On a terminal Ctrl-C would reach every process of a launcher, some of which kill the jobs at once. So it is blocked
    in this thread, whose children inherit that, and handled in a thread that does nothing else.
    """
    if launcher != "basic":
        print(f"gpt1: {jobs or 'the'} jobs run with {launcher}; their logs: {folder}/JOB/run.log", flush=True)
    if launcher not in CHILD_LAUNCHERS or threading.current_thread() is not threading.main_thread():
        yield
        return
    done = threading.Event()

    def listen() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        done.wait()

    def stop(number: int, frame: FrameType | None) -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        (folder / STOP_FILE).touch()
        execute.print_error("gpt1: stopping the jobs after saving checkpoints; interrupt again to stop at once")
        _end_jobs(folder)
        execute.print_error(f"gpt1: to continue: resume={folder}")
        if callable(handler := before[number]):
            handler(number, frame)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=listen, daemon=True).start()
    before = {int(number): signal.signal(number, stop) for number in signals.MANUAL_SIGNALS}
    threads = os.environ.get("OMP_NUM_THREADS")
    if launcher == "submitit_local" and threads is None:  # it starts all jobs at once; the other launchers set this
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // max(1, jobs)))
    try:
        yield
    finally:
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        for number, handler in before.items():
            signal.signal(number, handler)
        done.set()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_jobs(folder: Path) -> None:
    """Send SIGTERM to the jobs that are running on this machine, and wait until they have ended."""
    signalled: set[int] = set()
    while pids := {pid for path in folder.glob(f"*/{LOCK}") if (pid := lock_owner(path.parent))}:
        for pid in pids - signalled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        signalled |= pids
        time.sleep(0.1)


# --- a job ------------------------------------------------------------------------------------------------------------


def _this_process() -> tuple[str, int]:
    return platform.node(), os.getpid()


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep; composed and checked where it runs, perhaps in another process or on another machine."""

    command: str
    source: ConfigSource
    stored: tuple[str, ...]  # overrides that only pass the groups of config= to Hydra
    words: tuple[str, ...]
    sweep_folder: Path
    started_by: tuple[str, int] = dataclasses.field(default_factory=_this_process)
    working_folder: str = dataclasses.field(default_factory=os.getcwd)  # relative paths start there
    variables: dict[str, str] = dataclasses.field(
        default_factory=lambda: {name: value for name, value in os.environ.items() if name.startswith("GPT1_")}
    )

    def __call__(self, _: object) -> None:
        if self.started_by == _this_process():
            self._run_job(in_process=True)
            return
        os.environ.update(self.variables, TERM="dumb")  # the lines of several jobs are mixed, so none may be redrawn
        if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
            os.environ.setdefault("OMP_NUM_THREADS", cores)
        try:
            os.chdir(self.working_folder)
        except OSError as error:
            message = f"the sweep's working folder {self.working_folder} cannot be entered on {platform.node()}"
            raise UserError(f"{message}: {error.strerror}; jobs need the same folders on all machines") from error
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # with Slurm SIGTERM is a warning, see signals.py
            self._run_job(in_process=False)
        else:
            with signals.handle_sigterm(alone=False):
                self._run_job(in_process=False)
        sys.stdout.flush()

    def _run_job(self, in_process: bool) -> None:
        hydra = HydraConfig.get()
        overrides = [word for word in hydra.overrides.task if word not in self.stored]
        folder = Path(hydra.runtime.output_dir)
        job_words = " ".join(word for word in overrides if not word.startswith("cells="))  # cells= is the same for all
        label = f"job {hydra.job.num} ({job_words})"
        if (self.sweep_folder / STOP_FILE).exists():
            return
        print(f"gpt1: {label} -> {folder}", flush=True)
        composer = Composer(self.command, self.source)
        resumed = is_run(folder) and schema.annotation_of(composer.cls, "resume") is not None
        if is_finished(folder, None) and self.command != "ablation":  # a study resumes its own cells
            print(f"gpt1: {label} is finished", flush=True)
            return
        stops_sweep = False
        try:
            if is_run(folder) and not resumed:  # interrupted, and it cannot be resumed
                clear_folder(folder)
            composed = compose(composer, [f"resume={quote(str(folder))}"] if resumed else overrides)
            module, run = execute.check_run(self.command, composed.config)
            stops_sweep = getattr(run, "on_error", None) == "stop"
            with execute.explain_write_errors(run, folder), lock_folder(folder) if resumed else create_folder(folder):
                if not (self.sweep_folder / STOP_FILE).exists():
                    execute.execute_run(module, self.command, run, folder, resumed, self.words)
            return
        except UserError as error:
            status, message = 2, str(error)
            execute.print_error(f"gpt1: {label}: {error}")
        except execute.RunFailed as failed:
            status, message = failed.status, failed.message.removeprefix("gpt1: ") or "failed"
        except SystemExit as stop:
            is_stopped = stop.code in {128 + number for number in signals.MANUAL_SIGNALS} and not in_process
            if not is_stopped or os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # Slurm or submitit requeues it
                raise
            status, message = int(stop.code or 0), "stopped by a signal"
        (self.sweep_folder / FAILED_FOLDER).mkdir(exist_ok=True)
        record = {"status": status, "told": f"{label}: {message}"}
        write_json(self.sweep_folder / FAILED_FOLDER / f"{hydra.job.num:06}.json", record)
        if stops_sweep:
            (self.sweep_folder / STOP_FILE).touch()
            if in_process:
                raise SystemExit(status)


def restart_reason() -> str | None:
    """Return `SLURM_RESTART_COUNT=2`, or similar, if a scheduler has restarted this command; otherwise None."""
    return next(
        (f"{name}={count}" for name in RESTART_COUNTS if (count := os.environ.get(name, "0")) not in ("", "0")), None
    )


def resume_if_restarted(composer: Composer, words: list[str], composed: ComposedRun) -> ComposedRun | None:
    """Return the run to execute: resumed if a scheduler has restarted this command; None if it is finished.

    Raises UserError with the keys that differ if the folder contains another run.
    """
    folder, reason = composed.folder, restart_reason()
    if composed.resumed or reason is None or not is_run(folder):
        return composed
    stored = {"command": read_environment(folder).get("command"), **read_config(folder / "config.yaml")}
    now = {"command": composer.command, **dataclasses.asdict(execute.complete_config(composed.config))}
    refuse_other_config(folder, reason, dict(flatten(stored)), dict(flatten(now)))
    if is_finished(folder, None) and composer.command != "ablation":  # a study resumes its own cells
        print_once(f"{reason}: {folder} is finished")
        return None
    if schema.annotation_of(composer.cls, "resume") is None:
        print_once(f"{reason}: starting again in {folder}")
        clear_folder(folder)
        return composed
    print_once(f"{reason}: resuming {folder}")
    changeable = [word for word in words if word.lstrip("+").startswith(("runtime", "logger"))]
    return compose(composer, [f"resume={quote(str(folder))}", *changeable])


def refuse_other_config(folder: Path, reason: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError that lists the keys in which the folder's run or sweep differs from this command line."""
    keys = [key for key in dict.fromkeys((*now, *stored)) if key.partition(".")[0] not in MAY_DIFFER]
    if different := [key for key in keys if stored.get(key) != now.get(key)]:
        lines = [f"  {key}={display(now.get(key))}: the folder has {display(stored.get(key))}" for key in different]
        message = f"{folder} was started with another configuration, and {reason} can only resume the same one:"
        raise UserError("\n".join([message, *lines, "choose another folder, or the same configuration"]))


def print_once(line: str) -> None:
    """Print a line, in only one of the processes that torchrun has started."""
    if os.environ.get("RANK", "0") == "0":
        print(f"gpt1: {line}", flush=True)
