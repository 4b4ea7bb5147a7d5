"""Translates overrides as users type them into Hydra's grammar, and reports all mistakes in them together.

Hydra stops at the first mistake and interprets `a,b`, `[x]`, `'` and `${y}` in any value. Paths and free text are
quoted here, so that they arrive unchanged.

Longer than 300 lines: one mistake, one message, for every way to write an override.
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

# Keys whose values are taken literally:
VERBATIM = {"text", "text_b", "prompt", "input", "output", "choices"}
VERBATIM |= {"init", "init_lstm", "resume", "config", "config_dir", "run", "runs", "submission", "t5"}
VERBATIM |= {"out", "hub", "cache", "name"}
TASK_FILES = ("task.train", "task.valid", "task.test")
VERBATIM |= {*TASK_FILES, "task.text", "task.text_b", "task.label", "task.id"}
VERBATIM |= {f"task.prompt.{key}" for key in ("template", "separator", "description", "content_free")}

# Paths that are made absolute; HOME_PATHS: paths with ~ for the home folder.
ABSOLUTE_PATHS = (
    "cache",
    "hub",
    "config_dir",
    "init",
    "init_lstm",
    "run",
    "input",
    "corpus.path",
    "task.path",
    *TASK_FILES,
)
SYNONYMS = {  # what other projects call it -> the key here
    "n_embd": "d_model", "hidden_size": "d_model", "n_inner": "d_ff", "intermediate_size": "d_ff",
    "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_ctx": "n_positions", "block_size": "context",
    "learning_rate": "lr", "max_steps": "steps", "num_train_epochs": "epochs", "train_batch_size": "batch_size",
}  # fmt: skip
HOME_PATHS = (*ABSOLUTE_PATHS, "out", "output", "resume", "config", "runs", "submission")
NOT_PATHS = (("init", "none"), ("init", "openai"), ("init", "gpt2"), ("init_lstm", "none"), ("input", "-"))

# ${gpt1.text:x6869} is a text in hexadecimal UTF-8, which OmegaConf does not interpolate.
ESCAPED = re.compile(r"\$\{gpt1\.text:x([0-9a-f]*)\}")
OmegaConf.register_new_resolver("gpt1.text", lambda code: _decode_text(code), replace=True)
OmegaConf.register_new_resolver("gpt1.lr", lambda model: _pretraining_lr(model), replace=True)


# --- translation ------------------------------------------------------------------------------------------------------


def translate_override(word: str, cls: type, sweep: bool) -> str:
    """Translate an override into Hydra's grammar: quote literal values, remove `+` from keys that exist."""
    prefix, key, value = _split_override(word)
    annotation = schema.annotation_of(cls, key)
    if value is None or annotation is None or prefix == "~":
        return word
    if _is_mapping_entry(cls, key) or _is_optional(cls, key):
        prefix = "++"  # the key may be new, and Hydra requires a prefix then
    elif prefix.startswith("+"):
        prefix = ""
    is_null = value == "null" and not schema.value_problems(annotation, None, key)
    if (key in VERBATIM or key.endswith(".path")) and not is_null:
        value = _quote_value(value, key, annotation, sweep)
    return f"{prefix}{key}={value}"


def _quote_value(value: str, key: str, annotation: Any, sweep: bool) -> str:
    if typing.get_origin(unwrap(annotation)) is list:
        return f"[{','.join(map(quote, _split_list(value)))}]"
    if key == "init" and sweep:
        return ",".join(map(quote, value.split(",")))
    return quote(value)


def split_study_overrides(words: Iterable[str], cls: type, cells: type) -> tuple[list[str], list[str]]:
    """Split the overrides of a study into its own and those that only its cells know, with absolute paths."""
    own, for_cells = [], []
    for word in words:
        _, key, value = _split_override(word)
        own_annotation, cell_annotation = (schema.annotation_of(config, key) for config in (cls, cells))
        if own_annotation is not None or cell_annotation is None or key.startswith("hydra."):
            own.append(word)
        elif key in ABSOLUTE_PATHS and value and value != "null" and (key, value) not in NOT_PATHS:
            for_cells.append(f"{key}={os.path.abspath(os.path.expanduser(value))}")
        else:
            for_cells.append(word)
    return own, for_cells


