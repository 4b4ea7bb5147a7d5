"""gpt1 zeroshot: predict a task with a language model, without training (paper, section 5, Figure 2 right)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from gpt1cli.config import options
from gpt1cli.config.commands import ZeroshotConfig
from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.data.hub import Requirement, task_requirements
from gpt1cli.evaluation.warnings import zero_shot_collapse_warning
from gpt1cli.models.inference import suffix_log_probabilities
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.pretrained import load, locate
from gpt1cli.pretrained.locate import init_requirements
from gpt1cli.prompts.zero_shot import (
    ScoredSplit,
    best_threshold,
    compute_zero_shot_metrics,
    ending_scores,
    load_scored_split,
    threshold_scores,
    zero_shot_records,
)
from gpt1cli.reporting import figure2
from gpt1cli.reporting.collect import unique_labels
from gpt1cli.reporting.figure2 import Curve
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import files, trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import write_text
from gpt1cli.runs.folder import finish_run
from gpt1cli.runs.record import record_checksums, update_environment
from gpt1cli.tasks.splits import check_task, warn_missing_split
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import device
from gpt1cli.training.device import Machine


def needs(config: ZeroshotConfig) -> list[Requirement]:
    """Return what the run requires. Raises UserError if the task has no rule or a checkpoint is not found."""
    trackers.check_tracker(config.logger)
    check_task(config.task)
    if config.task.zeroshot.rule is None:
        with_rule = [name for name in options.names("task") if "zeroshot" in options.values("task", name)]
        raise UserError(
            f"task={config.task.name} has no task.zeroshot.rule; tasks that have one: {', '.join(with_rule)}"
        )
    checkpoints = [name for init in config.inits for name in locate.list_checkpoints(init, config.checkpoint)]
    return task_requirements(config.task) + [need for name in checkpoints for need in init_requirements(name)]


def run(config: ZeroshotConfig, folder: Path) -> None:
    """Each checkpoint -> scores of the endings -> predictions and metrics; a curve of several checkpoints."""
    machine = device.setup_device(config.runtime, config.seed)
    update_environment(folder, **machine.describe())
    task, start_time = config.task, time.perf_counter()
    checkpoints = [(init, name) for init in config.inits for name in locate.list_checkpoints(init, config.checkpoint)]
    encoded: dict[tuple[str, int, bool], dict[str, ScoredSplit]] = {}  # shared by models that read the same inputs
    latest_scores: dict[str, dict[str, Any]] = {}  # init -> scores of its latest checkpoint
    predictions: dict[str, dict[str, list[dict[str, Any]]]] = {}  # init -> split -> its predictions
    curves: dict[str, Curve] = {}
    labels = dict(zip(config.inits, unique_labels(config.inits), strict=True))
    with (
        Progress(folder, len(checkpoints), config.runtime.progress, description="checkpoint") as progress,
        trackers.metrics_log(config, folder, progress.say, labels if config.runs else {}) as log,
    ):
        for number, (init, name) in enumerate(checkpoints, start=1):
            model, tokenizer = load.load_language_model(name, config.hub, config.cache)
            encoding_key = tokenizer.identity, model.config.n_positions, model.branches
            if encoding_key not in encoded:
                encoded[encoding_key] = encode_splits(config, tokenizer, model, progress)
            model.to(machine.device, machine.precision)
            checkpoint = {"init": init, "step": locate.checkpoint_step(name)}
            scores, predictions[init] = score_splits(task, model, len(tokenizer), encoded[encoding_key], machine)
            latest_scores[init] = {**checkpoint, **scores}
            for split in task.splits:
                if split in scores:
                    log({**checkpoint, "split": split, **scores[split]})
            if (point := curve_point(task, latest_scores[init])) is not None:
                curves.setdefault(init, Curve(labels[init], model.config.architecture, [])).points.append(point)
            progress.say(f"{name}: {format_scores(task, scores)}")
            progress.update(number)
        pictures = []
        if len(checkpoints) > 1 and curves:
            is_relative = task.zeroshot.reference is not None
            y_label = task.metrics[0] + (", from chance (0) to reference (1)" if is_relative else "")
            curve_list = list(curves.values())
            pictures = [
                figure2.draw_curves("zeroshot", f"{task.name} without training", y_label, curve_list, zero=is_relative)
            ]
            with files.name_write_errors(folder / "plots"):
                (folder / "plots").mkdir()
            write_text(folder / "plots" / "zeroshot.csv", figure2.curves_csv(curve_list))
        write_predictions(folder, predictions, name_runs=bool(config.runs))
        for init, split in ((init, split) for init, by_split in predictions.items() for split in by_split):
            if warning := zero_shot_collapse_warning(task, split, predictions[init][split]):
                progress.say(warning if len(predictions) == 1 else f"{labels[init]}: {warning}")
        splits = {name: scored.split for name, scored in next(iter(encoded.values())).items()}
        tokenizers = " ".join(dict.fromkeys(identity for identity, _, _ in encoded))
        record_checksums(folder, tokenizer=tokenizers, **{name: split.digest for name, split in splits.items()})
        result = {
            "status": "finished",
            "command": "zeroshot",
            "name": config.name,
            "seed": config.seed,
            "seconds": round(time.perf_counter() - start_time, 3),
            "peak_memory_bytes": device.peak_memory_bytes(machine.device),
            "checkpoints": len(checkpoints),
            "examples": {name: len(split.items) for name, split in splits.items()},
            "cut": {name: split.truncated for name, split in splits.items()},
            **({"runs": latest_scores} if config.runs else latest_scores[config.inits[0]]),
        }
        write_run_report(folder, result, pictures)
        finish_run(folder, result)
        plot_note = f"; curve: {folder / 'plots' / 'zeroshot.png'}" if pictures else ""
        progress.say(f"predictions: {folder / 'predictions'}{plot_note}")


def encode_splits(
    config: ZeroshotConfig, tokenizer: Tokenizer, model: LanguageModel, progress: Progress
) -> dict[str, ScoredSplit]:
    """Encode the splits to predict, after train if it sets a threshold. Raises UserError if none is found."""
    names = [name for name in config.task.splits if name != "train"]
    encoded = {}
    for name in (["train"] if config.task.zeroshot.rule == "sentence" else []) + names:
        split = load_scored_split(config, name, tokenizer, model.config.n_positions, model.branches)
        if split is None:
            warn_missing_split(progress, config.task, name)
            continue
        progress.say(f"{name}: {split.split}")
        encoded[name] = split
    if not encoded.keys() & set(names):
        raise UserError(f"task={config.task.name}: nothing to predict; no split found of {', '.join(names)}")
    return encoded


def score_splits(
    task: TaskConfig, model: LanguageModel, vocabulary_size: int, encoded: dict[str, ScoredSplit], machine: Machine
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Return one model's metrics on each labelled split, with its threshold if any, and its predictions."""
    results: dict[str, Any] = {}
    predictions = {}
    for name, encoded_split in encoded.items():
        items, counts, labels = encoded_split.split.items, encoded_split.scored_counts, encoded_split.split.labels
        values = suffix_log_probabilities(
            model, items, counts, vocabulary_size, machine.micro_batch, machine.token_budget
        )
        scores = ending_scores(values, task.zeroshot.normalise, vocabulary_size)
        if name == "train":
            assert labels is not None
            results["threshold"] = best_threshold(scores[:, 0], labels)
            continue
        if "threshold" in results:
            scores = threshold_scores(results["threshold"], scores)
        predictions[name] = list(zero_shot_records(task, encoded_split.split, scores))
        if labels is not None:
            results[name] = compute_zero_shot_metrics(task, labels, scores)
    return results, predictions


