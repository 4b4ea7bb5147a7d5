"""A prompt's template: literal text, fields of an example in braces, and one slot for the label word.

    {premise} is it true that {hypothesis} ? {label}

Literal braces are doubled, as in Python's format strings.
"""

from __future__ import annotations

import string
from collections.abc import Collection
from typing import NamedTuple

SLOT = "label"


class TemplatePart(NamedTuple):
    """Literal text, or the name of a field (SLOT for the label word)."""

    text: str
    is_field: bool


def parse_template(template: str) -> list[TemplatePart]:
    """Return the parts of a template, in order. Raises ValueError if braces are unbalanced or hold more than a name."""
    parts, literal = [], ""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError:
        raise ValueError("unbalanced braces; write a literal brace as {{ or }}") from None
    for text, name, format_spec, conversion in pieces:
        literal += text
        if name is None:  # a doubled brace also ends a piece
            continue
        if format_spec or conversion or not name:
            raise ValueError("braces may only hold a field name; write a literal brace as {{ or }}")
        parts += [TemplatePart(literal, is_field=False)] * bool(literal) + [TemplatePart(name, is_field=True)]
        literal = ""
    return parts + [TemplatePart(literal, is_field=False)] * bool(literal)


def template_problem(template: str, fields: Collection[str]) -> str | None:
    """Return what is wrong with a template for examples that have these fields, or None."""
    try:
        names = [part.text for part in parse_template(template) if part.is_field]
    except ValueError as error:
        return str(error)
    known = ", ".join(f"{{{name}}}" for name in (*fields, SLOT))
    if unknown := [name for name in dict.fromkeys(names) if name not in (*fields, SLOT)]:
        return f"unknown field {', '.join(f'{{{name}}}' for name in unknown)}; known: {known}"
    if (slots := names.count(SLOT)) != 1:
        return f"it has {slots} {{{SLOT}}}, but needs exactly one: the position of the label word"
    return None