def quote(text: str) -> str:
    """Quote a text for Hydra's grammar, so that it arrives unchanged."""
    if escape(text) != text:
        return escape(text)
    # Inside quotes a backslash only escapes before a quote, so it is doubled only there.
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def escape(value: Any) -> Any:
    """Escape plain data, so that OmegaConf interpolates nothing and finds no `???`."""
    if isinstance(value, Mapping):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    if isinstance(value, str) and ("${" in value or value == "???"):
        return f"${{gpt1.text:x{value.encode('utf-8', 'surrogatepass').hex()}}}"
    return value


def _pretraining_lr(model: Mapping[str, Any]) -> Any:
    """Return the learning rate of a model's pretraining recipe, for its architecture."""
    recipe = model["pretraining"]
    lstm_lr = recipe.get("lstm_lr") if model.get("architecture") == "lstm" else None
    return recipe["lr"] if lstm_lr is None else lstm_lr


def _decode_text(code: str) -> str:
    return bytes.fromhex(code[1:]).decode("utf-8", "surrogatepass")


def _split_list(value: str) -> list[str]:
    """Return the literals of `[a,'b,c']`; anything else is one literal."""
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    matches = re.finditer(r"""\s*(?:"([^"]*)"|'([^']*)')\s*(?=,|\Z)|([^,]+)""", value[1:-1])
    return [quoted or single or plain.strip() for quoted, single, plain in (match.groups("") for match in matches)]


def _split_override(word: str) -> tuple[str, str, str | None]:
    """Return (prefix, key, value) of `+key=value`; the value is None if there is no `=`."""
    match = re.fullmatch(r"(~|\+{0,2})([^=]*)(?:=(.*))?", word, re.DOTALL)
    assert match is not None  # every text matches
    return match[1], match[2], match[3]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def parse_overrides(words: Iterable[str]) -> list[Override]:
    """Parse translated overrides."""
    return OverridesParser.create().parse_overrides(list(words))


def override_problems(
    words: list[str],
    cls: type,
    groups: Mapping[str, str | None],
    needed: Iterable[str],
    options: Callable[[str], list[str]],
    sweep: bool,
) -> list[str]:
    """Return every mistake in the overrides of a command that can be found before composition.

    `cls` is the command's configuration class, `groups` its config groups with their defaults (None: the user must name
    an option), `needed` the keys without a default, `options(group)` the options of a group.
    """
    messages: list[str] = []
    values: dict[str, Any] = {}
    for word in words:
        try:
            [override] = parse_overrides([translate_override(word, cls, sweep)])
        except Exception as error:  # Hydra's parser raises many types
            messages.append(f"{display(word)}: not a valid override: {' '.join(str(error).splitlines()[0].split())}")
            continue
        values[override.key_or_group] = override.value()
        messages += _single_override_problems(word, override, cls, groups, options, sweep)
    resumed, repeated = (values.get(key) is not None for key in ("resume", "config"))
    if resumed and repeated:
        messages.append("resume and config: use only one; resume takes the stored configuration anyway")
    if resumed and sweep:
        messages.append("resume continues one run: remove -m")
    if values.get("steps") is not None and values.get("epochs") is not None:
        messages.append("steps and epochs: use only one of them")
    for key in needed:
        if values.get(key) is None:
            messages.append(f"{key} is needed: {schema.field_of(schema.annotation_of(cls, key)).meaning}")
    missing = [group for group, default in groups.items() if default is None and group not in values]
    missing = [group for group in missing if schema.value_problems(schema.annotation_of(cls, group), None, group)]
    if not (resumed or repeated or schema.annotation_of(cls, "run")):  # with run= the run's own are used
        messages += [f"{group} is needed: {group}=one of {', '.join(options(group))}" for group in missing]
    return messages


