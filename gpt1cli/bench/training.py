"""One update of training: pretraining, fine-tuning, multiple choice. The peer is the same model of transformers.

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt1cli.bench.contest import Contender, Contest, Job, Setting
from gpt1cli.config import options
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import build
from gpt1cli.config.training import OptimizerConfig
from gpt1cli.models.batch import Batch, Item, by_length, items_batch, windows_batch
from gpt1cli.models.heads import Classifier
from gpt1cli.models.inference import head_outputs
from gpt1cli.models.transformer import Transformer
from gpt1cli.tasks.losses import TASK_LOSSES
from gpt1cli.training.device import TOKEN_BUDGET
from gpt1cli.training.dry_run import flops_per_token
from gpt1cli.training.loop import gradients
from gpt1cli.training.objectives.causal import language_modelling
from gpt1cli.training.objectives.supervised import fine_tuning
from gpt1cli.training.optimizer import Optimizer

V = 40_478  # the published vocabulary
HERE = __name__


# --- contests ---------------------------------------------------------------------------------------------------------


def pretrain(setting: Setting) -> Iterable[Contest]:
    """Base and mini with dropout 0.1, and base without; as a share of what bare products of bf16 matrices reach."""
    for model, batch, context, dropout in SIZES[setting.device]:
        size = {"device": setting.device, "model": model, "batch": batch, "context": context, "dropout": dropout}
        contenders = [Contender("gpt1", f"{HERE}:our_pretraining", size, tuned=True)]
        contenders += peers(f"{HERE}:their_pretraining", size) if setting.peer and dropout else []
        contenders.append(Contender("bare products", f"{HERE}:products", {"device": setting.device}, tuned=True))
        name = f"pretrain {model}, {batch} x {context}, dropout {dropout}"
        floors = FLOORS[setting.device, model] if dropout else {}
        limits = {"transformers fp32": 0.65} if dropout and (setting.device, model) == ("cpu", "base") else {}
        share = SHARES.get((setting.device, model, dropout))
        flops = flops_per_token(model_config(model, dropout), V, context)
        yield Contest(name, "tokens", contenders, floors, flops, share, memory_limits=limits)


SIZES = {  # device -> model, sequences, tokens in each, dropout
    "cpu": (("base", 2, 512, 0.1), ("base", 2, 512, 0.0), ("mini", 8, 256, 0.1)),
    "cuda": (("base", 64, 512, 0.1), ("base", 64, 512, 0.0)),
}
FLOORS = {
    ("cpu", "base"): {"transformers fp32": 4.5, "transformers bf16": 2.6, "transformers bf16, our settings": 1.35},
    ("cpu", "mini"): {"transformers fp32": 3.6, "transformers bf16": 1.9},
    ("cuda", "base"): {"transformers bf16, compiled": 1.5},
}


SHARES = {("cpu", "base", 0.1): 0.55, ("cpu", "base", 0.0): 0.65, ("cuda", "base", 0.1): 0.6}


def finetune(setting: Setting) -> Iterable[Contest]:
    """Pairs as long as those of RTE, base, with the auxiliary objective."""
    size = {"device": setting.device, "model": "base", "batch": 16}
    ours = Contender("gpt1", f"{HERE}:our_fine_tuning", size, tuned=True)
    theirs = peers(f"{HERE}:their_fine_tuning", size) if setting.peer else []
    floors = {"transformers fp32": 5, "transformers bf16": 2.2}
    yield Contest("finetune, as RTE", "examples", [ours, *theirs[:2]], floors)
    for other in theirs[2:]:  # by itself: all of them together would need more than 24 GB
        yield Contest(f"finetune, as RTE, {other.name}", "examples", [ours, other])


def choice(setting: Setting) -> Iterable[Contest]:
    """Four answers of 10 tokens to a passage of 350, base: an update, and scores alone."""
    size = {"device": setting.device, "model": "base", "questions": 2, "shared": 350, "answers": 4, "length": 10}
    for train, apart, theirs in ((True, 3.1, 3.7 if setting.device == "cpu" else 4.0), (False, 3.4, 4.0)):
        work = {**size, "train": train}
        contenders = [
            Contender("gpt1", f"{HERE}:our_choice", {**work, "apart": False}, tuned=True),
            Contender("gpt1, a row an answer", f"{HERE}:our_choice", {**work, "apart": True}, tuned=True),
        ]
        if setting.peer:
            contenders.append(Contender("transformers bf16", f"{HERE}:their_choice", {**work, "precision": "bf16"}))
        floors = {"gpt1, a row an answer": apart, "transformers bf16": theirs}
        yield Contest(f"choice, {'train' if train else 'score'}", "questions", contenders, floors)


def peers(make: str, size: dict[str, Any]) -> list[Contender]:
    """transformers as shipped in both arithmetics, and with every general setting that we give ourselves."""
    shipped = [
        Contender("transformers fp32", make, {**size, "precision": "fp32"}),
        Contender("transformers bf16", make, {**size, "precision": "bf16"}),
    ]
    if size["device"] == "cuda":
        return [*shipped, Contender("transformers bf16, compiled", make, {**shipped[1].options, "compiled": True})]
    return [*shipped, Contender("transformers bf16, our settings", make, shipped[1].options, tuned=True)]


# --- ours -------------------------------------------------------------------------------------------------------------


def model_config(name: str, dropout: float) -> ModelConfig:
    """A model of conf/ with all three dropouts at one rate."""
    return dataclasses.replace(
        build(ModelConfig, options.values("model", name)),
        embedding_dropout=dropout,
        attention_dropout=dropout,
        residual_dropout=dropout,
    )


def adamw(model: nn.Module) -> Optimizer:
    """Our optimizer in bf16."""
    return Optimizer(model, build(OptimizerConfig, options.values("optimizer", "adamw")), torch.bfloat16)


def our_pretraining(device: str, model: str, batch: int, context: int, dropout: float) -> Job:
    """An update on `batch` windows; counted in tokens."""
    body = Transformer(model_config(model, dropout), V).to(device).train()
    optimizer, draw = adamw(body), np.random.default_rng(0)
    if device == "cuda":
        body.compile()

    def job() -> float:
        windows = draw.integers(0, V, (batch, context + 1))
        update(body, optimizer, language_modelling, [windows_batch(windows)], device)
        return batch * context

    return job


def our_fine_tuning(device: str, model: str, batch: int) -> Job:
    """An update on a batch of pairs; counted in examples."""
    classifier = Classifier(Transformer(model_config(model, 0.1), V + 3), 2, 0.1).to(device).train()
    optimizer, draw = adamw(classifier), np.random.default_rng(0)

    def job() -> float:
        items = [Item.of([row], int(draw.integers(2))) for row in pairs(draw, batch)]
        groups = by_length(items, None, TOKEN_BUDGET[device])
        batches = [items_batch([items[i] for i in group]) for group in groups]
        update(classifier, optimizer, fine_tuning(TASK_LOSSES["cross_entropy"], 0.5), batches, device)
        return batch

    return job


def our_choice(
    device: str, model: str, questions: int, shared: int, answers: int, length: int, train: bool, apart: bool
) -> Job:
    """An update, or the scores alone, of questions with a shared passage; counted in questions."""
    body = Transformer(model_config(model, 0.1 if train else 0.0), V + 3)
    classifier = Classifier(body, answers, 0.1, choice=True).to(device).train(train)
    draw = np.random.default_rng(0)
    optimizer = adamw(classifier)

    def job() -> float:
        items = [Item.of(rows, 1, shared + 2) for rows in asked(draw, questions, shared, answers, length)]
        items = [item.apart() for item in items] if apart else items
        if train:
            batches = [items_batch(items)]
            update(classifier, optimizer, fine_tuning(TASK_LOSSES["cross_entropy"], 0.5), batches, device)
        else:
            head_outputs(classifier, items, None, TOKEN_BUDGET[device])
        return questions

    return job


def update(model: Any, optimizer: Optimizer, objective: Any, batches: Sequence[Batch], device: str) -> None:
    """One update of ours, as the training loop does it."""
    sums = gradients(model, objective, batches, optimizer, torch.device(device))
    optimizer.step(1e-4, sums["count"])


def pairs(draw: np.random.Generator, count: int) -> list[list[int]]:
    """Rows as long as those of RTE in the published vocabulary: median 60 tokens, some above 200."""
    lengths = np.clip(np.exp(draw.normal(np.log(60), 0.5, count)), 20, 280).astype(int)
    return [[V, *draw.integers(0, V, n - 2), V + 2] for n in lengths]


def asked(draw: np.random.Generator, questions: int, shared: int, answers: int, length: int) -> list[list[list[int]]]:
    """Rows of questions: start, passage, delimiter, an answer, classify."""
    found = []
    for _ in range(questions):
        prefix = [V, *draw.integers(0, V, shared), V + 1]
        found.append([[*prefix, *draw.integers(0, V, length), V + 2] for _ in range(answers)])
    return found


# --- theirs -----------------------------------------------------------------------------------------------------------


def their_model(kind: str, model: str, dropout: float, rows: int = V) -> Any:
    """A class of transformers in the shape of one of our models."""
    import transformers

    ours = model_config(model, dropout)
    config = transformers.OpenAIGPTConfig(
        vocab_size=rows, n_positions=ours.n_positions, n_embd=ours.d_model, n_layer=ours.n_layer, n_head=ours.n_head,
        embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


class Theirs:
    """A training step around a model of transformers, as its users write it."""

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


def their_pretraining(
    device: str, model: str, batch: int, context: int, dropout: float, precision: str, compiled: bool = False
) -> Job:
    """An update of OpenAIGPTLMHeadModel, by its own loss."""
    theirs = Theirs(their_model("OpenAIGPTLMHeadModel", model, dropout), device, precision, compiled)
    draw = np.random.default_rng(0)

    def job() -> float:
        tokens = torch.from_numpy(draw.integers(0, V, (batch, context))).to(device)
        with theirs.autocast:
            loss = theirs.forward(tokens, labels=tokens).loss
        theirs.update(loss)
        return batch * context

    return job


def their_fine_tuning(device: str, model: str, batch: int, precision: str, compiled: bool = False) -> Job:
    """An update of OpenAIGPTLMHeadModel's body with a linear layer on the last state, and its language-model loss."""
    body = their_model("OpenAIGPTLMHeadModel", model, 0.1, V + 3)
    body.classifier = nn.Linear(body.config.n_embd, 2)
    theirs, draw = Theirs(body, device, precision, compiled), np.random.default_rng(0)

    def job() -> float:
        rows = pairs(draw, batch)
        ends = torch.tensor([len(row) - 1 for row in rows], device=device)
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        targets = tokens[:, 1:].masked_fill(torch.arange(1, tokens.shape[1], device=device) > ends[:, None], -100)
        labels = torch.from_numpy(draw.integers(0, 2, batch)).to(device)
        with theirs.autocast:
            found = theirs.forward(tokens, output_hidden_states=True)
            states = found.hidden_states[-1][torch.arange(batch, device=device), ends]
            lm = F.cross_entropy(found.logits[:, :-1].flatten(0, 1), targets.flatten())
            loss = F.cross_entropy(body.classifier(states), labels) + 0.5 * lm
        theirs.update(loss)
        return batch

    return job


