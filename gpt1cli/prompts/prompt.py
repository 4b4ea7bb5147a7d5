"""Prompts: a task as text for a language model, with demonstrations before it.

A template (config/template.py) has fields of the example and one slot, at any place. The slot takes the words of a
label, or one of the example's own choices. One rule scores them all: the log-probability of the words and of all
tokens after them, given the tokens before. With the slot at the end this is the next-token rule.

    [description, separator] [demonstration, separator]... before WORDS after
    |---------- prefix -----------------------------------|
    |---------- shared by all words ------------------------------|----scored----|

The prefix is the same for all queries, so its keys and values are computed once and cached (demonstrations: Brown et
al. 2020, "Language Models are Few-Shot Learners"); the words of a query are branches after one text. The scores equal
those of complete rows.

Texts, words and literal parts are tokenised separately, so that truncating a text does not change the rest. Spaces at
the end of a part move to the start of the next one, because byte-level vocabularies write a word with the space before
it.

N queries, W words of a query, L labels (W > L if labels have alternatives).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpt1cli.config.schema import UserError, display
from gpt1cli.config.task import TaskConfig
from gpt1cli.config.template import SLOT, parse_template
from gpt1cli.tasks.example import Example, TokenIds
from gpt1cli.tasks.few_shot import class_index
from gpt1cli.tasks.layouts import truncate
from gpt1cli.text.bpe import Tokenizer

EXAMPLES_PER_CALL = 1024  # examples tokenised in one call


class TextField(NamedTuple):
    """A field in a template: the index of the example's text, and the spaces before it."""

    text_index: int
    spaces: str


class PromptPart(NamedTuple):
    """Token ids of one part of a prompt; only texts of the example may be truncated."""

    ids: TokenIds
    is_text: bool


class Query(NamedTuple):
    """An example in a prompt: the parts before and after the slot, and the words that can fill it."""

    before: Sequence[PromptPart]
    words: Sequence[TokenIds]
    after: Sequence[PromptPart]


@dataclass(frozen=True)
class Prompt:
    """A task's prompt as token ids of one tokenizer."""

    task: TaskConfig
    tokenizer: Tokenizer
    before: Sequence[TokenIds | TextField]
    after: Sequence[TokenIds | TextField]
    slot_spaces: str  # spaces before the slot
    words: Sequence[TokenIds]  # all words of all labels, in label order; empty if each example has its own choices
    alternatives: Sequence[int]  # the number of words of each label; empty for choices
    separator: TokenIds
    description: TokenIds  # ends with the separator; empty without a description

    @classmethod
    def from_task(cls, task: TaskConfig, tokenizer: Tokenizer) -> Prompt:
        """Build the prompt of a task.

        Raises UserError if the prompt does not fit the task, or if two words have the same token ids.
        """
        if problems := list(task.prompt_problems()):
            raise UserError("\n".join(problems))
        prompt = task.prompt
        assert prompt.template is not None
        separator, spaces = _split_trailing_spaces(prompt.separator)
        sides: list[list[TokenIds | TextField]] = [[], []]
        side, slot_spaces = sides[0], ""
        for text, is_field in parse_template(prompt.template):
            if not is_field:
                text, trailing = _split_trailing_spaces(spaces + text)
                side.append(encode_literal(tokenizer, text))
                spaces = trailing
            elif text == SLOT:
                slot_spaces, spaces, side = spaces, "", sides[1]
            else:
                side.append(TextField(task.fields[text], spaces))
                spaces = ""
        labelled_words = (
            [] if task.choices else [(name, w) for name in task.answer_labels for w in prompt.alternatives(name)]
        )
        words = tokenizer.encode_batch(slot_spaces + word.strip() for _, word in labelled_words)
        _check_distinct(labelled_words, words)
        before, after = sides
        return cls(
            task=task,
            tokenizer=tokenizer,
            before=before,
            after=after,
            slot_spaces=slot_spaces,
            words=words,
            alternatives=[] if task.choices else [len(prompt.alternatives(name)) for name in task.answer_labels],
            separator=encode_literal(tokenizer, separator),
            description=encode_literal(tokenizer, prompt.description + separator) if prompt.description else [],
        )

    def queries(self, examples: Sequence[Example]) -> Iterator[Query]:
        """Convert examples to queries."""
        for start in range(0, len(examples), EXAMPLES_PER_CALL):
            chunk = examples[start : start + EXAMPLES_PER_CALL]
            ids = iter(self.tokenizer.encode_batch(text for example in chunk for text in self._example_texts(example)))
            for example in chunk:
                before, after = ([_fill_part(part, ids) for part in side] for side in (self.before, self.after))
                yield Query(before, list(itertools.islice(ids, len(example.choices))) or self.words, after)

    def query(self, example: Example) -> Query:
        """Convert one example to a query."""
        return next(self.queries([example]))

    def demonstration(self, example: Example) -> list[int]:
        """Token ids of a labelled example with the first word of its label in the slot, then the separator."""
        assert example.label is not None
        query, label = self.query(example), class_index(self.task, example.label)
        word = query.words[sum(self.alternatives[:label]) if self.alternatives else label]
        return [*join_ids(query.before), *word, *join_ids(query.after), *self.separator]

    def content_free(self, example: Example) -> Example:
        """The example with the content-free text instead of each of its texts (Zhao et al. 2021)."""
        assert self.task.prompt.content_free is not None
        return dataclasses.replace(example, texts=(self.task.prompt.content_free,) * len(example.texts))

    def _example_texts(self, example: Example) -> Iterator[str]:
        """The strings of an example to tokenise: those of the template in order, then the choices."""
        for part in (*self.before, *self.after):
            if isinstance(part, TextField):
                text = example.texts[part.text_index].strip()
                yield part.spaces + text if text else ""
        for choice in example.choices:
            yield self.slot_spaces + choice.strip()


