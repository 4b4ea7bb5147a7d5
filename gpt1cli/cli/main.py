"""The command line: argv -> one command, checked before anything is loaded or written, run by Hydra.

    gpt1 [flags] COMMAND [key=value ...]     the command is the first bare word, wherever it stands

Help needs neither Hydra nor torch; Hydra is imported when something is composed, a command when it has been checked.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1cli.cli import execute, help
from gpt1cli.cli.argv import ALIASES, FLAGS, CommandLine, sort
from gpt1cli.cli.help import front_page
from gpt1cli.config import commands, options
from gpt1cli.config.schema import UserError, display
from gpt1cli.config.version import __version__
from gpt1cli.runs import files, signals
from gpt1cli.runs.folder import claim, lock

if TYPE_CHECKING:
    from gpt1cli.cli.hydra_loader import Composer, Source


def main(argv: list[str] | None = None) -> int:
    """Run gpt1 on the words of argv (None: those of the process); the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with signals.terminable():
            _dispatch(words)
            sys.stdout.flush()
        return 0
    except UserError as error:
        execute.say(f"gpt1: {error}")
        return 2
    except execute.Failed as failed:
        return failed.status
    except KeyboardInterrupt:
        execute.say("gpt1: interrupted")
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and execute.stdout_is_gone():  # gpt1 --help | head -1
            return 0
        if unwritten := files.found(error):
            execute.say(f"gpt1: {files.told(unwritten)}")
            return 2
        execute.say(execute.fault(error, None))
        return 1


def _dispatch(words: list[str]) -> None:
    if "--shell-completion" in words or "-sc" in words:
        _complete(words)
        return
    line = sort(words)
    if "--version" in line.flags:
        print(f"gpt1 {__version__}")
    elif "--help" in line.flags or not words:
        print(help.page(line.command) if line.command else front_page(), end="")
    elif "--hydra-help" in line.flags:
        _ask_hydra(line, [])
    elif line.command is None:
        raise UserError(f"no command was named; there are {', '.join(commands.COMMANDS)} (gpt1 --help)")
    else:
        _run(line, line.command, words)


def _source(line: CommandLine) -> Source:
    from gpt1cli.cli.hydra_loader import Source

    folders = {flag: line.flags[flag] for flag in ("--config-path", "--config-dir") if flag in line.flags}
    for flag, folder in folders.items():
        if not os.path.isdir(folder):
            raise UserError(f"{flag} {display(folder)}: no such folder")
        folders[flag] = os.path.abspath(folder)
    search = tuple(word for word in line.overrides if word.startswith("hydra.searchpath="))
    conf = folders.get("--config-path", str(options.folder()))
    return Source(conf, line.flags.get("--config-name"), folders.get("--config-dir"), search)


def _ask_hydra(line: CommandLine, overrides: list[str]) -> None:
    """Let Hydra print what --cfg, --info or --hydra-help ask for."""
    from gpt1cli.cli.hydra_loader import hydra_main, told_by_hydra

    flags = {flag: line.flags[flag] for flag in FLAGS if flag in line.flags and not flag.startswith("--config")}
    words = [word for flag, value in flags.items() for word in (flag, value) if word]
    try:
        with told_by_hydra():
            hydra_main(_source(line), line.command, [*words, *overrides], lambda _: None)
    except SystemExit as stop:
        if stop.code:  # it has said why
            raise execute.Failed(2) from None


def _complete(words: list[str]) -> None:
    """Print what the word under the cursor may become (Hydra's shell functions ask so), or those functions."""
    if not any(word.startswith("query=") for word in words):
        _ask_hydra(CommandLine({"--shell-completion": ""}), [word for word in words if "=" in word])
        return
    typed = os.environ.get("COMP_LINE", "").split(" ")[1:] or [""]
    with contextlib.suppress(UserError):  # nothing to offer after a mistake
        line = sort([word for word in typed[:-1] if word])
        folders = [Path(line.flags[flag]) for flag in ("--config-dir", "--config-path") if flag in line.flags]
        if typed[-1].startswith("-"):
            found = [flag for flag in FLAGS if flag.startswith(typed[-1])]
        elif line.command:
            found = help.candidates(line.command, typed[-1], [options.folder(), *folders])
        else:
            found = [name for name in (*commands.COMMANDS, *ALIASES) if name.startswith(typed[-1])]
        print("\n".join(found))


