"""Training steps: pretraining, fine-tuning, multiple choice. The peer is the same model in transformers.

B rows, T tokens, V vocabulary.

Longer than 300 lines: ours and the peer's version of each step, side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1cli.bench.contest import BenchSettings, Candidate, Contest, Job
from gpt1cli.config import options
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import build
from gpt1cli.config.training import OptimizerConfig
from gpt1cli.models.batch import Batch, Item, group_by_length, items_batch, windows_batch
from gpt1cli.models.heads import Classifier
from gpt1cli.models.inference import head_outputs
from gpt1cli.models.transformer import Transformer
from gpt1cli.tasks.losses import TASK_LOSSES
from gpt1cli.training.device import TOKEN_BUDGET
from gpt1cli.training.dry_run import flops_per_token
from gpt1cli.training.loop import accumulate_gradients
from gpt1cli.training.objectives.causal import causal_objective
from gpt1cli.training.objectives.supervised import supervised_objective
from gpt1cli.training.optimizer import Optimizer

V = 40_478  # the published vocabulary
HERE = __name__


# --- contests ---------------------------------------------------------------------------------------------------------


def pretrain(settings: BenchSettings) -> Iterable[Contest]:
    """Base and mini with dropout 0.1, base without dropout; also as a share of the speed of bf16 matrix products."""
    for model, batch, context, dropout in SIZES[settings.device]:
        size = {"device": settings.device, "model": model, "batch": batch, "context": context, "dropout": dropout}
        candidates = [Candidate("gpt1", f"{HERE}:pretraining_job", size, tune_allocator=True)]
        candidates += peer_candidates(f"{HERE}:peer_pretraining_job", size) if settings.peer and dropout else []
        candidates.append(
            Candidate("matrix products", f"{HERE}:matmul_job", {"device": settings.device}, tune_allocator=True)
        )
        name = f"pretrain {model}, {batch} x {context}, dropout {dropout}"
        min_speedup = MIN_SPEEDUPS[settings.device, model] if dropout else {}
        limits = {"transformers fp32": 0.65} if dropout and (settings.device, model) == ("cpu", "base") else {}
        min_share = MIN_CEILING_SHARES.get((settings.device, model, dropout))
        flops = flops_per_token(model_config(model, dropout), V, context)
        yield Contest(name, "tokens", candidates, min_speedup, flops, min_share, max_memory_ratio=limits)


SIZES = {  # device -> model, sequences, tokens in each, dropout
    "cpu": (("base", 2, 512, 0.1), ("base", 2, 512, 0.0), ("mini", 8, 256, 0.1)),
    "cuda": (("base", 64, 512, 0.1), ("base", 64, 512, 0.0)),
}
MIN_SPEEDUPS = {
    ("cpu", "base"): {"transformers fp32": 4.5, "transformers bf16": 2.6, "transformers bf16, our settings": 1.35},
    ("cpu", "mini"): {"transformers fp32": 3.6, "transformers bf16": 1.9},
    ("cuda", "base"): {"transformers bf16, compiled": 1.5},
}


MIN_CEILING_SHARES = {("cpu", "base", 0.1): 0.55, ("cpu", "base", 0.0): 0.65, ("cuda", "base", 0.1): 0.6}


def finetune(settings: BenchSettings) -> Iterable[Contest]:
    """Pairs of the length of those in RTE; base, with the auxiliary objective."""
    size = {"device": settings.device, "model": "base", "batch": 16}
    ours = Candidate("gpt1", f"{HERE}:fine_tuning_job", size, tune_allocator=True)
    theirs = peer_candidates(f"{HERE}:peer_fine_tuning_job", size) if settings.peer else []
    min_speedup = {"transformers fp32": 5, "transformers bf16": 2.2}
    yield Contest("finetune, as RTE", "examples", [ours, *theirs[:2]], min_speedup)
    for other in theirs[2:]:  # separate: all of them together would need more than 24 GB
        yield Contest(f"finetune, as RTE, {other.name}", "examples", [ours, other])


def choice(settings: BenchSettings) -> Iterable[Contest]:
    """Four answers of 10 tokens to a passage of 350 tokens; base, a training step and scoring only."""
    size = {"device": settings.device, "model": "base", "questions": 2, "shared": 350, "answers": 4, "length": 10}
    for train, separate, theirs in ((True, 3.1, 3.7 if settings.device == "cpu" else 4.0), (False, 3.4, 4.0)):
        work = {**size, "train": train}
        candidates = [
            Candidate("gpt1", f"{HERE}:choice_job", {**work, "separate_rows": False}, tune_allocator=True),
            Candidate(
                "gpt1, one row per answer", f"{HERE}:choice_job", {**work, "separate_rows": True}, tune_allocator=True
            ),
        ]
        if settings.peer:
            candidates.append(Candidate("transformers bf16", f"{HERE}:peer_choice_job", {**work, "precision": "bf16"}))
        min_speedup = {"gpt1, one row per answer": separate, "transformers bf16": theirs}
        yield Contest(f"choice, {'train' if train else 'score'}", "questions", candidates, min_speedup)


def peer_candidates(make: str, size: dict[str, Any]) -> list[Candidate]:
    """transformers with default settings in fp32 and bf16, and with the general settings that gpt1 uses."""
    defaults = [
        Candidate("transformers fp32", make, {**size, "precision": "fp32"}),
        Candidate("transformers bf16", make, {**size, "precision": "bf16"}),
    ]
    if size["device"] == "cuda":
        return [*defaults, Candidate("transformers bf16, compiled", make, {**defaults[1].options, "compiled": True})]
    return [*defaults, Candidate("transformers bf16, our settings", make, defaults[1].options, tune_allocator=True)]


# --- ours -------------------------------------------------------------------------------------------------------------


def model_config(name: str, dropout: float) -> ModelConfig:
    """A model of conf/ with one rate for all three dropouts."""
    return dataclasses.replace(
        build(ModelConfig, options.values("model", name)),
        embedding_dropout=dropout,
        attention_dropout=dropout,
        residual_dropout=dropout,
    )


def adamw(model: nn.Module) -> Optimizer:
    """Our optimizer in bf16."""
    return Optimizer(model, build(OptimizerConfig, options.values("optimizer", "adamw")), torch.bfloat16)


def pretraining_job(device: str, model: str, batch: int, context: int, dropout: float) -> Job:
    """A step on `batch` windows; counted in tokens."""
    body = Transformer(model_config(model, dropout), V).to(device).train()
    optimizer, draw = adamw(body), np.random.default_rng(0)
    if device == "cuda":
        body.compile()

    def job() -> float:
        windows = draw.integers(0, V, (batch, context + 1))
        train_step(body, optimizer, causal_objective, [windows_batch(windows)], device)
        return batch * context

    return job


def fine_tuning_job(device: str, model: str, batch: int) -> Job:
    """A step on a batch of pairs; counted in examples."""
    classifier = Classifier(Transformer(model_config(model, 0.1), V + 3), 2, 0.1).to(device).train()
    optimizer, draw = adamw(classifier), np.random.default_rng(0)

    def job() -> float:
        items = [Item.from_sequences([row], int(draw.integers(2))) for row in pair_rows(draw, batch)]
        groups = group_by_length(items, None, TOKEN_BUDGET[device])
        batches = [items_batch([items[i] for i in group]) for group in groups]
        train_step(classifier, optimizer, supervised_objective(TASK_LOSSES["cross_entropy"], 0.5), batches, device)
        return batch

    return job


def choice_job(
    device: str, model: str, questions: int, shared: int, answers: int, length: int, train: bool, separate_rows: bool
) -> Job:
    """A step on questions with a shared passage, or only their scores; counted in questions."""
    body = Transformer(model_config(model, 0.1 if train else 0.0), V + 3)
    classifier = Classifier(body, answers, 0.1, choice=True).to(device).train(train)
    draw = np.random.default_rng(0)
    optimizer = adamw(classifier)

    def job() -> float:
        items = [
            Item.from_sequences(rows, 1, shared + 2) for rows in choice_rows(draw, questions, shared, answers, length)
        ]
        items = [item.unshared() for item in items] if separate_rows else items
        if train:
            batches = [items_batch(items)]
            train_step(classifier, optimizer, supervised_objective(TASK_LOSSES["cross_entropy"], 0.5), batches, device)
        else:
            head_outputs(classifier, items, None, TOKEN_BUDGET[device])
        return questions

    return job


def train_step(model: Any, optimizer: Optimizer, objective: Any, batches: Sequence[Batch], device: str) -> None:
    """One step as in our training loop."""
    sums = accumulate_gradients(model, objective, batches, optimizer, torch.device(device))
    optimizer.step(1e-4, sums["count"])


def pair_rows(draw: np.random.Generator, count: int) -> list[list[int]]:
    """Rows of the length of those in RTE with the published vocabulary: median 60 tokens, some above 200."""
    lengths = np.clip(np.exp(draw.normal(np.log(60), 0.5, count)), 20, 280).astype(int)
    return [[V, *draw.integers(0, V, n - 2), V + 2] for n in lengths]


def choice_rows(
    draw: np.random.Generator, questions: int, shared: int, answers: int, length: int
) -> list[list[list[int]]]:
    """Rows of questions: start, passage, delimiter, an answer, classify."""
    rows = []
    for _ in range(questions):
        prefix = [V, *draw.integers(0, V, shared), V + 1]
        rows.append([[*prefix, *draw.integers(0, V, length), V + 2] for _ in range(answers)])
    return rows


# --- theirs -----------------------------------------------------------------------------------------------------------


def peer_model(kind: str, model: str, dropout: float, rows: int = V) -> Any:
    """A transformers class in the shape of one of our models; `rows` is its vocabulary size."""
    import transformers

    ours = model_config(model, dropout)
    config = transformers.OpenAIGPTConfig(
        vocab_size=rows, n_positions=ours.n_positions, n_embd=ours.d_model, n_layer=ours.n_layer, n_head=ours.n_head,
        embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


class PeerTrainer:
    """A training step for a transformers model, as its users write it."""

    def __init__(self, model: Any, device: str, precision: str, compiled: bool = False) -> None:
        self.model, self.device = model.to(device).train(), device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
        self.forward = torch.compile(self.model) if compiled else self.model

    def update(self, loss: Tensor) -> None:
        """Backward, clip, step."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def peer_pretraining_job(
    device: str, model: str, batch: int, context: int, dropout: float, precision: str, compiled: bool = False
) -> Job:
    """A step of OpenAIGPTLMHeadModel with its own loss."""
    theirs = PeerTrainer(peer_model("OpenAIGPTLMHeadModel", model, dropout), device, precision, compiled)
    draw = np.random.default_rng(0)

    def job() -> float:
        tokens = torch.from_numpy(draw.integers(0, V, (batch, context))).to(device)
        with theirs.autocast:
            loss = theirs.forward(tokens, labels=tokens).loss
        theirs.update(loss)
        return batch * context

    return job


