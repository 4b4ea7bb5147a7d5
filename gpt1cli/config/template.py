"""A prompt's template: literal text, fields of an example in braces, and one slot for the label's words.

    {premise} is it true that {hypothesis} ? {label}

Braces that are meant as such are doubled, as in Python's own format strings.
"""

from __future__ import annotations

import string
from collections.abc import Collection
from typing import NamedTuple

SLOT = "label"


class Part(NamedTuple):
    """A stretch of literal text, or the name of a field (of the slot: SLOT)."""

    text: str
    named: bool


def parse(template: str) -> list[Part]:
    """The parts of a template, in order. ValueError where its braces do not match, or hold more than a name."""
    parts, literal = [], ""
    try:
        found = list(string.Formatter().parse(template))
    except ValueError:
        raise ValueError("its braces do not match; those that are meant as such are doubled") from None
    for text, name, form, conversion in found:
        literal += text
        if name is None:  # a doubled brace ends a piece of text, too
            continue
        if form or conversion or not name:
            raise ValueError("braces hold the name of a field alone; those that are meant as such are doubled")
        parts += [Part(literal, named=False)] * bool(literal) + [Part(name, named=True)]
        literal = ""
    return parts + [Part(literal, named=False)] * bool(literal)


def problem(template: str, fields: Collection[str]) -> str | None:
    """What is wrong with a template for examples that have these fields, or None."""
    try:
        names = [part.text for part in parse(template) if part.named]
    except ValueError as error:
        return str(error)
    known = ", ".join(f"{{{name}}}" for name in (*fields, SLOT))
    if odd := [name for name in dict.fromkeys(names) if name not in (*fields, SLOT)]:
        return f"no field {', '.join(f'{{{name}}}' for name in odd)}; there are {known}"
    if (slots := names.count(SLOT)) != 1:
        return f"{slots or 'no'} {{{SLOT}}}: one slot says where the label's words stand"
    return None
