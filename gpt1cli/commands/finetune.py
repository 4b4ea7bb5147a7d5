"""gpt1 finetune: a labelled task on top of a pretrained model (paper, sections 3.2, 3.3 and 4.1)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt1cli import checkpoint, corpus, metrics, rundir, runtime, tasks
from gpt1cli.batches import Epochs, Row
from gpt1cli.checkpoint import State
from gpt1cli.config import FinetuneConfig
from gpt1cli.fit import Plan, fit, result_of
from gpt1cli.hub import Need, task_needs, tokenizer_needs, weights_needs
from gpt1cli.loggers import Progress
from gpt1cli.models.heads import Classifier
from gpt1cli.models.transformer import Transformer
from gpt1cli.objectives import classification
from gpt1cli.optim import SCHEDULES, Optimizer
from gpt1cli.report import write_run_report
from gpt1cli.scoring import class_scores
from gpt1cli.tasks.layouts import LAYOUTS, Example, special
from gpt1cli.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split, as rows for the model."""

    examples: Sequence[Example]
    rows: Sequence[Row]
    cut: int  # rows whose text was cut to fit
    dropped: int  # rows of the data set without a label

    @property
    def digest(self) -> str:
        """16 hex digits over the examples, in order."""
        rows = [(example.id, example.texts, example.label) for example in self.examples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @property
    def labels(self) -> list[int] | None:
        """The labels, or None where the split has none."""
        labels = [example.label for example in self.examples if example.label is not None]
        return labels if len(labels) == len(self.examples) else None


def needs(config: FinetuneConfig) -> list[Need]:
    """What must be at hand before the run starts."""
    if config.resume and rundir.is_finished(Path(config.resume), config.steps):
        return []
    tokenizer = tokenizer_needs(config.tokenizer) if config.init in ("none", "openai") else []
    weights = weights_needs(config.init) if config.pretrained else []
    return task_needs(config.task) + tokenizer + weights


def run(config: FinetuneConfig, folder: Path) -> None:
    """Examples -> rows -> model with a head -> fit -> the best checkpoint scored on every split -> result.json."""
    if config.resume and rundir.is_finished(folder, config.steps):
        print(f"{folder} is finished: {folder / 'result.json'}; larger steps= would go on")
        return
    machine = runtime.start(config.runtime, config.seed)
    warnings = rundir.note(folder, **machine.describe())
    reporting = functools.partial(Progress, folder, mode=config.runtime.progress)

    body, vocabulary = starting_point(config, reporting)
    splits = load_splits(config, vocabulary, reporting)
    data = {name: split.digest for name, split in splits.items()}
    rundir.note_checksums(folder, tokenizer=vocabulary.identity, **data)
    rundir.reopen(folder)
    model = Classifier(body, len(config.task.labels), config.head_dropout).to(machine.device)
    optimizer = Optimizer(model, config.optimizer, machine.precision)
    if machine.compile:
        model.body.compile()
    state = checkpoint.resume(folder, optimizer) or State()
    rundir.cut_metrics(folder / "metrics.jsonl", state.step if state.step else -1)

    epochs = Epochs(splits["train"].rows, config.batch_size, config.seed, machine.micro_batch, machine.token_budget)
    steps = config.steps or max(1, round((config.epochs or 0) * epochs.updates))
    warnings += rundir.note(folder, steps=steps)
    plan = Plan(steps, config.log_every, eval_every=epochs.updates, checkpoint_every=epochs.updates)
    factor, warmup = SCHEDULES[config.schedule.name], config.warmup_fraction * steps
    task = dataclasses.asdict(config.task)
    about = checkpoint.description(config.model, config.tokenizer, vocabulary, body, task=task)

    def scores_of(split: Split) -> np.ndarray:
        return class_scores(model, split.rows, machine.micro_batch, machine.token_budget)

    def evaluate() -> tuple[dict[str, float], float]:
        found = measured(config.task.metrics, splits["valid"], scores_of(splits["valid"]))
        return found, found[config.task.metrics[0]]

    with reporting(total=steps, start=state.step) as progress:
        for name, split in splits.items():
            cut = f", {split.cut:,} cut to fit" if split.cut else ""
            dropped = f", {split.dropped:,} without a label left out" if split.dropped else ""
            progress.say(f"{name}: {len(split.rows):,} examples{cut}{dropped}")
        progress.say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {machine}")
        for warning in warnings:
            progress.say(warning)
        state = fit(
            model=model,
            objective=classification(config.lm_coef if config.aux_lm else 0.0),
            batches=epochs,
            optimizer=optimizer,
            learning_rate=lambda step: config.lr * factor(step, steps, warmup),
            evaluate=evaluate,
            save=lambda state: checkpoint.save(folder, state, optimizer, about, vocabulary, keep=()),
            plan=plan,
            state=state,
            run=folder,
            progress=progress,
        )
        optimizer.set_weights(checkpoint.read_tensors(folder / "checkpoints" / "best" / "model.safetensors"))
        result = {
            **result_of("finetune", config, state, machine),
            "best_step": state.best_step,
            "examples": {name: len(split.rows) for name, split in splits.items()},
            "cut": {name: split.cut for name, split in splits.items()},
            "dropped": {name: split.dropped for name, split in splits.items()},
        }
        for name, split in splits.items():
            if name != "train":
                scores = scores_of(split)
                write_predictions(folder / "predictions" / f"{name}.jsonl", split, scores, config.task.labels)
                if split.labels is not None:
                    result[name] = measured(config.task.metrics, split, scores)
        write_run_report(folder, result)
        rundir.finish(folder, result)
        headline = config.task.metrics[0]
        progress.say(f"finished: validation {headline} {result['valid'][headline]:.4f}; {folder}")


def starting_point(config: FinetuneConfig, reporting: corpus.Reporting) -> tuple[Transformer, Tokenizer]:
    """The body with its special rows, and the tokenizer: init's, in part or not at all (paper, sections 3.2 and 5)."""
    if config.init == "none":
        vocabulary = corpus.tokenizer_of(config.tokenizer, None, config.hub, config.cache, reporting)
        trained = None
    elif config.pretrained:
        trained, vocabulary = checkpoint.load(config.init, config.hub, config.cache)
    else:
        trained, vocabulary = None, checkpoint.load_tokenizer(config.init, config.hub, config.cache)

    if trained is None:
        body = Transformer(config.model, len(vocabulary))
    elif config.transfer_layers == "all":
        body = trained
        body.configure(config.model)
    else:
        body = Transformer(config.model, trained.tokens.num_embeddings)
        checkpoint.transfer(body, trained, config.transfer_layers)
    if body.tokens.num_embeddings == len(vocabulary):
        body.append_rows(3)
    return body, vocabulary


def load_splits(config: FinetuneConfig, vocabulary: Tokenizer, reporting: corpus.Reporting) -> dict[str, Split]:
    """Every split of the task that its data set has, as rows of at most n_positions tokens."""
    arrange, splits = LAYOUTS[config.task.layout], {}
    with reporting(total=len(config.task.splits), description="split") as progress:
        for number, name in enumerate(config.task.splits, start=1):
            loaded = tasks.load(config.task, name, config.hub, config.cache)
            if loaded is None:
                progress.say(f"{config.task.name} has no split {config.task.splits[name]} here: {name} is left out")
                continue
            limit = getattr(config.limit, name.partition("_")[0])
            examples = tasks.limit(loaded.examples, limit, config.seed)
            laid = [
                arrange(vocabulary.encode_batch(example.texts), special(len(vocabulary)), config.model.n_positions)
                for example in examples
            ]
            rows = [Row(one.rows[0], example.label) for one, example in zip(laid, examples, strict=True)]
            splits[name] = Split(examples, rows, sum(one.cut for one in laid), loaded.dropped)
            progress.update(number)
    return splits


def measured(names: Sequence[str], split: Split, scores: np.ndarray) -> dict[str, float]:
    """The mean loss and the metrics of a labelled split. scores [N,L] log-probabilities."""
    labels = np.array(split.labels)
    loss = float(-scores[np.arange(len(labels)), labels].mean())
    return {"loss": loss, **metrics.score(names, labels, scores.argmax(-1))}


def write_predictions(path: Path, split: Split, scores: np.ndarray, labels: Sequence[str]) -> None:
    """One line an example: id, label, prediction, and the probability of each label."""
    lines = [
        {
            "id": example.id,
            "label": None if example.label is None else labels[example.label],
            "prediction": labels[int(row.argmax())],
            "scores": {label: round(float(p), 6) for label, p in zip(labels, np.exp(row), strict=True)},
        }
        for example, row in zip(split.examples, scores, strict=True)
    ]
    path.parent.mkdir(exist_ok=True)
    rundir.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
