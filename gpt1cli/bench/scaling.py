"""The cost of more text, more examples and longer sequences: gpt1 compared with itself at other sizes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gpt1cli.bench.contest import BenchSettings, Candidate, Contest, Job
from gpt1cli.bench.training import adamw, model_config, train_step
from gpt1cli.models.batch import Item, windows_batch
from gpt1cli.models.heads import Classifier
from gpt1cli.models.transformer import Transformer
from gpt1cli.tasks.losses import TASK_LOSSES
from gpt1cli.text.windows import random_windows
from gpt1cli.training.device import TOKEN_BUDGET
from gpt1cli.training.dry_run import flops_per_token
from gpt1cli.training.epochs import Epochs
from gpt1cli.training.objectives.causal import causal_objective
from gpt1cli.training.objectives.supervised import supervised_objective

HERE = __name__
V = 1_000  # a small vocabulary: we measure the work around the model
STEPS_PER_ROUND = 10
MIN_RELATIVE_SPEED = 0.8  # compared with the smallest size


def scale(settings: BenchSettings) -> Iterable[Contest]:
    """Corpora of 10^6 to 10^9 tokens, 10^3 to 10^5 examples, contexts of 64 to 2,048 tokens; a tiny model."""
    sizes = [10**9, 10**8, 10**7, 10**6]
    yield _scaling_contest("scale, corpus", "tokens in the corpus", "corpus_job", "tokens", sizes, settings.device)
    counts = [10**5, 10**4, 10**3]
    yield _scaling_contest("scale, examples", "examples", "examples_job", "examples", counts, settings.device)
    contexts = [64, 128, 256, 512, 1024, 2048]
    contest = _scaling_contest(
        "scale, context", "tokens in a sequence", "context_job", "context", contexts, settings.device
    )
    yield dataclasses.replace(contest, min_speedup={})  # the share of attention grows, and so does the time


def _scaling_contest(title: str, axis: str, make: str, option: str, sizes: list[int], device: str) -> Contest:
    names = [f"{size:,}{attention_share(size) if option == 'context' else ''}" for size in sizes]
    candidates = [
        Candidate(name, f"{HERE}:{make}", {option: size, "device": device}, tune_allocator=True)
        for name, size in zip(names, sizes, strict=True)
    ]
    return Contest(title, "tokens", candidates, {candidates[-1].name: MIN_RELATIVE_SPEED}, axis=(axis, sizes))


def attention_share(context: int) -> str:
    """Attention's share of the floating point operations, as text."""
    total, without = (flops_per_token(model_config("tiny", 0.1), V, tokens) for tokens in (context, 0))
    return f" (attention {1 - without / total:.0%} of the operations)"


def corpus_job(device: str, tokens: int) -> Job:
    """Training steps on windows of a shard with this number of random tokens."""
    block = np.random.default_rng(0).integers(0, V, 10**6).astype(np.uint16)
    folder = tempfile.TemporaryDirectory(prefix="gpt1-bench-")  # removed when the process ends
    path = Path(folder.name) / "train.bin"
    with path.open("wb") as file:
        for _ in range(tokens // len(block)):
            block.tofile(file)
    shard = np.memmap(path, np.uint16, "r", shape=(tokens,))
    body = Transformer(model_config("tiny", 0.1), V).to(device).train()
    optimizer, step = adamw(body), iter(range(10**9))

    def job() -> float:
        for _ in range(STEPS_PER_ROUND):
            windows = random_windows(shard, 64, 32, 0, next(step))
            train_step(body, optimizer, causal_objective, [windows_batch(windows)], device)
        assert folder  # keeps the folder as long as the job
        return STEPS_PER_ROUND * 32 * 64

    return job


def examples_job(device: str, examples: int) -> Job:
    """Steps of fine-tuning on this number of examples of 16 tokens."""
    rows = np.random.default_rng(0).integers(0, V, (examples, 16), dtype=np.int32)
    items = [Item(row[:0], (row,), int(row[0] % 2)) for row in rows]
    epochs = Epochs(items, 32, 0, None, TOKEN_BUDGET[device])
    classifier = Classifier(Transformer(model_config("tiny", 0.1), V), 2, 0.1).to(device).train()
    optimizer, step = adamw(classifier), iter(range(10**9))
    objective = supervised_objective(TASK_LOSSES["cross_entropy"], 0.5)

    def job() -> float:
        for _ in range(STEPS_PER_ROUND):
            train_step(classifier, optimizer, objective, epochs(next(step)), device)
        return STEPS_PER_ROUND * 32 * 16

    return job


def context_job(device: str, context: int) -> Job:
    """Steps of pretraining on 4,096 tokens in sequences of this length."""
    config = dataclasses.replace(model_config("tiny", 0.1), n_positions=context)
    body, draw = Transformer(config, V).to(device).train(), np.random.default_rng(0)
    optimizer = adamw(body)

    def job() -> float:
        for _ in range(STEPS_PER_ROUND):
            windows = draw.integers(0, V, (4096 // context, context + 1))
            train_step(body, optimizer, causal_objective, [windows_batch(windows)], device)
        return STEPS_PER_ROUND * 4096

    return job
