"""Overrides as a user types them -> overrides as Hydra parses them, and everything that is wrong with them, at once.

Hydra stops at the first mistake and reads `a,b`, `[x]`, `'` and `${y}` in any value. Paths and free text are not for it
to read: they are quoted here, so that they arrive unchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import PurePath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf

from gpt1cli.config import commands, schema
from gpt1cli.config.schema import display, unwrap

LITERAL = {"text", "text_b", "prompt", "input", "output", "choices"}
LITERAL |= {"init", "init_lstm", "resume", "config", "config_dir", "run", "runs", "submission", "t5"}
LITERAL |= {"out", "hub", "cache", "name"}
FILES = ("task.train", "task.valid", "task.test")
LITERAL |= {*FILES, "task.text", "task.text_b", "task.label", "task.id"}
LITERAL |= {f"task.prompt.{key}" for key in ("template", "separator", "description", "content_free")}

# Where ~ is the home folder; stored, the first ones hold from any folder:
FOUND = ("cache", "hub", "config_dir", "init", "init_lstm", "run", "input", "corpus.path", "task.path", *FILES)
SYNONYMS = {  # what other projects call it -> the key here
    "n_embd": "d_model", "hidden_size": "d_model", "n_inner": "d_ff", "intermediate_size": "d_ff",
    "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_ctx": "n_positions", "block_size": "context",
    "learning_rate": "lr", "max_steps": "steps", "num_train_epochs": "epochs", "train_batch_size": "batch_size",
}  # fmt: skip
PATHS = (*FOUND, "out", "output", "resume", "config", "runs", "submission")
NO_PATHS = (("init", "none"), ("init", "openai"), ("init", "gpt2"), ("init_lstm", "none"), ("input", "-"))

# ${gpt1.text:x6869} stands for a text that OmegaConf would otherwise interpolate, as hexadecimal UTF-8.
SEALED = re.compile(r"\$\{gpt1\.text:x([0-9a-f]*)\}")
OmegaConf.register_new_resolver("gpt1.text", lambda code: _unsealed(code), replace=True)
OmegaConf.register_new_resolver("gpt1.lr", lambda model: _learning_rate(model), replace=True)


# --- the user's words -> Hydra's --------------------------------------------------------------------------------------


def translate(word: str, cls: type, sweep: bool) -> str:
    """An override in Hydra's grammar: literal values quoted, `+` dropped where the key is there anyway."""
    prefix, key, value = _split(word)
    annotation = schema.annotation_of(cls, key)
    if value is None or annotation is None or prefix == "~":
        return word
    if _is_entry(cls, key) or _is_optional(cls, key):
        prefix = "++"  # it may be new; Hydra wants to be told
    elif prefix.startswith("+"):
        prefix = ""
    is_null = value == "null" and not schema.check(annotation, None, key)
    if (key in LITERAL or key.endswith(".path")) and not is_null:
        value = _literal(value, key, annotation, sweep)
    return f"{prefix}{key}={value}"


def _literal(value: str, key: str, annotation: Any, sweep: bool) -> str:
    if typing.get_origin(unwrap(annotation)) is list:
        return f"[{','.join(map(quote, _items(value)))}]"
    if key == "init" and sweep:
        return ",".join(map(quote, value.split(",")))
    return quote(value)


def gathered(words: Iterable[str], cls: type, cells: type) -> tuple[list[str], list[str]]:
    """The overrides of a study apart from those that only its cells know, whose paths are told from the root."""
    own, given = [], []
    for word in words:
        _, key, value = _split(word)
        here, there = (schema.annotation_of(known, key) for known in (cls, cells))
        if here is not None or there is None or key.startswith("hydra."):
            own.append(word)
        elif key in FOUND and value and value != "null" and (key, value) not in NO_PATHS:
            given.append(f"{key}={os.path.abspath(os.path.expanduser(value))}")
        else:
            given.append(word)
    return own, given


