"""The one strict door through which plain data becomes a typed dataclass.

A configuration is a frozen dataclass; each field's annotation holds its type, its meaning and its range (Key). `build`
takes a nested mapping and reports everything that is wrong with it together: unknown keys, wrong types, values out of
range, fields that contradict one another (a dataclass's `problems`). What stands here knows no configuration in
particular.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """The user's input is at fault: a few lines that name the thing, the value, and what would be right."""


@dataclass(frozen=True)
class Field:
    """What a configuration key means, and the range of its values."""

    meaning: str
    above: float = -math.inf
    at_least: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    pattern: str = ""
    filled: bool = False  # a text that may not be empty

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value of the right type, or None."""
        if isinstance(value, str):
            if not _is_text(value):
                return "must not hold a NUL or half a character: no file name and no file of text can"
            if self.filled and not value:
                return "must not be empty"
            return f"must match {self.pattern}" if self.pattern and not re.fullmatch(self.pattern, value) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        for holds, rule in (
            (value > self.above, f"must be above {self.above:g}"),
            (value >= self.at_least, f"must be at least {self.at_least:g}"),
            (value <= self.at_most, f"must be at most {self.at_most:g}"),
            (value < self.below, f"must be below {self.below:g}"),
        ):
            if not holds:
                return rule
        return None


def _is_text(value: str) -> bool:
    """Whether the system can take the text; bytes of a file name that are no UTF-8 are allowed (PEP 383)."""
    try:
        return b"\0" not in value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def build(cls: type[T], data: Mapping[str, Any], key: str = "") -> T:
    """The dataclass `cls` from nested plain data; UserError lists every mistake, each on its own line.

    `key` is where the data stands in what the user wrote, and begins the name of every key.
    """
    errors: list[str] = []
    value = _convert(cls, data, key, errors)
    if errors:
        raise UserError("\n".join(errors))
    return value


def check(annotation: Any, value: Any, key: str) -> list[str]:
    """What is wrong with one value of the key, given the annotation of its field; an empty list when nothing is."""
    errors: list[str] = []
    _convert(annotation, value, key, errors)
    return errors


@functools.cache
def fields_of(cls: type) -> dict[str, Any]:
    """Field name -> annotation (with its Key) of a configuration dataclass, in order of definition."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def has_default(cls: type, name: str) -> bool:
    """Whether a field of a configuration dataclass may be left out: that of what few have, as a task's choices."""
    found = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return found.default is not dataclasses.MISSING or found.default_factory is not dataclasses.MISSING


def with_defaults(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping, and the plain defaults of fields that it leaves out."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    return {name: value for name, value in defaults.items() if value is not dataclasses.MISSING} | dict(data)


def key_problems(cls: type, data: Mapping[str, Any], prefix: str) -> list[str]:
    """Keys that the dataclass does not know, and those it needs and does not find."""
    fields = fields_of(cls)
    odd = [unknown(f"{prefix}{name}", (prefix + field for field in fields)) for name in data if name not in fields]
    lacking = [name for name in fields if name not in data and not has_default(cls, name)]
    return [*odd, *(f"{prefix}{name}: missing" for name in lacking)]


def annotation_of(cls: type, key: str) -> Any:
    """The annotation of a dotted key of a configuration dataclass; None where there is no such key."""
    annotation: Any = cls
    for part in key.split("."):
        if dataclasses.is_dataclass(annotation := unwrap(annotation)):
            annotation = fields_of(typing.cast(type, annotation)).get(part)
        elif typing.get_origin(annotation) is dict and part:
            annotation = typing.get_args(annotation)[1]
        else:
            return None
    return annotation


def key_of(annotation: Any) -> Field:
    """The Key of an annotation; an empty one where it has none."""
    return next((extra for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, Field)), Field(""))


def unwrap(annotation: Any) -> Any:
    """The annotation without its Key."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def flat(nested: Mapping[str, Any], prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """Dotted keys and values: `limit.train`, 256."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def display(value: Any) -> str:
    """A value as a user would write it on the command line, cut to what a message can hold."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 120 else text[:100] + f"... ({len(text)} characters)"


def unknown(key: str, known: typing.Iterable[str], what: str = "key") -> str:
    """The message for a name that does not exist: its nearest match, or all that would be right."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{display(key)}: no such {what}; {hint}"


def describe(annotation: Any) -> str:
    """The type in a user's words: 'a whole number or null'."""
    annotation = unwrap(annotation)
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is list:
        return "a list, each " + describe(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is dict or dataclasses.is_dataclass(annotation):
        return "a mapping of keys to values"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return names[annotation]


def _convert(annotation: Any, value: Any, key: str, errors: list[str]) -> Any:
    """The value as the annotation wants it; what is wrong is appended to errors."""
    limits, annotation = key_of(annotation), unwrap(annotation)
    if dataclasses.is_dataclass(annotation):
        return _convert_dataclass(typing.cast(type, annotation), value, key, errors)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        attempts: list[list[str]] = []
        for part in arguments:
            attempts.append([])
            converted = _convert(part, value, key, attempts[-1])
            if not attempts[-1]:
                break
        else:
            ranged = [found for found in attempts if found and " is refused: it must " in found[0]]
            mistyped = f"{key}={display(value)} is refused: {key} takes {describe(annotation)}"
            errors.extend(ranged[0] if ranged else [mistyped])
            return None
    elif origin is list and isinstance(value, (list, tuple)):
        converted = [_convert(arguments[0], item, f"{key}[{i}]", errors) for i, item in enumerate(value)]
    elif origin is dict and isinstance(value, Mapping):
        converted = {name: _convert(arguments[1], item, f"{key}.{name}", errors) for name, item in value.items()}
    elif origin is Literal and any(value == option and type(value) is type(option) for option in arguments):
        converted = value
    elif annotation is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # false for nan too
        converted = float(value)
    elif isinstance(annotation, type) and annotation is not float and type(value) is annotation:
        converted = value
    else:
        hint = difflib.get_close_matches(str(value), map(str, arguments), n=1) if origin is Literal else []
        ending = f"; did you mean {hint[0]}?" if hint else ""
        errors.append(f"{key}={display(value)} is refused: {key} takes {describe(annotation)}{ending}")
        return None
    if problem := limits.problem(converted):
        errors.append(f"{key}={display(value)} is refused: it {problem}")
    return converted


def _convert_dataclass(cls: type, value: Any, key: str, errors: list[str]) -> Any:
    if not isinstance(value, Mapping):
        errors.append(f"{key}={display(value)} is refused: {key} takes {describe(cls)}")
        return None
    prefix = f"{key}." if key else ""
    fields, before = fields_of(cls), len(errors)
    errors.extend(key_problems(cls, value, prefix))
    values = {n: _convert(fields[n], value[n], f"{prefix}{n}", errors) for n in fields if n in value}
    if len(errors) > before:
        return None
    built = cls(**values)
    errors.extend(prefix + problem for problem in getattr(built, "problems", tuple)())
    return None if len(errors) > before else built
