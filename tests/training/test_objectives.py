"""Losses compared with loops over single rows; golden curves of transformers' model with torch's AdamW."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OpenAIGPTLMHeadModel
from worlds import NO_DROPOUT, SHAPE, item, model_config, optimizer_config, peer_config, stir, tokens_of

from gpt1cli.models.batch import Batch, Item, ScoredSpan, group_by_length, items_batch, windows_batch
from gpt1cli.models.heads import Classifier, PromptedLM
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained.hf_weights import from_published
from gpt1cli.runs import files
from gpt1cli.tasks.losses import TASK_LOSSES, interpolation_divergence
from gpt1cli.training.epochs import Epochs
from gpt1cli.training.loop import LoopConfig, fit
from gpt1cli.training.objectives.causal import Loss, causal_objective
from gpt1cli.training.objectives.supervised import supervised_objective
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.schedules import cosine, linear
from gpt1cli.training.state import TrainingState

CLASSES = TASK_LOSSES["cross_entropy"]
V, LABELS = 37, 3  # 34 words and three special rows: 34 `_start_`, 36 `_classify_`


pytestmark = pytest.mark.usefixtures("exact_arithmetic")


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), V), LABELS, head_dropout=0.0)
    stir(model)
    return model


def labelled_rows(count: int) -> list[Item]:
    """Rows of 3 to 14 tokens with a learnable label: the first word modulo LABELS."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(1, 34, draw.integers(1, 13)).tolist() for _ in range(count)]
    return [item([34, *text, 36], text[0] % LABELS) for text in texts]


def windows(count: int, step: int = 0) -> np.ndarray:
    """Windows of 13 tokens that count up by 1 or 2, with some noise: learnable."""
    draw = np.random.default_rng([step, 1])
    actual = (draw.integers(0, 34, (count, 1)) + np.arange(13) * draw.integers(1, 3, (count, 1))) % 34
    return np.where(draw.random(actual.shape) < 0.1, 0, actual)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    actual = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(actual, model.parameters(), strict=True)]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * max(1.0, b.abs().max().item()))


# --- values -----------------------------------------------------------------------------------------------------------


def test_causal_objective_sums_over_all_targets(model):
    batch = windows_batch(windows(5))
    loss = causal_objective(model.body, batch)
    by_hand = 0.0
    for window in windows(5):
        row = torch.tensor(window)
        scores = model.body(row[None, :-1])[0] @ model.body.tokens.weight.T
        by_hand -= sum(scores[i].log_softmax(-1)[row[i + 1]] for i in range(12))
    assert loss.count == 5 * 12
    torch.testing.assert_close(loss.total, by_hand, rtol=1e-5, atol=1e-4)


def test_supervised_objective_adds_the_mean_lm_loss_per_sequence(model):
    rows = labelled_rows(7)
    loss = supervised_objective(CLASSES, 0.5)(model, items_batch(rows))
    task, lm = torch.zeros(()), torch.zeros(())
    for row in rows:
        hidden = model.body(torch.tensor([tokens_of(row)]))[0]
        task = task - model.head(hidden[-1]).log_softmax(-1)[row.label]
        log_p = (hidden[:-1] @ model.body.tokens.weight.T).log_softmax(-1)
        lm = lm - torch.stack([log_p[i, token] for i, token in enumerate(tokens_of(row)[1:])]).mean()
    assert loss.count == 7
    torch.testing.assert_close(loss.parts["task_loss"], task.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.parts["lm_loss"], lm.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.total, task + 0.5 * lm, rtol=1e-5, atol=1e-5)
    assert_equal(gradients(loss.total, model), gradients(task + 0.5 * lm, model))


def test_padding_does_not_change_loss_or_gradients(model):
    batch = items_batch(labelled_rows(7))
    padding = torch.arange(batch.tokens.shape[1]) > batch.read_at % batch.tokens.shape[1]
    assert padding.any()
    other = dataclasses.replace(
        batch, tokens=batch.tokens.masked_fill(padding, 36), targets=batch.targets.masked_fill(padding, 5)
    )
    ours, theirs = supervised_objective(CLASSES, 0.5)(model, batch), supervised_objective(CLASSES, 0.5)(model, other)
    assert torch.equal(ours.total, theirs.total)
    assert_equal(gradients(ours.total, model), gradients(theirs.total, model))


def test_packed_rows_have_the_loss_of_separate_rows(model):
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
    expected = sum(causal_objective(model.body, batch).total for batch in separate)
    actual = causal_objective(model.body, packed).total
    torch.testing.assert_close(actual, expected)
    assert_equal(gradients(actual, model.body), gradients(expected, model.body))


