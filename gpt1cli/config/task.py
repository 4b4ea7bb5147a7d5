"""The task group: a labelled data set, its splits, its prompt, and the checks of its keys.

The defaults are in conf/task/*.yaml; the annotation of each key holds its meaning, type and range.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from gpt1cli.config import template as config_template
from gpt1cli.config.prompt import PromptConfig, ZeroshotRule
from gpt1cli.config.schema import Field, display, unknown_name
from gpt1cli.config.training import NAME_PATTERN

TEXT_COUNTS = {
    "single": (1, 1),
    "pair": (2, 2),
    "similarity": (2, 2),
    "choice": (0, 4),
    "pronoun": (2, 2),
}  # layout: columns
GlueFile = Literal["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
SCORE_LOSSES = ("mse", "ordinal", "interpolation")  # losses of tasks whose label is a number, not a class


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A labelled data set and how its rows become inputs (paper, section 3.3)."""

    name: Annotated[str, Field("name of the task", pattern=NAME_PATTERN)]
    source: Annotated[str, Field("loader: a module of gpt1cli/tasks/sources")]
    layout: Annotated[
        Literal["single", "pair", "similarity", "choice", "pronoun"], Field("input transformation (tasks/layouts.py)")
    ]
    repo: Annotated[str | None, Field("hub data set")] = None
    subset: Annotated[str | None, Field("configuration name of the hub data set")] = None
    path: Annotated[str | None, Field("folder with the authors' files, instead of the hub (story_cloze)")] = None
    remedy: Annotated[str | None, Field("how to get the data set if the hub does not provide it")] = None
    kind: Annotated[
        Literal["classification", "pair", "similarity", "regression", "choice"] | None,
        Field("type of task of your own files (task=file)"),
    ] = None
    train: Annotated[str | None, Field("file of the training rows (task=file)", nonempty=True)] = None
    valid: Annotated[str | None, Field("file of the validation rows (null: held out from train)", nonempty=True)] = None
    test: Annotated[str | None, Field("file of the test rows (task=file)", nonempty=True)] = None
    text: Annotated[
        str | None, Field("column of the text, or of the first text (null: detect by common names)", nonempty=True)
    ] = None
    text_b: Annotated[str | None, Field("column of the second text (null: detect by common names)", nonempty=True)] = (
        None
    )
    id: Annotated[str | None, Field("column of the row id (null: line number)", nonempty=True)] = None
    header: Annotated[
        list[str],
        Field("column names for .csv and .tsv files without a header line (empty: the first line is the header)"),
    ] = field(default_factory=list)
    holdout: Annotated[
        float, Field("fraction of each class of train held out for validation if valid is null", above=0, below=1)
    ] = 0.1
    columns: Annotated[list[str], Field("text columns, in the order of the input")]
    choices: Annotated[list[str], Field("answer columns, or one column with all answers (layouts choice, pronoun)")] = (
        field(default_factory=list)
    )
    label: Annotated[str, Field("column of the label (task=file, empty: detect by common names)")]
    labels: Annotated[list[str], Field("class names, in the order of the data set's ids; empty for scores")] = field(
        default_factory=list
    )
    range: Annotated[list[int] | None, Field("minimum and maximum score (loss=mse, ordinal)")] = None
    loss: Annotated[
        Literal["cross_entropy", "soft_f1", "mse", "ordinal", "interpolation"],
        Field(
            "training loss: cross_entropy or soft_f1 for classes; mse or ordinal for scores (method=head),"
            " or interpolation between two words (method=prompt)"
        ),
    ] = "cross_entropy"
    metrics: Annotated[
        list[str], Field("reported metrics; the first is the headline metric and selects the best checkpoint")
    ]
    splits: Annotated[dict[str, str], Field("split name here -> split name in the data set")]
    submission: Annotated[
        dict[str, GlueFile], Field("split name -> file name of its predictions on the GLUE server")
    ] = field(default_factory=dict)
    few_test: Annotated[Literal["test", "valid"], Field("test split of runs with shots=K; its labels are public")] = (
        "test"
    )
    zeroshot: ZeroshotRule = field(default_factory=ZeroshotRule)
    prompt: PromptConfig = field(default_factory=PromptConfig)

    FILE_KEYS: ClassVar[tuple[str, ...]] = ("kind", "train", "valid", "test", "text", "text_b", "id", "header")

    @property
    def is_classification(self) -> bool:
        """Whether the label is a class, not a number."""
        return self.loss not in SCORE_LOSSES

    @property
    def split_names(self) -> Sequence[str]:
        """The names of the splits; with task=file those named now, perhaps more than a trained run had."""
        if self.source != "file":
            return list(self.splits)
        return [name for name in ("train", "valid", "test") if name == "valid" or getattr(self, name)]

    @property
    def fields(self) -> dict[str, int]:
        """Field name of a prompt template (a column, or text, text_b) -> index of the example's text."""
        names = {"pronoun": ["before", "after"], "story_cloze": ["story"]}  # their texts differ from their columns
        known = names.get(self.layout) or names.get(self.source) or self.columns
        return {name: i for names in (("text", "text_b")[: len(known)], known) for i, name in enumerate(names)}

    @property
    def answer_labels(self) -> list[str]:
        """The labels that a verbalizer needs words for: the classes, or the minimum and maximum score."""
        return self.labels if self.is_classification else [str(end) for end in self.range or ()]

    def problems(self) -> Iterator[str]:
        if self.source == "file":
            if self.kind is None:
                yield f"kind is needed with task={self.name}: classification, pair, similarity, regression or choice"
            if self.train is None:
                formats = "a .csv, .tsv, .jsonl or .parquet file, as in task.train=rows.csv"
                yield f"train is needed with task={self.name}: {formats}"
            if not self.columns:  # the files have not been read yet
                return
        elif file_keys := [name for name in self.FILE_KEYS if getattr(self, name)]:
            yield f"{', '.join(file_keys)}: only for your own files, with task=file"
        fewest, most = TEXT_COUNTS[self.layout]
        if not fewest <= len(self.columns) <= most:
            allowed = fewest if fewest == most else f"{fewest} to {most}"
            yield f"columns={self.columns}: layout={self.layout} needs {allowed}"
        if bool(self.choices) != (self.layout in ("choice", "pronoun")):
            yield f"choices={self.choices}: needed with layout=choice and pronoun only, but layout={self.layout}"
        if self.is_classification and len(set(self.labels)) < 2:
            yield f"labels={self.labels}: needs at least two different classes"
        if self.is_classification and self.range:
            yield f"range={self.range} is for scores, but with loss={self.loss} the labels are classes: remove range"
        if self.loss == "soft_f1" and (len(self.labels) != 2 or self.choices):
            classes = f"choices={self.choices}" if self.choices else f"labels={self.labels}"
            yield f"loss=soft_f1 needs a task with exactly two classes, but {classes}"
        if not self.is_classification and (self.labels or self.choices):
            yield f"loss={self.loss} is for scores, but the task has labels={self.labels}, choices={self.choices}"
        if not self.is_classification and not (self.range and len(self.range) == 2 and self.range[0] < self.range[1]):
            yield f"range={self.range}: loss={self.loss} needs the minimum and maximum score, as in [0, 5]"
        if not self.metrics:
            yield "metrics is empty: name at least one; the first is the headline metric"
        if not self.splits:
            yield "splits is empty: name at least one"
        if wrong := [name for name in self.submission if not re.fullmatch(r"test(_\w+)?", name)]:
            yield f"submission: {', '.join(wrong)}: only the splits test and test_NAME can be submitted"
        if wrong := [name for name in self.splits if not re.fullmatch(r"(train|valid|test)(_\w+)?", name)]:
            yield f"splits: {', '.join(wrong)}: a split is named train, valid, test, valid_NAME or test_NAME"
        if self.zeroshot.rule is not None:
            yield from self._zero_shot_problems(self.zeroshot)

    def prompt_problems(self) -> Iterator[str]:
        """Yield the mistakes of the prompt, with full keys; only for the commands that use it."""
        if self.source == "file" and not self.columns:  # the files have not been read yet
            return
        for problem in self._template_problems(self.prompt):
            yield f"task.{problem}"

    def _template_problems(self, prompt: PromptConfig) -> Iterator[str]:
        if prompt.template is None:
            yield f"prompt.template is needed: task={self.name} has none; name task.prompt.template or prompt=FILE"
        elif problem := config_template.template_problem(prompt.template, self.fields):
            yield f"prompt.template={display(prompt.template)}: {problem}"
        if self.choices:
            if prompt.words:
                yield f"prompt.words={display(prompt.words)}: remove it; the task's choices are its words"
            return
        if missing := [label for label in self.answer_labels if not prompt.words.get(label)]:
            yield f"prompt.words: no word for {', '.join(missing)}; each of {', '.join(self.answer_labels)} needs one"
        if unknown := [label for label in prompt.words if label not in self.answer_labels]:
            yield f"prompt.words: {unknown_name(unknown[0], self.answer_labels, f'label of task={self.name}')}"
        if blank := [name for name in prompt.words if not all(word.strip() for word in prompt.alternatives(name))]:
            yield f"prompt.words: empty word for {', '.join(blank)}"

    def _zero_shot_problems(self, zeroshot: ZeroshotRule) -> Iterator[str]:
        """Yield the mistakes of the zero-shot rule."""
        rule, words = zeroshot.rule, zeroshot.words
        if (rule == "rest") != (self.layout == "pronoun"):
            yield f"zeroshot.rule={rule}: rule=rest and layout=pronoun need each other, but layout={self.layout}"
        if rule == "sentence" and (len(self.columns) != 1 or len(self.labels) != 2):
            yield f"zeroshot.rule=sentence needs one text and two labels: columns={self.columns}, labels={self.labels}"
        if rule == "sentence" and "train" not in self.splits:
            yield f"zeroshot.rule=sentence sets its threshold on a train split; splits: {', '.join(self.splits)}"
        if rule == "answer" and not self.choices and (len(words) != len(self.labels) or not words):
            yield f"zeroshot.words={words}: without choices, each of labels={self.labels} needs a word"
        if words and (rule != "answer" or self.choices):
            yield f"zeroshot.words={words}: only for rule=answer and tasks without choices"
        if zeroshot.cue and rule != "answer":
            yield f"zeroshot.cue={display(zeroshot.cue)}: only for rule=answer"
