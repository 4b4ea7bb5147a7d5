"""Losses against loops over single rows, and two golden curves against transformers' model under torch's AdamW."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import NO_DROPOUT, SHAPE, exact, model_config, optimizer_config, stir
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from gpt1cli.batches import Batch, Epochs, Row, by_length, rows_batch, windows_batch
from gpt1cli.checkpoint import State
from gpt1cli.convert import from_published
from gpt1cli.fit import Plan, fit
from gpt1cli.models.heads import Classifier
from gpt1cli.models.transformer import Transformer
from gpt1cli.objectives import Loss, classification, language_modelling
from gpt1cli.optim import Optimizer, cosine, linear

V, LABELS = 37, 3  # 34 words and three special rows: 34 `_start_`, 36 `_classify_`


@pytest.fixture(autouse=True, scope="module")
def exact_arithmetic() -> Iterator[None]:
    with exact():
        yield


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), V), LABELS, head_dropout=0.0)
    stir(model)
    return model


def labelled_rows(count: int) -> list[Row]:
    """Rows of 3 to 14 tokens whose label can be learned: it is the first word's remainder."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(1, 34, draw.integers(1, 13)).tolist() for _ in range(count)]
    return [Row([34, *text, 36], text[0] % LABELS) for text in texts]


def windows(count: int, step: int = 0) -> np.ndarray:
    """Windows of 13 tokens that count upwards by 1 or 2, with some noise: something to learn."""
    draw = np.random.default_rng([step, 1])
    found = (draw.integers(0, 34, (count, 1)) + np.arange(13) * draw.integers(1, 3, (count, 1))) % 34
    return np.where(draw.random(found.shape) < 0.1, 0, found)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * max(1.0, b.abs().max().item()))


# --- values -----------------------------------------------------------------------------------------------------------


def test_language_modelling_sums_over_every_target(model):
    batch = windows_batch(windows(5))
    loss = language_modelling(model.body, batch)
    by_hand = 0.0
    for window in windows(5):
        row = torch.tensor(window)
        scores = model.body(row[None, :-1])[0] @ model.body.tokens.weight.T
        by_hand -= sum(scores[i].log_softmax(-1)[row[i + 1]] for i in range(12))
    assert loss.count == 5 * 12
    torch.testing.assert_close(loss.total, by_hand, rtol=1e-5, atol=1e-4)


def test_fine_tuning_adds_the_mean_loss_of_each_sequence(model):
    rows = labelled_rows(7)
    loss = classification(0.5)(model, rows_batch(rows))
    task, lm = torch.zeros(()), torch.zeros(())
    for row in rows:
        hidden = model.body(torch.tensor([row.tokens]))[0]
        task = task - model.head(hidden[-1]).log_softmax(-1)[row.label]
        log_p = (hidden[:-1] @ model.body.tokens.weight.T).log_softmax(-1)
        lm = lm - torch.stack([log_p[i, token] for i, token in enumerate(row.tokens[1:])]).mean()
    assert loss.count == 7
    torch.testing.assert_close(loss.parts["task_loss"], task.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.parts["lm_loss"], lm.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.total, task + 0.5 * lm, rtol=1e-5, atol=1e-5)
    assert_same(gradients(loss.total, model), gradients(task + 0.5 * lm, model))


def test_padding_enters_no_loss_and_no_gradient(model):
    batch = rows_batch(labelled_rows(7))
    padding = torch.arange(batch.tokens.shape[1]) > batch.ends[:, None]
    assert padding.any()
    other = dataclasses.replace(
        batch, tokens=batch.tokens.masked_fill(padding, 36), targets=batch.targets.masked_fill(padding, 5)
    )
    ours, theirs = classification(0.5)(model, batch), classification(0.5)(model, other)
    assert torch.equal(ours.total, theirs.total)
    assert_same(gradients(ours.total, model), gradients(theirs.total, model))


def test_packed_rows_have_the_loss_of_separate_ones(model):
    """Two documents and their padding in one row: the weights say which positions have a target."""
    window = torch.tensor(windows(1)[0, :12])
    document = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3])
    packed = Batch(
        tokens=window[None],
        targets=torch.cat([window[1:], window[:1]])[None],
        weights=torch.tensor([[1.0] * 4 + [0] + [1] * 3 + [0] * 4]),
        count=7,
        real_tokens=9,
        positions=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]]),
        document=document,
    )
    separate = [windows_batch(window[None, part].numpy()) for part in (slice(5), slice(5, 9))]
    wanted = sum(language_modelling(model.body, batch).total for batch in separate)
    found = language_modelling(model.body, packed).total
    torch.testing.assert_close(found, wanted)
    assert_same(gradients(found, model.body), gradients(wanted, model.body))


# --- the split of an update -------------------------------------------------------------------------------------------


