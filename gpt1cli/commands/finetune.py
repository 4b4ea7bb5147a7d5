"""gpt1 finetune: a labelled task on top of a pretrained model (paper, sections 3.2, 3.3 and 4.1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt1cli.config.commands import FinetuneConfig
from gpt1cli.data.hub import Need, task_needs, tokenizer_needs
from gpt1cli.evaluation import predictor
from gpt1cli.evaluation.evaluate import score_split
from gpt1cli.evaluation.warnings import collapse_warning, half_cut
from gpt1cli.models.batch import Batch
from gpt1cli.models.create import fresh
from gpt1cli.models.heads import Classifier, Prompted, Tuned
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained import hf_config, load
from gpt1cli.pretrained.locate import weights_needs
from gpt1cli.prompts import demonstrations
from gpt1cli.prompts.prompt import Prompt
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.folder import cut_metrics, finish, is_finished
from gpt1cli.runs.record import note, note_checksums
from gpt1cli.tasks import few_shot, glue
from gpt1cli.tasks.classification import loss_of, measured, outputs_of
from gpt1cli.tasks.sources import file
from gpt1cli.tasks.splits import Split, check, load_examples, load_split, warn_absent
from gpt1cli.text import corpus
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import checkpoint, collective, device, dry_run
from gpt1cli.training import dry_run as training_dry_run
from gpt1cli.training.collective import Team
from gpt1cli.training.dry_run import UPDATES
from gpt1cli.training.epochs import Epochs
from gpt1cli.training.loop import Plan, fit, result_of
from gpt1cli.training.objectives.supervised import fine_tuning
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.schedules import SCHEDULES
from gpt1cli.training.state import State


def needs(config: FinetuneConfig) -> list[Need]:
    """What must be at hand before the run starts."""
    trackers.check(config.logger)
    if config.resume and is_finished(Path(config.resume), config.steps):
        return []
    check(config.task)
    demonstrations.check(config.similar_by, config.hub)
    tokenizer = tokenizer_needs(config.tokenizer) if config.init in ("none", *hf_config.REPOS) else []
    weights = weights_needs(config.init) if config.pretrained else []
    return task_needs(config.task) + tokenizer + weights


def run(config: FinetuneConfig, folder: Path) -> None:
    """Examples -> items -> model with a head -> fit -> the best checkpoint scored on every split -> result.json."""
    if config.resume and is_finished(Path(config.resume), config.steps):
        print(f"{folder} is finished: {folder / 'result.json'}; larger steps= would go on")
        with trackers.recording(config, folder, print, send=collective.rank() == 0):  # what the tracker lacks
            return
    checkpoint.check_resumable(config.resume)
    trained_on = config.task  # whose splits a checkpoint knows, however few of their examples it has seen
    if config.shots:
        config = dataclasses.replace(config, task=few_shot.arranged(config.task))
    machine = device.start(config.runtime, config.seed)
    warnings = [*machine.warnings, *note(folder, **machine.describe())]
    reporting = functools.partial(Progress, folder, mode=config.runtime.progress)

    with collective.first_alone():
        body, vocabulary = starting_point(config, reporting)
        asked = asked_of(config, vocabulary, predictor.Fit.of(body, machine))
        splits = load_splits(config, asked, reporting)
    data = {name: split.digest for name, split in splits.items()}
    note_checksums(folder, tokenizer=vocabulary.identity, **data)
    task = config.task
    model = on_top(body, config).to(machine.device)
    anew = asked.training(splits["train"].examples, body) if isinstance(asked, predictor.ByPrompt) else None
    if machine.compile:
        model.body.compile()
    team = Team(model, machine.precision, machine.device, config.runtime.shard)
    optimizer = Optimizer(model, config.optimizer, team.precision)
    state = checkpoint.resume(collective.home(folder), optimizer) or State()
    collective.seed_apart(config.seed, state.step)
    cut_metrics(folder / "metrics.jsonl", state.step if state.step else -1)

    whole = task.loss == "soft_f1"  # F1 is that of a whole batch
    at_once = machine.micro_batch, machine.token_budget
    epochs = Epochs(splits["train"].items, config.batch_size, config.seed, *at_once, whole=whole, anew=anew)
    steps = config.steps or max(1, round((config.epochs or 0) * epochs.updates))
    objective = fine_tuning(loss_of(task), config.lm_coef if config.aux_lm else 0.0)
    if config.dry_run:
        machine = dataclasses.replace(machine, micro_batch=config.batch_size if whole else machine.micro_batch)
        work, updates = work_of(config, model, epochs, steps), rehearsed(epochs)
        training_dry_run.dry_run("finetune", config, folder, work, machine, model, objective, updates, optimizer)
        return
    warnings += note(folder, steps=steps)
    every = config.eval_every or epochs.updates
    plan = Plan(steps, config.log_every, eval_every=every, checkpoint_every=every)
    factor, warmup = SCHEDULES[config.schedule.name], config.warmup_fraction * steps
    how = {"task": dataclasses.asdict(trained_on), **asked.about()}
    about = checkpoint.description(config.model, config.tokenizer, vocabulary, body, **how)

    def outputs(split: Split) -> np.ndarray:
        return team.read(lambda model: asked.outputs(model, split.examples, split.items))

    def evaluate() -> tuple[dict[str, float], float]:
        found = measured(task, splits["valid"], outputs(splits["valid"]))
        return found, found[task.metrics[0]]

    with (
        reporting(total=steps, start=state.step) as progress,
        trackers.recording(config, folder, progress.say, send=collective.rank() == 0) as log,
    ):
        progress.say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {origin_of(config)}, {machine}")
        for warning in warnings:
            progress.say(warning)
        state = fit(
            model=model,
            objective=team.spread(objective),
            batches=epochs,
            optimizer=optimizer,
            learning_rate=lambda step: config.lr * factor(step, steps, warmup),
            evaluate=evaluate,
            save=lambda state: checkpoint.save(folder, state, optimizer, about, vocabulary, keep=()),
            plan=plan,
            state=state,
            run=folder,
            log=log,
            progress=progress,
        )
        best = collective.home(folder) / "checkpoints" / "best"
        optimizer.set_weights(load.read_tensors(best / "model.safetensors"))
        result = {
            **result_of("finetune", config, state, machine),
            "best_step": state.best_step,
            "examples": {name: len(split.items) for name, split in splits.items()},
            "cut": {name: split.cut for name, split in splits.items()},
            "dropped": {name: split.dropped for name, split in splits.items()},
        }
        if config.demos != "none":
            result["left_out"] = {name: split.left_out for name, split in splits.items()}
        for name, split in splits.items():
            if name != "train" or config.score_train:
                found = outputs(split)
                result |= score_split(task, name, split, found, folder)
                if told := collapse_warning(task, name, split, found):
                    progress.say(told)
                if told := glue.write_submission(folder, task, name, config.limit.test):
                    progress.say(told)
        write_run_report(folder, result)
        finish(folder, result)
        headline = task.metrics[0]
        scores = [f"{name} {result[name][headline]:.4f}" for name in splits if name in result]
        progress.say(f"finished: {headline} of step {state.best_step:,}: {', '.join(scores)}; {folder}")


def starting_point(config: FinetuneConfig, reporting: corpus.Reporting) -> tuple[LanguageModel, Tokenizer]:
    """The body, with special rows for a head, and the tokenizer: init's, in part or not at all (paper, section 5)."""
    if config.init == "none":
        vocabulary = corpus.tokenizer_of(config.tokenizer, None, config.hub, config.cache, reporting)
        trained = None
    elif config.pretrained:
        trained, vocabulary = load.load(config.init, config.hub, config.cache)
    else:
        trained, vocabulary = None, load.load_tokenizer(config.init, config.hub, config.cache)

    if trained is None:
        body = fresh(config.model, len(vocabulary))
    elif config.transfer_layers == "all":
        body = trained
        body.configure(config.model)
    else:
        body = fresh(config.model, trained.tokens.num_embeddings)
        assert isinstance(body, Transformer) and isinstance(trained, Transformer)  # an LSTM has no blocks to count
        load.transfer(body, trained, config.transfer_layers)
    if config.method == "prompt":
        body.keep_rows(len(vocabulary))
    elif body.tokens.num_embeddings == len(vocabulary):
        body.append_rows(3)
    return body, vocabulary


