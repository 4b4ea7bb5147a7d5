"""Pronoun resolution: the Winograd schemas, and Definite Pronoun Resolution (Rahman and Ng 2012).

An example's texts are the text before the pronoun and the text after it; its choices are the candidates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources.rows import load_columns, parse_label

POSSESSIVE = ("his", "her", "its", "their")  # NOTE "her" can also be an object; in the schemas it never is


def pronoun_substitutes(pronoun: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """What can replace the pronoun: the candidates. For a possessive pronoun they get 's if they do not have it."""
    possessive = pronoun.lower() in POSSESSIVE
    return tuple(f"{name}'s" if possessive and not name.endswith(("'s", "s'")) else name for name in candidates)


def load_winograd(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """Schemas: the task's columns are text and pronoun; the column pronoun_loc is the pronoun's position."""
    loaded = load_columns(task, split, [*task.columns, "pronoun_loc", *task.choices, task.label], hub, cache)
    if loaded is None:
        return None
    where, columns = loaded
    examples = []
    for i, (text, pronoun, position, options, label) in enumerate(zip(*columns, strict=True)):
        if text[position : position + len(pronoun)] != pronoun:
            raise UserError(f"{where}: row {i} has no {pronoun!r} at character {position} of {text!r}")
        texts = (text[:position].strip(), text[position + len(pronoun) :].strip())
        answer = parse_label(task, label, f"{where}: row {i}")
        examples.append(Example(str(i), texts, answer, pronoun_substitutes(pronoun, options)))
    return examples


def load_dprd(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """Sentences of two clauses: the task's columns are sentence and pronoun.

    The first clause names both candidates, the second contains the pronoun. If the pronoun occurs more than once, it is
    therefore the first occurrence after both names.
    """
    loaded = load_columns(task, split, [*task.columns, *task.choices, task.label], hub, cache)
    if loaded is None:
        return None
    where, columns = loaded
    examples = []
    for i, (sentence, pronoun, candidates, label) in enumerate(zip(*columns, strict=True)):
        spans = [match.span() for match in re.finditer(rf"\b{re.escape(pronoun)}\b", sentence, re.IGNORECASE)]
        if not spans:
            raise UserError(f"{where}: row {i} has no {pronoun!r} in {sentence!r}")
        last_name = max(sentence.lower().find(candidate.lower()) for candidate in candidates)
        start, end = next((span for span in spans if span[0] > last_name), spans[-1])
        texts = (sentence[:start].strip(), sentence[end:].strip())
        answer = parse_label(task, label, f"{where}: row {i}")
        examples.append(Example(str(i), texts, answer, pronoun_substitutes(pronoun, candidates)))
    return examples
