"""A task as text that a language model goes on from: prompts, demonstrations before them, and what a label scores.

A template (templates.py) holds fields of the example and one slot, wherever it stands. Into the slot goes what stands
for a label: its words, or one of the example's own choices. One rule scores them all: the log-probability of the words
and of everything after them, given what stands before. With the slot last that is the next-token rule.

    [description, separator] [demonstration, separator]... before WORDS after
    |---------- ahead ------------------------------------|
    |---------- shared by all words ------------------------------|----scored----|

What stands ahead is the same for all queries. Its keys and values are computed once and kept (Brown et al. 2020,
"Language Models are Few-Shot Learners", is where the demonstrations come from); the words of a query are branches
behind one text. Both give what whole rows would give.

Texts, words and literal parts are tokenised apart, so that a text can be cut without touching the rest. Blanks at the
end of a part go to the beginning of the next one: byte-level vocabularies write a word with the blank before it.

N queries, W words of a query, L labels (W > L where a label has alternatives).
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
from gpt1cli.config.template import SLOT, parse
from gpt1cli.tasks.example import Example, Ids
from gpt1cli.tasks.few_shot import class_of
from gpt1cli.tasks.layouts import shortened
from gpt1cli.text.bpe import Tokenizer

TOGETHER = 1024  # examples whose texts go to the tokenizer at a time


class Text(NamedTuple):
    """Where a template has a field: which text of the example, and the blanks before it."""

    number: int
    blanks: str


class Piece(NamedTuple):
    """Token ids of a part of a prompt; only what is a text of the example may be cut."""

    ids: Ids
    is_text: bool


class Query(NamedTuple):
    """An example as a prompt: pieces before and after the slot, and what may stand in it."""

    before: Sequence[Piece]
    words: Sequence[Ids]
    after: Sequence[Piece]


@dataclass(frozen=True)
class Prompt:
    """A task's prompt in the ids of one vocabulary."""

    task: TaskConfig
    vocabulary: Tokenizer
    before: Sequence[Ids | Text]
    after: Sequence[Ids | Text]
    blanks: str  # before the slot
    words: Sequence[Ids]  # all words of all labels, in their order; none where an example's choices take their place
    alternatives: Sequence[int]  # how many of the words each label has
    separator: Ids
    description: Ids  # with the separator behind it, where there is one

    @classmethod
    def of(cls, task: TaskConfig, vocabulary: Tokenizer) -> Prompt:
        """The prompt of a task. UserError where it does not fit it, or this vocabulary cannot tell its words apart."""
        if problems := list(task.misprompted()):
            raise UserError("\n".join(problems))
        prompt = task.prompt
        assert prompt.template is not None
        separator, blanks = _parted(prompt.separator)
        sides: list[list[Ids | Text]] = [[], []]
        side, slot_blanks = sides[0], ""
        for text, named in parse(prompt.template):
            if not named:
                text, following = _parted(blanks + text)
                side.append(literal(vocabulary, text))
                blanks = following
            elif text == SLOT:
                slot_blanks, blanks, side = blanks, "", sides[1]
            else:
                side.append(Text(task.fields[text], blanks))
                blanks = ""
        named_words = [] if task.choices else [(name, w) for name in task.answers for w in prompt.alternatives(name)]
        words = vocabulary.encode_batch(slot_blanks + word.strip() for _, word in named_words)
        _check_apart(named_words, words)
        before, after = sides
        return cls(
            task=task,
            vocabulary=vocabulary,
            before=before,
            after=after,
            blanks=slot_blanks,
            words=words,
            alternatives=[] if task.choices else [len(prompt.alternatives(name)) for name in task.answers],
            separator=literal(vocabulary, separator),
            description=literal(vocabulary, prompt.description + separator) if prompt.description else [],
        )

    def queries(self, examples: Sequence[Example]) -> Iterator[Query]:
        """The examples as prompts."""
        for start in range(0, len(examples), TOGETHER):
            some = examples[start : start + TOGETHER]
            ids = iter(self.vocabulary.encode_batch(text for example in some for text in self._texts(example)))
            for example in some:
                before, after = ([_piece(part, ids) for part in side] for side in (self.before, self.after))
                yield Query(before, list(itertools.islice(ids, len(example.choices))) or self.words, after)

    def query(self, example: Example) -> Query:
        """An example as a prompt."""
        return next(self.queries([example]))

    def demonstration(self, example: Example) -> list[int]:
        """A labelled example with the first word of its label in the slot, and the separator behind it."""
        assert example.label is not None
        query, label = self.query(example), class_of(self.task, example.label)
        word = query.words[sum(self.alternatives[:label]) if self.alternatives else label]
        return [*joined(query.before), *word, *joined(query.after), *self.separator]

    def free(self, example: Example) -> Example:
        """The example with the content-free text in the place of each of its own (Zhao et al. 2021)."""
        assert self.task.prompt.content_free is not None
        return dataclasses.replace(example, texts=(self.task.prompt.content_free,) * len(example.texts))

    def _texts(self, example: Example) -> Iterator[str]:
        """What has to be tokenised for an example, in the order in which it is asked for."""
        for part in (*self.before, *self.after):
            if isinstance(part, Text):
                text = example.texts[part.number].strip()
                yield part.blanks + text if text else ""
        for choice in example.choices:
            yield self.blanks + choice.strip()


