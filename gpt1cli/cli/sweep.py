"""A sweep: a job for every combination of values, wherever Hydra's launcher runs them.

    basic                         one after the other in this process (Hydra's own)
    joblib, submitit_local, ray   in processes beside this one, which end with it
    submitit_slurm                in Slurm's queue: they go on whatever becomes of this process

What jobs tell one another lies in the sweep's folder, which all of them see: an exception may have no way back from
where it was raised, and what is printed there may end in a file that nobody reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
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
from gpt1cli.cli.hydra_loader import LAUNCHER, Composer, Source, hydra_main, launching
from gpt1cli.cli.overrides import quote
from gpt1cli.cli.resolve import FREE, Composed, compose, implied
from gpt1cli.config import options, schema
from gpt1cli.config.schema import UserError, display, flat
from gpt1cli.runs import files, signals
from gpt1cli.runs.files import read_config, read_json, write_json
from gpt1cli.runs.folder import LOCK, claim, clear, holder, is_finished, is_run, lock
from gpt1cli.runs.record import environment

SWEEP = "sweep.json"  # in a sweep's folder: what it is a sweep of
FAILED = "failed"  # there, for each job that failed: its exit status and what it told
STOPPED = "stopped"  # there: no further job is to begin
BESIDE = ("joblib", "submitit_local", "ray")  # launchers whose processes end with this one
COUNTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
APART = (*FREE, "hub")  # may differ: where things lie, and how they are executed and followed


# --- a sweep that has begun -------------------------------------------------------------------------------------------


def begun(line: CommandLine, command: str) -> Path | None:
    """The folder of a sweep that resume= names; None where it names none. UserError for any word beside it.

    Another launcher may be named.
    """
    named = [word for word in line.overrides if word.startswith("resume=")]
    folder = Path(named[-1].removeprefix("resume=")).expanduser().absolute() if named else None
    if folder is None or not (folder / SWEEP).is_file():
        return None
    flags = [f"{flag} {value}" for flag, value in line.flags.items() if flag.startswith("--config-")]
    free = {*named, *launching(line.overrides)}
    if other := [*flags, *(word for word in line.overrides if word not in free)]:
        raise UserError(f"{named[-1]} goes on with a sweep as it was begun: leave {display(' '.join(other))} out")
    stored = read_json(folder / SWEEP)
    if stored.get("command") != command:
        raise UserError(f"{folder} is a sweep of gpt1 {display(stored.get('command'))}, this is gpt1 {command}")
    return folder


def source_of(begun: Path) -> Source:
    """Where the yaml files of a sweep that has begun are looked for."""
    stored = read_json(begun / SWEEP)
    conf, search = stored.get("conf") or str(options.folder()), tuple(map(str, stored.get("search", ())))
    return Source(conf, stored.get("main"), stored.get("extra"), search)


def again(composer: Composer, folder: Path, words: list[str]) -> list[str]:
    """The overrides of a sweep that goes on: those that it was begun with, on the launcher that is named now."""
    overrides = [str(word) for word in read_json(folder / SWEEP).get("overrides", ())]
    if any(word.startswith(LAUNCHER[0]) for word in words):
        overrides = [word for word in overrides if word not in launching(overrides)]
    overrides += launching(words)
    if found := [*composer.launcher_problems(overrides, sweep=True)]:  # it may be installed no more
        raise UserError("\n".join(found))
    return overrides


def _described(composer: Composer, overrides: list[str]) -> dict[str, Any]:
    """What sweep.json holds."""
    source = dataclasses.asdict(composer.source)
    source["conf"] = None if source["conf"] == str(options.folder()) else source["conf"]  # ours may move
    return {"command": composer.command, "overrides": overrides, **source, "search": list(composer.source.search)}


# --- running ----------------------------------------------------------------------------------------------------------


def run(composer: Composer, overrides: list[str], words: list[str], begun: Path | None = None) -> None:
    """A job for every combination of values; `begun` is the folder of a sweep to go on with. Failed where a job did."""
    stored = implied(composer, overrides)
    folder, launcher = composer.sweep([*stored, *overrides])
    if launcher == "submitit_slurm" and not shutil.which("sbatch"):
        raise UserError("hydra/launcher=submitit_slurm: there is no sbatch here: start it where Slurm takes jobs")
    described = _described(composer, overrides)
    if not begun and (why := restarted()) and (folder / SWEEP).is_file():
        refuse_others(folder, why, read_json(folder / SWEEP), described)
        tell(f"{why}: going on with {folder}")
        begun = folder
    folder = begun or folder
    jobs = composer.jobs(overrides)
    if composer.command == "ablation":  # every cell of every job, before the first one runs
        for words_of_job in jobs:
            execute.checked(composer.command, compose(composer, words_of_job).config)
    job = SweepJob(composer.command, composer.source, tuple(stored), tuple(words), folder)
    pinned = [f"hydra.sweep.dir={quote(str(folder))}"]
    with lock(folder) if begun else claim(folder):
        write_json(folder / SWEEP, described)
        shutil.rmtree(folder / FAILED, ignore_errors=True)
        for name in (STOPPED, "error.txt"):
            (folder / name).unlink(missing_ok=True)
        try:
            with _beside(launcher, folder, len(jobs)):
                hydra_main(composer.source, composer.command, ["--multirun", *stored, *overrides, *pinned], job)
        except (UserError, execute.Failed):
            raise
        except (KeyboardInterrupt, SystemExit):
            if launcher not in ("basic", *BESIDE):
                execute.say(f"gpt1: the jobs go on without this process; resume={folder} when they are done")
            raise
        except Exception as error:  # the launcher's own: a process of it was killed, the cluster refuses a job
            if unwritten := files.found(error):
                raise UserError(files.told(unwritten, again=f"resume={folder}")) from error
            execute.say(execute.fault(error, folder))
            execute.say(f"gpt1: hydra/launcher={launcher} gave up; resume={folder} goes on when none of its jobs runs")
            raise execute.Failed(1) from error
        finally:
            if composer.command == "ablation":  # the table of all jobs together, whichever launcher ran them
                importlib.import_module("gpt1cli.commands.ablation").summarise_all(folder)
    if failed := [read_json(path) for path in sorted((folder / FAILED).glob("*.json"))]:
        execute.say(f"gpt1: {len(failed)} of the jobs failed; gpt1 {composer.command} resume={folder} tries them again")
        for one in failed if launcher not in ("basic", "joblib") else ():  # the others have told it here already
            execute.say(f"gpt1: {one['told']}")
        raise execute.Failed(int(failed[0]["status"]))


@contextlib.contextmanager
def _beside(launcher: str, folder: Path, jobs: int) -> Iterator[None]:
    """What jobs need of this process that run beside it: Ctrl-C and SIGTERM end them first, each with its checkpoint.

    On a terminal Ctrl-C would reach every process of a launcher, some of which kill the jobs at once: it is blocked in
    this thread, of which they all inherit that, and left to a thread that does nothing else.
    """
    if launcher != "basic":
        print(f"gpt1: {jobs or 'the'} jobs by {launcher}; each tells how it goes in {folder}/JOB/run.log", flush=True)
    if launcher not in BESIDE or threading.current_thread() is not threading.main_thread():
        yield
        return
    done = threading.Event()

    def listen() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        done.wait()

    def stop(number: int, frame: FrameType | None) -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        (folder / STOPPED).touch()
        execute.say("gpt1: ending the jobs, each with its checkpoint; once more ends them at once")
        _end_jobs(folder)
        execute.say(f"gpt1: resume={folder} goes on")
        if callable(handler := before[number]):
            handler(number, frame)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=listen, daemon=True).start()
    before = {int(number): signal.signal(number, stop) for number in signals.BY_HAND}
    threads = os.environ.get("OMP_NUM_THREADS")
    if launcher == "submitit_local" and threads is None:  # it starts all jobs at once; the others see to it themselves
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
    """Send SIGTERM to the jobs that work in their folders on this machine, and wait until none does any more."""
    told: set[int] = set()
    while pids := {pid for path in folder.glob(f"*/{LOCK}") if (pid := holder(path.parent))}:
        for pid in pids - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        told |= pids
        time.sleep(0.1)


# --- a job ------------------------------------------------------------------------------------------------------------


def _this_process() -> tuple[str, int]:
    return platform.node(), os.getpid()


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep: composed and checked where it runs, which may be another process or machine."""

    command: str
    source: Source
    stored: tuple[str, ...]  # overrides that no user named: they only tell Hydra the groups of config=
    words: tuple[str, ...]
    sweep: Path  # its folder
    begun_by: tuple[str, int] = dataclasses.field(default_factory=_this_process)
    begun_in: str = dataclasses.field(default_factory=os.getcwd)  # where relative paths begin
    variables: dict[str, str] = dataclasses.field(
        default_factory=lambda: {name: value for name, value in os.environ.items() if name.startswith("GPT1_")}
    )

    def __call__(self, _: object) -> None:
        if self.begun_by == _this_process():
            self._run(here=True)
            return
        os.environ.update(self.variables, TERM="dumb")  # lines of several jobs stand together: none is drawn anew
        if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
            os.environ.setdefault("OMP_NUM_THREADS", cores)
        try:
            os.chdir(self.begun_in)
        except OSError as error:
            where = f"{self.begun_in}, where the sweep was started, cannot be entered on {platform.node()}"
            raise UserError(f"{where}: {error.strerror}; jobs need the same folders on all machines") from error
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # there SIGTERM is a warning, see signals.py
            self._run(here=False)
        else:
            with signals.terminable(alone=False):
                self._run(here=False)
        sys.stdout.flush()

    def _run(self, here: bool) -> None:
        hydra = HydraConfig.get()
        overrides = [word for word in hydra.overrides.task if word not in self.stored]
        folder = Path(hydra.runtime.output_dir)
        told = " ".join(word for word in overrides if not word.startswith("cells="))  # which all jobs have alike
        label = f"job {hydra.job.num} ({told})"
        if (self.sweep / STOPPED).exists():
            return
        print(f"gpt1: {label} -> {folder}", flush=True)
        composer = Composer(self.command, self.source)
        resumed = is_run(folder) and schema.annotation_of(composer.cls, "resume") is not None
        if is_finished(folder, None) and self.command != "ablation":  # which looks after its own cells
            print(f"gpt1: {label} is finished", flush=True)
            return
        stops = False
        try:
            if is_run(folder) and not resumed:  # interrupted, and nothing to go on from
                clear(folder)
            composed = compose(composer, [f"resume={quote(str(folder))}"] if resumed else overrides)
            module, run = execute.checked(self.command, composed.config)
            stops = getattr(run, "on_error", None) == "stop"
            with execute.on_disk(run, folder), lock(folder) if resumed else claim(folder):
                if not (self.sweep / STOPPED).exists():
                    execute.execute(module, self.command, run, folder, resumed, self.words)
            return
        except UserError as error:
            status, told = 2, str(error)
            execute.say(f"gpt1: {label}: {error}")
        except execute.Failed as failed:
            status, told = failed.status, failed.told.removeprefix("gpt1: ") or "failed"
        except SystemExit as stop:
            ended = stop.code in {128 + number for number in signals.BY_HAND} and not here
            if not ended or os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # Slurm or submitit puts it into the queue
                raise
            status, told = int(stop.code or 0), "it was told to end"
        (self.sweep / FAILED).mkdir(exist_ok=True)
        record = {"status": status, "told": f"{label}: {told}"}
        write_json(self.sweep / FAILED / f"{hydra.job.num:06}.json", record)
        if stops:  # the other jobs too
            (self.sweep / STOPPED).touch()
            if here:
                raise SystemExit(status)