def their_choice(
    device: str, model: str, questions: int, shared: int, answers: int, length: int, train: bool, precision: str
) -> Job:
    """An update, or the scores alone, of OpenAIGPTDoubleHeadsModel: a row for each answer."""
    theirs = Theirs(their_model("OpenAIGPTDoubleHeadsModel", model, 0.1 if train else 0.0, V + 3), device, precision)
    theirs.model.train(train)
    draw = np.random.default_rng(0)

    def job() -> float:
        tokens = torch.tensor(asked(draw, questions, shared, answers, length), device=device)  # [questions,answers,T]
        ends = torch.full(tokens.shape[:2], tokens.shape[2] - 1, device=device)
        with theirs.autocast, torch.set_grad_enabled(train):
            right = {"labels": tokens, "mc_labels": torch.ones(questions, dtype=torch.int64, device=device)}
            found = theirs.model(tokens, mc_token_ids=ends, **(right if train else {}))
        if train:
            theirs.update(found.mc_loss + 0.5 * found.loss)
        return questions

    return job


# --- the ceiling ------------------------------------------------------------------------------------------------------


def products(device: str, size: int = 2048) -> Job:
    """Bare products of square bf16 matrices, counted in floating point operations: what the machine can do at best."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in "ab")

    def job() -> float:
        times = 8 if device == "cpu" else 200
        for _ in range(times):
            a @ b
        return times * 2 * size**3

    return job
