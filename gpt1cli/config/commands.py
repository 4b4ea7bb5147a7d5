"""Every command's configuration as a frozen dataclass: its own keys and the groups of conf/ that it takes.

Hydra composes yaml files and command-line overrides into a nested mapping; `schema.build` turns that mapping into the
dataclass of the command, once. After that no code sees the mapping.

Longer than 300 lines: one dataclass per command, with the meaning and the range of every key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from gpt1cli.config.data import CorpusConfig, TokenizerConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import Field, display, unknown_name
from gpt1cli.config.study import AblationConfig, GridConfig, StudyConfig
from gpt1cli.config.task import TaskConfig
from gpt1cli.config.training import (
    NAME_PATTERN,
    FewConfig,
    Limit,
    LoggerConfig,
    OptimizerConfig,
    PositiveInt,
    RuntimeConfig,
    ScheduleConfig,
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The keys of every command."""

    seed: Annotated[int, Field("random seed", at_least=0, below=2**63)]
    name: Annotated[str, Field("name in the path of the run folder", pattern=NAME_PATTERN)]
    out: Annotated[str, Field("root folder of the runs", nonempty=True)]
    cache: Annotated[str, Field("folder for prepared corpora and downloads", nonempty=True)]
    hub: Annotated[
        str | None, Field("folder laid out like the Hugging Face hub, used instead of the network", nonempty=True)
    ]
    runtime: RuntimeConfig

    def problems(self) -> Iterator[str]:
        if not isinstance(self, (TrainConfig, SweepsConfig)) and (self.runtime.devices > 1 or self.runtime.shard):
            yield "runtime.devices and runtime.shard are only for training: remove them"


