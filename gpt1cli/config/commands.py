"""Every command's configuration as a frozen dataclass: its own keys, and the groups of conf/ that it takes.

Hydra composes yaml files and command-line overrides into a nested mapping; `schema.build` turns that mapping into the
dataclass of the command, once. Behind this door nobody sees a mapping again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from gpt1cli.config.data import CorpusConfig, TokenizerConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import Field, display, unknown
from gpt1cli.config.study import AblationConfig, GridConfig, StudyConfig
from gpt1cli.config.task import TaskConfig
from gpt1cli.config.training import (
    NAME,
    Count,
    FewConfig,
    Limit,
    LoggerConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
)

Probability = Annotated[float, Field("", at_least=0, below=1)]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every command takes."""

    seed: Annotated[int, Field("seed of weights, order and dropout", at_least=0, below=2**63)]
    name: Annotated[str, Field("name of the run's folder", pattern=NAME)]
    out: Annotated[str, Field("root of the run folders", filled=True)]
    cache: Annotated[str, Field("folder for prepared corpora and downloads", filled=True)]
    hub: Annotated[str | None, Field("folder laid out like the Hugging Face hub, instead of the network", filled=True)]
    runtime: RuntimeConfig

    def problems(self) -> Iterator[str]:
        if not isinstance(self, (TrainConfig, SweepsConfig)) and (self.runtime.devices > 1 or self.runtime.shard):
            yield "runtime.devices and runtime.shard are for training: leave them out"


