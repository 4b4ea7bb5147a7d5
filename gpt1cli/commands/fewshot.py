"""gpt1 fewshot: a task answered behind a few demonstrations in the context; no weight changes (Brown et al. 2020)."""

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
from gpt1cli.data.hub import Need, task_needs
from gpt1cli.pretrained import load, locate
from gpt1cli.pretrained.locate import init_needs
from gpt1cli.prompts import in_context
from gpt1cli.prompts.prompt import Prompt
from gpt1cli.reporting import plots
from gpt1cli.reporting.page import Block, Table
from gpt1cli.reporting.run_report import write_run_report
from gpt1cli.runs import record, trackers
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import write_text
from gpt1cli.runs.folder import finish
from gpt1cli.runs.record import note_checksums
from gpt1cli.tasks import few_shot
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.splits import Split, check, load_examples, warn_absent
from gpt1cli.training import device


def needs(config: FewshotConfig) -> list[Need]:
    """What must be at hand before the run starts; UserError where the checkpoint is missing."""
    trackers.check(config.logger)
    check(config.task)
    (name,) = locate.checkpoints(config.init or "openai", config.checkpoint)
    return task_needs(config.task) + init_needs(name)


def run(config: FewshotConfig, folder: Path) -> None:
    """For each number of shots and each seed: demonstrations -> scores of the labels -> answers, metrics; a curve."""
    machine = device.start(config.runtime, config.seed)
    record.note(folder, **machine.describe())
    if config.pool:
        config = dataclasses.replace(config, task=few_shot.arranged(config.task))
    task, began = config.task, time.perf_counter()
    (name,) = locate.checkpoints(config.init or "openai", config.checkpoint)
    model, vocabulary = load.load(name, config.hub, config.cache)
    model.to(machine.device, machine.precision)
    prompt = Prompt.of(task, vocabulary)
    limits = machine.micro_batch, machine.token_budget
    cells = [(shots, seed) for shots in config.counts for seed in config.seeds[: len(config.seeds) if shots else 1]]
    labels = {str(seed): f"seed {seed}" for seed in config.seeds} if len(config.seeds) > 1 else {}
    with (
        Progress(folder, len(cells), config.runtime.progress, description="cell") as progress,
        trackers.recording(config, folder, progress.say, labels) as log,
    ):
        pool, splits = load_all(config, progress)
        shown = {cell: demonstrations(config, pool, *cell) for cell in cells}  # refused before anything is computed
        found: dict[int, dict[str, dict[str, dict[str, float]]]] = {shots: {} for shots in config.counts}
        answers: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
        for number, (shots, seed) in enumerate(cells, start=1):
            about = {"shots": shots, "seed": seed}
            scored = found[shots][str(seed)] = {}
            for split, asked in splits.items():
                said = in_context.asked(model, prompt, shown[shots, seed], asked.examples, *limits)
                answers[split] += [about | line for line in in_context.predictions(task, asked, said.scores)]
                left_out = {"dropped": sum(said.dropped) / len(said.dropped), "cut": float(sum(said.cut))}
                if asked.labels is not None:
                    scored[split] = in_context.measured(task, asked, said.scores) | left_out
                    log({"step": shots, **about, "split": split, **scored[split]})
            progress.say(f"shots {shots}, seed {seed}: {told(scored) or 'no labels; predicted'}")
            progress.update(number)
        for split, lines in answers.items():
            if warning := doubt(task, split, lines, len(cells)):
                progress.say(warning)
        summed = {shots: summary(list(seeds.values())) for shots, seeds in found.items()}
        note_checksums(
            folder, tokenizer=vocabulary.identity, **{split: asked.digest for split, asked in splits.items()}
        )
        blocks: list[Block] = []
        if any(summed.values()):
            blocks = [overview(summed, len(config.seeds))]
        if blocks and len(config.counts) > 1:
            blocks.append(picture(task.name, task.metrics[0], summed))
            (folder / "plots").mkdir()
            write_text(folder / "plots" / "fewshot.csv", numbers(summed))
        write_answers(folder, answers, one=len(cells) == 1)
        last = summed[config.counts[-1]]
        result = {
            "status": "finished",
            "command": "fewshot",
            "name": config.name,
            "seeds": config.seeds,
            "steps": 0,
            "step": locate.step_of(name),
            "seconds": round(time.perf_counter() - began, 3),
            "peak_memory_bytes": device.peak_memory_bytes(machine.device),
            "examples": {split: len(asked.examples) for split, asked in splits.items()},
            # of the last number of shots the means over the seeds
            **{
                split: {metric: values["mean"] for metric, values in metrics.items()} for split, metrics in last.items()
            },
            "shots": {str(shots): {**summed[shots], "seeds": found[shots]} for shots in config.counts},
        }
        write_run_report(folder, {key: value for key, value in result.items() if key != "shots"}, blocks)
        finish(folder, result)
        progress.say(f"predictions: {folder / 'predictions'}")