def asked_of(config: FinetuneConfig, vocabulary: Tokenizer, fit: predictor.Fit) -> predictor.Asking:
    """How the model is asked: by a head, or through a prompt, perhaps behind the examples that it is trained on."""
    if config.method == "head":
        return predictor.ByHead(config.task, vocabulary, fit)
    prompt = Prompt.of(config.task, vocabulary)
    if config.demos == "none":
        return predictor.ByPrompt(prompt, None, fit)
    examples, _ = load_examples(config, "train") or ([], 0)
    how = {"kind": config.demos, "sets": config.demo_sets, "seed": config.seed, "by": config.similar_by}
    return predictor.ByPrompt(prompt, predictor.Shown.of(prompt, examples, config.hub, **how), fit)


def on_top(body: LanguageModel, config: FinetuneConfig) -> Tuned:
    """The body with what answers: a linear layer, or nothing."""
    if config.method == "prompt":
        return Prompted.of(body, config.task)
    return Classifier(body, outputs_of(config.task), config.head_dropout, choice=bool(config.task.choices))


def work_of(config: FinetuneConfig, model: Tuned, epochs: Epochs, steps: int) -> dry_run.Work:
    """What there is to do: rows as long as the examples, so that most tokens stand in rows above the mean length."""
    lengths = np.array([length for item in epochs.items for length in item.lengths])
    longest = max(epochs.items, key=lambda item: item.width * item.height)
    return dry_run.Work(
        model=config.model,
        vocabulary=model.body.tokens.num_embeddings,
        outputs=model.head.out_features if isinstance(model, Classifier) else 0,
        logits=config.aux_lm and config.lm_coef > 0,
        updates=steps,
        tokens=float(lengths.sum() * steps / epochs.updates),
        context=float((lengths**2).sum() / lengths.sum()),
        batch_size=min(config.batch_size, len(epochs.items)),
        longest=longest.width,
        height=longest.height,
    )