def accumulated(model: nn.Module, objective: Callable[[nn.Module, Batch], Loss], batches: list[Batch]) -> list[Tensor]:
    """Summed loss and gradients of some micro-batches, divided by the count as the loop does."""
    losses = [objective(model, batch) for batch in batches]
    total, count = sum(loss.total for loss in losses), sum(loss.count for loss in losses)
    return [total.detach() / count, *(g / count for g in gradients(total, model))]


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_the_split_of_a_pretraining_update_does_not_show(model, size):
    rows = windows(7)
    whole = accumulated(model.body, language_modelling, [windows_batch(rows)])
    split = [windows_batch(rows[start : start + size]) for start in range(0, 7, size)]
    for found, wanted in zip(accumulated(model.body, language_modelling, split), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("micro_batch, budget", [(1, 0), (3, 0), (None, 30), (None, 60)])
def test_the_split_of_a_fine_tuning_update_does_not_show(model, micro_batch, budget):
    rows = labelled_rows(11)
    whole = accumulated(model, classification(0.5), [rows_batch(rows)])
    split = [rows_batch([rows[i] for i in group]) for group in by_length(rows, micro_batch, budget)]
    assert len(split) > 1
    for found, wanted in zip(accumulated(model, classification(0.5), split), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


# --- no more work than needed -----------------------------------------------------------------------------------------


class Logits(TorchDispatchMode):
    """Counts the rows of scores over the vocabulary that any operation put out."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.shape[-1:] == (V,) and "log_softmax" in str(function):
            self.rows.add(found.numel() // V)
        if isinstance(found, Tensor) and found.dim() > 1 and found.shape[-1] == V and "mm" in str(function):
            self.rows.add(found.numel() // V)
        return found


def test_without_the_auxiliary_loss_no_logits_are_computed_and_with_it_none_of_padding(model):
    rows = labelled_rows(7)
    batch = rows_batch(rows)
    with Logits() as watch:
        loss = classification(0.0)(model, batch)
        loss.total.backward()
    assert not watch.rows and not loss.parts
    with Logits() as watch:
        classification(0.5)(model, batch).total.backward()
    assert watch.rows == {sum(len(row.tokens) - 1 for row in rows)}
    with torch.no_grad():
        lm_free = classification(0.5)(model, batch).parts["task_loss"]
    torch.testing.assert_close(loss.total.detach(), lm_free)


# --- golden curves ----------------------------------------------------------------------------------------------------

STEPS, LR = 10, 0.01


class Silent:
    """A progress line that nobody sees."""

    def say(self, text: str) -> None: ...

    def update(self, step: int, **numbers: float) -> None: ...


def our_curve(
    model: nn.Module,
    objective: Callable[[nn.Module, Batch], Loss],
    batches: Callable[[int], list[Batch]],
    factor: Callable[[int], float],
    folder: Path,
) -> list[float]:
    """The losses that the training loop writes to metrics.jsonl."""
    fit(
        model=model,
        objective=objective,
        batches=batches,
        optimizer=Optimizer(model, optimizer_config()),
        learning_rate=lambda step: LR * factor(step),
        evaluate=lambda: ({}, 0.0),
        save=lambda state: None,
        plan=Plan(steps=STEPS, log_every=1, eval_every=STEPS, checkpoint_every=STEPS),
        state=State(),
        run=folder,
        progress=Silent(),
    )
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


def their_curve(model: nn.Module, loss_of: Callable[[int], Tensor], factors: list[float]) -> list[float]:
    """The same recipe out of torch's own parts."""
    named = list(model.named_parameters())
    spared = [p for name, p in named if name.endswith("bias") or ".ln_" in name]
    decayed = [p for name, p in named if not (name.endswith("bias") or ".ln_" in name)]
    adamw = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": spared, "weight_decay": 0.0}])
    losses = []
    for step in range(STEPS):
        loss = loss_of(step)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adamw.param_groups:
            group["lr"] = LR * factors[step]
        adamw.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def peer() -> OpenAIGPTLMHeadModel:
    torch.manual_seed(4)
    config = OpenAIGPTConfig(
        vocab_size=V,
        n_positions=SHAPE["n_positions"],
        n_embd=SHAPE["d_model"],
        n_layer=SHAPE["n_layer"],
        n_head=SHAPE["n_head"],
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    return OpenAIGPTLMHeadModel(config).train()


def test_the_golden_curve_of_pretraining(peer, tmp_path):
    model = Transformer(model_config(**SHAPE, **NO_DROPOUT), V)
    model.load_state_dict(from_published(peer.state_dict()))
    factors = [0.5, 1, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]  # cosine, two of warm-up

    def loss_of(step: int) -> Tensor:
        rows = torch.tensor(windows(8, step))
        return F.cross_entropy(peer(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())

    def batches(step: int) -> list[Batch]:
        return [windows_batch(windows(8, step)[part]) for part in (slice(0, 3), slice(3, 6), slice(6, 8))]

    theirs = their_curve(peer, loss_of, factors)
    ours = our_curve(model, language_modelling, batches, lambda step: cosine(step, STEPS, 2), tmp_path)
    assert theirs[0] - theirs[-1] > 0.3  # it learns
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_golden_curve_of_fine_tuning(peer, tmp_path):
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), V), LABELS, head_dropout=0.0)
    model.body.load_state_dict(from_published(peer.state_dict()))
    theirs = nn.ModuleDict({"peer": peer.transformer, "head": nn.Linear(SHAPE["d_model"], LABELS)})
    theirs.head.load_state_dict(model.head.state_dict())
    factors = [1 - step / STEPS for step in range(STEPS)]  # linear; 0.2% of ten updates is no warm-up
    feed = Epochs(labelled_rows(14), batch_size=6, seed=0, micro_batch=4, token_budget=0)

    def loss_of(step: int) -> Tensor:
        losses = []
        for batch in feed(step):
            for tokens, end, label in zip(batch.tokens, batch.ends, batch.labels, strict=True):
                row = tokens[None, : end + 1]
                hidden = theirs.peer(row).last_hidden_state
                lm = F.cross_entropy(hidden[0, :-1] @ theirs.peer.tokens_embed.weight.T, row[0, 1:])
                losses.append(F.cross_entropy(theirs.head(hidden[:, -1]), label[None]) + 0.5 * lm)
        return torch.stack(losses).mean()

    theirs_losses = their_curve(theirs, loss_of, factors)
    ours = our_curve(model, classification(0.5), feed, lambda step: linear(step, STEPS, 0.002 * STEPS), tmp_path)
    assert theirs_losses[0] - theirs_losses[-1] > 0.3  # it learns
    assert ours == pytest.approx(theirs_losses, abs=1e-4)
