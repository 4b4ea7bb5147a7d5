"""gpt1 fewshot: predict a task from a few demonstrations in the context, without training (Brown et al. 2020)."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from pathlib import Path
from typing import Any

from gpt1cli.config.commands import FewshotConfig
from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.data.hub import Requirement, task_requirements
from gpt1cli.pretrained import load, locate
from gpt1cli.pretrained.locate import init_requirements
from gpt1cli.prompts import in_context
from gpt1cli.prompts.prompt import Prompt
from gpt1cli.reporting import plots
from gpt1cli.reporting.page import Block, ReportTable
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import record, trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import write_text
from gpt1cli.runs.folder import finish_run
from gpt1cli.runs.record import record_checksums
from gpt1cli.tasks import few_shot
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.splits import Split, check_task, load_examples, warn_missing_split
from gpt1cli.training import device


def needs(config: FewshotConfig) -> list[Requirement]:
    """Return what the run requires. Raises UserError if the checkpoint is not found."""
    trackers.check_tracker(config.logger)
    check_task(config.task)
    (name,) = locate.list_checkpoints(config.init or "openai", config.checkpoint)
    return task_requirements(config.task) + init_requirements(name)


def run(config: FewshotConfig, folder: Path) -> None:
    """For each number of shots and each seed: demonstrations -> label scores -> predictions, metrics -> a plot."""
    machine = device.setup_device(config.runtime, config.seed)
    record.update_environment(folder, **machine.describe())
    if config.pool:
        config = dataclasses.replace(config, task=few_shot.few_shot_task(config.task))
    task, start_time = config.task, time.perf_counter()
    (name,) = locate.list_checkpoints(config.init or "openai", config.checkpoint)
    model, tokenizer = load.load_language_model(name, config.hub, config.cache)
    model.to(machine.device, machine.precision)
    prompt = Prompt.from_task(task, tokenizer)
    limits = machine.micro_batch, machine.token_budget
    cells = [
        (shots, seed) for shots in config.shot_counts for seed in config.seeds[: len(config.seeds) if shots else 1]
    ]
    labels = {str(seed): f"seed {seed}" for seed in config.seeds} if len(config.seeds) > 1 else {}
    with (
        Progress(folder, len(cells), config.runtime.progress, description="cell") as progress,
        trackers.metrics_log(config, folder, progress.say, labels) as log,
    ):
        pool, splits = load_pool_and_splits(config, progress)
        demonstrations = {cell: ordered_demonstrations(config, pool, *cell) for cell in cells}  # checked first
        metrics: dict[int, dict[str, dict[str, dict[str, float]]]] = {shots: {} for shots in config.shot_counts}
        records: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
        for number, (shots, seed) in enumerate(cells, start=1):
            cell = {"shots": shots, "seed": seed}
            cell_metrics = metrics[shots][str(seed)] = {}
            for split, queries in splits.items():
                answers = in_context.score_queries(
                    model, prompt, demonstrations[shots, seed], queries.examples, *limits
                )
                records[split] += [cell | line for line in in_context.in_context_records(task, queries, answers.scores)]
                counts = {"dropped": sum(answers.skipped) / len(answers.skipped), "cut": float(sum(answers.truncated))}
                if queries.labels is not None:
                    cell_metrics[split] = in_context.compute_in_context_metrics(task, queries, answers.scores) | counts
                    log({"step": shots, **cell, "split": split, **cell_metrics[split]})
            progress.say(f"shots {shots}, seed {seed}: {format_scores(cell_metrics) or 'no labels, predicted only'}")
            progress.update(number)
        for split, split_records in records.items():
            if warning := constant_label_warning(task, split, split_records, len(cells)):
                progress.say(warning)
        summary = {shots: summarise_seeds(list(seeds.values())) for shots, seeds in metrics.items()}
        record_checksums(
            folder, tokenizer=tokenizer.identity, **{split: queries.digest for split, queries in splits.items()}
        )
        blocks: list[Block] = []
        if any(summary.values()):
            blocks = [summary_table(summary, len(config.seeds))]
        if blocks and len(config.shot_counts) > 1:
            blocks.append(shots_plot(task.name, task.metrics[0], summary))
            (folder / "plots").mkdir()
            write_text(folder / "plots" / "fewshot.csv", summary_csv(summary))
        write_predictions(folder, records, single_cell=len(cells) == 1)
        last_summary = summary[config.shot_counts[-1]]
        result = {
            "status": "finished",
            "command": "fewshot",
            "name": config.name,
            "seeds": config.seeds,
            "steps": 0,
            "step": locate.checkpoint_step(name),
            "seconds": round(time.perf_counter() - start_time, 3),
            "peak_memory_bytes": device.peak_memory_bytes(machine.device),
            "examples": {split: len(queries.examples) for split, queries in splits.items()},
            # means over the seeds, for the last number of shots
            **{
                split: {metric: values["mean"] for metric, values in split_summary.items()}
                for split, split_summary in last_summary.items()
            },
            "shots": {str(shots): {**summary[shots], "seeds": metrics[shots]} for shots in config.shot_counts},
        }
        write_run_report(folder, {key: value for key, value in result.items() if key != "shots"}, blocks)
        finish_run(folder, result)
        progress.say(f"predictions: {folder / 'predictions'}")


def load_pool_and_splits(config: FewshotConfig, progress: Progress) -> tuple[list[Example], dict[str, Split]]:
    """Load the training examples, if demonstrations are used, and the splits to predict: split=, or all with labels.

    Raises UserError if there is none.
    """
    pool: list[Example] = []
    if max(config.shot_counts):
        loaded = load_examples(config, "train")
        assert loaded is not None  # train is never absent
        pool = loaded[0]
        progress.say(f"demonstrations: from {len(pool):,} examples of train")
    test_splits = [
        name for name in config.task.splits if name not in (("train", "valid") if config.pool else ("train",))
    ]
    names = [config.split] if config.split else test_splits
    splits = {}
    for name in names:
        if (loaded := load_examples(config, name)) is None:
            warn_missing_split(progress, config.task, name)
            continue
        split = Split(loaded[0], (), 0, loaded[1])
        if split.labels is None and config.split is None:
            progress.say(f"{name}: skipped, it has no labels (split={name} predicts it)")
            continue
        progress.say(f"{name}: {split}")
        splits[name] = split
    if not splits:
        raise UserError(
            f"task={config.task.name}: nothing to predict; no split with labels found of {', '.join(names)}"
        )
    return pool, splits


def ordered_demonstrations(config: FewshotConfig, pool: list[Example], shots: int, seed: int) -> list[list[Example]]:
    """Return the demonstrations of a cell, in each order that the model reads."""
    if config.pool and shots:
        pool, _ = few_shot.draw_examples(config.task, pool, config.pool, seed)
    sample = in_context.sample_demonstrations(config.task, pool, shots, seed, config.balanced) if shots else []
    orders = in_context.demonstration_orders(shots, config.order, config.permutations, seed)
    return [[sample[i] for i in order] for order in orders]


def summarise_seeds(seeds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return split -> metric -> mean, standard deviation and range over the seeds."""
    return {split: in_context.summarize_seeds([metrics[split] for metrics in seeds]) for split in seeds[0]}


