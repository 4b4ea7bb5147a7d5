"""What more text, more examples and longer sequences cost: ours beside ours at other sizes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gpt1cli.bench.contest import Contender, Contest, Job, Setting
from gpt1cli.bench.training import adamw, model_config, update
from gpt1cli.models.batch import Item, windows_batch
from gpt1cli.models.heads import Classifier
from gpt1cli.models.transformer import Transformer
from gpt1cli.tasks.losses import TASK_LOSSES
from gpt1cli.text.windows import random_windows
from gpt1cli.training.device import TOKEN_BUDGET
from gpt1cli.training.dry_run import flops_per_token
from gpt1cli.training.epochs import Epochs
from gpt1cli.training.objectives.causal import language_modelling
from gpt1cli.training.objectives.supervised import fine_tuning

HERE = __name__
V = 1_000  # a small vocabulary: what is measured is what lies around the model
UPDATES = 10  # in a turn
FLAT = 0.8  # of the speed of the smallest, at least


def scale(setting: Setting) -> Iterable[Contest]:
    """Corpora of 10^6 to 10^9 tokens, 10^3 to 10^5 examples, contexts of 64 to 2,048 tokens; a tiny model."""
    sizes = [10**9, 10**8, 10**7, 10**6]
    yield _contest("scale, corpus", "tokens of the corpus", "on_corpus", "tokens", sizes, setting.device)
    counts = [10**5, 10**4, 10**3]
    yield _contest("scale, examples", "examples", "on_examples", "examples", counts, setting.device)
    contexts = [64, 128, 256, 512, 1024, 2048]
    longer = _contest("scale, context", "tokens of a sequence", "on_context", "context", contexts, setting.device)
    yield dataclasses.replace(longer, floors={})  # attention's share of the operations grows, and with it the time


def _contest(title: str, axis: str, make: str, option: str, sizes: list[int], device: str) -> Contest:
    names = [f"{size:,}{share(size) if option == 'context' else ''}" for size in sizes]
    contenders = [
        Contender(name, f"{HERE}:{make}", {option: size, "device": device}, tuned=True)
        for name, size in zip(names, sizes, strict=True)
    ]
    return Contest(title, "tokens", contenders, {contenders[-1].name: FLAT}, axis=(axis, sizes))


def share(context: int) -> str:
    """Attention's share of the floating point operations, in words."""
    whole, none = (flops_per_token(model_config("tiny", 0.1), V, tokens) for tokens in (context, 0))
    return f" (attention {1 - none / whole:.0%} of the operations)"


def on_corpus(device: str, tokens: int) -> Job:
    """Updates on windows of a shard of so many random tokens."""
    block = np.random.default_rng(0).integers(0, V, 10**6).astype(np.uint16)
    folder = tempfile.TemporaryDirectory(prefix="gpt1-bench-")  # it goes with the process
    path = Path(folder.name) / "train.bin"
    with path.open("wb") as file:
        for _ in range(tokens // len(block)):
            block.tofile(file)
    shard = np.memmap(path, np.uint16, "r", shape=(tokens,))
    body = Transformer(model_config("tiny", 0.1), V).to(device).train()
    optimizer, step = adamw(body), iter(range(10**9))

    def job() -> float:
        for _ in range(UPDATES):
            windows = random_windows(shard, 64, 32, 0, next(step))
            update(body, optimizer, language_modelling, [windows_batch(windows)], device)
        assert folder  # held as long as the job
        return UPDATES * 32 * 64

    return job


def on_examples(device: str, examples: int) -> Job:
    """Updates of fine-tuning on so many examples of 16 tokens."""
    rows = np.random.default_rng(0).integers(0, V, (examples, 16), dtype=np.int32)
    items = [Item(row[:0], (row,), int(row[0] % 2)) for row in rows]
    epochs = Epochs(items, 32, 0, None, TOKEN_BUDGET[device])
    classifier = Classifier(Transformer(model_config("tiny", 0.1), V), 2, 0.1).to(device).train()
    optimizer, step = adamw(classifier), iter(range(10**9))
    objective = fine_tuning(TASK_LOSSES["cross_entropy"], 0.5)

    def job() -> float:
        for _ in range(UPDATES):
            update(classifier, optimizer, objective, epochs(next(step)), device)
        return UPDATES * 32 * 16

    return job


def on_context(device: str, context: int) -> Job:
    """Updates of pretraining on 4,096 tokens, in sequences of so many."""
    config = dataclasses.replace(model_config("tiny", 0.1), n_positions=context)
    body, draw = Transformer(config, V).to(device).train(), np.random.default_rng(0)
    optimizer = adamw(body)

    def job() -> float:
        for _ in range(UPDATES):
            windows = draw.integers(0, V, (4096 // context, context + 1))
            update(body, optimizer, language_modelling, [windows_batch(windows)], device)
        return UPDATES * 4096

    return job
