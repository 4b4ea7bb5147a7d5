"""Splits argv into Hydra's flags, one command and its overrides, in any order."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from gpt1cli.config import commands, options, schema
from gpt1cli.config.schema import UserError, display

# Another name of a command -> the command.
ALIASES = {"sweeps": "ablation", "zero-shot": "zeroshot", "few-shot": "fewshot"}

# Hydra's flags -> their values: none, one of these, or (None) any value. --experimental-rerun is missing on purpose: it
# would unpickle a file.
FLAGS: dict[str, tuple[str, ...] | None] = {
    "--help": (),
    "--version": (),
    "--hydra-help": (),
    "--run": (),
    "--multirun": (),
    "--resolve": (),
    "--shell-completion": (),
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": None,
    "--config-path": None,
    "--config-name": None,
    "--config-dir": None,
}
SHORT_FLAGS = {"-h": "--help", "-r": "--run", "-m": "--multirun", "-c": "--cfg", "-i": "--info", "-p": "--package"}
SHORT_FLAGS |= {"-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir", "-sc": "--shell-completion"}
MODES = ("--run", "--multirun", "--cfg", "--info", "--shell-completion", "--hydra-help")  # one at a time


@dataclass
class CommandLine:
    """The parts of argv."""

    flags: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    overrides: list[str] = field(default_factory=list)


def parse_argv(words: list[str]) -> CommandLine:
    """Return the flags, the command and the overrides of argv, in any order. Raises UserError for anything else."""
    line, plain_words, remaining = CommandLine(), [], list(words)
    while remaining:
        word = remaining.pop(0)
        if word.startswith("-"):
            name, value = _parse_flag(word, remaining)
            line.flags[name] = value
        elif "=" in word or word.startswith(("~", "+")):
            line.overrides.append(word)
        else:
            plain_words.append(word)
    if len(modes := [flag for flag in MODES if flag in line.flags]) > 1:
        raise UserError(f"{' and '.join(modes)}: use only one of them")
    if "--resolve" in line.flags and "--cfg" not in line.flags:
        raise UserError("--resolve needs --cfg job")
    if plain_words:
        line.command = ALIASES.get(plain_words[0], plain_words[0])
        if line.command not in commands.COMMANDS:
            raise UserError(schema.unknown_name(plain_words[0], [*commands.COMMANDS, *ALIASES], "command"))
    if line.command and len(plain_words) > 1:
        raise UserError(f"unexpected word '{display(plain_words[1])}': {_hint(plain_words[1], line)}")
    return line


def _hint(word: str, line: CommandLine) -> str:
    """Return what the user probably meant by a second word without `=`."""
    groups = [group for group in options.defaults(str(line.command))[0] if word in options.names(group)]
    if groups:
        return f"did you mean {groups[0]}={word}?"
    if word in commands.COMMANDS or word in ALIASES:
        return f"one command at a time, and {line.command} is named already"
    if any(override.startswith("=") or override.endswith("=") for override in line.overrides):
        return "no blanks around =, as in lr=1e-3"
    return 'an override is key=value; values with blanks need quotes, as in prompt="Once upon a time"'


def _parse_flag(word: str, remaining: list[str]) -> tuple[str, str]:
    """Return the flag's long name and its value, which may be the next of the remaining words."""
    name, has_value, value = word.partition("=")
    name = SHORT_FLAGS.get(name, name)
    if name not in FLAGS:
        match = difflib.get_close_matches(name, FLAGS, n=1)
        raise UserError(
            f"{display(word)}: no such flag; " + (f"did you mean {match[0]}?" if match else "see gpt1 --help")
        )
    allowed = FLAGS[name]
    if allowed == ():
        if has_value:
            raise UserError(f"{display(word)}: {name} takes no value")
        return name, ""
    if not has_value:
        if name == "--info" and not (remaining and remaining[0] in (allowed or ())):
            return name, "all"
        value = remaining.pop(0) if remaining else ""
    if not value or (allowed and value not in allowed):
        expected = f"one of {', '.join(allowed)}" if allowed else "a value"
        raise UserError(f"{name} takes {expected}" + (f", not {display(value)}" if value else ""))
    return name, value
