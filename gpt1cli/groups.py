"""The groups of conf/ as frozen dataclasses: model, optimizer, tokenizer, corpus, task, study and others.

The defaults live in conf/*.yaml; the meaning of each key, its type and its range live here, in its annotation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from gpt1cli import templates
from gpt1cli.schema import Key, shown, unknown

Count = Annotated[int, Key("", at_least=1)]
NAME = r"\.*[\w-][\w.-]*"  # of a folder: never . or .., which would lead out of the one it is to lie in


# --- what is learned: model, optimizer, schedule ----------------------------------------------------------------------


@dataclass(frozen=True)
class Pretraining:
    """The pretraining recipe that a model size brings with it."""

    batch_size: Annotated[int, Key("sequences in one update", at_least=1)]
    context: Annotated[int, Key("tokens in one sequence", at_least=2)]
    lr: Annotated[float, Key("highest learning rate", above=0)]
    warmup_steps: Annotated[int, Key("updates of linear warm-up", at_least=0)]
    lstm_lr: Annotated[float | None, Key("that of the LSTM of this size (null: the same)", above=0)] = None


@dataclass(frozen=True)
class Finetuning:
    """The fine-tuning recipe that a model size brings with it."""

    lr: Annotated[float, Key("highest learning rate", above=0)]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a language model (the Transformer's: paper, section 4.1) and the recipes that suit its size."""

    name: Annotated[str, Key("name of this size")]
    n_layer: Annotated[int, Key("decoder blocks", at_least=1)]
    d_model: Annotated[int, Key("width of the hidden states", at_least=1)]
    n_head: Annotated[int, Key("attention heads", at_least=1)]
    d_ff: Annotated[int, Key("width inside the feed-forward layer", at_least=1)]
    n_positions: Annotated[int, Key("learned positions: the longest sequence", at_least=2)]
    embedding_dropout: Annotated[float, Key("dropout on the summed embeddings", at_least=0, below=1)]
    attention_dropout: Annotated[float, Key("dropout on the attention weights", at_least=0, below=1)]
    residual_dropout: Annotated[float, Key("dropout before each residual sum", at_least=0, below=1)]
    layer_norm_eps: Annotated[float, Key("epsilon inside the root of LayerNorm", above=0)]
    init_std: Annotated[float, Key("standard deviation of fresh weights", above=0)]
    pretraining: Pretraining
    finetuning: Finetuning
    architecture: Annotated[Literal["transformer", "lstm"], Key("decoder blocks or a recurrent layer")] = "transformer"
    lstm_units: Annotated[int | None, Key("units of the recurrent layer (architecture=lstm)", at_least=1)] = None
    norm: Annotated[
        Literal["post", "pre"],
        Key("after each residual sum (GPT-1), or before attention and feed-forward and after the last block (GPT-2)"),
    ] = "post"

    SHAPES: ClassVar[dict[str, tuple[str, ...]]] = {  # what a checkpoint's weights fix
        "transformer": (
            *("architecture", "norm", "layer_norm_eps"),
            *("n_layer", "d_model", "n_head", "d_ff", "n_positions"),
        ),
        "lstm": ("architecture", "d_model", "lstm_units", "n_positions"),
    }

    @property
    def shape(self) -> dict[str, Any]:
        """What a checkpoint's weights fix."""
        return {name: getattr(self, name) for name in self.SHAPES[self.architecture]}

    def as_lstm(self) -> ModelConfig:
        """The recurrent model of this size; where no units are named 8/3 of the width, as 2048 are of base's 768."""
        return dataclasses.replace(self, architecture="lstm", lstm_units=self.lstm_units or self.d_model * 8 // 3)

    def problems(self) -> Iterator[str]:
        if self.architecture == "lstm" and self.lstm_units is None:
            yield "lstm_units is needed with architecture=lstm"
        if self.d_model % self.n_head:
            yield f"n_head={self.n_head} does not divide d_model={self.d_model}"
        if self.pretraining.context > self.n_positions:
            yield f"pretraining.context={self.pretraining.context} exceeds n_positions={self.n_positions}"


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay and global-norm clipping (paper, section 4.1)."""

    name: Annotated[Literal["adamw"], Key("name of the optimizer")]
    beta1: Annotated[float, Key("decay of the first moment", at_least=0, below=1)]
    beta2: Annotated[float, Key("decay of the second moment", at_least=0, below=1)]
    eps: Annotated[float, Key("added to the root of the second moment", above=0)]
    weight_decay: Annotated[float, Key("decoupled decay of every tensor of more than one dimension", at_least=0)]
    clip_norm: Annotated[float, Key("largest global norm of the gradient", above=0)]


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate's factor as a function of the step: see optim.SCHEDULES."""

    name: Annotated[Literal["cosine", "linear", "constant"], Key("shape after the warm-up")]


# --- what is read: tokenizer, corpus, task ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizerConfig:
    """Where the byte-pair vocabulary comes from, and what its pieces are made of."""

    name: Annotated[str, Key("name of the tokenizer")]
    source: Annotated[Literal["hub", "corpus", "demo"], Key("published vocabulary, or merges trained on the corpus")]
    repo: Annotated[str | None, Key("hub repository with vocab.json and merges.txt (source=hub)")]
    merges: Annotated[int | None, Key("merges to train (source=corpus, demo)", at_least=1)]
    level: Annotated[
        Literal["words", "bytes"],
        Key("symbols of cleaned, lower-cased words (GPT-1), or bytes of the text as it is (GPT-2)"),
    ] = "words"

    def problems(self) -> Iterator[str]:
        if self.source == "hub" and not self.repo:
            yield "repo is needed with source=hub"
        if self.source == "hub" and self.merges:
            yield f"merges={self.merges} is for merges trained here: name tokenizer=bpe or tokenizer=bytes too"
        if self.source in ("corpus", "demo") and not self.merges:
            yield f"merges is needed with source={self.source}"


@dataclass(frozen=True)
class CorpusConfig:
    """Raw text for pretraining, as documents."""

    name: Annotated[str, Key("name of the corpus", pattern=NAME)]
    source: Annotated[Literal["text", "hub", "demo"], Key("files, a hub data set, or the built-in demo world")]
    path: Annotated[str | None, Key("file, folder or glob of UTF-8 .txt, .jsonl or .parquet (source=text)")]
    column: Annotated[str | None, Key("column that holds the text of .jsonl, .parquet and hub rows")]
    repo: Annotated[str | None, Key("hub data set (source=hub)")]
    subset: Annotated[str | None, Key("configuration of the hub data set")]
    documents: Annotated[Literal["rows", "articles"], Key("a document is a row, or the lines under a = title =")]
    eval_tokens: Annotated[int, Key("validation tokens scored at a time in pretraining", at_least=1)]

    def problems(self) -> Iterator[str]:
        if self.source != "text" and self.path:
            yield f"path={self.path} is read with source=text alone: name corpus=text too"
        if self.source != "hub" and self.documents == "articles":
            yield "documents=articles is for the rows of a hub data set: source=hub"
        if self.source == "text" and not self.path:
            yield "path is needed with source=text: a file, a folder or a glob, as in corpus.path=books/"
        if self.source == "hub" and not (self.repo and self.column):
            yield "repo and column are needed with source=hub"


TEXTS = {"single": (1, 1), "pair": (2, 2), "similarity": (2, 2), "choice": (0, 4), "pronoun": (2, 2)}  # layout: columns
GlueFile = Literal["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
SCORES = ("mse", "ordinal", "interpolation")  # losses of tasks whose label is a number, not a class


@dataclass(frozen=True, kw_only=True)
class ZeroshotRule:
    """How a language model answers a task as it is, without training (paper, section 5): see probing.RULES."""

    rule: Annotated[
        Literal["sentence", "answer", "rest"] | None,
        Key("what is scored: the text itself, an answer behind it, what follows a referent (null: no rule)"),
    ] = None
    cue: Annotated[str, Key("text between the example and its answers (rule answer)")] = ""
    words: Annotated[list[str], Key("a word for each label, the answers of a task without choices (rule answer)")] = (
        field(default_factory=list)
    )
    opening: Annotated[
        str, Key("text before what nothing precedes (empty: nothing, and its first token is not scored)")
    ] = ""
    normalise: Annotated[Literal["mean", "sum"], Key("of the log-probabilities of the scored tokens")] = "mean"
    chance: Annotated[float, Key("headline metric of guessing: 0 in a figure")] = 0.0
    reference: Annotated[float | None, Key("headline metric of a trained model: 1 in a figure (null: unknown)")] = None

    def problems(self) -> Iterator[str]:
        if self.reference is not None and self.reference <= self.chance:
            yield f"reference={self.reference} is not above chance={self.chance}"


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How a labelled example becomes text that a language model goes on from: see prompting.py."""

    template: Annotated[
        str | None, Key("text with {fields} of the example and one {label}, anywhere (null: no prompt)", filled=True)
    ] = None
    words: Annotated[
        dict[str, list[str] | str],
        Key("label: the word or phrase in its slot, or a list of alternatives (none: the example's own choices)"),
    ] = field(default_factory=dict)
    separator: Annotated[
        str, Key("text between demonstrations and before the query, and before a slot that nothing precedes")
    ] = "\n"
    description: Annotated[str, Key("text before everything: what is asked")] = ""
    normalise: Annotated[Literal["sum", "mean"], Key("of the log-probabilities of the scored pieces")] = "sum"
    content_free: Annotated[
        str | None, Key("text for every field of a prompt whose scores are subtracted (null: no calibration)")
    ] = None

    def alternatives(self, label: str) -> list[str]:
        """The words of a label, at least one."""
        words = self.words[label]
        return [words] if isinstance(words, str) else words


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A labelled data set and how its rows become inputs (paper, section 3.3)."""

    name: Annotated[str, Key("name of the task", pattern=NAME)]
    source: Annotated[str, Key("loader in gpt1cli/tasks")]
    layout: Annotated[
        Literal["single", "pair", "similarity", "choice", "pronoun"], Key("input transformation (tasks/layouts.py)")
    ]
    repo: Annotated[str | None, Key("hub data set")] = None
    subset: Annotated[str | None, Key("configuration of the hub data set")] = None
    path: Annotated[str | None, Key("folder with the authors' own files, instead of the hub (story_cloze)")] = None
    remedy: Annotated[str | None, Key("how to get the data set where the hub does not give it")] = None
    kind: Annotated[
        Literal["classification", "pair", "similarity", "regression", "choice"] | None,
        Key("what the rows of one's own files are (task=file)"),
    ] = None
    train: Annotated[str | None, Key("file of the training rows (task=file)", filled=True)] = None
    valid: Annotated[str | None, Key("file of the validation rows (null: some of train's)", filled=True)] = None
    test: Annotated[str | None, Key("file of the test rows (task=file)", filled=True)] = None
    text: Annotated[str | None, Key("column of the text, or the first text (null: by usual names)", filled=True)] = None
    text_b: Annotated[str | None, Key("column of the second text (null: by usual names)", filled=True)] = None
    id: Annotated[str | None, Key("column of an id for each row (null: its line)", filled=True)] = None
    header: Annotated[
        list[str], Key("names of the columns of .csv and .tsv files whose first line is a row (none: it has the names)")
    ] = field(default_factory=list)
    holdout: Annotated[float, Key("share of every class of train that validates without valid", above=0, below=1)] = 0.1
    columns: Annotated[list[str], Key("columns of the texts, in the order of the input")]
    choices: Annotated[
        list[str], Key("columns of the answers, or one that holds them all (layouts choice, pronoun)")
    ] = field(default_factory=list)
    label: Annotated[str, Key("column of the label (task=file, empty: by usual names)")]
    labels: Annotated[
        list[str], Key("names of the classes, in the order of the data set's own ids; none for scores")
    ] = field(default_factory=list)
    range: Annotated[list[int] | None, Key("lowest and highest score (loss=mse, ordinal)")] = None
    loss: Annotated[
        Literal["cross_entropy", "soft_f1", "mse", "ordinal", "interpolation"],
        Key(
            "what is minimised: of classes cross_entropy or soft_f1, of scores mse or ordinal (method=head),"
            " or interpolation, between two words (method=prompt)"
        ),
    ] = "cross_entropy"
    metrics: Annotated[list[str], Key("metrics reported; the first is the headline that picks the best checkpoint")]
    splits: Annotated[dict[str, str], Key("our split name: the data set's split name")]
    submission: Annotated[dict[str, GlueFile], Key("our split name: the GLUE server's file for its predictions")] = (
        field(default_factory=dict)
    )
    few_test: Annotated[
        Literal["test", "valid"], Key("the split that runs with shots=K are tested on; its labels are public")
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
        elif problem := templates.problem(prompt.template, self.fields):
            yield f"prompt.template={shown(prompt.template)}: {problem}"
        if self.choices:
            if prompt.words:
                yield f"prompt.words={shown(prompt.words)}: a task with choices fills the slot with these"
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
            yield f"zeroshot.cue={shown(zeroshot.cue)}: it is for rule answer"


@dataclass(frozen=True)
class Limit:
    """The first n rows of a seeded shuffle of each split, after filtering."""

    train: Annotated[int | None, Key("training rows used", at_least=1)]
    valid: Annotated[int | None, Key("rows used of each validation split", at_least=1)]
    test: Annotated[int | None, Key("rows used of each test split", at_least=1)]


@dataclass(frozen=True)
class FewConfig:
    """The fine-tuning recipe that shots=K brings, where its keys are not named."""

    steps: Annotated[int, Key("updates", at_least=1)]
    eval_every: Annotated[int, Key("updates between two validations", at_least=1)]
    batch_size: Annotated[int, Key("examples in one update", at_least=1)]
    warmup_fraction: Annotated[float, Key("share of the updates spent in warm-up", at_least=0, at_most=1)]
    weight_decay: Annotated[float, Key("that of the optimizer", at_least=0)]
    aux_lm: Annotated[bool, Key("whether there is an auxiliary language-model loss")]

    PLACES: ClassVar[dict[str, str]] = {"weight_decay": "optimizer.weight_decay"}  # of others: the key of that name


@dataclass(frozen=True)
class AblationConfig:
    """One ingredient taken away: a named list of ordinary overrides, applied after the user's own."""

    name: Annotated[str, Key("name of the ablation")]
    overrides: Annotated[list[str], Key("the overrides it stands for")]


@dataclass(frozen=True)
class GridConfig:
    """Values of which the validation split picks one for every task, row and seed of a study on few examples."""

    batch_size: Annotated[list[Count] | None, Key("examples in one update")] = None
    lr: Annotated[list[Annotated[float, Key("", above=0)]] | None, Key("highest learning rate")] = None

    def problems(self) -> Iterator[str]:
        for name, values in dataclasses.asdict(self).items():
            if values is not None and (not values or len(set(values)) < len(values)):
                yield f"{name}={values}: at least one, each once"


@dataclass(frozen=True)
class StudyConfig:
    """A table or figure of the paper as the runs that it takes: its cells."""

    name: Annotated[str, Key("name of the study", pattern=NAME)]
    kind: Annotated[
        Literal["transfer", "few"], Key("what its rows are: ablations, or ways to learn from few examples (LM-BFF)")
    ] = "transfer"
    tasks: Annotated[list[str], Key("tasks of the table, one column each")] = field(default_factory=list)
    variants: Annotated[list[str], Key("ablations of the table, one row each; of kind=few those of fewstudy.ROWS")] = (
        field(default_factory=list)
    )
    transfer: Annotated[list[str], Key("tasks fine-tuned behind 0, 1, ... transferred blocks (Figure 2, left)")] = (
        field(default_factory=list)
    )
    zeroshot: Annotated[list[str], Key("tasks scored at every kept checkpoint, untrained (Figure 2, right)")] = field(
        default_factory=list
    )
    pretraining: Annotated[
        list[str], Key("overrides of gpt1 pretrain for a Transformer and an LSTM of its own (empty: init is named)")
    ] = field(default_factory=list)
    overrides: Annotated[list[str], Key("overrides of gpt1 finetune for every cell")] = field(default_factory=list)
    grid: Annotated[GridConfig, Key("values that the validation split chooses from (kind=few)")] = field(
        default_factory=GridConfig
    )
    search: Annotated[list[str], Key("overrides of gpt1 search for the automatic prompts (kind=few)")] = field(
        default_factory=list
    )

    def problems(self) -> Iterator[str]:
        if self.kind == "few" and (self.transfer or self.zeroshot):
            yield "transfer and zeroshot are figures of GPT-1's paper: a study of kind=few has none"
        if self.kind != "few" and (self.search or self.grid != GridConfig()):
            yield "grid and search are for a study of kind=few"
        if not (self.tasks or self.transfer or self.zeroshot):
            yield "tasks, transfer and zeroshot are empty: nothing to run"
        if self.tasks and not self.variants:
            yield "variants is empty: name at least one ablation, as in [full]"
        if self.zeroshot and not self.pretraining:
            yield "zeroshot scores the checkpoints of the study's own pretraining: name pretraining overrides too"


# --- how it is executed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how a run is executed; nothing here changes what is learned, but for rounding."""

    device: Annotated[Literal["auto", "cpu", "cuda"], Key("where to compute (auto: cuda where there is one)")]
    precision: Annotated[Literal["auto", "fp32", "bf16"], Key("arithmetic (auto: bf16 where the hardware has it)")]
    compile: Annotated[bool, Key("compile the model that is trained, with torch.compile")]
    threads: Annotated[int | None, Key("CPU threads of a process (null: torch's choice)", at_least=1)]
    devices: Annotated[int, Key("processes on this machine that share each update (torchrun sets it)", at_least=1)]
    shard: Annotated[bool, Key("cut weights, gradients and moments up among the processes (FSDP)")]
    micro_batch: Annotated[
        int | None, Key("sequences computed at a time (null: as many as fit a token budget)", at_least=1)
    ]
    progress: Annotated[Literal["auto", "live", "plain", "none"], Key("a live line on a terminal, or plain lines")]


@dataclass(frozen=True)
class LoggerConfig:
    """The experiment tracker that follows metrics.jsonl: see trackers.TRACKERS."""

    name: Annotated[Literal["none", "tensorboard", "wandb", "mlflow", "trackio"], Key("the tracker")]
    project: Annotated[str | None, Key("project (of mlflow: experiment) that takes the run", pattern=NAME)]

    def problems(self) -> Iterator[str]:
        if self.project is None and self.name in ("wandb", "mlflow", "trackio"):
            yield f"project is needed with logger={self.name}"
        if self.project is not None and self.name in ("none", "tensorboard"):
            yield f"project={self.project} is for wandb, mlflow and trackio: logger={self.name} has no projects"
