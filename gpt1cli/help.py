"""What `gpt1 COMMAND --help` says, read from conf/*.yaml and the dataclasses; imports nothing heavy.

The yaml files of conf/ say which groups and defaults a command has, the dataclasses say what a key means.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt1cli import config, options, schema
from gpt1cli.commands import COMMANDS
from gpt1cli.overview import EXAMPLES, FLAGS, WIDTH

# --- pages ------------------------------------------------------------------------------------------------------------


def page(command: str) -> str:
    """The page of `gpt1 COMMAND --help`: groups and their options, keys with meaning and default, examples."""
    cls = config.COMMANDS[command]
    groups, values = options.defaults(command)
    lines = [f"gpt1 {command}: {COMMANDS[command]}", ""]
    lines += [f"usage: gpt1 {command} [GROUP=OPTION ...] [KEY=VALUE ...] [-m]", "", "examples", *_examples(command)]
    for group, option in groups.items():
        optional = not schema.check(schema.annotation_of(cls, group), None, group)
        unnamed = "default: that of the run" if "run" in values else "default: none" if optional else "needed"
        lines += ["", f"{group}=OPTION ({f'default {option}' if option else unnamed})"]
        lines += _table(options.names(group).items())
    lines += ["", "keys", *_table(_keys(cls, "", values, groups))]
    for group, option in groups.items():
        if group in config.GROUPS:
            lines += ["", f"keys of {group} (defaults: those of {group}={option})" if option else f"keys of {group}"]
            own = options.values(group, option) if option else None
            lines += _table(_keys(config.GROUPS[group], f"{group}.", own, {}))
    return "\n".join([*lines, "", "flags", *_table(FLAGS.items()), ""])


def _examples(command: str) -> Iterator[str]:
    for words, meaning in EXAMPLES[command]:
        yield f"  gpt1 {command} {words}"
        yield f"      {meaning}"


def _keys(cls: type, prefix: str, values: Any, groups: dict[str, str | None]) -> Iterator[tuple[str, str]]:
    """(key=default, meaning and type) of every key of a dataclass, but for the keys of its groups."""
    for name, annotation in schema.fields_of(cls).items():
        if name in groups:
            continue
        value = values.get(name) if values is not None else None
        if dataclasses.is_dataclass(bare := schema.bare(annotation)):
            yield from _keys(typing.cast(type, bare), f"{prefix}{name}.", value, {})
            continue
        key = schema.key_of(annotation)
        default = f"={_default(value)}" if values is not None else ""
        yield f"{prefix}{name}{default}", f"{key.meaning} [{_kind(annotation)}]"


def _kind(annotation: Any) -> str:
    """The type and the range of a key, in few words."""
    key = schema.key_of(annotation)
    bounds = (("above", key.above), ("at least", key.at_least), ("at most", key.at_most), ("below", key.below))
    ranges = [f"{word} {bound:g}" for word, bound in bounds if abs(bound) < 2**53]
    return ", ".join([schema.describe(annotation), *ranges])


def _default(value: Any) -> str:
    """A default as a user would write it; where it follows another key or the environment, that one."""
    if isinstance(value, list):
        return f"[{','.join(map(_default, value))}]"
    if isinstance(value, str) and (environment := re.fullmatch(r"\$\{oc\.env:(\w+),\"?(.*?)\"?\}", value)):
        return f"${environment[1]} or {environment[2]}"
    return schema.shown(value)


def _table(rows: Any) -> Iterator[str]:
    """Two aligned columns, the second one wrapped."""
    rows = list(rows)
    left = min(34, max(len(name) for name, _ in rows)) + 2
    for name, meaning in rows:
        lines = textwrap.wrap(meaning, WIDTH - 2 - left) or [""]
        if len(name) > left - 2:  # a long name has a line of its own
            yield f"  {name}"
            name = ""
        yield f"  {name:{left}}{lines[0]}".rstrip()
        yield from (" " * (left + 2) + line for line in lines[1:])


# --- shell completion -------------------------------------------------------------------------------------------------


def candidates(command: str, word: str, folders: typing.Iterable[Path]) -> list[str]:
    """What a word that is being typed may become: keys and groups, and behind `=` options, values or files."""
    cls = config.COMMANDS[command]
    key, is_value, start = word.partition("=")
    if not is_value:
        groups = [f"{group}=" for group in options.defaults(command)[0]]
        keys = [name.partition("=")[0] + "=" for name, _ in _keys(cls, "", None, {})]
        names = [name for name in [*groups, *keys] if name.startswith(word)]
        ends = [name.find(".", len(word)) + 1 or len(name) for name in names]  # one level of keys at a time
        return sorted({name[:end] for name, end in zip(names, ends, strict=True)})
    annotation = schema.annotation_of(cls, key)
    if key in options.defaults(command)[0]:
        values = [path.stem for folder in folders for path in (folder / key).glob("*.yaml")]
    elif typing.get_origin(schema.bare(annotation)) is typing.Literal:
        values = list(typing.get_args(schema.bare(annotation)))
    elif annotation is None or schema.check(annotation, "text", key):
        values = [] if annotation is None or schema.check(annotation, True, key) else ["true", "false"]
    else:
        paths = glob.glob(glob.escape(start) + "*")
        values = [path + "/" if os.path.isdir(path) else path for path in paths]
    return sorted({f"{key}={value}" for value in values if value.startswith(start)})