# --- task losses ------------------------------------------------------------------------------------------------------


def test_ordinal_targets_by_hand():
    """2.25 is 3/4 of level 2 and 1/4 of level 3; an integer score is its level (Tai et al. 2015)."""
    outputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    log_p = outputs.log_softmax(-1)
    expected = -(0.75 * log_p[0, 2] + 0.25 * log_p[0, 3]) - log_p[1, 0] - log_p[2, 5]
    torch.testing.assert_close(TASK_LOSSES["ordinal"](outputs, torch.tensor([2.25, 0.0, 5.0])), expected)


def test_squared_error_by_hand():
    actual = TASK_LOSSES["mse"](torch.tensor([[1.0], [2.5]]), torch.tensor([3.0, 2.0]))
    assert actual.item() == pytest.approx(4 + 0.25)


@pytest.mark.parametrize("seed", range(3))
def test_soft_f1_of_certain_predictions_equals_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    labels, predicted = draw.integers(0, 2, 40), draw.integers(0, 2, 40)
    outputs = 100 * F.one_hot(torch.tensor(predicted), 2).float()
    loss = TASK_LOSSES["soft_f1"](outputs, torch.tensor(labels)).item()
    assert loss == pytest.approx(40 * (1 - f1_score(labels, predicted)), abs=1e-4)


def test_soft_f1_of_probabilities_by_hand():
    """p = 0.8, 0.4, 0.1 for labels 1, 1, 0: 2 x 1.2 / (1.3 + 2)."""
    p = torch.tensor([0.8, 0.4, 0.1])
    loss = TASK_LOSSES["soft_f1"](torch.stack([1 - p, p], 1).log(), torch.tensor([1, 1, 0]))
    assert loss.item() == pytest.approx(3 * (1 - 2.4 / 3.3), abs=1e-5)


# --- multiple choice: shared or separate passages ---------------------------------------------------------------------


def questions(count: int, answers: int = 4) -> list[Item]:
    """Passages of 1 to 7 tokens with answers of 1 to 4; the correct one starts with the first token of the passage."""
    draw = np.random.default_rng(1)
    items = []
    for _ in range(count):
        passage = draw.integers(1, 33, draw.integers(1, 8)).tolist()
        label = int(draw.integers(answers))
        choices = [draw.integers(1, 33, draw.integers(1, 5)).tolist() for _ in range(answers)]
        choices[label][0] = passage[0]
        prefix = [34, *passage, 35]
        items.append(Item.from_sequences([[*prefix, *choice, 36] for choice in choices], label, shared=len(prefix)))
    return items


@pytest.fixture
def chooser() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), V), 4, head_dropout=0.0, choice=True)
    stir(model)
    return model


