"""gpt1 finetune: a labelled task on top of a pretrained model (paper, sections 3.2, 3.3 and 4.1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt1cli.config.commands import FinetuneConfig
from gpt1cli.data.hub import Requirement, task_requirements, tokenizer_requirements
from gpt1cli.evaluation.evaluate import score_split
from gpt1cli.evaluation.predictor import DemonstrationSets, HeadPredictor, InputLimits, Predictor, PromptPredictor
from gpt1cli.evaluation.warnings import collapse_warning, warn_truncation
from gpt1cli.models.batch import Batch
from gpt1cli.models.create import create_model
from gpt1cli.models.heads import Classifier, FineTunedModel, PromptedLM
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained import hf_config, load
from gpt1cli.pretrained.locate import weight_requirements
from gpt1cli.prompts import demonstrations
from gpt1cli.prompts.prompt import Prompt
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.folder import finish_run, is_finished, truncate_metrics
from gpt1cli.runs.record import record_checksums, update_environment
from gpt1cli.tasks import few_shot, glue
from gpt1cli.tasks.classification import compute_metrics, output_count, task_loss
from gpt1cli.tasks.sources import file
from gpt1cli.tasks.splits import Split, check_task, load_examples, load_split, warn_missing_split
from gpt1cli.text import corpus
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import checkpoint, collective, device, dry_run
from gpt1cli.training.collective import ParallelModel
from gpt1cli.training.dry_run import PROFILED_STEPS
from gpt1cli.training.epochs import Epochs
from gpt1cli.training.loop import LoopConfig, fit, training_result
from gpt1cli.training.objectives.supervised import supervised_objective
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.schedules import SCHEDULES
from gpt1cli.training.state import TrainingState


def needs(config: FinetuneConfig) -> list[Requirement]:
    """Return what the run requires before it starts."""
    trackers.check_tracker(config.logger)
    if config.resume and is_finished(Path(config.resume), config.steps):
        return []
    check_task(config.task)
    demonstrations.check_similarity_model(config.similar_by, config.hub)
    tokenizer = tokenizer_requirements(config.tokenizer) if config.init in ("none", *hf_config.REPOS) else []
    weights = weight_requirements(config.init) if config.pretrained else []
    return task_requirements(config.task) + tokenizer + weights


def run(config: FinetuneConfig, folder: Path) -> None:
    """Examples -> items -> model with a head -> fit -> the best checkpoint scored on every split -> result.json."""
    if config.resume and is_finished(Path(config.resume), config.steps):
        print(
            f"{folder} is finished: {folder / 'result.json'}; to train further: gpt1 finetune resume={folder} steps=N"
        )
        with trackers.metrics_log(config, folder, print, send=collective.rank() == 0):  # sends missing lines
            return
    checkpoint.check_resumable(config.resume)
    full_task = config.task  # the checkpoint names its splits, also after training on a sample
    if config.shots:
        config = dataclasses.replace(config, task=few_shot.few_shot_task(config.task))
    machine = device.setup_device(config.runtime, config.seed)
    warnings = [*machine.warnings, *update_environment(folder, **machine.describe())]
    open_progress = functools.partial(Progress, folder, mode=config.runtime.progress)

    with collective.rank_zero_first():
        body, tokenizer = build_body(config, open_progress)
        predictor = build_predictor(config, tokenizer, InputLimits.from_model(body, machine))
        splits = encode_splits(config, predictor, open_progress)
    digests = {name: split.digest for name, split in splits.items()}
    record_checksums(folder, tokenizer=tokenizer.identity, **digests)
    task = config.task
    model = add_head(body, config).to(machine.device)
    resample = predictor.resampler(splits["train"].examples, body) if isinstance(predictor, PromptPredictor) else None
    if machine.compile:
        model.body.compile()
    parallel = ParallelModel(model, machine.precision, machine.device, config.runtime.shard)
    optimizer = Optimizer(model, config.optimizer, parallel.precision)
    state = checkpoint.resume(collective.broadcast_path(folder), optimizer) or TrainingState()
    collective.seed_per_rank(config.seed, state.step)
    truncate_metrics(folder / "metrics.jsonl", state.step if state.step else -1)

    full_batches = task.loss == "soft_f1"  # F1 is that of a whole batch
    limits = machine.micro_batch, machine.token_budget
    epochs = Epochs(
        splits["train"].items, config.batch_size, config.seed, *limits, full_batches=full_batches, resample=resample
    )
    steps = config.steps or max(1, round((config.epochs or 0) * epochs.steps_per_epoch))
    objective = supervised_objective(task_loss(task), config.lm_coef if config.aux_lm else 0.0)
    if config.dry_run:
        machine = dataclasses.replace(machine, micro_batch=config.batch_size if full_batches else machine.micro_batch)
        cost, profiling_steps = training_cost(config, model, epochs, steps), profiling_batches(epochs)
        dry_run.dry_run("finetune", config, folder, cost, machine, model, objective, profiling_steps, optimizer)
        return
    warnings += update_environment(folder, steps=steps)
    eval_every = config.eval_every or epochs.steps_per_epoch
    loop_config = LoopConfig(steps, config.log_every, eval_every=eval_every, checkpoint_every=eval_every)
    rate_factor, warmup = SCHEDULES[config.schedule.name], config.warmup_fraction * steps
    method = {"task": dataclasses.asdict(full_task), **predictor.checkpoint_entries()}
    description = checkpoint.model_description(config.model, config.tokenizer, tokenizer, body, **method)

    def outputs(split: Split) -> np.ndarray:
        return parallel.run_inference(lambda model: predictor.outputs(model, split.examples, split.items))

    def evaluate() -> tuple[dict[str, float], float]:
        metrics = compute_metrics(task, splits["valid"], outputs(splits["valid"]))
        return metrics, metrics[task.metrics[0]]

    with (
        open_progress(total=steps, start=state.step) as progress,
        trackers.metrics_log(config, folder, progress.say, send=collective.rank() == 0) as log,
    ):
        progress.say(
            f"{sum(p.numel() for p in model.parameters()):,} parameters, {describe_weights(config)}, {machine}"
        )
        for warning in warnings:
            progress.say(warning)
        state = fit(
            model=model,
            objective=parallel.wrap_objective(objective),
            batches=epochs,
            optimizer=optimizer,
            learning_rate=lambda step: config.lr * rate_factor(step, steps, warmup),
            evaluate=evaluate,
            save=lambda state: checkpoint.save(folder, state, optimizer, description, tokenizer, keep=()),
            config=loop_config,
            state=state,
            run=folder,
            log=log,
            progress=progress,
        )
        best = collective.broadcast_path(folder) / "checkpoints" / "best"
        optimizer.set_weights(load.read_tensors(best / "model.safetensors"))
        result = {
            **training_result("finetune", config, state, machine),
            "best_step": state.best_step,
            "examples": {name: len(split.items) for name, split in splits.items()},
            "cut": {name: split.truncated for name, split in splits.items()},
            "dropped": {name: split.unlabelled for name, split in splits.items()},
        }
        if config.demos != "none":
            result["left_out"] = {name: split.skipped_demonstrations for name, split in splits.items()}
        for name, split in splits.items():
            if name != "train" or config.score_train:
                scores = outputs(split)
                result |= score_split(task, name, split, scores, folder)
                if message := collapse_warning(task, name, split, scores):
                    progress.say(message)
                if message := glue.write_submission(folder, task, name, config.limit.test):
                    progress.say(message)
        write_run_report(folder, result)
        finish_run(folder, result)
        headline = task.metrics[0]
        values = [f"{name} {result[name][headline]:.4f}" for name in splits if name in result]
        progress.say(f"finished: {headline} of step {state.best_step:,}: {', '.join(values)}; {folder}")


def build_body(config: FinetuneConfig, open_progress: corpus.Reporting) -> tuple[LanguageModel, Tokenizer]:
    """Return body, with special rows for a head, and tokenizer: all, part or none of init (paper, section 5)."""
    if config.init == "none":
        tokenizer = corpus.prepare_tokenizer(config.tokenizer, None, config.hub, config.cache, open_progress)
        trained = None
    elif config.pretrained:
        trained, tokenizer = load.load_language_model(config.init, config.hub, config.cache)
    else:
        trained, tokenizer = None, load.load_tokenizer(config.init, config.hub, config.cache)

    if trained is None:
        body = create_model(config.model, len(tokenizer))
    elif config.transfer_layers == "all":
        body = trained
        body.configure(config.model)
    else:
        body = create_model(config.model, trained.tokens.num_embeddings)
        assert isinstance(body, Transformer) and isinstance(trained, Transformer)  # an LSTM has no blocks to count
        load.copy_layers(body, trained, config.transfer_layers)
    if config.method == "prompt":
        body.resize_embeddings(len(tokenizer))
    elif body.tokens.num_embeddings == len(tokenizer):
        body.resize_embeddings(len(tokenizer) + 3)
    return body, tokenizer


def build_predictor(config: FinetuneConfig, tokenizer: Tokenizer, limits: InputLimits) -> Predictor:
    """Return what scores the labels: a head, or a prompt, with demonstrations from the training examples if set."""
    if config.method == "head":
        return HeadPredictor(config.task, tokenizer, limits)
    prompt = Prompt.from_task(config.task, tokenizer)
    if config.demos == "none":
        return PromptPredictor(prompt, None, limits)
    examples, _ = load_examples(config, "train") or ([], 0)
    settings = {"kind": config.demos, "sets": config.demo_sets, "seed": config.seed, "by": config.similar_by}
    return PromptPredictor(prompt, DemonstrationSets.from_examples(prompt, examples, config.hub, **settings), limits)


def add_head(body: LanguageModel, config: FinetuneConfig) -> FineTunedModel:
    """Add a linear layer to the body, or nothing if a prompt scores the labels."""
    if config.method == "prompt":
        return PromptedLM.from_task(body, config.task)
    return Classifier(body, output_count(config.task), config.head_dropout, choice=bool(config.task.choices))


def training_cost(config: FinetuneConfig, model: FineTunedModel, epochs: Epochs, steps: int) -> dry_run.TrainingCost:
    """Return the size of the run. Rows are as long as the examples: most tokens are in rows above the mean length."""
    lengths = np.array([length for item in epochs.items for length in item.lengths])
    longest = max(epochs.items, key=lambda item: item.row_length * item.row_count)
    return dry_run.TrainingCost(
        model=config.model,
        vocabulary=model.body.tokens.num_embeddings,
        outputs=model.head.out_features if isinstance(model, Classifier) else 0,
        logits=config.aux_lm and config.lm_coef > 0,
        steps=steps,
        tokens=float(lengths.sum() * steps / epochs.steps_per_epoch),
        context=float((lengths**2).sum() / lengths.sum()),
        batch_size=min(config.batch_size, len(epochs.items)),
        longest_row=longest.row_length,
        rows_per_sequence=longest.row_count,
    )


def profiling_batches(epochs: Epochs) -> Iterator[list[Batch]]:
    """Yield the steps of a dry run: first the largest possible, for the peak memory, then the first of the run."""
    largest = sorted(epochs.items, key=lambda item: item.row_length * item.row_count)[-epochs.batch_size :]
    yield dataclasses.replace(epochs, items=largest, resample=None)(0)
    yield from map(epochs, range(PROFILED_STEPS - 1))


def describe_weights(config: FinetuneConfig) -> str:
    """Describe the weights before the first step."""
    if config.init == "none" or not config.pretrained:
        return "random initial weights"
    part = "" if config.transfer_layers == "all" else f" (embeddings and {config.transfer_layers} layers)"
    return f"weights of {config.init}{part}"


def encode_splits(config: FinetuneConfig, predictor: Predictor, open_progress: corpus.Reporting) -> dict[str, Split]:
    """Encode every split of the task that the data set has; skip the others with a warning."""
    splits = {}
    with open_progress(total=len(config.task.splits), description="split") as progress:
        for number, name in enumerate(config.task.splits, start=1):
            split = load_split(config, name, predictor.encode)
            if split is None:
                warn_missing_split(progress, config.task, name)
                continue
            splits[name] = split
            progress.say(f"{name}: {split}")
            if warning := warn_truncation(name, split.truncated, len(split.items), config.model.n_positions):
                progress.say(warning)
            progress.update(number)
        if config.task.source == "file":
            for line in file.summarize_data(config.task, {name: split.examples for name, split in splits.items()}):
                progress.say(line)
    return splits
