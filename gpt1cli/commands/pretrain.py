"""gpt1 pretrain: a language model on raw text (paper, sections 3.1 and 4.1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt1cli.config.commands import PretrainConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data.hub import Need, corpus_needs, tokenizer_needs
from gpt1cli.models.batch import Batch, windows_batch
from gpt1cli.models.create import fresh
from gpt1cli.models.inference import mean_token_loss
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.pretrained import load
from gpt1cli.pretrained.locate import weights_needs
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import read_jsonl
from gpt1cli.runs.folder import cut_metrics, finish, is_finished
from gpt1cli.runs.record import note, note_checksums
from gpt1cli.text import corpus, documents
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.text.windows import random_windows, spread_windows, unigram_loss
from gpt1cli.training import checkpoint, collective, device, dry_run
from gpt1cli.training import dry_run as training_dry_run
from gpt1cli.training.collective import Team
from gpt1cli.training.device import Machine
from gpt1cli.training.dry_run import UPDATES
from gpt1cli.training.epochs import portion
from gpt1cli.training.loop import Plan, fit, result_of
from gpt1cli.training.objectives.causal import language_modelling
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.schedules import SCHEDULES
from gpt1cli.training.state import State

PLATEAU = 0.05  # nats below the unigram loss: post-norm blocks stay there when the rate is high for the warm-up


def needs(config: PretrainConfig) -> list[Need]:
    """What must be at hand before the run starts."""
    trackers.check(config.logger)
    if config.resume and is_finished(Path(config.resume), config.steps):
        return []
    if config.plan.tokens is not None:
        return []
    return corpus_needs(config.corpus) + tokenizer_needs(config.tokenizer) + weights_needs(config.init)


def run(config: PretrainConfig, folder: Path) -> None:
    """Text -> shards -> model -> fit -> result.json."""
    if config.resume and is_finished(Path(config.resume), config.steps):
        print(f"{folder} is finished: {folder / 'result.json'}; larger steps= would go on")
        with trackers.recording(config, folder, print, send=collective.rank() == 0):  # what the tracker lacks
            return
    if config.dry_run:
        rehearse(config, folder)
        return
    machine = device.start(config.runtime, config.seed)
    warnings = [*machine.warnings, *note(folder, **machine.describe())]
    reporting = functools.partial(Progress, folder, mode=config.runtime.progress)

    with collective.first_alone():
        source = documents.find(config.corpus, config.hub, config.cache)
        model, vocabulary = starting_point(config, source, reporting)
        shards = corpus.prepare(source, config.corpus.name, vocabulary, config.cache, reporting)
    note_checksums(folder, tokenizer=vocabulary.identity, corpus=source.digest)
    plan = plan_of(config, shards)
    warnings += note(folder, steps=plan.steps)

    model.to(machine.device)
    if machine.compile:
        model.compile()
    team = Team(model, machine.precision, machine.device, config.runtime.shard)
    optimizer = Optimizer(model, config.optimizer, team.precision)
    state = checkpoint.resume(collective.home(folder), optimizer) or State()
    collective.seed_apart(config.seed, state.step)
    cut_metrics(folder / "metrics.jsonl", state.step if state.step else -1)

    factor, warmup = SCHEDULES[config.schedule.name], warmup_of(config, plan.steps)
    valid = spread_windows(shards.valid, config.context, config.eval_tokens)

    def evaluate() -> tuple[dict[str, float], float]:
        loss = team.read(lambda model: mean_token_loss(model, valid, machine.token_budget))
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}, -loss

    about = checkpoint.description(config.model, config.tokenizer, vocabulary, model)
    parameters = sum(p.numel() for p in model.parameters())
    with (
        reporting(total=plan.steps, start=state.step) as progress,
        trackers.recording(config, folder, progress.say, send=collective.rank() == 0) as log,
    ):
        progress.say(f"{parameters:,} parameters, {len(shards.train):,} tokens, {machine}")
        for warning in warnings:
            progress.say(warning)
        state = fit(
            model=model,
            objective=team.spread(language_modelling),
            batches=functools.partial(batches, config, machine, shards.train),
            optimizer=optimizer,
            learning_rate=lambda step: config.lr * factor(step, plan.steps, warmup),
            evaluate=evaluate,
            save=lambda state: checkpoint.save(folder, state, optimizer, about, vocabulary, plan.keep),
            plan=plan,
            state=state,
            run=folder,
            log=log,
            progress=progress,
        )
        metrics = read_jsonl(folder / "metrics.jsonl")
        last = next(line for line in reversed(metrics) if line["split"] == "valid")
        unigram = unigram_loss(shards, model.tokens.num_embeddings)
        result = {
            **result_of("pretrain", config, state, machine),
            "parameters": parameters,
            "valid": {"loss": last["loss"], "perplexity": last["perplexity"]},
            "best": {"step": state.best_step, **state.best_metrics},
            "unigram_loss": round(unigram, 6),
        }
        if last["loss"] > unigram - PLATEAU:
            progress.say(
                f"warning: the validation loss {last['loss']:.3f} is no better than that of token frequencies,"
                f" {unigram:.3f}: the model has not begun to learn from context; try a smaller lr, a longer warm-up,"
                " or more updates"
            )
        write_run_report(folder, result)
        finish(folder, result)
        progress.say(f"finished: validation perplexity {last['perplexity']:.2f}; {folder}")


def starting_point(
    config: PretrainConfig, source: documents.Source, reporting: corpus.Reporting
) -> tuple[LanguageModel, Tokenizer]:
    """The model and its tokenizer: fresh weights, or init's."""
    if config.init == "none":
        vocabulary = corpus.tokenizer_of(config.tokenizer, source, config.hub, config.cache, reporting)
        return fresh(config.model, len(vocabulary)), vocabulary
    model, vocabulary = load.load(config.init, config.hub, config.cache)
    model.configure(config.model)
    return model, vocabulary