@dataclass(frozen=True)
class PlanConfig:
    """What a dry run plans for besides this machine and this text."""

    tokens: Annotated[
        float | None,
        Field("training tokens of a corpus that is not at hand: no text is read, not even to tokenise", at_least=1),
    ]
    tflops: Annotated[
        float | None,
        Field(
            "10^12 operations a second that one described device sustains on this model: sustained, not peak", above=0
        ),
    ]
    memory_gb: Annotated[float | None, Field("memory of one described device, a GPU, in 10^9 bytes", above=0)]
    devices: Annotated[int | None, Field("described devices that share each update (null: 1)", at_least=1)]

    def problems(self) -> Iterator[str]:
        if self.devices is not None and self.tflops is None and self.memory_gb is None:
            yield f"devices={self.devices} says how many, but not of what: name plan.tflops or plan.memory_gb too"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """What both kinds of training take."""

    init: Annotated[str, Field("starting point: openai, gpt2, none, a run folder, a checkpoint folder", filled=True)]
    resume: Annotated[str | None, Field("run folder to go on with", filled=True)]
    config: Annotated[str | None, Field("config.yaml of an earlier run, to repeat it", filled=True)]
    model: ModelConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    logger: LoggerConfig
    epochs: Annotated[float | None, Field("passes over the training data", above=0)]
    steps: Annotated[int | None, Field("updates, instead of epochs", at_least=1)]
    batch_size: Annotated[int, Field("sequences (examples) in one update", at_least=1)]
    lr: Annotated[float, Field("highest learning rate", above=0)]
    log_every: Annotated[int, Field("updates between two lines of training metrics", at_least=1)]
    dry_run: Annotated[bool, Field("train nothing: tell parameters, FLOPs, memory, and from two updates the hours")]
    plan: PlanConfig

    def problems(self) -> Iterator[str]:
        if (self.epochs is None) == (self.steps is None):
            yield "exactly one of epochs and steps is needed: set the other to null"
        if self.runtime.shard and self.runtime.devices == 1:
            yield "runtime.shard=true cuts up among several processes: name runtime.devices= too, or leave shard out"
        if self.model.architecture == "lstm" and (self.runtime.shard or self.runtime.compile):
            yield "runtime.shard and runtime.compile are for decoder blocks: leave them out with architecture=lstm"
        if self.runtime.devices > self.batch_size:
            yield f"runtime.devices={self.runtime.devices} share the {self.batch_size} sequences of batch_size: too few"
        given = {key: value for key, value in dataclasses.asdict(self.plan).items() if value is not None}
        if given and not self.dry_run:
            named = " ".join(f"plan.{key}={display(value)}" for key, value in given.items())
            yield f"{named}: a plan is what a dry run makes; name dry_run=true too, or set it to null"
        if self.dry_run and self.resume:
            yield f"dry_run=true trains nothing that could go on: leave it out, or resume={display(self.resume)}"
        if self.dry_run and (self.runtime.devices > 1 or self.runtime.shard):
            yield "dry_run=true times one device: leave runtime.devices and shard out; plan.devices= plans for several"
        if self.dry_run and self.logger.name != "none":
            yield f"dry_run=true has no metrics to follow: name logger=none instead of {self.logger.name}"
        if self.plan.devices is not None and self.plan.devices > self.batch_size:
            yield f"plan.devices={self.plan.devices} exceeds batch_size={self.batch_size}: some would be idle"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(RunConfig):
    """What gpt1 prepare takes."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """What gpt1 pretrain takes."""

    corpus: CorpusConfig
    context: Annotated[int, Field("tokens in one sequence", at_least=2)]
    warmup_steps: Annotated[
        int | None, Field("updates of warm-up (null: the model's own, at most 10% of the run)", at_least=0)
    ]
    eval_every: Annotated[int | None, Field("updates between two validations (null: ten in a run)", at_least=1)]
    eval_tokens: Annotated[int, Field("validation tokens scored at a time, evenly spread", at_least=1)]
    checkpoint_every: Annotated[
        int | None, Field("updates between two checkpoints (null: at each validation)", at_least=1)
    ]
    keep_checkpoints: Annotated[list[Count], Field("steps whose checkpoint is kept for later probing")]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.context > self.model.n_positions:
            yield f"context={self.context} exceeds model.n_positions={self.model.n_positions}"
        if self.steps is not None:  # of epochs the updates are known when the corpus is
            yield from self.too_late(self.steps)

    def too_late(self, steps: int) -> Iterator[str]:
        """What is to happen after the last of so many updates."""
        if self.warmup_steps is not None and self.warmup_steps > steps:
            yield f"warmup_steps={self.warmup_steps} exceeds steps={steps}"
        if late := [step for step in self.keep_checkpoints if step > steps]:
            yield f"keep_checkpoints={late}: later than the last step, {steps}"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """What gpt1 finetune takes."""

    task: TaskConfig
    ablation: AblationConfig
    shots: Annotated[
        int | None, Field("train on K examples of each class, drawn by seed, and validate on K more", at_least=1)
    ]
    few: FewConfig
    method: Annotated[
        Literal["head", "prompt"],
        Field("a linear layer on top, or the label's words in task.prompt, scored by the model itself (LM-BFF)"),
    ]
    prompt: Annotated[
        str | None, Field("yaml with template, words, ... in the place of task.prompt (method=prompt)", filled=True)
    ]
    demos: Annotated[
        Literal["none", "random", "similar"],
        Field("examples shown before a query, one of each class: of all, or of the half most like it (method=prompt)"),
    ]
    demo_sets: Annotated[int, Field("sets of them whose scores are averaged when a split is scored", at_least=1)]
    similar_by: Annotated[
        str,
        Field(
            "what says which are alike (demos=similar): states, the model's own, or a sentence-transformers model",
            filled=True,
        ),
    ]
    eval_every: Annotated[int | None, Field("updates between two validations (null: an epoch)", at_least=1)]
    init_lstm: Annotated[
        str | None,
        Field("what ablation=lstm starts from; none: fresh (null: the newest of init's size under out)", filled=True),
    ]
    pretrained: Annotated[bool, Field("false: shape and tokenizer of init, fresh weights")]
    transfer_layers: Annotated[
        Annotated[int, Field("", at_least=0)] | Literal["all"],
        Field("embeddings and the first k blocks come from init, the rest is fresh"),
    ]
    score_train: Annotated[bool, Field("score the training split too, when all is done")]
    aux_lm: Annotated[bool, Field("add lm_coef x the language-model loss of the same inputs")]
    lm_coef: Annotated[float, Field("weight of the auxiliary language-model loss", at_least=0)]
    head_dropout: Annotated[float, Field("dropout before the classifier", at_least=0, below=1)]
    warmup_fraction: Annotated[float, Field("share of the updates spent in warm-up", at_least=0, at_most=1)]
    limit: Limit

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.transfer_layers != "all" and self.transfer_layers > self.model.n_layer:
            yield f"transfer_layers={self.transfer_layers} exceeds model.n_layer={self.model.n_layer}"
        if self.model.architecture == "lstm" and self.transfer_layers != "all":
            yield f"transfer_layers={self.transfer_layers} counts decoder blocks, and an LSTM has none: leave it out"
        if self.init == "none" and self.transfer_layers != "all":
            yield "transfer_layers needs an init to transfer from"
        fresh = "none" if self.model.architecture == "lstm" and not self.pretrained else None
        if self.init_lstm not in (None, fresh, self.init):  # ablation=lstm has put it there
            where = "only ablation=lstm starts from it, in the place of a Transformer's init="
            yield f"init_lstm={display(self.init_lstm)} is unused: {where}"
        if self.plan.tokens is not None:
            yield f"plan.tokens={display(self.plan.tokens)} is for pretraining: a task's own examples are counted"
        if not self.pretrained and self.transfer_layers != "all":
            yield f"transfer_layers={self.transfer_layers} transfers weights, but pretrained=false leaves all fresh"
        looked_into = self.task.source != "file" or self.task.splits
        needed = {"train"} if self.shots else {"train", "valid"}
        if looked_into and not needed <= set(self.task.splits):
            wanted, there = " and ".join(sorted(needed)), ", ".join(self.task.splits)
            yield f"task={self.task.name} has no {wanted} split{'s'[len(needed) < 2 :]} to fine-tune on; there: {there}"
        if self.shots and (self.limit.train or self.limit.valid):
            yield f"shots={self.shots} says how many examples train and valid have: leave limit.train and .valid out"
        if self.method == "prompt":
            yield from self.task.misprompted()
        if self.method == "prompt" and self.task.prompt.content_free is not None:
            yield "task.prompt.content_free calibrates a model that is not trained: leave it out with method=prompt"
        if self.method == "head" and self.task.loss == "interpolation":
            yield "task.loss=interpolation is between two words: name method=prompt too"
        if self.method == "head" and self.prompt is not None:
            yield f"prompt={display(self.prompt)} is for method=prompt: name that too"
        if self.method == "head" and self.demos != "none":
            yield f"demos={self.demos}: a head has no prompt that they could stand in: name method=prompt too"
        if self.demos != "none" and (self.shots or 0) < 2:
            given = f"shots={self.shots} leaves" if self.shots else "without shots=K there are"
            yield f"demos={self.demos}: {given} no examples to show besides the query itself: name shots=2 or more"
        if self.similar_by != "states" and self.demos != "similar":
            yield f"similar_by={display(self.similar_by)} is for demos=similar, but demos={self.demos}"
        if self.shots and self.seed >= 2**32:
            yield f"seed={self.seed}: examples are drawn by a generator that takes seeds below 2**32"
        micro_batch = self.runtime.micro_batch
        if self.task.loss == "soft_f1" and micro_batch is not None and micro_batch < self.batch_size:
            yield f"task.loss=soft_f1 is that of a whole batch: runtime.micro_batch={micro_batch} would split it"
        if self.task.loss == "soft_f1" and self.runtime.devices > 1:
            yield f"task.loss=soft_f1 is that of a whole batch: runtime.devices={self.runtime.devices} would split it"


@dataclass(frozen=True, kw_only=True)
class SweepsConfig(RunConfig):
    """What gpt1 ablation, alias gpt1 sweeps, takes."""

    study: StudyConfig
    logger: LoggerConfig
    tasks: Annotated[list[str] | None, Field("these tasks instead of the study's")]
    variants: Annotated[list[str] | None, Field("these ablations (of kind=few: rows) instead of the study's")]
    grid: Annotated[GridConfig, Field("these values instead of the study's (a study of kind=few)")]
    ablation: Annotated[AblationConfig | None, Field("one ablation instead of the study's; -m: a job for each")] = None
    seeds: Annotated[
        list[Annotated[int, Field("", at_least=0, below=2**63)]], Field("every cell is run with each of them")
    ]
    cells: Annotated[list[str], Field("overrides of gpt1 finetune for every cell; named directly they come here")]
    keep: Annotated[
        Literal["best", "all"],
        Field("best: of a finished cell the best weights alone stay on disk, of a grid those of the chosen one"),
    ]
    on_error: Annotated[Literal["continue", "stop"], Field("what a failed cell means for those after it")]
    resume: Annotated[str | None, Field("folder of a study, or of a multirun of studies, to go on with", filled=True)]
    config: Annotated[str | None, Field("config.yaml of an earlier study, to repeat it", filled=True)]
    config_dir: Annotated[str | None, Field("what --config-dir says, for the cells to look there too", filled=True)]
    dry_run: Annotated[bool, Field("train nothing: tell the hours and the disk that the study takes")]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield f"seeds={self.seeds}: at least one, each once"
        if self.seed:
            yield f"seed={self.seed}: a study takes seeds=[...]"
        if self.study.kind == "few" and self.ablation:
            yield f"ablation={self.ablation.name}: study={self.study.name} has rows of its own: name variants=[...]"
        if self.study.kind != "few" and self.grid != GridConfig():
            yield f"grid is for studies on few examples, as study=lmbff; study={self.study.name} has none"
        if self.ablation and self.variants is not None:
            yield f"ablation={self.ablation.name} and variants={self.variants} both say which: leave one out"
        if self.dry_run and self.logger.name != "none":
            yield f"dry_run=true has no metrics to follow: name logger=none instead of {self.logger.name}"
        for key in ("tasks", "variants"):
            if getattr(self, key) == []:
                yield f"{key} is empty: name at least one, or leave it out"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """What gpt1 evaluate takes."""

    run: Annotated[str | None, Field("folder of a fine-tuned run, or one of its checkpoints", filled=True)]
    runs: Annotated[list[str], Field("several of them, instead of run: an ensemble, whose scores are averaged")]
    task: TaskConfig
    split: Annotated[str | None, Field("the one split to score (null: every split but train)")]
    limit: Limit

    @property
    def members(self) -> list[str]:
        """What is scored together, at least one."""
        return self.runs or [str(self.run)]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if (self.run is None) == (not self.runs):
            yield "run=RUN or runs=[RUN,...] says what is scored: name one of them"
        if repeated := sorted({run for run in self.runs if self.runs.count(run) > 1}):
            yield f"runs: {', '.join(repeated)} is named twice"
        if self.split is not None and self.split not in self.task.there:
            yield unknown(self.split, self.task.there, f"split of task={self.task.name}")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig):
    """What gpt1 predict takes."""

    run: Annotated[str, Field("folder of a fine-tuned run, or one of its checkpoints", filled=True)]
    input: Annotated[
        str | None, Field("file of new rows: .csv, .tsv, .jsonl, .parquet, .txt; - for stdin", filled=True)
    ]
    output: Annotated[
        str | None, Field(".jsonl, .csv or .tsv to write; - for stdout (null: a file in the run folder)", filled=True)
    ]
    format: Annotated[
        Literal["csv", "tsv", "jsonl", "parquet", "text"] | None,
        Field("how input is to be read (null: as its name tells)"),
    ]
    text: Annotated[str | None, Field("one example, instead of input")]
    text_b: Annotated[str | None, Field("its second text")]
    choices: Annotated[list[str], Field("its answers to choose from")]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        one = self.text is not None or bool(self.choices)
        if one == (self.input is not None):
            yield "input=FILE or text=... says what is to be predicted: name one of them"
        if not one and self.text_b is not None:
            yield "text_b goes with text=..."
        if self.input is None and self.format is not None:
            yield f"format={self.format} says how input= is read: there is none"


@dataclass(frozen=True, kw_only=True)
class ExportConfig(RunConfig):
    """What gpt1 export takes."""

    run: Annotated[str, Field("run folder, or one of its checkpoints", filled=True)]
    out: Annotated[str, Field("folder to write; it may not exist yet, or be empty", filled=True)]


@dataclass(frozen=True, kw_only=True)
class SpeakConfig(RunConfig):
    """What the commands take that use a language model as it is."""

    init: Annotated[
        str, Field("the model: openai, gpt2, a run folder, a checkpoint folder, an exported folder", filled=True)
    ]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.init == "none":
            yield "init=none: fresh weights know nothing; name a run folder, or openai"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(SpeakConfig):
    """What gpt1 score takes."""

    input: Annotated[str, Field("text file, a text a line; - for stdin", filled=True)]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SpeakConfig):
    """What gpt1 generate takes."""

    prompt: Annotated[str, Field("the text to go on from", filled=True)]
    tokens: Annotated[int, Field("tokens to write", at_least=1)]
    samples: Annotated[int, Field("continuations of the same prompt", at_least=1)]
    temperature: Annotated[float, Field("0: the likeliest token; 1: as likely as the model says", at_least=0)]
    top_k: Annotated[int | None, Field("choose among the k likeliest tokens", at_least=1)]
    top_p: Annotated[float | None, Field("choose among the likeliest that hold this probability", above=0, at_most=1)]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            yield "temperature=0 takes the likeliest token: top_k and top_p have nothing to choose from"


@dataclass(frozen=True, kw_only=True)
class ZeroshotConfig(RunConfig):
    """What gpt1 zeroshot takes."""

    task: TaskConfig
    logger: LoggerConfig
    init: Annotated[
        str | None,
        Field("the model: openai (null), gpt2, a run folder, a checkpoint folder, an exported folder", filled=True),
    ]
    runs: Annotated[list[str], Field("run folders, instead of init: a curve for each")]
    checkpoint: Annotated[
        Count | Literal["best", "last", "all"],
        Field("which checkpoint of a run: its best, its last, a step, every one"),
    ]
    limit: Limit

    @property
    def inits(self) -> list[str]:
        """What to score, at least one."""
        return self.runs or [self.init or "openai"]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.runs and self.init not in (None, "none"):
            yield f"init={display(self.init)} and runs={display(self.runs)}: one of them at a time"
        if "none" in self.inits:
            yield "init=none: fresh weights know nothing; name a run folder, or openai"
        if repeated := sorted({run for run in self.runs if self.runs.count(run) > 1}):
            yield f"runs: {', '.join(repeated)} is named twice"


@dataclass(frozen=True, kw_only=True)
class FewshotConfig(RunConfig):
    """What gpt1 fewshot takes."""

    task: TaskConfig
    logger: LoggerConfig
    init: Annotated[
        str | None,
        Field("the model: openai (null), gpt2, a run folder, a checkpoint folder, an exported folder", filled=True),
    ]
    checkpoint: Annotated[
        Count | Literal["best", "last"], Field("which checkpoint of a run: its best, its last, a step")
    ]
    prompt: Annotated[str | None, Field("yaml with template, words, ... in the place of task.prompt", filled=True)]
    shots: Annotated[
        list[Annotated[int, Field("", at_least=0)]] | Annotated[int, Field("", at_least=0)],
        Field("demonstrations before a query, in all; of several numbers a curve"),
    ]
    seeds: Annotated[
        list[Annotated[int, Field("", at_least=0, below=2**63)]], Field("demonstrations are drawn with each of them")
    ]
    pool: Annotated[
        int | None,
        Field(
            "K: demonstrations come from the K examples of each class that gpt1 finetune shots=K trains on, and what it"
            " tests on is answered (null: from all of train)",
            at_least=1,
        ),
    ]
    balanced: Annotated[bool, Field("demonstrations of each class in turn; false: as the training split has them")]
    order: Annotated[
        Literal["fixed", "random", "permutations"], Field("as drawn, shuffled, or the mean of the scores over several")
    ]
    permutations: Annotated[
        int | None,
        Field("orders that are averaged (order=permutations; null: 8, fewer where there are no more)", at_least=1),
    ]
    split: Annotated[str | None, Field("the one split to answer (null: every one with labels but train)")]
    limit: Limit

    @property
    def counts(self) -> list[int]:
        """The numbers of demonstrations, at least one."""
        return [self.shots] if isinstance(self.shots, int) else self.shots

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.init == "none":
            yield "init=none: fresh weights know nothing; name a run folder, or openai"
        if self.seed:
            yield f"seed={self.seed}: gpt1 fewshot takes seeds=[...]"
        for key, values in (("seeds", self.seeds), ("shots", self.counts)):
            if not values or len(set(values)) < len(values):
                yield f"{key}={values}: at least one, each once"
        if self.permutations is not None and self.order != "permutations":
            yield f"permutations={self.permutations} goes with order=permutations, but order={self.order}"
        yield from self.task.misprompted()
        looked_into = self.task.source != "file" or self.task.splits
        if looked_into and (any(self.counts) or self.pool) and "train" not in self.task.splits:
            yield f"shots={display(self.shots)}: task={self.task.name} has no train split with examples; name shots=0"
        if self.pool and self.limit.train:
            yield f"pool={self.pool} says how many examples train has: leave limit.train out"
        if self.pool and max(self.seeds, default=0) >= 2**32:
            yield f"seeds={self.seeds}: pool={self.pool} are drawn by a generator that takes seeds below 2**32"
        if self.pool and self.split is not None:
            yield f"pool={self.pool}: what gpt1 finetune tests on is answered: leave split={self.split} out"
        elif self.split is not None and self.split not in self.task.there:
            yield unknown(self.split, self.task.there, f"split of task={self.task.name}")
        if self.split == "train":
            yield "split=train: demonstrations come from it, and would answer themselves"


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """What gpt1 search takes."""

    what: Annotated[
        Literal["words", "templates"], Field("what is looked for: words for the labels, or texts around their slot")
    ]
    task: TaskConfig
    logger: LoggerConfig
    init: Annotated[
        str | None,
        Field("the model: openai (null), gpt2, a run folder, a checkpoint folder, an exported folder", filled=True),
    ]
    prompt: Annotated[str | None, Field("yaml with template, words, ... in the place of task.prompt", filled=True)]
    shots: Annotated[int, Field("examples of each class to search on, and to validate on, drawn by seed", at_least=1)]
    pieces: Annotated[
        int,
        Field("of each class the pieces that are likeliest in the slot (what=words: they are combined)", at_least=1),
    ]
    combinations: Annotated[
        int,
        Field(
            "words that are ranked together, at most; of more classes fewer pieces each, those nearest to the task's"
            " own words in the token table (what=words)",
            at_least=1,
        ),
    ]
    generator: Annotated[
        Literal["model", "t5"], Field("who writes: the model itself, or a T5 through transformers (what=templates)")
    ]
    t5: Annotated[str | None, Field("hub repository or folder of that T5 (generator=t5)", filled=True)]
    beam: Annotated[int, Field("texts that are kept at every step of writing (what=templates)", at_least=1)]
    length: Annotated[
        int, Field("pieces that are written, at most; a T5's count its marks of gaps too (what=templates)", at_least=1)
    ]
    tune: Annotated[int, Field("how many of the best are fine-tuned, and ranked by validation", at_least=1)]
    ensemble: Annotated[int | None, Field("how many of the best then answer the test split together", at_least=2)]
    cells: Annotated[list[str], Field("overrides of gpt1 finetune for those; named directly they come here")]
    keep: Annotated[
        Literal["best", "all"], Field("best: of those runs the weights of the best alone (of an ensemble) stay on disk")
    ]
    resume: Annotated[str | None, Field("folder of a search to go on with", filled=True)]
    config: Annotated[str | None, Field("config.yaml of an earlier search, to repeat it", filled=True)]
    config_dir: Annotated[str | None, Field("what --config-dir says, for the runs to look there too", filled=True)]

    @property
    def on_error(self) -> str:
        """What a failed run means for those after it: without it there is no ranking."""
        return "stop"

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.init == "none":
            yield "init=none: fresh weights know nothing; name a run folder, or openai"
        if self.seed >= 2**32:
            yield f"seed={self.seed}: examples are drawn by a generator that takes seeds below 2**32"
        yield from self.task.misprompted()
        if self.task.prompt.content_free is not None:
            yield "task.prompt.content_free calibrates a model that is not trained: leave it out, a search tunes"
        if self.what == "words" and self.task.choices:
            yield f"what=words: task={self.task.name} has choices, which are their own words; name what=templates"
        if (self.generator == "t5") != (self.t5 is not None):
            yield f"generator={self.generator} and t5={display(self.t5)}: a T5 is named together with generator=t5"
        if self.ensemble is not None and self.ensemble > self.tune:
            yield f"ensemble={self.ensemble} exceeds tune={self.tune}: no more are fine-tuned"
        if self.generator == "t5" and self.what == "words":
            yield "generator=t5 writes templates: name what=templates too"
        looked_into = self.task.source != "file" or self.task.splits
        if looked_into and "train" not in self.task.splits:
            yield f"task={self.task.name} has no train split to search on; there: {', '.join(self.task.splits)}"
        odd = ("method", "task", "shots", "seed", "prompt", "init", "pretrained", "resume", "config", "dry_run")
        if taken := [word for word in self.cells if word.lstrip("+").partition("=")[0] in odd]:
            yield f"{display(' '.join(taken))}: that of the runs that tune is the search's own"


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunConfig):
    """What gpt1 bench takes."""

    what: Annotated[
        list[Literal["startup", "tokenize", "pretrain", "finetune", "choice", "score", "generate", "scale"]],
        Field("the jobs to measure"),
    ]
    peer: Annotated[Literal["transformers", "none"], Field("whom to measure beside us")]
    rounds: Annotated[int, Field("rounds in which every contender has one turn, after one of warm-up", at_least=1)]
    input: Annotated[str | None, Field("text file to tokenise (null: the demo world's text)", filled=True)]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.runtime.precision != "auto" or self.runtime.compile or self.runtime.micro_batch is not None:
            yield "runtime.precision, compile and micro_batch are each contender's own: leave them out"


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(RunConfig):
    """What gpt1 doctor takes."""

    what: Annotated[
        list[Literal["machine", "disk", "hub", "tasks"]],
        Field("what to look at: versions and devices, room and cache, the hub, data of tasks and corpora"),
    ]


@dataclass(frozen=True, kw_only=True)
class ReportConfig(RunConfig):
    """What gpt1 report takes."""

    runs: Annotated[list[str], Field("run folders, folders that hold runs, or globs")]
    submission: Annotated[
        str | None, Field("zip file to write, with the GLUE server's eleven files", pattern=r".+\.zip", filled=True)
    ]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.runs:
            yield "runs is empty: name folders or globs, as in runs=[outputs/finetune]"


class Command(NamedTuple):
    """A command: its configuration, the module that runs it (imported when it is chosen), one line of help."""

    config: type[RunConfig]
    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "prepare": Command(PrepareConfig, "gpt1cli.commands.prepare", "raw text -> token shards in the cache"),
    "pretrain": Command(
        PretrainConfig, "gpt1cli.commands.pretrain", "a language model on raw text (paper, sections 3.1 and 4.1)"
    ),
    "finetune": Command(
        FinetuneConfig,
        "gpt1cli.commands.finetune",
        "a labelled task on top of a pretrained model (paper, sections 3.2, 3.3 and 4.1)",
    ),
    "ablation": Command(
        SweepsConfig,
        "gpt1cli.commands.ablation",
        "a study of many runs: a table or figure of the paper (alias: sweeps)",
    ),
    "evaluate": Command(
        EvaluateConfig,
        "gpt1cli.commands.evaluate",
        "a fine-tuned run scored on a split, or on a task with the same labels",
    ),
    "predict": Command(
        PredictConfig, "gpt1cli.commands.predict", "a fine-tuned run on new rows: labels with their probabilities"
    ),
    "export": Command(ExportConfig, "gpt1cli.commands.export", "a run's model as a folder that transformers loads"),
    "score": Command(
        ScoreConfig, "gpt1cli.commands.score", "how likely a language model finds each line of a file, token by token"
    ),
    "generate": Command(GenerateConfig, "gpt1cli.commands.generate", "text that a language model goes on with"),
    "zeroshot": Command(
        ZeroshotConfig,
        "gpt1cli.commands.zeroshot",
        "a task answered by a language model as it is, without training (paper, section 5)",
    ),
    "fewshot": Command(
        FewshotConfig,
        "gpt1cli.commands.fewshot",
        "a task answered behind demonstrations in the context, without training",
    ),
    "search": Command(
        SearchConfig, "gpt1cli.commands.search", "a prompt's words or its template found on a few examples (LM-BFF)"
    ),
    "bench": Command(
        BenchConfig, "gpt1cli.commands.bench", "our speed beside a peer's, measured in turn on this machine"
    ),
    "doctor": Command(DoctorConfig, "gpt1cli.commands.doctor", "what is at hand here, and the remedy for what is not"),
    "report": Command(
        ReportConfig, "gpt1cli.commands.report", "finished runs laid out as the tables and figures of the paper"
    ),
}

GROUPS: dict[str, type] = {  # conf/<group>/<option>.yaml -> the dataclass that types it
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "tokenizer": TokenizerConfig,
    "corpus": CorpusConfig,
    "task": TaskConfig,
    "ablation": AblationConfig,
    "study": StudyConfig,
    "runtime": RuntimeConfig,
    "logger": LoggerConfig,
}