def rehearsed(epochs: Epochs) -> Iterator[list[Batch]]:
    """Updates for a dry run: the largest that could come, which needs the most memory, and then the first ones."""
    largest = sorted(epochs.items, key=lambda item: item.width * item.height)[-epochs.batch_size :]
    yield dataclasses.replace(epochs, items=largest, anew=None)(0)
    yield from map(epochs, range(UPDATES - 1))


def origin_of(config: FinetuneConfig) -> str:
    """What the weights are before the first update."""
    if config.init == "none" or not config.pretrained:
        return "fresh weights"
    part = "" if config.transfer_layers == "all" else f" (embeddings and {config.transfer_layers} blocks)"
    return f"weights of {config.init}{part}"


def load_splits(config: FinetuneConfig, asked: predictor.Asking, reporting: corpus.Reporting) -> dict[str, Split]:
    """Every split of the task that its data set has, as items for the model."""
    splits = {}
    with reporting(total=len(config.task.splits), description="split") as progress:
        for number, name in enumerate(config.task.splits, start=1):
            split = load_split(config, name, asked.arrange)
            if split is None:
                warn_absent(progress, config.task, name)
                continue
            splits[name] = split
            progress.say(f"{name}: {split}")
            if warning := half_cut(name, split.cut, len(split.items), config.model.n_positions):
                progress.say(warning)
            progress.update(number)
        if config.task.source == "file":
            for line in file.overview(config.task, {name: split.examples for name, split in splits.items()}):
                progress.say(line)
    return splits
