"""A task's zero-shot rules and prompt: template, verbalizer, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from gpt1cli.config.schema import Field


@dataclass(frozen=True, kw_only=True)
class ZeroshotRule:
    """How a pretrained language model answers a task without training (paper, section 5): see prompts/zero_shot.py."""

    rule: Annotated[
        Literal["sentence", "answer", "rest"] | None,
        Field(
            "scored text: the sentence itself, an answer after the example, or the rest after a referent (null: none)"
        ),
    ] = None
    cue: Annotated[str, Field("text between the example and its answers (rule=answer)")] = ""
    words: Annotated[list[str], Field("a word for each label, for tasks without choices (rule=answer)")] = field(
        default_factory=list
    )
    opening: Annotated[
        str, Field("text before a scored text without context (empty: none; its first token is not scored)")
    ] = ""
    normalise: Annotated[
        Literal["mean", "sum"], Field("how the log-probabilities of the scored tokens are combined")
    ] = "mean"
    chance: Annotated[float, Field("headline metric of random guessing: 0 in a figure")] = 0.0
    reference: Annotated[float | None, Field("headline metric of a trained model: 1 in a figure (null: unknown)")] = (
        None
    )

    def problems(self) -> Iterator[str]:
        if self.reference is not None and self.reference <= self.chance:
            yield f"reference={self.reference} is not above chance={self.chance}"


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How a labelled example becomes a prompt for a language model: see prompts/prompt.py."""

    template: Annotated[
        str | None,
        Field("text with the example's {fields} and one {label} at any position (null: no prompt)", nonempty=True),
    ] = None
    words: Annotated[
        dict[str, list[str] | str],
        Field("verbalizer: label -> word or phrase, or a list of alternatives (empty: the example's choices)"),
    ] = field(default_factory=dict)
    separator: Annotated[
        str, Field("text after each demonstration, and before a template that begins with {label}")
    ] = "\n"
    description: Annotated[str, Field("instruction at the start of every prompt")] = ""
    normalise: Annotated[
        Literal["sum", "mean"], Field("how the log-probabilities of the scored tokens are combined")
    ] = "sum"
    content_free: Annotated[
        str | None,
        Field("content-free text for every field; the scores of that prompt are subtracted (null: no calibration)"),
    ] = None

    def alternatives(self, label: str) -> list[str]:
        """Return the words of a label, at least one."""
        words = self.words[label]
        return [words] if isinstance(words, str) else words