def literal(vocabulary: Tokenizer, text: str) -> list[int]:
    """The ids of a part of a prompt; line breaks at its ends count, which the published rules drop from a text."""
    found: list[int] = []
    for part in re.split(r"(\n+)", text):
        if part.startswith("\n"):
            found += vocabulary.encode(f"a{part}a")[1:-1]  # "a" is one piece of every vocabulary
        elif part:
            found += vocabulary.encode(part)
    return found


def _parted(text: str) -> tuple[str, str]:
    """A text and the blanks at its end."""
    kept = text.rstrip(" \t")
    return kept, text[len(kept) :]


def _piece(part: Ids | Text, texts: Iterator[Ids]) -> Piece:
    return Piece(next(texts), True) if isinstance(part, Text) else Piece(part, False)


def joined(pieces: Sequence[Piece]) -> list[int]:
    """The ids of pieces, one after the other."""
    return [token for piece in pieces for token in piece.ids]


def _check_apart(named: Sequence[tuple[str, str]], words: Sequence[Ids]) -> None:
    """UserError for words of two labels that are the same to the vocabulary, and for those it has no piece for."""
    seen: dict[tuple[int, ...], int] = {}
    wrong = []
    for i, ((label, word), ids) in enumerate(zip(named, words, strict=True)):
        first = seen.setdefault(tuple(ids), i)
        if not ids:
            wrong.append(f"task.prompt.words.{label}={display(word)}: nothing is left of it in this vocabulary")
        elif first != i:
            twins = f"{display(named[first][1])} ({named[first][0]}) and {display(word)} ({label})"
            wrong.append(f"task.prompt.words: {twins} are the same to this vocabulary, upper and lower case may be one")
    if wrong:
        raise UserError("\n".join(wrong))


# --- prompts laid out -------------------------------------------------------------------------------------------------


class Laid(NamedTuple):
    """A query as rows that fit the model, one for each word."""

    rows: list[list[int]]
    scored: list[int]  # tokens at the end of each row: the words and what follows them
    shared: int  # tokens at the beginning that are the same in all rows
    ahead: int  # of these the description and the demonstrations, which other queries share
    dropped: int  # demonstrations left out
    cut: bool  # whether a text of the query lost its end


def lay(prompt: Prompt, demonstrations: Sequence[Ids], query: Query, n_positions: int) -> Laid:
    """A query behind as many of the demonstrations as fit: the farthest are left out first, then texts lose their ends.

    UserError where what is never cut does not fit: description, literal parts, words.
    """
    longest, pieces = max(map(len, query.words)), [*query.before, *query.after]
    room = n_positions - len(prompt.description) - longest - sum(len(piece.ids) for piece in pieces)
    kept: list[Ids] = []
    for demonstration in reversed(demonstrations):
        room -= len(demonstration)
        if room < 0:
            break
        kept.insert(0, demonstration)
    ahead = [*prompt.description, *(token for demonstration in kept for token in demonstration)]
    if not ahead and not joined(query.before):
        ahead = [*prompt.separator]
    fixed = len(ahead) + longest + sum(len(piece.ids) for piece in pieces if not piece.is_text)
    texts, cut = [piece.ids for piece in pieces if piece.is_text], False
    if fixed + sum(map(len, texts)) > n_positions:
        if n_positions - fixed < len(texts):
            told = f"{fixed} tokens of it are no text of an example, {len(texts)} or more are"
            template = display(prompt.task.prompt.template)
            raise UserError(f"task.prompt.template={template} does not fit n_positions={n_positions}: {told}")
        texts, cut = shortened(texts, n_positions - fixed)
    shorter = iter(texts)
    before, after = (
        [token for piece in side for token in (next(shorter) if piece.is_text else piece.ids)]
        for side in (query.before, query.after)
    )
    shared = [*ahead, *before]
    first = 0 if shared else 1  # of what follows, that can be scored
    return Laid(
        rows=[[*shared, *word, *after] for word in query.words],
        scored=[len(word) + len(after) - first for word in query.words],
        shared=len(shared),
        ahead=len(ahead),
        dropped=len(demonstrations) - len(kept),
        cut=cut,
    )


# --- what a model says ------------------------------------------------------------------------------------------------
