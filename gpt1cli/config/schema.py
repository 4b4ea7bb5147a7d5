"""Validation: turns plain data into a typed dataclass, or reports every mistake.

A configuration is a frozen dataclass; each field's annotation holds its type, its meaning and its range (Field).
`build` takes a nested mapping and reports all mistakes together: unknown keys, wrong types, values out of range, fields
that contradict each other (a dataclass's `problems`). This module knows no particular configuration.
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
    """A mistake in the user's input: a few lines that name the thing, the value given and what is allowed."""


@dataclass(frozen=True)
class Field:
    """The meaning of a configuration key and the range of its values."""

    meaning: str
    above: float = -math.inf
    at_least: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    pattern: str = ""
    nonempty: bool = False  # refuses the empty string

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with a value of the right type, or None."""
        if isinstance(value, str):
            if not _is_encodable(value):
                return "must not contain a NUL character or an unpaired surrogate"
            if self.nonempty and not value:
                return "must not be empty"
            return f"must match {self.pattern}" if self.pattern and not re.fullmatch(self.pattern, value) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        for is_satisfied, rule in (
            (value > self.above, f"must be above {self.above:g}"),
            (value >= self.at_least, f"must be at least {self.at_least:g}"),
            (value <= self.at_most, f"must be at most {self.at_most:g}"),
            (value < self.below, f"must be below {self.below:g}"),
        ):
            if not is_satisfied:
                return rule
        return None


def _is_encodable(value: str) -> bool:
    """Whether the text fits into a file; a file name's bytes that are not UTF-8 are allowed (PEP 383)."""
    try:
        return b"\0" not in value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def build(cls: type[T], data: Mapping[str, Any], key: str = "") -> T:
    """Build the dataclass `cls` from nested plain data. Raises UserError that lists every mistake, one per line.

    `key` is the position of the data in the user's input: the prefix of every key in a message.
    """
    errors: list[str] = []
    value = _convert(cls, data, key, errors)
    if errors:
        raise UserError("\n".join(errors))
    return value


def value_problems(annotation: Any, value: Any, key: str) -> list[str]:
    """Return the mistakes in one value of a key, given the annotation of its field; an empty list if there are none."""
    errors: list[str] = []
    _convert(annotation, value, key, errors)
    return errors


@functools.cache
def config_fields(cls: type) -> dict[str, Any]:
    """Field name -> annotation (with its Field) of a configuration dataclass, in order of definition."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def has_default(cls: type, name: str) -> bool:
    """Whether a field of a configuration dataclass has a default, as a task's choices, so that a yaml may omit it."""
    field = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def with_defaults(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with the plain defaults of the fields that it omits."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    return {name: value for name, value in defaults.items() if value is not dataclasses.MISSING} | dict(data)


def key_problems(cls: type, data: Mapping[str, Any], prefix: str) -> list[str]:
    """Return a message for each unknown key and each missing key."""
    fields = config_fields(cls)
    unknown = [unknown_name(f"{prefix}{key}", (prefix + name for name in fields)) for key in data if key not in fields]
    missing = [name for name in fields if name not in data and not has_default(cls, name)]
    return [*unknown, *(f"{prefix}{name}: missing" for name in missing)]


def annotation_of(cls: type, key: str) -> Any:
    """Return the annotation of a dotted key of a configuration dataclass; None if there is no such key."""
    annotation: Any = cls
    for part in key.split("."):
        if dataclasses.is_dataclass(annotation := unwrap(annotation)):
            annotation = config_fields(typing.cast(type, annotation)).get(part)
        elif typing.get_origin(annotation) is dict and part:
            annotation = typing.get_args(annotation)[1]
        else:
            return None
    return annotation


def field_of(annotation: Any) -> Field:
    """Return the Field of an annotation; an empty Field if it has none."""
    return next((extra for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, Field)), Field(""))


def unwrap(annotation: Any) -> Any:
    """Return the annotation without its Field."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def flatten(nested: Mapping[str, Any], prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values: `limit.train`, 256."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def display(value: Any) -> str:
    """Return a value as a user would write it on the command line, truncated to fit into a message."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 120 else text[:100] + f"... ({len(text)} characters)"


def unknown_name(key: str, known: typing.Iterable[str], what: str = "key") -> str:
    """Return the message for a name that does not exist: with the nearest match, or with all known names."""
    known = list(known)
    match = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
    hint = f"did you mean {match[0]}?" if match else f"known: {', '.join(sorted(known))}"
    return f"{display(key)}: no such {what}; {hint}"


def describe_type(annotation: Any) -> str:
    """Return the type as users read it: 'int or null'."""
    annotation = unwrap(annotation)
    if typing.get_origin(annotation) is Literal:
        values = ", ".join(map(str, typing.get_args(annotation)))
        return f"one of {values}" if len(typing.get_args(annotation)) > 1 else values
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(describe_type(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is list:
        item = unwrap(typing.get_args(annotation)[0])
        plural = {int: "list of ints", float: "list of numbers", str: "list of strings"}
        return plural.get(item) or "list, each " + describe_type(item)
    if typing.get_origin(annotation) is dict or dataclasses.is_dataclass(annotation):
        return "mapping of keys to values"
    names = {int: "int", float: "number", bool: "true or false", str: "string", type(None): "null"}
    return names[annotation]


def _convert(annotation: Any, value: Any, key: str, errors: list[str]) -> Any:
    """Return the value converted to the annotation's type; append what is wrong to errors."""
    limits, annotation = field_of(annotation), unwrap(annotation)
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
            out_of_range = [messages for messages in attempts if messages and " is refused: it must " in messages[0]]
            wrong_type = f"{key}={display(value)} is refused: expected {describe_type(annotation)}"
            errors.extend(out_of_range[0] if out_of_range else [wrong_type])
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
        match = difflib.get_close_matches(str(value), map(str, arguments), n=1) if origin is Literal else []
        hint = f"; did you mean {match[0]}?" if match else ""
        errors.append(f"{key}={display(value)} is refused: expected {describe_type(annotation)}{hint}")
        return None
    if problem := limits.problem(converted):
        errors.append(f"{key}={display(value)} is refused: it {problem}")
    return converted


def _convert_dataclass(cls: type, value: Any, key: str, errors: list[str]) -> Any:
    if not isinstance(value, Mapping):
        errors.append(f"{key}={display(value)} is refused: expected {describe_type(cls)}")
        return None
    prefix = f"{key}." if key else ""
    fields, before = config_fields(cls), len(errors)
    errors.extend(key_problems(cls, value, prefix))
    values = {n: _convert(fields[n], value[n], f"{prefix}{n}", errors) for n in fields if n in value}
    if len(errors) > before:
        return None
    built = cls(**values)
    errors.extend(prefix + problem for problem in getattr(built, "problems", tuple)())
    return None if len(errors) > before else built