# --- running ----------------------------------------------------------------------------------------------------------


def _run(line: CommandLine, command: str, words: list[str]) -> None:
    from gpt1cli.cli import sweep as cli_sweep
    from gpt1cli.cli.hydra_loader import Composer
    from gpt1cli.cli.sweep import again, source_of

    if command == "doctor" and "--config-dir" in line.flags:
        raise UserError("gpt1 doctor looks through gpt1's own tasks and corpora: leave --config-dir out")
    if command == "ablation" and (elsewhere := line.flags.keys() & {"--config-path", "--config-name"}):
        raise UserError(f"a study has cells of several commands: leave {', '.join(sorted(elsewhere))} out")
    sweep = "--multirun" in line.flags or "hydra.mode=MULTIRUN" in line.overrides
    asked = "--cfg" in line.flags or "--info" in line.flags
    begun = cli_sweep.begun(line, command)
    composer = Composer(command, source_of(begun) if begun else _source(line))
    given = list(line.overrides)
    if command in ("ablation", "search"):
        if named := [word for word in given if word.startswith("config_dir=")]:
            raise UserError(f"{named[-1]}: say --config-dir {named[-1].partition('=')[2]}")
        given += [f"config_dir={composer.source.extra}"] if composer.source.extra else []
    if several := execute.by_torchrun():
        if sweep or not issubclass(commands.COMMANDS[command].config, commands.TrainConfig):
            raise UserError("torchrun starts one training on many devices: no sweep, and no other command")
        if any(word.partition("=")[0].lstrip("+") == "runtime.devices" for word in given):
            raise UserError(f"torchrun has started {several} processes: leave runtime.devices out")
        given.append(f"runtime.devices={several}")
    if begun:
        if sweep or asked or several:
            raise UserError(f"resume={begun} goes on with a sweep: leave everything else out")
        cli_sweep.run(composer, again(composer, begun, line.overrides), words, begun)
        return
    overrides = composer.check(given, sweep, whole=not asked)
    if asked:
        _ask_hydra(line, overrides)
    elif sweep:
        cli_sweep.run(composer, overrides, words)
    else:
        _single(composer, overrides, words)


def _single(composer: Composer, overrides: list[str], words: list[str]) -> None:
    from gpt1cli.cli.hydra_loader import hydra_main
    from gpt1cli.cli.overrides import quote
    from gpt1cli.cli.resolve import compose, implied
    from gpt1cli.cli.sweep import taken_up

    composed = taken_up(composer, overrides, compose(composer, overrides))
    if composed is None:
        return
    module, run = execute.checked(composer.command, composed.config)
    if execute.by_torchrun() and os.environ.get("RANK") != "0":
        execute.start(module, run, composed.folder)  # the folder is rank 0's
        return
    failures: list[Exception] = []

    def job(_: object) -> None:
        try:
            execute.execute(module, composer.command, run, composed.folder, composed.resumed, words)
        except Exception as error:  # kept from Hydra, which would print it
            failures.append(error)

    pinned = [f"hydra.run.dir={quote(str(composed.folder))}", "hydra.mode=RUN"]
    if composed.resumed:
        pinned.append(f"hydra.output_subdir=.hydra/resumed-{time.strftime('%Y%m%d-%H%M%S')}")
    with (
        execute.on_disk(run, composed.folder),
        lock(composed.folder) if composed.resumed else claim(composed.folder),
    ):
        hydra_main(composer.source, composer.command, [*implied(composer, overrides), *overrides, *pinned], job)
    if failures:
        raise failures[0]