def batches(
    config: PretrainConfig, machine: Machine, tokens: np.ndarray, step: int, halvings: int = 0
) -> Iterator[Batch]:
    """The micro-batches of an update: windows at random places, a function of (seed, step), shared by all processes."""
    windows = random_windows(tokens, config.context, config.batch_size, config.seed, step)
    size = max(1, machine.rows(config.context) >> halvings) * collective.size()
    return (portion(windows[start : start + size], windows_batch) for start in range(0, len(windows), size))


def rehearse(config: PretrainConfig, folder: Path) -> None:
    """dry_run=true: text -> shards -> model -> plan and two updates; with plan.tokens random tokens are the text."""
    machine = device.start(config.runtime, config.seed)
    note(folder, **machine.describe())
    if config.plan.tokens is None:
        reporting = functools.partial(Progress, folder, mode=config.runtime.progress)
        source = documents.find(config.corpus, config.hub, config.cache)
        model, vocabulary = starting_point(config, source, reporting)
        shards = corpus.prepare(source, config.corpus.name, vocabulary, config.cache, reporting)
        tokens, updates = shards.train, plan_of(config, shards).steps
    else:
        model = fresh(config.model, dry_run.vocabulary_of(config.tokenizer))
        entries = model.tokens.num_embeddings
        tokens = np.random.default_rng(config.seed).integers(0, entries, config.batch_size * (config.context + 1))
        updates = updates_of(config, config.plan.tokens)
    model.to(machine.device)
    optimizer = Optimizer(model, config.optimizer, machine.precision)
    if machine.compile:
        model.compile()
    work = dry_run.Work(
        model=config.model,
        vocabulary=model.tokens.num_embeddings,
        outputs=0,
        logits=True,
        updates=updates,
        tokens=updates * config.batch_size * config.context,
        context=config.context,
        batch_size=config.batch_size,
        longest=config.context,
    )
    rehearsed = (batches(config, machine, tokens, step) for step in range(UPDATES))
    training_dry_run.dry_run("pretrain", config, folder, work, machine, model, language_modelling, rehearsed, optimizer)


def updates_of(config: PretrainConfig, tokens: float) -> int:
    """Updates = epochs x floor(tokens / (batch x context)). UserError where something is to happen after the last."""
    per_epoch = max(1, int(tokens // (config.batch_size * config.context)))
    steps = config.steps or max(1, int((config.epochs or 0) * per_epoch))
    if late := list(config.too_late(steps)):
        raise UserError("\n".join(late))
    return steps


def plan_of(config: PretrainConfig, shards: corpus.Shards) -> Plan:
    """The number of updates, and what happens how often. UserError where the corpus does not fill one window."""
    for split, tokens in (("train", shards.train), ("valid", shards.valid)):
        if len(tokens) <= config.context:
            raise UserError(
                f"corpus {config.corpus.name} is too small: {len(tokens):,} {split} tokens do not fill one window of"
                f" context={config.context} tokens and the one to predict; use more text or a smaller context="
            )
    steps = updates_of(config, len(shards.train))
    eval_every = config.eval_every or max(1, steps // 10)
    return Plan(
        steps=steps,
        log_every=config.log_every,
        eval_every=eval_every,
        checkpoint_every=config.checkpoint_every or eval_every,
        keep=tuple(config.keep_checkpoints),
        evaluate_first=True,
    )


def warmup_of(config: PretrainConfig, steps: int) -> int:
    """Updates of warm-up: as told, else the model's own, which a short run cuts to a tenth of its length."""
    own = min(config.model.pretraining.warmup_steps, steps // 10)
    return own if config.warmup_steps is None else config.warmup_steps
