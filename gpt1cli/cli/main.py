"""The command line: parses argv, checks the command before anything is loaded or written, and runs it through Hydra.

    gpt1 [flags] COMMAND [key=value ...]     the command is the first word without `=` that is no flag, at any position

Help needs neither Hydra nor torch; Hydra is imported for composition, a command after it has been checked.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpt1cli.cli import execute, help
from gpt1cli.cli.argv import ALIASES, FLAGS, CommandLine, parse_argv
from gpt1cli.cli.help import front_page
from gpt1cli.config import commands, options
from gpt1cli.config.schema import UserError, display
from gpt1cli.config.version import __version__
from gpt1cli.runs import files, signals
from gpt1cli.runs.folder import create_folder, lock_folder

if TYPE_CHECKING:
    from gpt1cli.cli.hydra_loader import Composer, ConfigSource


def main(argv: list[str] | None = None) -> int:
    """Run gpt1 on the words of argv (None: the process's); return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with signals.handle_sigterm():
            _dispatch(words)
            sys.stdout.flush()
        return 0
    except UserError as error:
        execute.print_error(f"gpt1: {error}")
        return 2
    except execute.RunFailed as failed:
        return failed.status
    except KeyboardInterrupt:
        execute.print_error("gpt1: interrupted")
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and execute.is_stdout_closed():  # gpt1 --help | head -1
            return 0
        if write_error := files.find_write_error(error):
            execute.print_error(f"gpt1: {files.describe_write_error(write_error)}")
            return 2
        execute.print_error(execute.save_traceback(error, None))
        return 1


def _dispatch(words: list[str]) -> None:
    if "--shell-completion" in words or "-sc" in words:
        _print_completions(words)
        return
    line = parse_argv(words)
    if "--version" in line.flags:
        print(f"gpt1 {__version__}")
    elif "--help" in line.flags or not words:
        print(help.command_page(line.command) if line.command else front_page(), end="")
    elif "--hydra-help" in line.flags:
        _ask_hydra(line, [])
    elif line.command is None:
        raise UserError(f"a command is needed, one of {', '.join(commands.COMMANDS)}; see gpt1 --help")
    else:
        _run_line(line, line.command, words)


def _config_source(line: CommandLine) -> ConfigSource:
    from gpt1cli.cli.hydra_loader import ConfigSource

    folders = {flag: line.flags[flag] for flag in ("--config-path", "--config-dir") if flag in line.flags}
    for flag, folder in folders.items():
        if not os.path.isdir(folder):
            raise UserError(f"{flag} {display(folder)}: no such folder")
        folders[flag] = os.path.abspath(folder)
    search = tuple(word for word in line.overrides if word.startswith("hydra.searchpath="))
    conf = folders.get("--config-path", str(options.folder()))
    return ConfigSource(conf, line.flags.get("--config-name"), folders.get("--config-dir"), search)


def _ask_hydra(line: CommandLine, overrides: list[str]) -> None:
    """Let Hydra print the output of --cfg, --info or --hydra-help."""
    from gpt1cli.cli.hydra_loader import hydra_errors, run_hydra

    flags = {flag: line.flags[flag] for flag in FLAGS if flag in line.flags and not flag.startswith("--config")}
    words = [word for flag, value in flags.items() for word in (flag, value) if word]
    try:
        with hydra_errors():
            run_hydra(_config_source(line), line.command, [*words, *overrides], lambda _: None)
    except SystemExit as stop:
        if stop.code:  # Hydra has printed why
            raise execute.RunFailed(2) from None


def _print_completions(words: list[str]) -> None:
    """Print the completions of the word under the cursor (called by Hydra's shell functions), or those functions."""
    if not any(word.startswith("query=") for word in words):
        _ask_hydra(CommandLine({"--shell-completion": ""}), [word for word in words if "=" in word])
        return
    typed = os.environ.get("COMP_LINE", "").split(" ")[1:] or [""]
    with contextlib.suppress(UserError):  # no completions after a mistake
        line = parse_argv([word for word in typed[:-1] if word])
        folders = [Path(line.flags[flag]) for flag in ("--config-dir", "--config-path") if flag in line.flags]
        if typed[-1].startswith("-"):
            matches = [flag for flag in FLAGS if flag.startswith(typed[-1])]
        elif line.command:
            matches = help.completions(line.command, typed[-1], [options.folder(), *folders])
        else:
            matches = [name for name in (*commands.COMMANDS, *ALIASES) if name.startswith(typed[-1])]
        print("\n".join(matches))


# --- running ----------------------------------------------------------------------------------------------------------


def _run_line(line: CommandLine, command: str, words: list[str]) -> None:
    from gpt1cli.cli import sweep as cli_sweep
    from gpt1cli.cli.hydra_loader import Composer
    from gpt1cli.cli.sweep import read_source, resumed_overrides

    if command == "doctor" and "--config-dir" in line.flags:
        raise UserError("gpt1 doctor checks only the built-in tasks and corpora: remove --config-dir")
    if command == "ablation" and (refused := line.flags.keys() & {"--config-path", "--config-name"}):
        raise UserError(f"a study runs several commands: remove {', '.join(sorted(refused))}")
    sweep = "--multirun" in line.flags or "hydra.mode=MULTIRUN" in line.overrides
    only_prints = "--cfg" in line.flags or "--info" in line.flags
    sweep_folder = cli_sweep.find_sweep(line, command)
    composer = Composer(command, read_source(sweep_folder) if sweep_folder else _config_source(line))
    typed = list(line.overrides)
    if command in ("ablation", "search"):
        if refused_words := [word for word in typed if word.startswith("config_dir=")]:
            raise UserError(f"{refused_words[-1]}: use --config-dir {refused_words[-1].partition('=')[2]}")
        typed += [f"config_dir={composer.source.extra}"] if composer.source.extra else []
    if processes := execute.torchrun_world_size():
        if sweep or not issubclass(commands.COMMANDS[command].config, commands.TrainConfig):
            raise UserError("torchrun is only for one run of gpt1 pretrain or gpt1 finetune, not for a sweep")
        if any(word.partition("=")[0].lstrip("+") == "runtime.devices" for word in typed):
            raise UserError(f"torchrun has started {processes} processes: remove runtime.devices")
        typed.append(f"runtime.devices={processes}")
    if sweep_folder:
        if sweep or only_prints or processes:
            raise UserError(f"resume={sweep_folder} continues a sweep: remove all other words")
        cli_sweep.run_sweep(composer, resumed_overrides(composer, sweep_folder, line.overrides), words, sweep_folder)
        return
    overrides = composer.check_overrides(typed, sweep, complete=not only_prints)
    if only_prints:
        _ask_hydra(line, overrides)
    elif sweep:
        cli_sweep.run_sweep(composer, overrides, words)
    else:
        _run_single(composer, overrides, words)


def _run_single(composer: Composer, overrides: list[str], words: list[str]) -> None:
    from gpt1cli.cli.hydra_loader import run_hydra
    from gpt1cli.cli.overrides import quote
    from gpt1cli.cli.resolve import compose, stored_groups
    from gpt1cli.cli.sweep import resume_if_restarted

    composed = resume_if_restarted(composer, overrides, compose(composer, overrides))
    if composed is None:
        return
    module, run = execute.check_run(composer.command, composed.config)
    if execute.torchrun_world_size() and os.environ.get("RANK") != "0":
        execute.run_command(module, run, composed.folder)  # rank 0 creates the folder
        return
    failures: list[Exception] = []

    def job(_: object) -> None:
        try:
            execute.execute_run(module, composer.command, run, composed.folder, composed.resumed, words)
        except Exception as error:  # Hydra would print it
            failures.append(error)

    pinned = [f"hydra.run.dir={quote(str(composed.folder))}", "hydra.mode=RUN"]
    if composed.resumed:
        pinned.append(f"hydra.output_subdir=.hydra/resumed-{time.strftime('%Y%m%d-%H%M%S')}")
    with (
        execute.explain_write_errors(run, composed.folder),
        lock_folder(composed.folder) if composed.resumed else create_folder(composed.folder),
    ):
        run_hydra(composer.source, composer.command, [*stored_groups(composer, overrides), *overrides, *pinned], job)
    if failures:
        raise failures[0]
