"""gpt1 pretrain: a language model on raw text (paper, sections 3.1 and 4.1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt1cli.config.commands import PretrainConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data.hub import Requirement, corpus_requirements, tokenizer_requirements
from gpt1cli.models.batch import Batch, windows_batch
from gpt1cli.models.create import create_model
from gpt1cli.models.inference import mean_token_loss
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.pretrained import load
from gpt1cli.pretrained.locate import weight_requirements
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import read_jsonl
from gpt1cli.runs.folder import finish_run, is_finished, truncate_metrics
from gpt1cli.runs.record import record_checksums, update_environment
from gpt1cli.text import corpus, documents
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.text.windows import random_windows, spread_windows, unigram_loss
from gpt1cli.training import checkpoint, collective, device, dry_run
from gpt1cli.training.collective import ParallelModel
from gpt1cli.training.device import Machine
from gpt1cli.training.dry_run import PROFILED_STEPS
from gpt1cli.training.epochs import rank_shard
from gpt1cli.training.loop import LoopConfig, fit, training_result
from gpt1cli.training.objectives.causal import causal_objective
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.schedules import SCHEDULES
from gpt1cli.training.state import TrainingState

PLATEAU = 0.05  # nats below the unigram loss: a post-norm model stays there if lr is too high for the warm-up


def needs(config: PretrainConfig) -> list[Requirement]:
    """Return what the run requires before it starts."""
    trackers.check_tracker(config.logger)
    if config.resume and is_finished(Path(config.resume), config.steps):
        return []
    if config.plan.tokens is not None:
        return []
    return (
        corpus_requirements(config.corpus) + tokenizer_requirements(config.tokenizer) + weight_requirements(config.init)
    )


def run(config: PretrainConfig, folder: Path) -> None:
    """Text -> shards -> model -> fit -> result.json."""
    if config.resume and is_finished(Path(config.resume), config.steps):
        print(
            f"{folder} is finished: {folder / 'result.json'}; to train further: gpt1 pretrain resume={folder} steps=N"
        )
        with trackers.metrics_log(config, folder, print, send=collective.rank() == 0):  # sends missing lines
            return
    if config.dry_run:
        profile_pretraining(config, folder)
        return
    machine = device.setup_device(config.runtime, config.seed)
    warnings = [*machine.warnings, *update_environment(folder, **machine.describe())]
    open_progress = functools.partial(Progress, folder, mode=config.runtime.progress)

    with collective.rank_zero_first():
        source = documents.find_corpus(config.corpus, config.hub, config.cache)
        model, tokenizer = build_model(config, source, open_progress)
        shards = corpus.prepare_shards(source, config.corpus.name, tokenizer, config.cache, open_progress)
    record_checksums(folder, tokenizer=tokenizer.identity, corpus=source.digest)
    loop_config = build_loop_config(config, shards)
    warnings += update_environment(folder, steps=loop_config.steps)

    model.to(machine.device)
    if machine.compile:
        model.compile()
    parallel = ParallelModel(model, machine.precision, machine.device, config.runtime.shard)
    optimizer = Optimizer(model, config.optimizer, parallel.precision)
    state = checkpoint.resume(collective.broadcast_path(folder), optimizer) or TrainingState()
    collective.seed_per_rank(config.seed, state.step)
    truncate_metrics(folder / "metrics.jsonl", state.step if state.step else -1)

    rate_factor, warmup = SCHEDULES[config.schedule.name], count_warmup_steps(config, loop_config.steps)
    valid = spread_windows(shards.valid, config.context, config.eval_tokens)

    def evaluate() -> tuple[dict[str, float], float]:
        loss = parallel.run_inference(lambda model: mean_token_loss(model, valid, machine.token_budget))
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}, -loss

    description = checkpoint.model_description(config.model, config.tokenizer, tokenizer, model)
    parameters = sum(p.numel() for p in model.parameters())
    with (
        open_progress(total=loop_config.steps, start=state.step) as progress,
        trackers.metrics_log(config, folder, progress.say, send=collective.rank() == 0) as log,
    ):
        progress.say(f"{parameters:,} parameters, {len(shards.train):,} tokens, {machine}")
        for warning in warnings:
            progress.say(warning)
        state = fit(
            model=model,
            objective=parallel.wrap_objective(causal_objective),
            batches=functools.partial(micro_batches, config, machine, shards.train),
            optimizer=optimizer,
            learning_rate=lambda step: config.lr * rate_factor(step, loop_config.steps, warmup),
            evaluate=evaluate,
            save=lambda state: checkpoint.save(
                folder, state, optimizer, description, tokenizer, loop_config.keep_checkpoints
            ),
            config=loop_config,
            state=state,
            run=folder,
            log=log,
            progress=progress,
        )
        metrics = read_jsonl(folder / "metrics.jsonl")
        validation = next(line for line in reversed(metrics) if line["split"] == "valid")
        frequency_loss = unigram_loss(shards, model.tokens.num_embeddings)
        result = {
            **training_result("pretrain", config, state, machine),
            "parameters": parameters,
            "valid": {"loss": validation["loss"], "perplexity": validation["perplexity"]},
            "best": {"step": state.best_step, **state.best_metrics},
            "unigram_loss": round(frequency_loss, 6),
        }
        if validation["loss"] > frequency_loss - PLATEAU:
            progress.say(
                f"warning: the model does not use the context yet: its validation loss is {validation['loss']:.3f},"
                f" that of token frequencies {frequency_loss:.3f}. Try a smaller lr, more warmup_steps or more steps"
            )
        write_run_report(folder, result)
        finish_run(folder, result)
        progress.say(f"finished: validation perplexity {validation['perplexity']:.2f}; {folder}")


def build_model(
    config: PretrainConfig, source: documents.CorpusSource, open_progress: corpus.Reporting
) -> tuple[LanguageModel, Tokenizer]:
    """Return the model and its tokenizer, with random weights (init=none) or those of init."""
    if config.init == "none":
        tokenizer = corpus.prepare_tokenizer(config.tokenizer, source, config.hub, config.cache, open_progress)
        return create_model(config.model, len(tokenizer)), tokenizer
    model, tokenizer = load.load_language_model(config.init, config.hub, config.cache)
    model.configure(config.model)
    return model, tokenizer


def micro_batches(
    config: PretrainConfig, machine: Machine, tokens: np.ndarray, step: int, halvings: int = 0
) -> Iterator[Batch]:
    """Yield the micro-batches of a step: random windows, a function of (seed, step), split among all processes."""
    windows = random_windows(tokens, config.context, config.batch_size, config.seed, step)
    size = max(1, machine.micro_batch_rows(config.context) >> halvings) * collective.world_size()
    return (rank_shard(windows[start : start + size], windows_batch) for start in range(0, len(windows), size))


def profile_pretraining(config: PretrainConfig, folder: Path) -> None:
    """dry_run=true: text -> shards -> model -> costs and a few timed steps; plan.tokens: random tokens, no text."""
    machine = device.setup_device(config.runtime, config.seed)
    update_environment(folder, **machine.describe())
    if config.plan.tokens is None:
        open_progress = functools.partial(Progress, folder, mode=config.runtime.progress)
        source = documents.find_corpus(config.corpus, config.hub, config.cache)
        model, tokenizer = build_model(config, source, open_progress)
        shards = corpus.prepare_shards(source, config.corpus.name, tokenizer, config.cache, open_progress)
        tokens, steps = shards.train, build_loop_config(config, shards).steps
    else:
        model = create_model(config.model, dry_run.vocabulary_size(config.tokenizer))
        vocabulary_size = model.tokens.num_embeddings
        tokens = np.random.default_rng(config.seed).integers(
            0, vocabulary_size, config.batch_size * (config.context + 1)
        )
        steps = count_steps(config, config.plan.tokens)
    model.to(machine.device)
    optimizer = Optimizer(model, config.optimizer, machine.precision)
    if machine.compile:
        model.compile()
    cost = dry_run.TrainingCost(
        model=config.model,
        vocabulary=model.tokens.num_embeddings,
        outputs=0,
        logits=True,
        steps=steps,
        tokens=steps * config.batch_size * config.context,
        context=config.context,
        batch_size=config.batch_size,
        longest_row=config.context,
    )
    profiling_steps = (micro_batches(config, machine, tokens, step) for step in range(PROFILED_STEPS))
    dry_run.dry_run("pretrain", config, folder, cost, machine, model, causal_objective, profiling_steps, optimizer)


def count_steps(config: PretrainConfig, tokens: float) -> int:
    """Steps = epochs x floor(tokens / (batch x context)). Raises UserError if a setting names a later step."""
    per_epoch = max(1, int(tokens // (config.batch_size * config.context)))
    steps = config.steps or max(1, int((config.epochs or 0) * per_epoch))
    if problems := list(config.late_step_problems(steps)):
        raise UserError("\n".join(problems))
    return steps


def build_loop_config(config: PretrainConfig, shards: corpus.Shards) -> LoopConfig:
    """Return the number of steps and the intervals. Raises UserError if a split does not fill one window."""
    for split, tokens in (("train", shards.train), ("valid", shards.valid)):
        if len(tokens) <= config.context:
            raise UserError(
                f"corpus {config.corpus.name} is too small: {len(tokens):,} {split} tokens. One window needs"
                f" context={config.context} tokens and one more to predict. Use more text or a smaller context="
            )
    steps = count_steps(config, len(shards.train))
    eval_every = config.eval_every or max(1, steps // 10)
    return LoopConfig(
        steps=steps,
        log_every=config.log_every,
        eval_every=eval_every,
        checkpoint_every=config.checkpoint_every or eval_every,
        keep_checkpoints=tuple(config.keep_checkpoints),
        evaluate_first=True,
    )


def count_warmup_steps(config: PretrainConfig, steps: int) -> int:
    """Return warmup_steps, or if unset the model's default, at most a tenth of the run."""
    default_steps = min(config.model.pretraining.warmup_steps, steps // 10)
    return default_steps if config.warmup_steps is None else config.warmup_steps
