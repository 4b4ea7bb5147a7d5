"""The groups of conf/ as frozen dataclasses: model, optimizer, tokenizer, corpus, task, study and others.

The defaults live in conf/*.yaml; the meaning of each key, its type and its range live here, in its annotation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from gpt1cli.config import template as config_template
from gpt1cli.config.prompt import PromptConfig, ZeroshotRule
from gpt1cli.config.schema import Field, display, unknown
from gpt1cli.config.training import NAME

# --- what is learned: model, optimizer, schedule ----------------------------------------------------------------------


# --- what is read: tokenizer, corpus, task ----------------------------------------------------------------------------


TEXTS = {"single": (1, 1), "pair": (2, 2), "similarity": (2, 2), "choice": (0, 4), "pronoun": (2, 2)}  # layout: columns
GlueFile = Literal["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
SCORES = ("mse", "ordinal", "interpolation")  # losses of tasks whose label is a number, not a class


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A labelled data set and how its rows become inputs (paper, section 3.3)."""

    name: Annotated[str, Field("name of the task", pattern=NAME)]
    source: Annotated[str, Field("loader in gpt1cli/tasks")]
    layout: Annotated[
        Literal["single", "pair", "similarity", "choice", "pronoun"], Field("input transformation (tasks/layouts.py)")
    ]
    repo: Annotated[str | None, Field("hub data set")] = None
    subset: Annotated[str | None, Field("configuration of the hub data set")] = None
    path: Annotated[str | None, Field("folder with the authors' own files, instead of the hub (story_cloze)")] = None
    remedy: Annotated[str | None, Field("how to get the data set where the hub does not give it")] = None
    kind: Annotated[
        Literal["classification", "pair", "similarity", "regression", "choice"] | None,
        Field("what the rows of one's own files are (task=file)"),
    ] = None
    train: Annotated[str | None, Field("file of the training rows (task=file)", filled=True)] = None
    valid: Annotated[str | None, Field("file of the validation rows (null: some of train's)", filled=True)] = None
    test: Annotated[str | None, Field("file of the test rows (task=file)", filled=True)] = None
    text: Annotated[str | None, Field("column of the text, or the first text (null: by usual names)", filled=True)] = (
        None
    )
    text_b: Annotated[str | None, Field("column of the second text (null: by usual names)", filled=True)] = None
    id: Annotated[str | None, Field("column of an id for each row (null: its line)", filled=True)] = None
    header: Annotated[
        list[str],
        Field("names of the columns of .csv and .tsv files whose first line is a row (none: it has the names)"),
    ] = field(default_factory=list)
    holdout: Annotated[float, Field("share of every class of train that validates without valid", above=0, below=1)] = (
        0.1
    )
    columns: Annotated[list[str], Field("columns of the texts, in the order of the input")]
    choices: Annotated[
        list[str], Field("columns of the answers, or one that holds them all (layouts choice, pronoun)")
    ] = field(default_factory=list)
    label: Annotated[str, Field("column of the label (task=file, empty: by usual names)")]
    labels: Annotated[
        list[str], Field("names of the classes, in the order of the data set's own ids; none for scores")
    ] = field(default_factory=list)
    range: Annotated[list[int] | None, Field("lowest and highest score (loss=mse, ordinal)")] = None
    loss: Annotated[
        Literal["cross_entropy", "soft_f1", "mse", "ordinal", "interpolation"],
        Field(
            "what is minimised: of classes cross_entropy or soft_f1, of scores mse or ordinal (method=head),"
            " or interpolation, between two words (method=prompt)"
        ),
    ] = "cross_entropy"
    metrics: Annotated[list[str], Field("metrics reported; the first is the headline that picks the best checkpoint")]
    splits: Annotated[dict[str, str], Field("our split name: the data set's split name")]
    submission: Annotated[dict[str, GlueFile], Field("our split name: the GLUE server's file for its predictions")] = (
        field(default_factory=dict)
    )
    few_test: Annotated[
        Literal["test", "valid"], Field("the split that runs with shots=K are tested on; its labels are public")
    ] = "test"
    zeroshot: ZeroshotRule = field(default_factory=ZeroshotRule)
    prompt: PromptConfig = field(default_factory=PromptConfig)

    OWN: ClassVar[tuple[str, ...]] = ("kind", "train", "valid", "test", "text", "text_b", "id", "header")

    @property
    def classes(self) -> bool:
        """Whether the label is a class; else it is a number."""
        return self.loss not in SCORES

    @property
    def there(self) -> Sequence[str]:
        """Our names of its splits; of rows of one's own those that are named now, which may be more than a run had."""
        if self.source != "file":
            return list(self.splits)
        return [name for name in ("train", "valid", "test") if name == "valid" or getattr(self, name)]

    @property
    def fields(self) -> dict[str, int]:
        """What a prompt may name, a column, or text and text_b: which of the example's texts stands there."""
        names = {"pronoun": ["before", "after"], "story_cloze": ["story"]}  # whose texts are not their columns
        known = names.get(self.layout) or names.get(self.source) or self.columns
        return {name: i for names in (("text", "text_b")[: len(known)], known) for i, name in enumerate(names)}

    @property
    def answers(self) -> list[str]:
        """What a prompt's words are for: the classes, or the lowest and the highest score."""
        return self.labels if self.classes else [str(end) for end in self.range or ()]

    def problems(self) -> Iterator[str]:
        if self.source == "file":
            if self.kind is None:
                yield f"kind is needed with task={self.name}: classification, pair, similarity, regression or choice"
            if self.train is None:
                forms = "a .csv, .tsv, .jsonl or .parquet file, as in task.train=rows.csv"
                yield f"train is needed with task={self.name}: {forms}"
            if not self.columns:  # nobody has looked into the files yet
                return
        elif own := [name for name in self.OWN if getattr(self, name)]:
            yield f"{', '.join(own)}: for rows of one's own alone, task=file"
        fewest, most = TEXTS[self.layout]
        if not fewest <= len(self.columns) <= most:
            wanted = fewest if fewest == most else f"{fewest} to {most}"
            yield f"columns={self.columns}: layout {self.layout} takes {wanted}"
        if bool(self.choices) != (self.layout in ("choice", "pronoun")):
            yield f"choices={self.choices}: layouts choice and pronoun need them, the others have none"
        if self.classes and len(set(self.labels)) < 2:
            yield f"labels={self.labels}: at least two different classes are needed"
        if self.classes and self.range:
            yield f"range={self.range}: with loss={self.loss} the labels are classes, not scores"
        if self.loss == "soft_f1" and (len(self.labels) != 2 or self.choices):
            classes = "a choice's are places" if self.choices else f"labels={self.labels}"
            yield f"loss=soft_f1 is about class 1 of two, but {classes}"
        if not self.classes and (self.labels or self.choices):
            yield f"loss={self.loss} is for scores, but the task has classes: labels={self.labels}"
        if not self.classes and not (self.range and len(self.range) == 2 and self.range[0] < self.range[1]):
            yield f"range={self.range}: loss={self.loss} needs the lowest and the highest score, as in [0, 5]"
        if not self.metrics:
            yield "metrics is empty: name at least the headline metric"
        if not self.splits:
            yield "splits is empty: name at least one"
        if odd := [name for name in self.submission if not re.fullmatch(r"test(_\w+)?", name)]:
            yield f"submission: {', '.join(odd)}: the server takes predictions of test, or of a test_X"
        if odd := [name for name in self.splits if not re.fullmatch(r"(train|valid|test)(_\w+)?", name)]:
            yield f"splits: {', '.join(odd)}: our names are train, valid, test, and valid_X, test_X for further ones"
        if self.zeroshot.rule is not None:
            yield from self._misruled(self.zeroshot)

    def misprompted(self) -> Iterator[str]:
        """What keeps the prompt from fitting the task, told by its full keys; to those alone who use it."""
        if self.source == "file" and not self.columns:  # nobody has looked into the files yet
            return
        for problem in self._prompt_problems(self.prompt):
            yield f"task.{problem}"

    def _prompt_problems(self, prompt: PromptConfig) -> Iterator[str]:
        if prompt.template is None:
            yield f"prompt.template is needed: task={self.name} has none; name one and its words, or prompt=FILE"
        elif problem := config_template.problem(prompt.template, self.fields):
            yield f"prompt.template={display(prompt.template)}: {problem}"
        if self.choices:
            if prompt.words:
                yield f"prompt.words={display(prompt.words)}: a task with choices fills the slot with these"
            return
        if lacking := [label for label in self.answers if not prompt.words.get(label)]:
            yield f"prompt.words: none for {', '.join(lacking)}; each of {', '.join(self.answers)} needs a word"
        if odd := [label for label in prompt.words if label not in self.answers]:
            yield f"prompt.words: {unknown(odd[0], self.answers, f'label of task={self.name}')}"
        if bare := [name for name in prompt.words if not all(word.strip() for word in prompt.alternatives(name))]:
            yield f"prompt.words: an empty one for {', '.join(bare)}"

    def _misruled(self, zeroshot: ZeroshotRule) -> Iterator[str]:
        """What keeps the zero-shot rule from fitting the task."""
        rule, words = zeroshot.rule, zeroshot.words
        if (rule == "rest") != (self.layout == "pronoun"):
            yield f"zeroshot.rule={rule}: rule rest and layout pronoun go together, but layout={self.layout}"
        if rule == "sentence" and (len(self.columns) != 1 or len(self.labels) != 2):
            yield f"zeroshot.rule=sentence tells two labels of one text apart: columns={self.columns}"
        if rule == "sentence" and "train" not in self.splits:
            yield f"zeroshot.rule=sentence takes its threshold from a train split; there: {', '.join(self.splits)}"
        if rule == "answer" and not self.choices and (len(words) != len(self.labels) or not words):
            yield f"zeroshot.words={words}: without choices one is needed for each of labels={self.labels}"
        if words and (rule != "answer" or self.choices):
            yield f"zeroshot.words={words}: they are for rule answer, of tasks without choices"
        if zeroshot.cue and rule != "answer":
            yield f"zeroshot.cue={display(zeroshot.cue)}: it is for rule answer"


# --- how it is executed -----------------------------------------------------------------------------------------------