@dataclass(frozen=True)
class PlanConfig:
    """The hardware and corpus size that a dry run estimates for, besides this machine and this text."""

    tokens: Annotated[
        float | None,
        Field("training tokens of a corpus that is not here; no text is read or tokenized", at_least=1),
    ]
    tflops: Annotated[
        float | None,
        Field("sustained (not peak) speed of one described device on this model, in 10^12 FLOP per second", above=0),
    ]
    memory_gb: Annotated[float | None, Field("memory of one described device (a GPU), in 10^9 bytes", above=0)]
    devices: Annotated[int | None, Field("number of described devices, data-parallel (null: 1)", at_least=1)]

    def problems(self) -> Iterator[str]:
        if self.devices is not None and self.tflops is None and self.memory_gb is None:
            yield f"devices={self.devices} needs a description of one device: add plan.tflops or plan.memory_gb"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """The keys of pretrain and finetune."""

    init: Annotated[
        str, Field("initial weights: openai, gpt2, none, a run folder or a checkpoint folder", nonempty=True)
    ]
    resume: Annotated[str | None, Field("run folder to continue", nonempty=True)]
    config: Annotated[str | None, Field("config.yaml of an earlier run to repeat", nonempty=True)]
    model: ModelConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    logger: LoggerConfig
    epochs: Annotated[float | None, Field("passes over the training data", above=0)]
    steps: Annotated[int | None, Field("training steps, instead of epochs", at_least=1)]
    batch_size: Annotated[int, Field("sequences (examples) per step", at_least=1)]
    lr: Annotated[float, Field("maximum learning rate", above=0)]
    log_every: Annotated[int, Field("steps between log lines of training metrics", at_least=1)]
    dry_run: Annotated[bool, Field("estimate parameters, FLOPs, memory and time (from two steps); train nothing")]
    plan: PlanConfig

    def problems(self) -> Iterator[str]:
        if (self.epochs is None) == (self.steps is None):
            yield "exactly one of epochs and steps is needed: set the other to null"
        if self.runtime.shard and self.runtime.devices == 1:
            yield "runtime.shard=true needs several processes: add runtime.devices=, or remove runtime.shard"
        if self.model.architecture == "lstm" and (self.runtime.shard or self.runtime.compile):
            yield "runtime.shard and runtime.compile are for Transformer layers: remove them with architecture=lstm"
        if self.runtime.devices > self.batch_size:
            yield f"runtime.devices={self.runtime.devices} exceeds batch_size={self.batch_size}: use at most that many"
        plan = {key: value for key, value in dataclasses.asdict(self.plan).items() if value is not None}
        if plan and not self.dry_run:
            overrides = " ".join(f"plan.{key}={display(value)}" for key, value in plan.items())
            yield f"{overrides}: only for a dry run; add dry_run=true, or set it to null"
        if self.dry_run and self.resume:
            yield f"dry_run=true cannot continue a run: remove it, or resume={display(self.resume)}"
        if self.dry_run and (self.runtime.devices > 1 or self.runtime.shard):
            yield "dry_run=true measures one device: remove runtime.devices and shard, or use plan.devices="
        if self.dry_run and self.logger.name != "none":
            yield f"dry_run=true has no metrics to log: use logger=none instead of {self.logger.name}"
        if self.plan.devices is not None and self.plan.devices > self.batch_size:
            yield f"plan.devices={self.plan.devices} exceeds batch_size={self.batch_size}: use at most that many"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(RunConfig):
    """The keys of gpt1 prepare."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """The keys of gpt1 pretrain."""

    corpus: CorpusConfig
    context: Annotated[int, Field("tokens per sequence", at_least=2)]
    warmup_steps: Annotated[
        int | None, Field("steps of warm-up (null: the model's recipe, at most 10% of the run)", at_least=0)
    ]
    eval_every: Annotated[int | None, Field("steps between validations (null: ten per run)", at_least=1)]
    eval_tokens: Annotated[int, Field("tokens scored in each validation, evenly spread over the split", at_least=1)]
    checkpoint_every: Annotated[int | None, Field("steps between checkpoints (null: at each validation)", at_least=1)]
    keep_checkpoints: Annotated[list[PositiveInt], Field("steps whose checkpoints are kept, for zero-shot curves")]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.context > self.model.n_positions:
            yield f"context={self.context} exceeds model.n_positions={self.model.n_positions}"
        if self.steps is not None:  # with epochs the number of steps depends on the corpus
            yield from self.late_step_problems(self.steps)

    def late_step_problems(self, steps: int) -> Iterator[str]:
        """Yield the keys that name a step after the last of `steps`."""
        if self.warmup_steps is not None and self.warmup_steps > steps:
            yield f"warmup_steps={self.warmup_steps} exceeds steps={steps}"
        if late := [step for step in self.keep_checkpoints if step > steps]:
            yield f"keep_checkpoints={late}: later than the last step, {steps}"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """The keys of gpt1 finetune."""

    task: TaskConfig
    ablation: AblationConfig
    shots: Annotated[
        int | None, Field("train on K examples per class, sampled by seed, and validate on K others", at_least=1)
    ]
    few: FewConfig
    method: Annotated[
        Literal["head", "prompt"],
        Field("head: a linear classifier; prompt: the LM scores the label words in task.prompt (LM-BFF)"),
    ]
    prompt: Annotated[
        str | None,
        Field("yaml file with template, words, ... that replaces task.prompt (method=prompt)", nonempty=True),
    ]
    demos: Annotated[
        Literal["none", "random", "similar"],
        Field("demonstrations before a query, one per class: from all, or the half most similar to it (method=prompt)"),
    ]
    demo_sets: Annotated[int, Field("demonstration sets averaged when a split is scored", at_least=1)]
    similar_by: Annotated[
        str,
        Field(
            "similarity for demos=similar: states (the model's hidden states), or a sentence-transformers model",
            nonempty=True,
        ),
    ]
    eval_every: Annotated[int | None, Field("steps between validations (null: one epoch)", at_least=1)]
    init_lstm: Annotated[
        str | None,
        Field("init of ablation=lstm; none: random weights (null: newest LSTM of init's size in out)", nonempty=True),
    ]
    pretrained: Annotated[bool, Field("false: only shape and tokenizer from init, random weights")]
    transfer_layers: Annotated[
        Annotated[int, Field("", at_least=0)] | Literal["all"],
        Field("load embeddings and the first k layers from init; initialize the others randomly"),
    ]
    score_train: Annotated[bool, Field("also score the training split at the end")]
    aux_lm: Annotated[bool, Field("add the auxiliary loss: lm_coef x language-model loss of the inputs")]
    lm_coef: Annotated[float, Field("weight of the auxiliary language-model loss", at_least=0)]
    head_dropout: Annotated[float, Field("dropout before the classifier", at_least=0, below=1)]
    warmup_fraction: Annotated[float, Field("warm-up, as a fraction of the steps", at_least=0, at_most=1)]
    limit: Limit

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.transfer_layers != "all" and self.transfer_layers > self.model.n_layer:
            yield f"transfer_layers={self.transfer_layers} exceeds model.n_layer={self.model.n_layer}"
        if self.model.architecture == "lstm" and self.transfer_layers != "all":
            yield f"transfer_layers={self.transfer_layers} counts Transformer layers, and an LSTM has none: remove it"
        if self.init == "none" and self.transfer_layers != "all":
            yield f"transfer_layers={self.transfer_layers} needs weights to transfer: name an init= other than none"
        fresh = "none" if self.model.architecture == "lstm" and not self.pretrained else None
        if self.init_lstm not in (None, fresh, self.init):  # ablation=lstm copies it to init
            reason = "only ablation=lstm uses it, instead of a Transformer's init="
            yield f"init_lstm={display(self.init_lstm)} is unused: {reason}"
        if self.plan.tokens is not None:
            yield f"plan.tokens={display(self.plan.tokens)} is only for pretraining: remove it"
        if not self.pretrained and self.transfer_layers != "all":
            yield f"transfer_layers={self.transfer_layers} loads weights, but pretrained=false does not: remove one"
        are_splits_known = self.task.source != "file" or self.task.splits
        needed = {"train"} if self.shots else {"train", "valid"}
        if are_splits_known and not needed <= set(self.task.splits):
            missing, known = " and ".join(sorted(needed)), ", ".join(self.task.splits)
            yield f"task={self.task.name} cannot be fine-tuned: it needs {missing}; its splits: {known}"
        if self.shots and (self.limit.train or self.limit.valid):
            yield f"shots={self.shots} sets the size of train and valid: remove limit.train and limit.valid"
        if self.method == "prompt":
            yield from self.task.prompt_problems()
        if self.method == "prompt" and self.task.prompt.content_free is not None:
            yield "task.prompt.content_free calibrates an untrained model: remove it with method=prompt"
        if self.method == "head" and self.task.loss == "interpolation":
            yield "task.loss=interpolation is between two words: add method=prompt"
        if self.method == "head" and self.prompt is not None:
            yield f"prompt={display(self.prompt)} needs method=prompt: add it"
        if self.method == "head" and self.demos != "none":
            yield f"demos={self.demos} needs a prompt, and method=head has none: add method=prompt"
        if self.demos != "none" and (self.shots or 0) < 2:
            reason = f"shots={self.shots} leaves" if self.shots else "without shots=K there are"
            yield f"demos={self.demos}: {reason} no examples other than the query: use shots=2 or more"
        if self.similar_by != "states" and self.demos != "similar":
            yield f"similar_by={display(self.similar_by)} needs demos=similar, but demos={self.demos}"
        if self.shots and self.seed >= 2**32:
            yield f"seed={self.seed}: with shots=K the seed must be below 2**32"
        micro_batch = self.runtime.micro_batch
        if self.task.loss == "soft_f1" and micro_batch is not None and micro_batch < self.batch_size:
            yield f"task.loss=soft_f1 needs the whole batch: runtime.micro_batch={micro_batch} would split it"
        if self.task.loss == "soft_f1" and self.runtime.devices > 1:
            yield f"task.loss=soft_f1 needs the whole batch: runtime.devices={self.runtime.devices} would split it"


@dataclass(frozen=True, kw_only=True)
class SweepsConfig(RunConfig):
    """The keys of gpt1 ablation, alias gpt1 sweeps."""

    study: StudyConfig
    logger: LoggerConfig
    tasks: Annotated[list[str] | None, Field("tasks, instead of the study's")]
    variants: Annotated[list[str] | None, Field("ablations (kind=few: methods), instead of the study's")]
    grid: Annotated[GridConfig, Field("hyperparameter values, instead of the study's (kind=few)")]
    ablation: Annotated[
        AblationConfig | None, Field("one ablation, instead of the study's; with -m one job for each")
    ] = None
    seeds: Annotated[list[Annotated[int, Field("", at_least=0, below=2**63)]], Field("every cell runs once per seed")]
    cells: Annotated[
        list[str], Field("overrides of gpt1 finetune for every cell; keys of gpt1 finetune may also be named directly")
    ]
    keep: Annotated[
        Literal["best", "all"],
        Field("best: keep only the best weights of each finished cell, and of a grid only the selected run's"),
    ]
    on_error: Annotated[Literal["continue", "stop"], Field("after a failed cell: continue with the next, or stop")]
    resume: Annotated[str | None, Field("folder of a study, or of a multirun of studies, to continue", nonempty=True)]
    config: Annotated[str | None, Field("config.yaml of an earlier study to repeat", nonempty=True)]
    config_dir: Annotated[str | None, Field("folder of --config-dir, passed to the cells", nonempty=True)]
    dry_run: Annotated[bool, Field("estimate the time and disk space of the study; train nothing")]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield f"seeds={self.seeds}: needs at least one seed, without duplicates"
        if self.seed:
            yield f"seed={self.seed}: gpt1 ablation takes seeds=[{self.seed}]"
        if self.study.kind == "few" and self.ablation:
            yield f"ablation={self.ablation.name}: the rows of study={self.study.name} are methods: use variants=[...]"
        if self.study.kind != "few" and self.grid != GridConfig():
            yield f"grid is only for few-shot studies, as study=lmbff; study={self.study.name} has none"
        if self.ablation and self.variants is not None:
            yield f"ablation={self.ablation.name} and variants={self.variants}: use only one of them"
        if self.dry_run and self.logger.name != "none":
            yield f"dry_run=true has no metrics to log: use logger=none instead of {self.logger.name}"
        for key in ("tasks", "variants"):
            if getattr(self, key) == []:
                yield f"{key} is empty: name at least one, or remove it"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """The keys of gpt1 evaluate."""

    run: Annotated[str | None, Field("folder of a fine-tuned run, or of one of its checkpoints", nonempty=True)]
    runs: Annotated[list[str], Field("several runs, instead of run: an ensemble with averaged scores")]
    task: TaskConfig
    split: Annotated[str | None, Field("split to score (null: every split except train)")]
    limit: Limit

    @property
    def ensemble_runs(self) -> list[str]:
        """The runs that are scored together, at least one."""
        return self.runs or [str(self.run)]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if (self.run is None) == (not self.runs):
            yield "exactly one of run=RUN and runs=[RUN,...] is needed"
        if repeated := sorted({run for run in self.runs if self.runs.count(run) > 1}):
            yield f"runs: duplicate {', '.join(repeated)}"
        if self.split is not None and self.split not in self.task.split_names:
            yield unknown_name(self.split, self.task.split_names, f"split of task={self.task.name}")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig):
    """The keys of gpt1 predict."""

    run: Annotated[str, Field("folder of a fine-tuned run, or of one of its checkpoints", nonempty=True)]
    input: Annotated[
        str | None, Field("file of new rows: .csv, .tsv, .jsonl, .parquet or .txt; - for stdin", nonempty=True)
    ]
    output: Annotated[
        str | None, Field("file to write: .jsonl, .csv or .tsv; - for stdout (null: in the run folder)", nonempty=True)
    ]
    format: Annotated[
        Literal["csv", "tsv", "jsonl", "parquet", "text"] | None,
        Field("format of input (null: from its file name)"),
    ]
    text: Annotated[str | None, Field("one example, instead of input")]
    text_b: Annotated[str | None, Field("second text of that example")]
    choices: Annotated[list[str], Field("answers of that example, for a task with choices")]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        has_example = self.text is not None or bool(self.choices)
        if has_example == (self.input is not None):
            yield "exactly one of input=FILE and text=... is needed"
        if not has_example and self.text_b is not None:
            yield f"text_b={display(self.text_b)} needs text=..."
        if self.input is None and self.format is not None:
            yield f"format={self.format} needs input=FILE"


@dataclass(frozen=True, kw_only=True)
class ExportConfig(RunConfig):
    """The keys of gpt1 export."""

    run: Annotated[str, Field("run folder, or the folder of one of its checkpoints", nonempty=True)]
    out: Annotated[str, Field("folder to write; must be new or empty", nonempty=True)]


@dataclass(frozen=True, kw_only=True)
class PretrainedLMConfig(RunConfig):
    """The keys of the commands that use a language model without training it."""

    init: Annotated[
        str, Field("model: openai, gpt2, a run folder, a checkpoint folder or an exported folder", nonempty=True)
    ]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.init == "none":
            yield "init=none: random weights predict nothing useful; name a run folder, or init=openai"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(PretrainedLMConfig):
    """The keys of gpt1 score."""

    input: Annotated[str, Field("text file, one text per line; - for stdin", nonempty=True)]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(PretrainedLMConfig):
    """The keys of gpt1 generate."""

    prompt: Annotated[str, Field("text to continue", nonempty=True)]
    tokens: Annotated[int, Field("tokens to generate", at_least=1)]
    samples: Annotated[int, Field("number of continuations of the prompt", at_least=1)]
    temperature: Annotated[float, Field("sampling temperature; 0: greedy decoding", at_least=0)]
    top_k: Annotated[int | None, Field("sample from the k most probable tokens", at_least=1)]
    top_p: Annotated[
        float | None, Field("nucleus sampling: smallest set of tokens with total probability p", above=0, at_most=1)
    ]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            yield "temperature=0 is greedy decoding: remove top_k and top_p, or use a temperature above 0"


@dataclass(frozen=True, kw_only=True)
class ZeroshotConfig(RunConfig):
    """The keys of gpt1 zeroshot."""

    task: TaskConfig
    logger: LoggerConfig
    init: Annotated[
        str | None,
        Field("model: openai (null), gpt2, a run folder, a checkpoint folder or an exported folder", nonempty=True),
    ]
    runs: Annotated[list[str], Field("run folders, instead of init: one curve per run")]
    checkpoint: Annotated[
        PositiveInt | Literal["best", "last", "all"],
        Field("checkpoint of a run: best, last, a step, or all"),
    ]
    limit: Limit

    @property
    def inits(self) -> list[str]:
        """The models to score, at least one."""
        return self.runs or [self.init or "openai"]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.runs and self.init not in (None, "none"):
            yield f"init={display(self.init)} and runs={display(self.runs)}: use only one of them"
        if "none" in self.inits:
            yield "init=none: random weights predict nothing useful; name a run folder, or init=openai"
        if repeated := sorted({run for run in self.runs if self.runs.count(run) > 1}):
            yield f"runs: duplicate {', '.join(repeated)}"


@dataclass(frozen=True, kw_only=True)
class FewshotConfig(RunConfig):
    """The keys of gpt1 fewshot."""

    task: TaskConfig
    logger: LoggerConfig
    init: Annotated[
        str | None,
        Field("model: openai (null), gpt2, a run folder, a checkpoint folder or an exported folder", nonempty=True),
    ]
    checkpoint: Annotated[PositiveInt | Literal["best", "last"], Field("checkpoint of a run: best, last, or a step")]
    prompt: Annotated[str | None, Field("yaml file with template, words, ... that replaces task.prompt", nonempty=True)]
    shots: Annotated[
        list[Annotated[int, Field("", at_least=0)]] | Annotated[int, Field("", at_least=0)],
        Field("total number of demonstrations before a query; a list gives a curve"),
    ]
    seeds: Annotated[
        list[Annotated[int, Field("", at_least=0, below=2**63)]],
        Field("random seeds; demonstrations are sampled once per seed"),
    ]
    pool: Annotated[
        int | None,
        Field(
            "K: take demonstrations from the K examples per class that gpt1 finetune shots=K trains on, and answer its"
            " test split (null: take them from all of train)",
            at_least=1,
        ),
    ]
    balanced: Annotated[bool, Field("true: the classes alternate; false: class frequencies of the training split")]
    order: Annotated[
        Literal["fixed", "random", "permutations"],
        Field("order of the demonstrations: as sampled, shuffled, or scores averaged over several orders"),
    ]
    permutations: Annotated[
        int | None,
        Field("number of orders averaged (order=permutations; null: 8, or all if there are fewer)", at_least=1),
    ]
    split: Annotated[str | None, Field("split to answer (null: every split with labels, except train)")]
    limit: Limit

    @property
    def shot_counts(self) -> list[int]:
        """The numbers of demonstrations, at least one."""
        return [self.shots] if isinstance(self.shots, int) else self.shots

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.init == "none":
            yield "init=none: random weights predict nothing useful; name a run folder, or init=openai"
        if self.seed:
            yield f"seed={self.seed}: gpt1 fewshot takes seeds=[{self.seed}]"
        for key, values in (("seeds", self.seeds), ("shots", self.shot_counts)):
            if not values or len(set(values)) < len(values):
                yield f"{key}={values}: needs at least one value, without duplicates"
        if self.permutations is not None and self.order != "permutations":
            yield f"permutations={self.permutations} needs order=permutations, but order={self.order}"
        yield from self.task.prompt_problems()
        are_splits_known = self.task.source != "file" or self.task.splits
        if are_splits_known and (any(self.shot_counts) or self.pool) and "train" not in self.task.splits:
            yield f"shots={display(self.shots)}: task={self.task.name} has no train split; use shots=0"
        if self.pool and self.limit.train:
            yield f"pool={self.pool} sets the size of train: remove limit.train"
        if self.pool and max(self.seeds, default=0) >= 2**32:
            yield f"seeds={self.seeds}: with pool={self.pool} the seeds must be below 2**32"
        if self.pool and self.split is not None:
            yield f"pool={self.pool} answers the test split of gpt1 finetune: remove split={self.split}"
        elif self.split is not None and self.split not in self.task.split_names:
            yield unknown_name(self.split, self.task.split_names, f"split of task={self.task.name}")
        if self.split == "train":
            yield "split=train: the demonstrations come from it; choose another split"


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """The keys of gpt1 search."""

    what: Annotated[
        Literal["words", "templates"], Field("search for the label words (verbalizer), or for the template around them")
    ]
    task: TaskConfig
    logger: LoggerConfig
    init: Annotated[
        str | None,
        Field("model: openai (null), gpt2, a run folder, a checkpoint folder or an exported folder", nonempty=True),
    ]
    prompt: Annotated[str | None, Field("yaml file with template, words, ... that replaces task.prompt", nonempty=True)]
    shots: Annotated[
        int, Field("examples per class to search on, and as many to validate on, sampled by seed", at_least=1)
    ]
    pieces: Annotated[
        int,
        Field("candidates per class: the most probable tokens at the label position (what=words)", at_least=1),
    ]
    combinations: Annotated[
        int,
        Field(
            "maximum number of verbalizers to rank; with many classes each has fewer candidates, those nearest to the"
            " task's words in embedding space (what=words)",
            at_least=1,
        ),
    ]
    generator: Annotated[
        Literal["model", "t5"],
        Field("template generator: the model itself, or a T5 from transformers (what=templates)"),
    ]
    t5: Annotated[str | None, Field("hub repository or folder of the T5 (generator=t5)", nonempty=True)]
    beam: Annotated[int, Field("beam size of the generator (what=templates)", at_least=1)]
    length: Annotated[
        int, Field("maximum tokens to generate, including a T5's sentinel tokens (what=templates)", at_least=1)
    ]
    tune: Annotated[int, Field("number of best candidates to fine-tune and rank by validation", at_least=1)]
    ensemble: Annotated[
        int | None, Field("number of best fine-tuned runs in the ensemble for the test split", at_least=2)
    ]
    cells: Annotated[
        list[str], Field("overrides of gpt1 finetune for these runs; keys of gpt1 finetune may also be named directly")
    ]
    keep: Annotated[Literal["best", "all"], Field("best: keep only the weights of the best run (or of the ensemble)")]
    resume: Annotated[str | None, Field("folder of a search to continue", nonempty=True)]
    config: Annotated[str | None, Field("config.yaml of an earlier search to repeat", nonempty=True)]
    config_dir: Annotated[str | None, Field("folder of --config-dir, passed to the runs", nonempty=True)]

    @property
    def on_error(self) -> str:
        """A failed run stops the search: without it there is no ranking."""
        return "stop"

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.init == "none":
            yield "init=none: random weights predict nothing useful; name a run folder, or init=openai"
        if self.seed >= 2**32:
            yield f"seed={self.seed}: with shots=K the seed must be below 2**32"
        yield from self.task.prompt_problems()
        if self.task.prompt.content_free is not None:
            yield "task.prompt.content_free calibrates an untrained model: remove it, because gpt1 search fine-tunes"
        if self.what == "words" and self.task.choices:
            yield f"what=words: task={self.task.name} uses its choices as words; use what=templates"
        if (self.generator == "t5") != (self.t5 is not None):
            yield f"generator={self.generator} and t5={display(self.t5)}: generator=t5 and t5=NAME need each other"
        if self.ensemble is not None and self.ensemble > self.tune:
            yield f"ensemble={self.ensemble} exceeds tune={self.tune}, the number of fine-tuned runs"
        if self.generator == "t5" and self.what == "words":
            yield "generator=t5 generates templates: use what=templates"
        are_splits_known = self.task.source != "file" or self.task.splits
        if are_splits_known and "train" not in self.task.splits:
            yield f"task={self.task.name} has no train split to search on; its splits: {', '.join(self.task.splits)}"
        fixed = ("method", "task", "shots", "seed", "prompt", "init", "pretrained", "resume", "config", "dry_run")
        if refused := [word for word in self.cells if word.lstrip("+").partition("=")[0] in fixed]:
            yield f"{display(' '.join(refused))}: gpt1 search sets this key for its runs: remove it from cells"


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunConfig):
    """The keys of gpt1 bench."""

    what: Annotated[
        list[Literal["startup", "tokenize", "pretrain", "finetune", "choice", "score", "generate", "scale"]],
        Field("jobs to measure"),
    ]
    peer: Annotated[Literal["transformers", "none"], Field("library to compare with")]
    rounds: Annotated[
        int, Field("measured rounds, after one warm-up round; each runs every candidate once", at_least=1)
    ]
    input: Annotated[str | None, Field("text file to tokenize (null: the demo world's text)", nonempty=True)]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.runtime.precision != "auto" or self.runtime.compile or self.runtime.micro_batch is not None:
            yield "runtime.precision, compile and micro_batch are set by gpt1 bench: remove them"


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(RunConfig):
    """The keys of gpt1 doctor."""

    what: Annotated[
        list[Literal["machine", "disk", "hub", "tasks"]],
        Field("checks: versions and devices; disk space and cache; the hub; data of tasks and corpora"),
    ]


@dataclass(frozen=True, kw_only=True)
class ReportConfig(RunConfig):
    """The keys of gpt1 report."""

    runs: Annotated[list[str], Field("run folders, folders that contain runs, or globs")]
    submission: Annotated[
        str | None,
        Field("zip file to write, with the eleven files for the GLUE server", pattern=r".+\.zip", nonempty=True),
    ]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.runs:
            yield "runs is empty: name folders or globs, as in runs=[outputs/finetune]"


class Command(NamedTuple):
    """A command: its configuration, the module that runs it (imported when needed) and its line of help."""

    config: type[RunConfig]
    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "prepare": Command(
        PrepareConfig, "gpt1cli.commands.prepare", "tokenizes raw text and stores token shards in the cache"
    ),
    "pretrain": Command(
        PretrainConfig, "gpt1cli.commands.pretrain", "trains a language model on raw text (paper, sections 3.1 and 4.1)"
    ),
    "finetune": Command(
        FinetuneConfig,
        "gpt1cli.commands.finetune",
        "fine-tunes a pretrained model on a labelled task (paper, sections 3.2, 3.3 and 4.1)",
    ),
    "ablation": Command(
        SweepsConfig,
        "gpt1cli.commands.ablation",
        "runs a study: all runs of a table or figure of the paper (alias: sweeps)",
    ),
    "evaluate": Command(
        EvaluateConfig,
        "gpt1cli.commands.evaluate",
        "scores a fine-tuned run on its splits, or on a task with the same labels",
    ),
    "predict": Command(
        PredictConfig, "gpt1cli.commands.predict", "applies a fine-tuned run to new rows: labels and probabilities"
    ),
    "export": Command(
        ExportConfig, "gpt1cli.commands.export", "writes the model of a run as a folder for transformers"
    ),
    "score": Command(
        ScoreConfig, "gpt1cli.commands.score", "computes the log-probability of each line of a file, token by token"
    ),
    "generate": Command(GenerateConfig, "gpt1cli.commands.generate", "continues a text with a language model"),
    "zeroshot": Command(
        ZeroshotConfig,
        "gpt1cli.commands.zeroshot",
        "answers a task with a language model, without training (paper, section 5)",
    ),
    "fewshot": Command(
        FewshotConfig,
        "gpt1cli.commands.fewshot",
        "answers a task with demonstrations in the context, without training",
    ),
    "search": Command(
        SearchConfig,
        "gpt1cli.commands.search",
        "searches label words or a template for a prompt, on a few examples (LM-BFF)",
    ),
    "bench": Command(BenchConfig, "gpt1cli.commands.bench", "compares the speed with transformers, on this machine"),
    "doctor": Command(
        DoctorConfig, "gpt1cli.commands.doctor", "checks the installation: what works, what is missing, how to fix it"
    ),
    "report": Command(
        ReportConfig, "gpt1cli.commands.report", "shows finished runs as the tables and figures of the paper"
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
