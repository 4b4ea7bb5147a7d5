"""The command line: argv -> one command, checked before anything is loaded or written, run by Hydra.

    gpt1 [flags] COMMAND [key=value ...]     the command is the first bare word, wherever it stands

Help needs neither Hydra nor torch; Hydra is imported when something is composed, a command when it has been checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gpt1cli import __version__, config, help, options, overview, rundir, running, schema
from gpt1cli.argv import ALIASES, FLAGS, CommandLine, sort
from gpt1cli.schema import InputError, shown

if TYPE_CHECKING:
    from gpt1cli.composer import Composer, Source


SWEEP = "sweep.json"  # in a sweep's folder: what it is a sweep of


def main(argv: list[str] | None = None) -> int:
    """Run gpt1 on the words of argv (None: those of the process); the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with _terminable():
            _dispatch(words)
            sys.stdout.flush()
        return 0
    except InputError as error:
        running.say(f"gpt1: {error}")
        return 2
    except running.Failed as failed:
        return failed.status
    except KeyboardInterrupt:
        running.say("gpt1: interrupted")
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and running.stdout_is_gone():  # gpt1 --help | head -1
            return 0
        running.say(running.fault(error, None))
        return 1


def _dispatch(words: list[str]) -> None:
    if "--shell-completion" in words or "-sc" in words:
        _complete(words)
        return
    line = sort(words)
    if "--version" in line.flags:
        print(f"gpt1 {__version__}")
    elif "--help" in line.flags or not words:
        print(help.page(line.command) if line.command else overview.page(), end="")
    elif "--hydra-help" in line.flags:
        _ask_hydra(line, [])
    elif line.command is None:
        raise InputError(f"no command was named; there are {', '.join(config.COMMANDS)} (gpt1 --help)")
    else:
        _run(line, line.command, words)


def _source(line: CommandLine) -> Source:
    from gpt1cli.composer import Source

    folders = {flag: line.flags[flag] for flag in ("--config-path", "--config-dir") if flag in line.flags}
    for flag, folder in folders.items():
        if not os.path.isdir(folder):
            raise InputError(f"{flag} {shown(folder)}: no such folder")
        folders[flag] = os.path.abspath(folder)
    search = tuple(word for word in line.overrides if word.startswith("hydra.searchpath="))
    conf = folders.get("--config-path", str(options.folder()))
    return Source(conf, line.flags.get("--config-name"), folders.get("--config-dir"), search)


def _ask_hydra(line: CommandLine, overrides: list[str]) -> None:
    """Let Hydra print what --cfg, --info or --hydra-help ask for."""
    from gpt1cli.composer import hydra_main, told_by_hydra

    flags = {flag: line.flags[flag] for flag in FLAGS if flag in line.flags and not flag.startswith("--config")}
    words = [word for flag, value in flags.items() for word in (flag, value) if word]
    try:
        with told_by_hydra():
            hydra_main(_source(line), line.command, [*words, *overrides], lambda _: None)
    except SystemExit as stop:
        if stop.code:  # it has said why
            raise running.Failed(2) from None


def _complete(words: list[str]) -> None:
    """Print what the word under the cursor may become (Hydra's shell functions ask so), or those functions."""
    if not any(word.startswith("query=") for word in words):
        _ask_hydra(CommandLine({"--shell-completion": ""}), [word for word in words if "=" in word])
        return
    typed = os.environ.get("COMP_LINE", "").split(" ")[1:] or [""]
    with contextlib.suppress(InputError):  # nothing to offer after a mistake
        line = sort([word for word in typed[:-1] if word])
        folders = [Path(line.flags[flag]) for flag in ("--config-dir", "--config-path") if flag in line.flags]
        if typed[-1].startswith("-"):
            found = [flag for flag in FLAGS if flag.startswith(typed[-1])]
        elif line.command:
            found = help.candidates(line.command, typed[-1], [options.folder(), *folders])
        else:
            found = [name for name in (*config.COMMANDS, *ALIASES) if name.startswith(typed[-1])]
        print("\n".join(found))