def shots_plot(task: str, metric: str, summary: dict[int, dict[str, dict[str, Any]]]) -> plots.Picture:
    """Plot the first metric over the number of demonstrations."""
    bands = {
        split: [(shots, splits[split][metric]) for shots, splits in sorted(summary.items())]
        for split in next(iter(summary.values()))
    }
    caption = f"{task} with demonstrations: mean and range over the seeds"
    return plots.draw_bands("fewshot", caption, "demonstrations", metric, bands)


def summary_table(summary: dict[int, dict[str, dict[str, Any]]], seeds: int) -> ReportTable:
    """Return the table of all metrics by number of demonstrations."""
    splits = next(iter(summary.values()))
    columns = [(split, metric) for split, metrics in splits.items() for metric in metrics]
    empty = [
        (s, m)
        for s, m in columns
        if m in ("dropped", "cut") and not any(metrics_by_split[s][m]["max"] for metrics_by_split in summary.values())
    ]
    columns = [column for column in columns if column not in empty]
    rows = [
        [f"{shots}", *(format_range(metrics_by_split[s][m]) for s, m in columns)]
        for shots, metrics_by_split in sorted(summary.items())
    ]
    header = ["shots", *(f"{split} {metric}" for split, metric in columns)]
    spread_note = (
        f"mean ± sample standard deviation (minimum to maximum) over {seeds} seeds; 0 shots: the same for all seeds"
    )
    counts_note = (
        "dropped: demonstrations per query that did not fit and were skipped; cut: queries with a truncated text"
    )
    return ReportTable("Results by number of demonstrations", header, rows, [spread_note, counts_note])


def format_range(values: dict[str, Any]) -> str:
    """Format as `0.712 ± 0.034 (0.660 to 0.755)`; only the mean if all seeds have the same value."""
    if values["std"] is None or values["min"] == values["max"]:
        return f"{values['mean']:.4g}"
    return f"{values['mean']:.3f} ± {values['std']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


def summary_csv(summary: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Return the same as comma-separated values, with all digits."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(["shots", "split", "metric", "mean", "std", "min", "max"])
    for shots, splits in sorted(summary.items()):
        rows.writerows(
            [shots, s, m, *values.values()] for s, metrics in splits.items() for m, values in metrics.items()
        )
    return buffer.getvalue()


def constant_label_warning(task: TaskConfig, split: str, records: list[dict[str, Any]], cells: int) -> str | None:
    """Warn if a cell predicts the same label for every query. `lines` are the records of all cells, cell after cell."""
    if not task.is_classification or len({record["label"] for record in records}) < 2:
        return None
    cell_size = len(records) // cells
    constant_cells = sum(
        len({record["prediction"] for record in records[n * cell_size : (n + 1) * cell_size]}) == 1
        for n in range(cells)
    )
    if not constant_cells:
        return None
    return (
        f"warning: with {constant_cells} of {cells} draws of demonstrations the model predicts the same label for every"
        f" query of {split}: its words alone decide. task.prompt.content_free=nothing corrects for them"
    )


def write_predictions(folder: Path, records: dict[str, list[dict[str, Any]]], single_cell: bool) -> None:
    """Write predictions/<split>.jsonl with the records of every cell; without shots and seed if there is only one."""
    (folder / "predictions").mkdir()
    for split, split_records in records.items():
        lines = [
            {k: v for k, v in line.items() if not (single_cell and k in ("shots", "seed"))} for line in split_records
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(folder / "predictions" / f"{split}.jsonl", text)


def format_scores(metrics: dict[str, dict[str, float]]) -> str:
    """Format the scores of one cell in a line."""
    return "; ".join(
        f"{split} " + " ".join(f"{m} {v:.4g}" for m, v in split_metrics.items())
        for split, split_metrics in metrics.items()
    )
