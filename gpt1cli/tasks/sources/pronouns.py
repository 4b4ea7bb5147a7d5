"""Pronouns to be resolved: the Winograd schemas, and Definite Pronoun Resolution (Rahman and Ng 2012).

An example's texts are what stands before the pronoun and after it; its choices are the candidates for its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.sources.rows import columns_of, target

POSSESSIVE = ("his", "her", "its", "their")  # NOTE "her" may be an object too; in the schemas it never is


def substitutes(pronoun: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """What may stand in the pronoun's place: the candidates, for a possessive with 's where they have none."""
    owning = pronoun.lower() in POSSESSIVE
    return tuple(f"{name}'s" if owning and not name.endswith(("'s", "s'")) else name for name in candidates)


def winograd(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """Schemas whose pronoun is found by its place: the task's columns, text and pronoun, and the column pronoun_loc."""
    found = columns_of(task, split, [*task.columns, "pronoun_loc", *task.choices, task.label], hub, cache)
    if found is None:
        return None
    where, columns = found
    examples = []
    for i, (text, pronoun, place, options, label) in enumerate(zip(*columns, strict=True)):
        if text[place : place + len(pronoun)] != pronoun:
            raise UserError(f"{where}: row {i} has no {pronoun!r} at character {place} of {text!r}")
        texts = (text[:place].strip(), text[place + len(pronoun) :].strip())
        answer = target(task, label, f"{where}: row {i}")
        examples.append(Example(str(i), texts, answer, substitutes(pronoun, options)))
    return examples


def dprd(task: TaskConfig, split: str, hub: str | None, cache: str | Path) -> list[Example] | None:
    """Sentences of two clauses: the task's columns, sentence and pronoun.

    The first clause names both candidates, the second holds the pronoun. A pronoun that occurs more than once is
    therefore the first one behind both names.
    """
    found = columns_of(task, split, [*task.columns, *task.choices, task.label], hub, cache)
    if found is None:
        return None
    where, columns = found
    examples = []
    for i, (sentence, pronoun, candidates, label) in enumerate(zip(*columns, strict=True)):
        places = [match.span() for match in re.finditer(rf"\b{re.escape(pronoun)}\b", sentence, re.IGNORECASE)]
        if not places:
            raise UserError(f"{where}: row {i} has no {pronoun!r} in {sentence!r}")
        named = max(sentence.lower().find(candidate.lower()) for candidate in candidates)
        start, end = next((span for span in places if span[0] > named), places[-1])
        texts = (sentence[:start].strip(), sentence[end:].strip())
        answer = target(task, label, f"{where}: row {i}")
        examples.append(Example(str(i), texts, answer, substitutes(pronoun, candidates)))
    return examples