def load_all(config: FewshotConfig, progress: Progress) -> tuple[list[Example], dict[str, Split]]:
    """The training examples, where demonstrations are wanted, and the splits to answer: those with labels, or the one
    that was named. UserError where there is none.
    """
    pool: list[Example] = []
    if max(config.counts):
        loaded = load_examples(config, "train")
        assert loaded is not None  # train is never absent
        pool = loaded[0]
        progress.say(f"demonstrations: from {len(pool):,} examples of train")
    asked = [name for name in config.task.splits if name not in (("train", "valid") if config.pool else ("train",))]
    names = [config.split] if config.split else asked
    splits = {}
    for name in names:
        if (loaded := load_examples(config, name)) is None:
            warn_absent(progress, config.task, name)
            continue
        split = Split(loaded[0], (), 0, loaded[1])
        if split.labels is None and config.split is None:
            progress.say(f"{name}: no labels, left out (split={name} predicts it)")
            continue
        progress.say(f"{name}: {split}")
        splits[name] = split
    if not splits:
        raise UserError(f"task={config.task.name}: nothing to answer, none of {', '.join(names)} is there with labels")
    return pool, splits


def demonstrations(config: FewshotConfig, pool: list[Example], shots: int, seed: int) -> list[list[Example]]:
    """The demonstrations of a cell in every order in which they are shown."""
    if config.pool and shots:
        pool, _ = few_shot.draw(config.task, pool, config.pool, seed)
    drawn = in_context.drawn(config.task, pool, shots, seed, config.balanced) if shots else []
    orders = in_context.orders(shots, config.order, config.permutations, seed)
    return [[drawn[i] for i in order] for order in orders]


def summary(seeds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Split -> metric -> mean, standard deviation and range over the seeds."""
    return {split: in_context.summed_up([scored[split] for scored in seeds]) for split in seeds[0]}


def picture(task: str, metric: str, summed: dict[int, dict[str, dict[str, Any]]]) -> plots.Picture:
    """The headline metric over the number of demonstrations."""
    bands = {
        split: [(shots, one[split][metric]) for shots, one in sorted(summed.items())]
        for split in next(iter(summed.values()))
    }
    caption = f"{task} behind demonstrations: mean and range over the seeds"
    return plots.bands("fewshot", caption, "demonstrations", metric, bands)


def overview(summed: dict[int, dict[str, dict[str, Any]]], seeds: int) -> Table:
    """Every metric on every split for each number of demonstrations."""
    splits = next(iter(summed.values()))
    columns = [(split, metric) for split, metrics in splits.items() for metric in metrics]
    idle = [
        (s, m) for s, m in columns if m in ("dropped", "cut") and not any(one[s][m]["max"] for one in summed.values())
    ]
    columns = [column for column in columns if column not in idle]
    rows = [[f"{shots}", *(worded(one[s][m]) for s, m in columns)] for shots, one in sorted(summed.items())]
    header = ["shots", *(f"{split} {metric}" for split, metric in columns)]
    note = (
        f"mean ± sample standard deviation (least to greatest) over {seeds} seeds; without demonstrations all are alike"
    )
    left_out = "dropped: demonstrations that did not fit, of a query; cut: queries of which a text lost its end"
    return Table("Over the number of demonstrations", header, rows, [note, left_out])


def worded(values: dict[str, Any]) -> str:
    """`0.712 ± 0.034 (0.660 to 0.755)`; a single number, or one that all seeds have, stands alone."""
    if values["std"] is None or values["min"] == values["max"]:
        return f"{values['mean']:.4g}"
    return f"{values['mean']:.3f} ± {values['std']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


def numbers(summed: dict[int, dict[str, dict[str, Any]]]) -> str:
    """The same as comma-separated values, with all digits."""
    found = io.StringIO()
    rows = csv.writer(found, lineterminator="\n")
    rows.writerow(["shots", "split", "metric", "mean", "std", "min", "max"])
    for shots, splits in sorted(summed.items()):
        rows.writerows(
            [shots, s, m, *values.values()] for s, metrics in splits.items() for m, values in metrics.items()
        )
    return found.getvalue()


def doubt(task: TaskConfig, split: str, lines: list[dict[str, Any]], cells: int) -> str | None:
    """A warning where one label answers every query of a cell. `lines` are those of all cells, one behind another."""
    if not task.classes or len({line["label"] for line in lines}) < 2:
        return None
    each = len(lines) // cells
    alike = sum(len({line["prediction"] for line in lines[n * each : (n + 1) * each]}) == 1 for n in range(cells))
    if not alike:
        return None
    return (
        f"warning: one label answers every query of {split} with {alike} of {cells} draws of demonstrations: its words"
        " are likelier by themselves; task.prompt.content_free=nothing takes that away"
    )


def write_answers(folder: Path, answers: dict[str, list[dict[str, Any]]], one: bool) -> None:
    """predictions/<split>.jsonl: the answers of every cell; without shots and seed where there is only one."""
    (folder / "predictions").mkdir()
    for split, lines in answers.items():
        kept = [{k: v for k, v in line.items() if not (one and k in ("shots", "seed"))} for line in lines]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_text(folder / "predictions" / f"{split}.jsonl", text)


def told(scored: dict[str, dict[str, float]]) -> str:
    """The scores of one cell in a line."""
    return "; ".join(
        f"{split} " + " ".join(f"{m} {v:.4g}" for m, v in values.items()) for split, values in scored.items()
    )