# --- running ----------------------------------------------------------------------------------------------------------


def _run(line: CommandLine, command: str, words: list[str]) -> None:
    from gpt1cli.composer import Composer

    if command == "doctor" and "--config-dir" in line.flags:
        raise InputError("gpt1 doctor looks through gpt1's own tasks and corpora: leave --config-dir out")
    if command == "ablation" and (elsewhere := line.flags.keys() & {"--config-path", "--config-name"}):
        raise InputError(f"a study has cells of several commands: leave {', '.join(sorted(elsewhere))} out")
    sweep = "--multirun" in line.flags or "hydra.mode=MULTIRUN" in line.overrides
    asked = "--cfg" in line.flags or "--info" in line.flags
    begun = _begun_sweep(line, command)
    composer = Composer(command, _source_of(begun) if begun else _source(line))
    given = list(line.overrides)
    if command == "ablation":
        if named := [word for word in given if word.startswith("config_dir=")]:
            raise InputError(f"{named[-1]}: say --config-dir {named[-1].partition('=')[2]}")
        given += [f"config_dir={composer.source.extra}"] if composer.source.extra else []
    if several := running.by_torchrun():
        if sweep or not issubclass(config.COMMANDS[command], config.TrainConfig):
            raise InputError("torchrun starts one training on many devices: no sweep, and no other command")
        if any(word.partition("=")[0].lstrip("+") == "runtime.devices" for word in given):
            raise InputError(f"torchrun has started {several} processes: leave runtime.devices out")
        given.append(f"runtime.devices={several}")
    if begun:
        if sweep or asked or several:
            raise InputError(f"resume={begun} goes on with a sweep: leave everything else out")
        _sweep(composer, [], words, begun)
        return
    overrides = composer.check(given, sweep, whole=not asked)
    if asked:
        _ask_hydra(line, overrides)
    elif sweep:
        _sweep(composer, overrides, words)
    else:
        _single(composer, overrides, words)


def _single(composer: Composer, overrides: list[str], words: list[str]) -> None:
    from gpt1cli.compose import compose, implied
    from gpt1cli.composer import hydra_main
    from gpt1cli.overrides import quote

    composed = compose(composer, overrides)
    module, run = running.checked(composer.command, composed.config)
    if running.by_torchrun() and os.environ.get("RANK") != "0":
        running.start(module, run, composed.folder)  # the folder is rank 0's
        return
    failures: list[Exception] = []

    def job(_: object) -> None:
        try:
            running.execute(module, composer.command, run, composed.folder, composed.resumed, words)
        except Exception as error:  # kept from Hydra, which would print it
            failures.append(error)

    pinned = [f"hydra.run.dir={quote(str(composed.folder))}", "hydra.mode=RUN"]
    if composed.resumed:
        pinned.append(f"hydra.output_subdir=.hydra/resumed-{time.strftime('%Y%m%d-%H%M%S')}")
    with rundir.lock(composed.folder) if composed.resumed else rundir.claim(composed.folder):
        hydra_main(composer.source, composer.command, [*implied(composer, overrides), *overrides, *pinned], job)
    if failures:
        raise failures[0]


def _begun_sweep(line: CommandLine, command: str) -> Path | None:
    """The folder of a sweep that resume= names; None where it names none. InputError for any word beside it."""
    named = [word for word in line.overrides if word.startswith("resume=")]
    folder = Path(named[-1].removeprefix("resume=")).expanduser().absolute() if named else None
    if folder is None or not (folder / SWEEP).is_file():
        return None
    flags = [f"{flag} {value}" for flag, value in line.flags.items() if flag.startswith("--config-")]
    if other := [*flags, *(word for word in line.overrides if word not in named)]:
        raise InputError(f"{named[-1]} goes on with a sweep as it was begun: leave {shown(' '.join(other))} out")
    begun = rundir.read_json(folder / SWEEP)
    if begun.get("command") != command:
        raise InputError(f"{folder} is a sweep of gpt1 {shown(begun.get('command'))}, this is gpt1 {command}")
    return folder