def peer_fine_tuning_job(device: str, model: str, batch: int, precision: str, compiled: bool = False) -> Job:
    """A step of OpenAIGPTLMHeadModel with a linear layer on the last hidden state, and its language-model loss."""
    body = peer_model("OpenAIGPTLMHeadModel", model, 0.1, V + 3)
    body.classifier = nn.Linear(body.config.n_embd, 2)
    theirs, draw = PeerTrainer(body, device, precision, compiled), np.random.default_rng(0)

    def job() -> float:
        rows = pair_rows(draw, batch)
        ends = torch.tensor([len(row) - 1 for row in rows], device=device)
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        targets = tokens[:, 1:].masked_fill(torch.arange(1, tokens.shape[1], device=device) > ends[:, None], -100)
        labels = torch.from_numpy(draw.integers(0, 2, batch)).to(device)
        with theirs.autocast:
            output = theirs.forward(tokens, output_hidden_states=True)
            states = output.hidden_states[-1][torch.arange(batch, device=device), ends]
            lm = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets.flatten())
            loss = F.cross_entropy(body.classifier(states), labels) + 0.5 * lm
        theirs.update(loss)
        return batch

    return job


def peer_choice_job(
    device: str, model: str, questions: int, shared: int, answers: int, length: int, train: bool, precision: str
) -> Job:
    """A step of OpenAIGPTDoubleHeadsModel, or only its scores: one row per answer."""
    theirs = PeerTrainer(
        peer_model("OpenAIGPTDoubleHeadsModel", model, 0.1 if train else 0.0, V + 3), device, precision
    )
    theirs.model.train(train)
    draw = np.random.default_rng(0)

    def job() -> float:
        tokens = torch.tensor(
            choice_rows(draw, questions, shared, answers, length), device=device
        )  # [questions,answers,T]
        ends = torch.full(tokens.shape[:2], tokens.shape[2] - 1, device=device)
        with theirs.autocast, torch.set_grad_enabled(train):
            targets = {"labels": tokens, "mc_labels": torch.ones(questions, dtype=torch.int64, device=device)}
            output = theirs.model(tokens, mc_token_ids=ends, **(targets if train else {}))
        if train:
            theirs.update(output.mc_loss + 0.5 * output.loss)
        return questions

    return job


# --- the ceiling ------------------------------------------------------------------------------------------------------


def matmul_job(device: str, size: int = 2048) -> Job:
    """Products of square bf16 matrices, counted in floating point operations: the most that the machine can do."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in "ab")

    def job() -> float:
        times = 8 if device == "cpu" else 200
        for _ in range(times):
            a @ b
        return times * 2 * size**3

    return job