def quote(text: str) -> str:
    """The text as a value of Hydra's grammar that arrives unchanged, whatever it holds."""
    if seal(text) != text:
        return seal(text)
    # Inside quotes a backslash only counts before a quote, so only there it is doubled.
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def seal(value: Any) -> Any:
    """Plain data in which OmegaConf finds nothing to interpolate and nothing missing."""
    if isinstance(value, Mapping):
        return {key: seal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [seal(item) for item in value]
    if isinstance(value, str) and ("${" in value or value == "???"):
        return f"${{gpt1.text:x{value.encode('utf-8', 'surrogatepass').hex()}}}"
    return value


def _learning_rate(model: Mapping[str, Any]) -> Any:
    """That of a model's pretraining recipe, for its architecture."""
    recipe = model["pretraining"]
    own = recipe.get("lstm_lr") if model.get("architecture") == "lstm" else None
    return recipe["lr"] if own is None else own


def _unsealed(code: str) -> str:
    return bytes.fromhex(code[1:]).decode("utf-8", "surrogatepass")


def _items(value: str) -> list[str]:
    """The literals of `[a,'b,c']`; anything else is one literal."""
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    pieces = re.finditer(r"""\s*(?:"([^"]*)"|'([^']*)')\s*(?=,|\Z)|([^,]+)""", value[1:-1])
    return [quoted or single or plain.strip() for quoted, single, plain in (piece.groups("") for piece in pieces)]


def _split(word: str) -> tuple[str, str, str | None]:
    """(prefix, key, value) of `+key=value`; the value is None where there is no `=`."""
    match = re.fullmatch(r"(~|\+{0,2})([^=]*)(?:=(.*))?", word, re.DOTALL)
    assert match is not None  # every text matches
    return match[1], match[2], match[3]


# --- what is wrong with them ------------------------------------------------------------------------------------------


def parse(words: Iterable[str]) -> list[Override]:
    """Translated overrides, parsed."""
    return OverridesParser.create().parse_overrides(list(words))


def problems(
    words: list[str],
    cls: type,
    groups: Mapping[str, str | None],
    needed: Iterable[str],
    options: Callable[[str], list[str]],
    sweep: bool,
) -> list[str]:
    """Every mistake in the overrides of a command that can be told before they are composed.

    `cls` types the command's configuration, `groups` are its config groups with their defaults (None: one must be
    named), `needed` the keys that have no default, `options(group)` the options there are.
    """
    found: list[str] = []
    named: dict[str, Any] = {}
    for word in words:
        try:
            [override] = parse([translate(word, cls, sweep)])
        except Exception as error:  # whatever Hydra's parser stumbles over
            found.append(f"{display(word)}: not an override: {' '.join(str(error).splitlines()[0].split())}")
            continue
        named[override.key_or_group] = override.value()
        found += _mistakes(word, override, cls, groups, options, sweep)
    resumed, repeated = (named.get(key) is not None for key in ("resume", "config"))
    if resumed and repeated:
        found.append("resume and config are both named: resume takes the stored configuration anyway")
    if resumed and sweep:
        found.append("resume goes on with one run: leave -m out")
    if named.get("steps") is not None and named.get("epochs") is not None:
        found.append("steps and epochs are both named: leave one out")
    for key in needed:
        if named.get(key) is None:
            found.append(f"{key} is needed: {schema.key_of(schema.annotation_of(cls, key)).meaning}")
    missing = [group for group, default in groups.items() if default is None and group not in named]
    missing = [group for group in missing if schema.check(schema.annotation_of(cls, group), None, group)]
    if not (resumed or repeated or schema.annotation_of(cls, "run")):  # what run= names brings its own
        found += [f"{group} is needed: {group}=one of {', '.join(options(group))}" for group in missing]
    return found


def _mistakes(
    word: str,
    override: Override,
    cls: type,
    groups: Mapping[str, str | None],
    options: Callable[[str], list[str]],
    sweep: bool,
) -> Iterator[str]:
    key = override.key_or_group
    if override.is_hydra_override():
        if key == "hydra.job.chdir" and override.value() is not False:
            yield f"{word} is refused: gpt1 never changes the directory"
        return
    annotation = schema.annotation_of(cls, key)
    # A group of the user's own folder need not be a key: it may hold presets (# @package _global_).
    preset = options(key) if key and annotation is None and "." not in key and key not in commands.GROUPS else []
    if override.package is not None or (annotation is None and not preset):
        yield _no_such(key if override.package is None else f"{key}@{override.package}", cls, groups)
        return
    if override.is_delete():
        if not _is_entry(cls, key):
            off = f"; {key}=null switches it off" if not schema.check(annotation, None, key) else ""
            yield f"{word} is refused: {key} is needed{off}"
        return
    if override.is_sweep_override() and not sweep:
        is_list = typing.get_origin(unwrap(annotation)) is list
        way = f"a list is written {key}=[a,b]" if is_list else "several values are a sweep: add -m"
        yield f"{display(word)}: {way}"
        return
    names = preset or (options(key) if key in groups else [])
    try:
        elements = _elements(override, names)
    except Exception as error:  # a range with step 0, and what else Hydra's functions refuse
        yield f"{display(word)}: not a range: {error}"
        return
    for element in elements:
        if names and not isinstance(element, dict):
            if element not in names:
                near = difflib.get_close_matches(str(element), names, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                if key == "task" and PurePath(str(element)).suffix:
                    hint = f"a file of your own is task=file task.train={display(element)}; "
                yield f"{key}={display(element)}: no such {key}; {hint}there are {', '.join(names)}"
            continue
        for problem in _wrong(annotation, element, key, cls, groups):
            # The value as it was typed: Hydra has read 1e3 as 1000.0 by now.
            typed = None if override.is_sweep_override() or isinstance(element, (dict, list)) else _split(word)[2]
            yield problem if typed is None else problem.replace(f"={display(element)} is", f"={display(typed)} is", 1)


def _wrong(annotation: Any, value: Any, key: str, cls: type, groups: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one value; a mapping may name some of a node's keys, and an interpolation is checked later."""
    if dataclasses.is_dataclass(unwrap(annotation)) and isinstance(value, dict):
        for name, item in value.items():
            inner = schema.annotation_of(cls, f"{key}.{name}")
            if inner is None:
                yield _no_such(f"{key}.{name}", cls, groups)
            else:
                yield from _wrong(inner, item, f"{key}.{name}", cls, groups)
    elif "${" not in str(value := opened(value)):
        yield from schema.check(annotation, value, key)


def _elements(override: Override, names: list[str]) -> list[Any]:
    """The values of an override: one, or those of a sweep (of a range a thousand: they are of one type)."""
    value: Any = override.value()
    if isinstance(value, ChoiceSweep):
        return [Override._convert_value(element) for element in value.list]
    if isinstance(value, Glob):
        return value.filter(names)
    if isinstance(value, RangeSweep):
        return list(islice(value.range(), 1000))
    if isinstance(value, IntervalSweep):
        return [value.start, value.end]
    return [value]


def opened(value: Any) -> Any:
    """The value behind a seal."""
    if isinstance(value, list):
        return [opened(item) for item in value]
    sealed = SEALED.fullmatch(value) if isinstance(value, str) else None
    with contextlib.suppress(ValueError):  # a seal of the user's own making
        return _unsealed("x" + sealed[1]) if sealed else value
    return value


def _is_entry(cls: type, key: str) -> bool:
    """Whether the key names an entry of a mapping, as in task.splits.valid."""
    parent = schema.annotation_of(cls, key.rpartition(".")[0]) if "." in key else None
    return typing.get_origin(unwrap(parent)) is dict


def _is_optional(cls: type, key: str) -> bool:
    """Whether a yaml may leave the key out, as task.loss; or a key of a task that only the run itself knows."""
    parent, _, name = key.rpartition(".")
    if parent and schema.annotation_of(cls, "run") is not None:
        return True
    owner = unwrap(schema.annotation_of(cls, parent)) if parent else None
    return dataclasses.is_dataclass(owner) and schema.has_default(typing.cast(type, owner), name)


def _no_such(key: str, cls: type, groups: Iterable[str]) -> str:
    """The message for an unknown key: the nearest of all keys, or the keys of the first level."""
    known = [*_keys(cls, ""), *(group for group in groups if group not in schema.fields_of(cls))]
    if cls in (commands.SweepsConfig, commands.SearchConfig):  # what its cells know may be named too
        known = list(dict.fromkeys([*known, *_keys(commands.FinetuneConfig, "")]))
    place, _, name = key.rpartition(".")
    if (ours := SYNONYMS.get(name)) and (meant := f"{place}.{ours}".lstrip(".")) in known:
        return f"{display(key)}: no such key; did you mean {meant}?"
    message = schema.unknown(key, known)
    return message if "did you mean" in message else schema.unknown(key, [name for name in known if "." not in name])


def _keys(cls: type, prefix: str) -> Iterator[str]:
    for name, annotation in schema.fields_of(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(unwrap(annotation)):
            yield from _keys(typing.cast(type, unwrap(annotation)), f"{prefix}{name}.")