def _source_of(begun: Path) -> Source:
    """Where the yaml files of a sweep that has begun are looked for."""
    from gpt1cli.composer import Source

    stored = rundir.read_json(begun / SWEEP)
    conf, search = stored.get("conf") or str(options.folder()), tuple(map(str, stored.get("search", ())))
    return Source(conf, stored.get("main"), stored.get("extra"), search)


def _sweep(composer: Composer, overrides: list[str], words: list[str], begun: Path | None = None) -> None:
    """A job for every combination of values; `begun` is the folder of a sweep to go on with, which knows its own."""
    from gpt1cli.compose import compose, implied
    from gpt1cli.composer import hydra_main
    from gpt1cli.overrides import quote

    if begun:
        overrides = [str(word) for word in rundir.read_json(begun / SWEEP).get("overrides", ())]
    stored = implied(composer, overrides)
    folder = begun or composer.sweep_folder([*stored, *overrides])
    job = SweepJob(composer.command, composer.source, tuple(stored), tuple(words))
    pinned = [f"hydra.sweep.dir={quote(str(folder))}"]
    if composer.command == "ablation":  # every cell of every job, before the first one runs
        for words_of_job in composer.jobs(overrides):
            running.checked(composer.command, compose(composer, words_of_job).config)
    with rundir.lock(folder) if begun else rundir.claim(folder):
        source = dataclasses.asdict(composer.source)
        source["conf"] = None if source["conf"] == str(options.folder()) else source["conf"]  # ours may move
        rundir.write_json(folder / SWEEP, {"command": composer.command, "overrides": overrides, **source})
        try:
            hydra_main(composer.source, composer.command, ["--multirun", *stored, *overrides, *pinned], job)
        finally:
            if composer.command == "ablation":  # the table of all jobs together, whichever launcher ran them
                importlib.import_module("gpt1cli.commands.ablation").summarise_all(folder)


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep: composed and checked where it runs, which may be another process or machine."""

    command: str
    source: Source
    stored: tuple[str, ...]  # overrides that no user named: they only tell Hydra the groups of config=
    words: tuple[str, ...]

    def __call__(self, _: object) -> None:
        from hydra.core.hydra_config import HydraConfig

        from gpt1cli.compose import compose
        from gpt1cli.composer import Composer
        from gpt1cli.overrides import quote

        hydra = HydraConfig.get()
        overrides = [word for word in hydra.overrides.task if word not in self.stored]
        folder = Path(hydra.runtime.output_dir)
        label = f"job {hydra.job.num} ({' '.join(overrides)})"
        print(f"gpt1: {label} -> {folder}", flush=True)
        composer = Composer(self.command, self.source)
        resumed = rundir.is_run(folder) and schema.annotation_of(composer.cls, "resume") is not None
        if rundir.is_finished(folder, None) and self.command != "ablation":  # which looks after its own cells
            print(f"gpt1: {label} is finished", flush=True)
            return
        try:
            if rundir.is_run(folder) and not resumed:  # interrupted, and nothing to go on from
                rundir.clear(folder)
            composed = compose(composer, [f"resume={quote(str(folder))}"] if resumed else overrides)
            module, run = running.checked(self.command, composed.config)
            with rundir.lock(folder) if resumed else rundir.claim(folder):
                running.execute(module, self.command, run, folder, resumed, self.words)
        except InputError as error:
            running.say(f"gpt1: {label}: {error}")
            raise running.Failed(2) from None
        except running.Failed as failed:
            if getattr(composed.config, "on_error", None) == "stop":  # the other jobs too
                raise SystemExit(failed.status) from None
            raise


# --- how it ends ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does: with clean-up, and status 143."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
