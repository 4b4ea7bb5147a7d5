"""argv, sorted into Hydra's flags, one command and its overrides, in whatever order they came."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from gpt1cli.config import commands, options, schema
from gpt1cli.config.schema import UserError, display

# Another name of a command -> the command.
ALIASES = {"sweeps": "ablation", "zero-shot": "zeroshot", "few-shot": "fewshot"}

# Hydra's flags -> what may follow them: nothing, one of these values, or (None) any value. --experimental-rerun is
# missing on purpose: it would unpickle a file.
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
SHORT = {"-h": "--help", "-r": "--run", "-m": "--multirun", "-c": "--cfg", "-i": "--info", "-p": "--package"}
SHORT |= {"-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir", "-sc": "--shell-completion"}
MODES = ("--run", "--multirun", "--cfg", "--info", "--shell-completion", "--hydra-help")  # one at a time


@dataclass
class CommandLine:
    """argv, sorted."""

    flags: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    overrides: list[str] = field(default_factory=list)


def sort(words: list[str]) -> CommandLine:
    """Flags, command and overrides, in whatever order they came. UserError for anything else."""
    line, bare, rest = CommandLine(), [], list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            name, value = _flag(word, rest)
            line.flags[name] = value
        elif "=" in word or word.startswith(("~", "+")):
            line.overrides.append(word)
        else:
            bare.append(word)
    if len(modes := [flag for flag in MODES if flag in line.flags]) > 1:
        raise UserError(f"{' and '.join(modes)}: one of them at a time")
    if "--resolve" in line.flags and "--cfg" not in line.flags:
        raise UserError("--resolve goes with --cfg")
    if bare:
        line.command = ALIASES.get(bare[0], bare[0])
        if line.command not in commands.COMMANDS:
            raise UserError(schema.unknown(bare[0], [*commands.COMMANDS, *ALIASES], "command"))
    if line.command and len(bare) > 1:
        groups = [group for group in options.defaults(line.command)[0] if bare[1] in options.names(group)]
        hint = f"did you mean {groups[0]}={bare[1]}?" if groups else "an override is written key=value"
        raise UserError(f"{display(bare[1])}: a second command after {bare[0]}; {hint}")
    return line


def _flag(word: str, rest: list[str]) -> tuple[str, str]:
    """The flag's long name and its value, which may be the next of the rest."""
    name, has_value, value = word.partition("=")
    name = SHORT.get(name, name)
    if name not in FLAGS:
        near = difflib.get_close_matches(name, FLAGS, n=1)
        raise UserError(
            f"{display(word)}: no such flag; " + (f"did you mean {near[0]}?" if near else "see gpt1 --help")
        )
    allowed = FLAGS[name]
    if allowed == ():
        if has_value:
            raise UserError(f"{display(word)}: {name} takes no value")
        return name, ""
    if not has_value:
        if name == "--info" and not (rest and rest[0] in (allowed or ())):
            return name, "all"
        value = rest.pop(0) if rest else ""
    if not value or (allowed and value not in allowed):
        wanted = f"one of {', '.join(allowed)}" if allowed else "a value"
        raise UserError(f"{name} takes {wanted}" + (f", not {display(value)}" if value else ""))
    return name, value
