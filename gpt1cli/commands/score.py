"""gpt1 score: log-probability and perplexity of each line of a file, token by token."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt1cli.config.commands import ScoreConfig
from gpt1cli.config.schema import UserError
from gpt1cli.data.hub import Requirement
from gpt1cli.models.inference import token_log_probabilities
from gpt1cli.pretrained import load
from gpt1cli.pretrained.locate import init_requirements
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import atomic_write
from gpt1cli.runs.folder import finish_run
from gpt1cli.runs.record import update_environment
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import device

BATCH_LINES = 1024  # lines read at a time, so that memory does not grow with the file


def needs(config: ScoreConfig) -> list[Requirement]:
    """Return what the run requires. Raises UserError if input= is not found."""
    if config.input != "-" and not Path(config.input).is_file():
        raise UserError(f"input={config.input}: no such file; give a file with one text per line, or - for stdin")
    return init_requirements(config.init)


def run(config: ScoreConfig, folder: Path) -> None:
    """Lines -> token ids -> log-probabilities -> scores.jsonl, one record per line, and the total."""
    machine = device.setup_device(config.runtime, config.seed)
    update_environment(folder, **machine.describe())
    model, tokenizer = load.load_language_model(config.init, config.hub, config.cache)
    model.to(machine.device, machine.precision)
    target = folder / "scores.jsonl"
    start_time, total, count, number = time.perf_counter(), 0.0, 0, 0
    open_progress = functools.partial(
        Progress, folder, mode=config.runtime.progress, unit="lines", description="scored"
    )
    with read_lines(config.input) as lines, atomic_write(target) as scores, open_progress(total=0) as progress:
        while texts := list(itertools.islice(lines, BATCH_LINES)):
            ids = [np.asarray(sequence, np.int32) for sequence in tokenizer.encode_batch(texts)]
            log_probabilities = token_log_probabilities(model, ids, machine.micro_batch, machine.token_budget)
            for text, sequence, values in zip(texts, ids, log_probabilities, strict=True):
                number += 1
                scores.write(
                    json.dumps(score_record(number, text, sequence, values, tokenizer), ensure_ascii=False) + "\n"
                )
                total, count = total + float(values.sum(dtype=np.float64)), count + len(values)
            progress.total = number
            progress.update(number, tokens_per_second=count / (time.perf_counter() - start_time))
        if not count:
            raise UserError(f"input={config.input}: nothing to score, no line has two tokens or more")
        mean = total / count
        progress.say(f"{number:,} lines, {count:,} tokens: mean {mean:.4f}, perplexity {math.exp(-mean):.2f}; {target}")
    summary = {"status": "finished", "command": "score", "name": config.name, "seed": config.seed, "lines": number}
    seconds = time.perf_counter() - start_time
    totals = {"tokens": count, "mean_log_probability": mean, "perplexity": math.exp(-mean)}
    finish_run(folder, {**summary, **totals, "seconds": round(seconds, 3), "tokens_per_second": count / seconds})


@contextlib.contextmanager
def read_lines(source: str) -> Iterator[Iterator[str]]:
    """Open the lines of a file, or of stdin for `-`, without line ends. Raises UserError if they are not UTF-8."""
    # NOTE: not sys.stdin itself, which accepts bytes that are not UTF-8 in the locale C
    file_or_descriptor: int | str = sys.stdin.fileno() if source == "-" else source
    try:
        with open(file_or_descriptor, encoding="utf-8-sig", closefd=source != "-") as file:
            yield (line.rstrip("\n") for line in file)
    except UnicodeDecodeError as error:
        raise UserError(f"input={source}: not UTF-8 text ({error.reason} at byte {error.start} of a block)") from error


def score_record(
    number: int, text: str, ids: Sequence[int] | np.ndarray, values: np.ndarray, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return the record of one line; its first token has no context and no log-probability."""
    mean = float(values.mean(dtype=np.float64)) if len(values) else None
    return {
        "line": number,
        "text": text,
        "tokens": tokenizer.subwords(ids),
        "log_probabilities": [None, *(round(float(value), 5) for value in values)][: len(ids)],
        "mean": mean,
        "perplexity": None if mean is None else math.exp(-mean),
    }