def restarted() -> str | None:
    """`SLURM_RESTART_COUNT=2` where a scheduler has started this command again."""
    return next((f"{name}={count}" for name in COUNTS if (count := os.environ.get(name, "0")) not in ("", "0")), None)


def taken_up(composer: Composer, words: list[str], composed: Composed) -> Composed | None:
    """What was composed, of a run that was started again so that it goes on; None where it is finished.

    UserError where the folder holds another run: the keys that differ.
    """
    folder, why = composed.folder, restarted()
    if composed.resumed or why is None or not is_run(folder):
        return composed
    stored = {"command": environment(folder).get("command"), **read_config(folder / "config.yaml")}
    now = {"command": composer.command, **dataclasses.asdict(execute.resolved(composed.config))}
    refuse_others(folder, why, dict(flat(stored)), dict(flat(now)))
    if is_finished(folder, None) and composer.command != "ablation":  # which looks after its own cells
        tell(f"{why}: {folder} is finished")
        return None
    if schema.annotation_of(composer.cls, "resume") is None:
        tell(f"{why}: beginning anew in {folder}")
        clear(folder)
        return composed
    tell(f"{why}: going on with {folder}")
    free = [word for word in words if word.lstrip("+").startswith(("runtime", "logger"))]
    return compose(composer, [f"resume={quote(str(folder))}", *free])


def refuse_others(folder: Path, why: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UserError lists in what the folder's run or sweep is not what this command line asks for."""
    keys = [key for key in dict.fromkeys((*now, *stored)) if key.partition(".")[0] not in APART]
    if other := [key for key in keys if stored.get(key) != now.get(key)]:
        lines = [f"  {key}={display(now.get(key))}: the folder has {display(stored.get(key))}" for key in other]
        told = f"{folder} was begun with another configuration, and {why} goes on with the same one alone:"
        raise UserError("\n".join([told, *lines, "name another folder, or what it was begun with"]))


def tell(line: str) -> None:
    """Tell it once, however many processes torchrun has started."""
    if os.environ.get("RANK", "0") == "0":
        print(f"gpt1: {line}", flush=True)
