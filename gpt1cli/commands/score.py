"""gpt1 score: how likely a language model finds each line of a file, token by token."""

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
from gpt1cli.data.hub import Need
from gpt1cli.models.inference import token_log_probabilities
from gpt1cli.pretrained import load
from gpt1cli.pretrained.locate import init_needs
from gpt1cli.runs.console import Progress
from gpt1cli.runs.files import whole
from gpt1cli.runs.folder import finish
from gpt1cli.runs.record import note
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training import device

LINES = 1024  # read at a time: memory does not grow with the file


def needs(config: ScoreConfig) -> list[Need]:
    """What must be at hand before the run starts; UserError where there is no such file."""
    if config.input != "-" and not Path(config.input).is_file():
        raise UserError(f"input={config.input}: no such file; a file with a text a line is wanted, or - for stdin")
    return init_needs(config.init)


def run(config: ScoreConfig, folder: Path) -> None:
    """Lines -> token ids -> log-probabilities -> scores.jsonl, a line for a line, and their total."""
    machine = device.start(config.runtime, config.seed)
    note(folder, **machine.describe())
    model, vocabulary = load.load(config.init, config.hub, config.cache)
    model.to(machine.device, machine.precision)
    target = folder / "scores.jsonl"
    began, total, count, number = time.perf_counter(), 0.0, 0, 0
    reporting = functools.partial(Progress, folder, mode=config.runtime.progress, unit="lines", description="scored")
    with lines_of(config.input) as lines, whole(target) as scores, reporting(total=0) as progress:
        while texts := list(itertools.islice(lines, LINES)):
            ids = [np.asarray(sequence, np.int32) for sequence in vocabulary.encode_batch(texts)]
            found = token_log_probabilities(model, ids, machine.micro_batch, machine.token_budget)
            for text, sequence, values in zip(texts, ids, found, strict=True):
                number += 1
                scores.write(json.dumps(line_of(number, text, sequence, values, vocabulary), ensure_ascii=False) + "\n")
                total, count = total + float(values.sum(dtype=np.float64)), count + len(values)
            progress.total = number
            progress.update(number, tokens_per_second=count / (time.perf_counter() - began))
        if not count:
            raise UserError(f"input={config.input}: nothing to score, no line has two tokens")
        mean = total / count
        progress.say(f"{number:,} lines, {count:,} tokens: mean {mean:.4f}, perplexity {math.exp(-mean):.2f}; {target}")
    about = {"status": "finished", "command": "score", "name": config.name, "seed": config.seed, "lines": number}
    seconds = time.perf_counter() - began
    measured = {"tokens": count, "mean_log_probability": mean, "perplexity": math.exp(-mean)}
    finish(folder, {**about, **measured, "seconds": round(seconds, 3), "tokens_per_second": count / seconds})


@contextlib.contextmanager
def lines_of(source: str) -> Iterator[Iterator[str]]:
    """The lines of a file, or of stdin for `-`, without their ends. UserError where they are no UTF-8."""
    # NOTE: not sys.stdin itself, which lets bytes that are no UTF-8 pass where the locale is C
    place: int | str = sys.stdin.fileno() if source == "-" else source
    try:
        with open(place, encoding="utf-8-sig", closefd=source != "-") as file:
            yield (line.rstrip("\n") for line in file)
    except UnicodeDecodeError as error:
        raise UserError(f"input={source}: no UTF-8 text ({error.reason} at byte {error.start} of a block)") from error


def line_of(
    number: int, text: str, ids: Sequence[int] | np.ndarray, values: np.ndarray, vocabulary: Tokenizer
) -> dict[str, Any]:
    """What is said of one line; the first token has nothing before it, and no log-probability."""
    mean = float(values.mean(dtype=np.float64)) if len(values) else None
    return {
        "line": number,
        "text": text,
        "tokens": vocabulary.pieces(ids),
        "log_probabilities": [None, *(round(float(value), 5) for value in values)][: len(ids)],
        "mean": mean,
        "perplexity": None if mean is None else math.exp(-mean),
    }