def _single_override_problems(
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
            yield f"{word} is refused: gpt1 never changes the working directory"
        return
    annotation = schema.annotation_of(cls, key)
    # A group in a user's folder need not be a key: it may hold presets (# @package _global_).
    preset = options(key) if key and annotation is None and "." not in key and key not in commands.GROUPS else []
    if override.package is not None or (annotation is None and not preset):
        yield _unknown_key(key if override.package is None else f"{key}@{override.package}", cls, groups)
        return
    if override.is_delete():
        if not _is_mapping_entry(cls, key):
            hint = f"; {key}=null turns it off" if not schema.value_problems(annotation, None, key) else ""
            yield f"{word} is refused: {key} is needed{hint}"
        return
    if override.is_sweep_override() and not sweep:
        is_list = typing.get_origin(unwrap(annotation)) is list
        hint = f"write a list as {key}=[a,b]" if is_list else "several values are a sweep: add -m"
        yield f"{display(word)}: {hint}"
        return
    names = preset or (options(key) if key in groups else [])
    try:
        elements = _override_elements(override, names)
    except Exception as error:  # a range with step 0, or another error of Hydra's functions
        yield f"{display(word)}: not a valid range: {error}"
        return
    for element in elements:
        if names and not isinstance(element, dict):
            if element not in names:
                match = difflib.get_close_matches(str(element), names, n=1)
                hint = f"did you mean {match[0]}? " if match else ""
                if key == "task" and PurePath(str(element)).suffix:
                    hint = f"for your own file use task=file task.train={display(element)}; "
                yield f"{key}={display(element)}: no such {key}; {hint}known: {', '.join(names)}"
            continue
        for problem in _element_problems(annotation, element, key, cls, groups):
            # Show the value as typed: Hydra has parsed 1e3 into 1000.0.
            typed = (
                None if override.is_sweep_override() or isinstance(element, (dict, list)) else _split_override(word)[2]
            )
            yield problem if typed is None else problem.replace(f"={display(element)} is", f"={display(typed)} is", 1)


def _element_problems(annotation: Any, value: Any, key: str, cls: type, groups: Mapping[str, Any]) -> Iterator[str]:
    """Yield the mistakes in one value; a mapping may name only some keys, an interpolation is checked later."""
    if dataclasses.is_dataclass(unwrap(annotation)) and isinstance(value, dict):
        for name, item in value.items():
            inner = schema.annotation_of(cls, f"{key}.{name}")
            if inner is None:
                yield _unknown_key(f"{key}.{name}", cls, groups)
            else:
                yield from _element_problems(inner, item, f"{key}.{name}", cls, groups)
    elif "${" not in str(value := unescape(value)):
        yield from schema.value_problems(annotation, value, key)


def _override_elements(override: Override, names: list[str]) -> list[Any]:
    """Return the values of an override: one, or those of a sweep (1,000 of a range: all have one type)."""
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


def unescape(value: Any) -> Any:
    """Return the original of an escaped value."""
    if isinstance(value, list):
        return [unescape(item) for item in value]
    match = ESCAPED.fullmatch(value) if isinstance(value, str) else None
    with contextlib.suppress(ValueError):  # a user may have typed an invalid one
        return _decode_text("x" + match[1]) if match else value
    return value


def _is_mapping_entry(cls: type, key: str) -> bool:
    """Whether the key names an entry of a mapping, as in task.splits.valid."""
    parent = schema.annotation_of(cls, key.rpartition(".")[0]) if "." in key else None
    return typing.get_origin(unwrap(parent)) is dict


def _is_optional(cls: type, key: str) -> bool:
    """Whether a yaml may omit the key, as task.loss; or whether it is a key of a task that only the run knows."""
    parent, _, name = key.rpartition(".")
    if parent and schema.annotation_of(cls, "run") is not None:
        return True
    owner = unwrap(schema.annotation_of(cls, parent)) if parent else None
    return dataclasses.is_dataclass(owner) and schema.has_default(typing.cast(type, owner), name)


def _unknown_key(key: str, cls: type, groups: Iterable[str]) -> str:
    """Return the message for an unknown key: with the nearest of all keys, or with all top-level keys."""
    known = [*_dotted_keys(cls, ""), *(group for group in groups if group not in schema.config_fields(cls))]
    if cls in (commands.SweepsConfig, commands.SearchConfig):  # keys of their cells may also be named
        known = list(dict.fromkeys([*known, *_dotted_keys(commands.FinetuneConfig, "")]))
    parent, _, name = key.rpartition(".")
    if (synonym := SYNONYMS.get(name)) and (suggestion := f"{parent}.{synonym}".lstrip(".")) in known:
        return f"{display(key)}: no such key; did you mean {suggestion}?"
    message = schema.unknown_name(key, known)
    return (
        message if "did you mean" in message else schema.unknown_name(key, [name for name in known if "." not in name])
    )


def _dotted_keys(cls: type, prefix: str) -> Iterator[str]:
    for name, annotation in schema.config_fields(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(unwrap(annotation)):
            yield from _dotted_keys(typing.cast(type, unwrap(annotation)), f"{prefix}{name}.")
