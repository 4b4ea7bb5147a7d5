"""A task's zero-shot rules and prompt: template, verbalizer, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from gpt1cli.config.schema import Field


@dataclass(frozen=True, kw_only=True)
class ZeroshotRule:
    """How a language model answers a task as it is, without training (paper, section 5): see probing.RULES."""

    rule: Annotated[
        Literal["sentence", "answer", "rest"] | None,
        Field("what is scored: the text itself, an answer behind it, what follows a referent (null: no rule)"),
    ] = None
    cue: Annotated[str, Field("text between the example and its answers (rule answer)")] = ""
    words: Annotated[list[str], Field("a word for each label, the answers of a task without choices (rule answer)")] = (
        field(default_factory=list)
    )
    opening: Annotated[
        str, Field("text before what nothing precedes (empty: nothing, and its first token is not scored)")
    ] = ""
    normalise: Annotated[Literal["mean", "sum"], Field("of the log-probabilities of the scored tokens")] = "mean"
    chance: Annotated[float, Field("headline metric of guessing: 0 in a figure")] = 0.0
    reference: Annotated[float | None, Field("headline metric of a trained model: 1 in a figure (null: unknown)")] = (
        None
    )

    def problems(self) -> Iterator[str]:
        if self.reference is not None and self.reference <= self.chance:
            yield f"reference={self.reference} is not above chance={self.chance}"


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How a labelled example becomes text that a language model goes on from: see prompting.py."""

    template: Annotated[
        str | None, Field("text with {fields} of the example and one {label}, anywhere (null: no prompt)", filled=True)
    ] = None
    words: Annotated[
        dict[str, list[str] | str],
        Field("label: the word or phrase in its slot, or a list of alternatives (none: the example's own choices)"),
    ] = field(default_factory=dict)
    separator: Annotated[
        str, Field("text between demonstrations and before the query, and before a slot that nothing precedes")
    ] = "\n"
    description: Annotated[str, Field("text before everything: what is asked")] = ""
    normalise: Annotated[Literal["sum", "mean"], Field("of the log-probabilities of the scored pieces")] = "sum"
    content_free: Annotated[
        str | None, Field("text for every field of a prompt whose scores are subtracted (null: no calibration)")
    ] = None

    def alternatives(self, label: str) -> list[str]:
        """The words of a label, at least one."""
        words = self.words[label]
        return [words] if isinstance(words, str) else words