def encode_literal(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a literal part, with the line breaks at its ends, which the published rules remove from a text."""
    ids: list[int] = []
    for part in re.split(r"(\n+)", text):
        if part.startswith("\n"):
            ids += tokenizer.encode(f"a{part}a")[1:-1]  # "a" is one token in every vocabulary
        elif part:
            ids += tokenizer.encode(part)
    return ids


def _split_trailing_spaces(text: str) -> tuple[str, str]:
    """Split off the spaces and tabs at the end of a text."""
    kept = text.rstrip(" \t")
    return kept, text[len(kept) :]


def _fill_part(part: TokenIds | TextField, texts: Iterator[TokenIds]) -> PromptPart:
    return PromptPart(next(texts), True) if isinstance(part, TextField) else PromptPart(part, False)


def join_ids(parts: Sequence[PromptPart]) -> list[int]:
    """Concatenate the token ids of the parts."""
    return [token for part in parts for token in part.ids]


def _check_distinct(labelled_words: Sequence[tuple[str, str]], words: Sequence[TokenIds]) -> None:
    """Raise UserError if two words have the same token ids, or if a word has none."""
    first_of: dict[tuple[int, ...], int] = {}
    problems = []
    for i, ((label, word), ids) in enumerate(zip(labelled_words, words, strict=True)):
        first = first_of.setdefault(tuple(ids), i)
        if not ids:
            problems.append(f"task.prompt.words.{label}={display(word)}: no token of this vocabulary; use another word")
        elif first != i:
            same = f"{display(labelled_words[first][1])} ({labelled_words[first][0]}) and {display(word)} ({label})"
            problems.append(
                f"task.prompt.words: {same} have the same tokens in this vocabulary; use different words"
                " (this vocabulary may ignore upper and lower case)"
            )
    if problems:
        raise UserError("\n".join(problems))


# --- packing ----------------------------------------------------------------------------------------------------------


class PackedPrompt(NamedTuple):
    """A query as rows that fit the model, one row for each word."""

    rows: list[list[int]]
    scored_counts: list[int]  # scored tokens at the end of each row: the word and the tokens after the slot
    shared_length: int  # tokens at the start that are the same in all rows
    prefix_length: int  # the first of these: description and demonstrations, shared with other queries
    skipped: int  # demonstrations that did not fit
    truncated: bool  # whether a text of the query was truncated


def pack_prompt(prompt: Prompt, demonstrations: Sequence[TokenIds], query: Query, n_positions: int) -> PackedPrompt:
    """Pack a query after as many demonstrations as fit in n_positions.

    The demonstrations farthest from the query are skipped first; then the query's texts are truncated at the end.
    Raises UserError if the parts that are never truncated do not fit: description, literal parts, words.
    """
    longest, parts = max(map(len, query.words)), [*query.before, *query.after]
    room = n_positions - len(prompt.description) - longest - sum(len(part.ids) for part in parts)
    kept: list[TokenIds] = []
    for demonstration in reversed(demonstrations):
        room -= len(demonstration)
        if room < 0:
            break
        kept.insert(0, demonstration)
    prefix = [*prompt.description, *(token for demonstration in kept for token in demonstration)]
    if not prefix and not join_ids(query.before):
        prefix = [*prompt.separator]
    fixed = len(prefix) + longest + sum(len(part.ids) for part in parts if not part.is_text)
    texts, truncated = [part.ids for part in parts if part.is_text], False
    if fixed + sum(map(len, texts)) > n_positions:
        if n_positions - fixed < len(texts):
            template = display(prompt.task.prompt.template)
            raise UserError(
                f"task.prompt.template={template} does not fit n_positions={n_positions}: description, literal parts"
                f" and words take {fixed} tokens, and the texts need {len(texts)} or more; shorten these parts"
            )
        texts, truncated = truncate(texts, n_positions - fixed)
    next_text = iter(texts)
    before, after = (
        [token for part in side for token in (next(next_text) if part.is_text else part.ids)]
        for side in (query.before, query.after)
    )
    shared = [*prefix, *before]
    first = 0 if shared else 1  # the first token after the shared ones that can be scored
    return PackedPrompt(
        rows=[[*shared, *word, *after] for word in query.words],
        scored_counts=[len(word) + len(after) - first for word in query.words],
        shared_length=len(shared),
        prefix_length=len(prefix),
        skipped=len(demonstrations) - len(kept),
        truncated=truncated,
    )