@pytest.mark.parametrize("lm_coef", [0.0, 0.5])
def test_shared_passage_has_the_loss_and_gradients_of_separate_rows(chooser, lm_coef):
    items, objective = questions(6), supervised_objective(CLASSES, lm_coef)
    shared, separate = (
        objective(chooser, items_batch(items)),
        objective(chooser, items_batch([i.unshared() for i in items])),
    )
    assert shared.count == separate.count == 6
    torch.testing.assert_close(shared.total, separate.total, rtol=0, atol=1e-5)
    for name, part in separate.parts.items():
        torch.testing.assert_close(shared.parts[name], part, rtol=0, atol=1e-5)
    for actual, expected in zip(gradients(shared.total, chooser), gradients(separate.total, chooser), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_lm_loss_of_multiple_choice_is_a_mean_per_sequence_then_over_answers(chooser):
    items = questions(5)
    actual = supervised_objective(CLASSES, 0.5)(chooser, items_batch(items)).parts["lm_loss"]
    expected = torch.zeros(())
    for one in items:
        for sequence in one.unshared().continuations:
            row = torch.tensor(sequence, dtype=torch.int64)
            scores = chooser.body(row[None, :-1])[0] @ chooser.body.tokens.weight.T
            expected += F.cross_entropy(scores, row[1:]).detach() / len(one.continuations)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


# --- micro-batches ----------------------------------------------------------------------------------------------------


def mean_loss_and_gradients(
    model: nn.Module, objective: Callable[[nn.Module, Batch], Loss], batches: list[Batch]
) -> list[Tensor]:
    """Return summed loss and gradients of micro-batches, divided by their count as in the loop."""
    losses = [objective(model, batch) for batch in batches]
    total, count = sum(loss.total for loss in losses), sum(loss.count for loss in losses)
    return [total.detach() / count, *(g / count for g in gradients(total, model))]


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_pretraining_step_does_not_depend_on_the_split(model, size):
    rows = windows(7)
    whole = mean_loss_and_gradients(model.body, causal_objective, [windows_batch(rows)])
    split = [windows_batch(rows[start : start + size]) for start in range(0, 7, size)]
    for actual, expected in zip(mean_loss_and_gradients(model.body, causal_objective, split), whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("multiple_choice", [False, True])
@pytest.mark.parametrize("micro_batch, budget", [(1, 0), (3, 0), (None, 30), (None, 60)])
def test_fine_tuning_step_does_not_depend_on_the_split(request, multiple_choice, micro_batch, budget):
    model = request.getfixturevalue("chooser" if multiple_choice else "model")
    rows = questions(7) if multiple_choice else labelled_rows(11)
    whole = mean_loss_and_gradients(model, supervised_objective(CLASSES, 0.5), [items_batch(rows)])
    split = [items_batch([rows[i] for i in group]) for group in group_by_length(rows, micro_batch, budget)]
    assert len(split) > 1
    for actual, expected in zip(
        mean_loss_and_gradients(model, supervised_objective(CLASSES, 0.5), split), whole, strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


# --- logits only if needed --------------------------------------------------------------------------------------------


class CountLogitRows(TorchDispatchMode):
    """Record how many rows of vocabulary logits the operations returned."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        actual = function(*args, **(kwargs or {}))
        shape = actual.shape if isinstance(actual, Tensor) and "mm" in str(function) else ()
        if V in shape and SHAPE["d_model"] not in shape:
            self.rows.add(actual.numel() // V)
        return actual


def test_no_logits_without_lm_loss_and_none_for_padding(model):
    rows = labelled_rows(7)
    batch = items_batch(rows)
    with CountLogitRows() as watch:
        loss = supervised_objective(CLASSES, 0.0)(model, batch)
        loss.total.backward()
    assert not watch.rows and not loss.parts
    with CountLogitRows() as watch:
        supervised_objective(CLASSES, 0.5)(model, batch).total.backward()
    assert watch.rows == {sum(len(tokens_of(row)) - 1 for row in rows)}
    with torch.no_grad():
        lm_free = supervised_objective(CLASSES, 0.5)(model, batch).parts["task_loss"]
    torch.testing.assert_close(loss.total.detach(), lm_free)


# --- golden curves ----------------------------------------------------------------------------------------------------

STEPS, LR = 10, 0.01


class SilentProgress:
    """A progress line without output."""

    def say(self, text: str) -> None: ...

    def update(self, step: int, **numbers: float) -> None: ...


def our_curve(
    model: nn.Module,
    objective: Callable[[nn.Module, Batch], Loss],
    batches: Callable[[int, int], list[Batch]],
    factor: Callable[[int], float],
    folder: Path,
) -> list[float]:
    """Return the losses that the training loop writes to metrics.jsonl."""
    fit(
        model=model,
        objective=objective,
        batches=batches,
        optimizer=Optimizer(model, optimizer_config()),
        learning_rate=lambda step: LR * factor(step),
        evaluate=lambda: ({"loss": 0.0}, 0.0),
        save=lambda state: None,
        config=LoopConfig(steps=STEPS, log_every=1, eval_every=STEPS, checkpoint_every=STEPS),
        state=TrainingState(),
        run=folder,
        log=functools.partial(files.append_jsonl, folder / "metrics.jsonl"),
        progress=SilentProgress(),
    )
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


def their_curve(model: nn.Module, loss_of: Callable[[int], Tensor], factors: list[float]) -> list[float]:
    """Train with the same recipe in plain torch and return the losses."""
    named = list(model.named_parameters())
    undecayed = [p for name, p in named if name.endswith("bias") or ".ln_" in name]
    decayed = [p for name, p in named if not (name.endswith("bias") or ".ln_" in name)]
    adamw = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": undecayed, "weight_decay": 0.0}])
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
    return OpenAIGPTLMHeadModel(peer_config(V, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)).train()


def test_golden_curve_of_pretraining(peer, tmp_path):
    model = Transformer(model_config(**SHAPE, **NO_DROPOUT), V)
    model.load_state_dict(from_published(peer.state_dict()))
    factors = [0.5, 1, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]  # cosine, two of warm-up

    def loss_of(step: int) -> Tensor:
        rows = torch.tensor(windows(8, step))
        return F.cross_entropy(peer(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())

    def batches(step: int, halvings: int) -> list[Batch]:
        return [windows_batch(windows(8, step)[part]) for part in (slice(0, 3), slice(3, 6), slice(6, 8))]

    theirs = their_curve(peer, loss_of, factors)
    ours = our_curve(model, causal_objective, batches, lambda step: cosine(step, STEPS, 2), tmp_path)
    assert theirs[0] - theirs[-1] > 0.3  # it learns
    assert ours == pytest.approx(theirs, abs=1e-4)


def fine_tuning_curves(
    peer: OpenAIGPTLMHeadModel,
    items: list[Item],
    outputs: int,
    task_loss: str,
    mean_loss: Callable[[Tensor, list[int | float]], Tensor],
    folder: Path,
    choice: bool = False,
    micro_batch: int = 4,
) -> tuple[list[float], list[float]]:
    """Return our losses over ten steps and those of plain torch, which reads every sequence as a separate row.

    `mean_loss` is the task's mean loss of the head outputs for the summed states of each item (a choice: for each).
    """
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), V), outputs, head_dropout=0.0, choice=choice)
    model.body.load_state_dict(from_published(peer.state_dict()))
    theirs = nn.ModuleDict({"peer": peer.transformer, "head": nn.Linear(SHAPE["d_model"], 1 if choice else outputs)})
    theirs.head.load_state_dict(model.head.state_dict())
    feed = Epochs(items, batch_size=6, seed=0, micro_batch=micro_batch, token_budget=0)

    def loss_of(step: int) -> Tensor:
        epoch, position = divmod(step, feed.steps_per_epoch)
        order = np.random.default_rng([0, epoch]).permutation(len(items))[position * 6 : (position + 1) * 6]
        lm_losses, outputs = [], []
        for one in (items[i] for i in order):
            rows = [torch.tensor(sequence, dtype=torch.int64)[None] for sequence in one.unshared().continuations]
            hidden = [theirs.peer(row).last_hidden_state[0] for row in rows]
            lm = [
                F.cross_entropy(h[:-1] @ theirs.peer.tokens_embed.weight.T, row[0, 1:])
                for h, row in zip(hidden, rows, strict=True)
            ]
            ends = [h[-1] for h in hidden]
            outputs.append(torch.cat([theirs.head(end) for end in ends]) if choice else theirs.head(sum(ends)))
            lm_losses.append(torch.stack(lm).mean())
        return mean_loss(torch.stack(outputs), [items[i].label for i in order]) + 0.5 * torch.stack(lm_losses).mean()

    factors = [1 - step / STEPS for step in range(STEPS)]  # linear; 0.2% of ten steps is no warm-up
    theirs_losses = their_curve(theirs, loss_of, factors)
    objective = supervised_objective(TASK_LOSSES[task_loss], 0.5)
    ours = our_curve(model, objective, feed, lambda step: linear(step, STEPS, 0.002 * STEPS), folder)
    return ours, theirs_losses


def pairs_in_both_orders(count: int, labels: Callable[[list[int]], int | float]) -> list[Item]:
    draw = np.random.default_rng(2)
    texts = [[draw.integers(1, 34, draw.integers(1, 7)).tolist() for _ in "ab"] for _ in range(count)]
    return [Item.from_sequences([[34, *a, 35, *b, 36], [34, *b, 35, *a, 36]], labels(a)) for a, b in texts]


def classification_loss(values: Tensor, labels: list[int | float]) -> Tensor:
    return F.cross_entropy(values, torch.tensor(labels))


def squared_error(values: Tensor, labels: list[int | float]) -> Tensor:
    return sum((value[0] - label) ** 2 for value, label in zip(values, labels, strict=True)) / len(labels)


def ordinal_loss(values: Tensor, labels: list[int | float]) -> Tensor:
    losses = []
    for log_p, label in zip(values.log_softmax(-1), labels, strict=True):
        low, share = int(label), label - int(label)
        losses.append(-(1 - share) * log_p[low] - (share * log_p[low + 1] if share else 0))
    return sum(losses) / len(losses)


def one_minus_f1(values: Tensor, labels: list[int | float]) -> Tensor:
    positive = [row[1].exp() / row.exp().sum() for row in values]
    hits = sum(p for p, label in zip(positive, labels, strict=True) if label)
    missed = sum(1 - p for p, label in zip(positive, labels, strict=True) if label)
    wrong = sum(p for p, label in zip(positive, labels, strict=True) if not label)
    precision, recall = hits / (hits + wrong), hits / (hits + missed)
    return 1 - 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("kind", ["classification", "similarity", "soft_f1", "regression", "ordinal", "choice"])
def test_golden_curve_of_fine_tuning(kind, peer, tmp_path):
    cases = {
        "classification": lambda: (labelled_rows(14), LABELS, "cross_entropy", classification_loss),
        "similarity": lambda: (pairs_in_both_orders(14, lambda a: a[0] % 2), 2, "cross_entropy", classification_loss),
        "soft_f1": lambda: (pairs_in_both_orders(14, lambda a: a[0] % 2), 2, "soft_f1", one_minus_f1),
        "regression": lambda: (pairs_in_both_orders(14, lambda a: a[0] / 10), 1, "mse", squared_error),
        "ordinal": lambda: (pairs_in_both_orders(14, lambda a: a[0] % 10 / 2), 6, "ordinal", ordinal_loss),
        "choice": lambda: (questions(14), 4, "cross_entropy", classification_loss),
    }  # fmt: skip
    items, outputs, task_loss, mean_loss = cases[kind]()
    whole = {"micro_batch": 6} if kind == "soft_f1" else {}
    ours, theirs = fine_tuning_curves(
        peer, items, outputs, task_loss, mean_loss, tmp_path, choice=kind == "choice", **whole
    )
    assert theirs[0] - theirs[-1] > 0.1  # it learns
    assert ours == pytest.approx(theirs, abs=1e-4)


# --- prompts ----------------------------------------------------------------------------------------------------------


def plain_prompt_loss(body, rows, counts, words, label, correct, lm_coef):
    """Compute the loss in plain torch, row by row: cross entropy of the row scores, LM loss of the correct row."""
    scores, lm = [], None
    for k, row in enumerate(rows):
        logits = body.logits(body(torch.tensor([row[:-1]]))[0]).log_softmax(-1)  # [T-1,V]
        token_scores = logits[torch.arange(len(row) - 1), torch.tensor(row[1:])]
        scores.append(token_scores[-counts[k] :].sum())
        if k == correct:
            first = len(row) - 1 - counts[k]
            others = [token_scores[t] for t in range(len(row) - 1) if not first <= t < first + words[k]]
            lm = -sum(others) / len(others)
    return F.cross_entropy(torch.stack(scores)[None], torch.tensor([label])) + lm_coef * lm


@pytest.mark.parametrize("lm_coef", [0.0, 0.5])
@pytest.mark.parametrize("unshared", [False, True])
def test_prompt_loss_and_gradients_equal_whole_rows(model, lm_coef, unshared):
    body, draw = model.body, np.random.default_rng(0)
    prompted = PromptedLM(body, (), "sum").train()
    items, losses = [], []
    for words, after in (((1, 1, 1), 0), ((1, 3, 2), 0), ((2, 1, 1), 4)):
        before, rest = draw.integers(1, 34, 5).tolist(), draw.integers(1, 34, after).tolist()
        rows = [[*before, *draw.integers(1, 34, n).tolist(), *rest] for n in words]
        counts, label = tuple(n + after for n in words), len(items) % 3
        prompt = Item.from_sequences(rows, label, len(before), ScoredSpan(counts, after, label))
        items.append(prompt.unshared() if unshared else prompt)
        losses.append(plain_prompt_loss(body, rows, counts, words, label, label, lm_coef))
    loss = supervised_objective(CLASSES, lm_coef)(prompted, items_batch(items))
    assert loss.count == 3
    torch.testing.assert_close(loss.total, sum(losses), rtol=1e-5, atol=1e-5)
    assert_equal(gradients(loss.total, body), gradients(sum(losses), body))


def test_interpolation_divergence_by_hand():
    outputs = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.3, 0.3]], dtype=torch.float64)
    shares = torch.tensor([0.25, 1.0, 0.0])
    expected = 0.0
    for (low, high), share in zip(outputs.tolist(), shares.tolist(), strict=True):
        q = math.exp(high) / (math.exp(low) + math.exp(high))
        for p, other in ((share, q), (1 - share, 1 - q)):
            expected += p * math.log(p / other) if p else 0.0
    assert interpolation_divergence(outputs, shares).item() == pytest.approx(expected)
    same = torch.tensor([[0.25, 0.75]]).log()
    assert interpolation_divergence(same, torch.tensor([0.75])).item() == pytest.approx(
        0, abs=1e-7
    )  # zero if both agree