def curve_point(task: TaskConfig, scores: dict[str, Any]) -> tuple[int, float] | None:
    """Return step and first metric for the figure, on valid or else the first labelled split; None without these."""
    split = next((name for name in ("valid", *task.splits) if name in scores), None)
    if scores["step"] is None or split is None:
        return None
    value = scores[split][task.metrics[0]]
    return scores["step"], figure2.relative_score(value, task.zeroshot.chance, task.zeroshot.reference)


def write_predictions(folder: Path, predictions: dict[str, dict[str, list[dict[str, Any]]]], name_runs: bool) -> None:
    """Write predictions/<split>.jsonl of the latest checkpoints; with several runs each record names its run."""
    with files.name_write_errors(folder / "predictions"):
        (folder / "predictions").mkdir()
    for name in next(iter(predictions.values())):
        lines = [
            {**line, **({"init": init} if name_runs else {})}
            for init in predictions
            for line in predictions[init][name]
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(folder / "predictions" / f"{name}.jsonl", text)


def format_scores(task: TaskConfig, scores: dict[str, Any]) -> str:
    """Format the scores of one model in a line."""
    splits = {name: scores[name] for name in task.splits if name in scores}
    lines = [f"{name} " + " ".join(f"{m} {v:.4g}" for m, v in values.items()) for name, values in splits.items()]
    return "; ".join(lines) or "no labels, predicted only"
