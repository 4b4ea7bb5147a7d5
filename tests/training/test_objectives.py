"""Losses against loops over single rows, and golden curves against transformers' model under torch's AdamW."""

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

from gpt1cli.models.batch import Asked, Batch, Item, by_length, items_batch, windows_batch
from gpt1cli.models.heads import Classifier, Prompted
from gpt1cli.models.transformer import Transformer
from gpt1cli.pretrained.hf_weights import from_published
from gpt1cli.runs import files
from gpt1cli.tasks.losses import TASK_LOSSES, interpolation
from gpt1cli.training.epochs import Epochs
from gpt1cli.training.loop import Plan, fit
from gpt1cli.training.objectives.causal import Loss, language_modelling
from gpt1cli.training.objectives.supervised import fine_tuning
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.schedules import cosine, linear
from gpt1cli.training.state import State

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
    """Rows of 3 to 14 tokens whose label can be learned: it is the first word's remainder."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(1, 34, draw.integers(1, 13)).tolist() for _ in range(count)]
    return [item([34, *text, 36], text[0] % LABELS) for text in texts]


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
    loss = fine_tuning(CLASSES, 0.5)(model, items_batch(rows))
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
    assert_same(gradients(loss.total, model), gradients(task + 0.5 * lm, model))


def test_padding_enters_no_loss_and_no_gradient(model):
    batch = items_batch(labelled_rows(7))
    padding = torch.arange(batch.tokens.shape[1]) > batch.ends % batch.tokens.shape[1]
    assert padding.any()
    other = dataclasses.replace(
        batch, tokens=batch.tokens.masked_fill(padding, 36), targets=batch.targets.masked_fill(padding, 5)
    )
    ours, theirs = fine_tuning(CLASSES, 0.5)(model, batch), fine_tuning(CLASSES, 0.5)(model, other)
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


# --- losses of a task -------------------------------------------------------------------------------------------------


def test_ordinal_targets_by_hand():
    """2.25 is three quarters of level 2 and a quarter of level 3; a whole score is its level (Tai et al. 2015)."""
    outputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    log_p = outputs.log_softmax(-1)
    wanted = -(0.75 * log_p[0, 2] + 0.25 * log_p[0, 3]) - log_p[1, 0] - log_p[2, 5]
    torch.testing.assert_close(TASK_LOSSES["ordinal"](outputs, torch.tensor([2.25, 0.0, 5.0])), wanted)


def test_squared_error_by_hand():
    found = TASK_LOSSES["mse"](torch.tensor([[1.0], [2.5]]), torch.tensor([3.0, 2.0]))
    assert found.item() == pytest.approx(4 + 0.25)


@pytest.mark.parametrize("seed", range(3))
def test_soft_f1_of_certain_predictions_is_that_of_scikit_learn(seed):
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


# --- questions: the passage once, or once for each answer -------------------------------------------------------------


def questions(count: int, answers: int = 4) -> list[Item]:
    """Passages of 1 to 7 tokens with answers of 1 to 4; the right one starts with the passage's first token."""
    draw = np.random.default_rng(1)
    items = []
    for _ in range(count):
        passage = draw.integers(1, 33, draw.integers(1, 8)).tolist()
        label = int(draw.integers(answers))
        choices = [draw.integers(1, 33, draw.integers(1, 5)).tolist() for _ in range(answers)]
        choices[label][0] = passage[0]
        prefix = [34, *passage, 35]
        items.append(Item.of([[*prefix, *choice, 36] for choice in choices], label, shared=len(prefix)))
    return items


@pytest.fixture
def chooser() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), V), 4, head_dropout=0.0, choice=True)
    stir(model)
    return model


@pytest.mark.parametrize("lm_coef", [0.0, 0.5])
def test_a_shared_passage_gives_losses_and_gradients_of_separate_rows(chooser, lm_coef):
    items, objective = questions(6), fine_tuning(CLASSES, lm_coef)
    together, apart = (
        objective(chooser, items_batch(items)),
        objective(chooser, items_batch([i.apart() for i in items])),
    )
    assert together.count == apart.count == 6
    torch.testing.assert_close(together.total, apart.total, rtol=0, atol=1e-5)
    for name, part in apart.parts.items():
        torch.testing.assert_close(together.parts[name], part, rtol=0, atol=1e-5)
    for found, wanted in zip(gradients(together.total, chooser), gradients(apart.total, chooser), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_the_lm_loss_of_a_question_is_a_mean_per_sequence_then_over_its_answers(chooser):
    items = questions(5)
    found = fine_tuning(CLASSES, 0.5)(chooser, items_batch(items)).parts["lm_loss"]
    wanted = torch.zeros(())
    for one in items:
        for tail in one.apart().tails:
            row = torch.tensor(tail, dtype=torch.int64)
            scores = chooser.body(row[None, :-1])[0] @ chooser.body.tokens.weight.T
            wanted += F.cross_entropy(scores, row[1:]).detach() / len(one.tails)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("questioned", [False, True])
@pytest.mark.parametrize("micro_batch, budget", [(1, 0), (3, 0), (None, 30), (None, 60)])
def test_the_split_of_a_fine_tuning_update_does_not_show(request, questioned, micro_batch, budget):
    model = request.getfixturevalue("chooser" if questioned else "model")
    rows = questions(7) if questioned else labelled_rows(11)
    whole = accumulated(model, fine_tuning(CLASSES, 0.5), [items_batch(rows)])
    split = [items_batch([rows[i] for i in group]) for group in by_length(rows, micro_batch, budget)]
    assert len(split) > 1
    for found, wanted in zip(accumulated(model, fine_tuning(CLASSES, 0.5), split), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


# --- no more work than needed -----------------------------------------------------------------------------------------


class Logits(TorchDispatchMode):
    """Counts the rows of scores over the vocabulary that any operation put out."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        shape = found.shape if isinstance(found, Tensor) and "mm" in str(function) else ()
        if V in shape and SHAPE["d_model"] not in shape:
            self.rows.add(found.numel() // V)
        return found


def test_without_the_auxiliary_loss_no_logits_are_computed_and_with_it_none_of_padding(model):
    rows = labelled_rows(7)
    batch = items_batch(rows)
    with Logits() as watch:
        loss = fine_tuning(CLASSES, 0.0)(model, batch)
        loss.total.backward()
    assert not watch.rows and not loss.parts
    with Logits() as watch:
        fine_tuning(CLASSES, 0.5)(model, batch).total.backward()
    assert watch.rows == {sum(len(tokens_of(row)) - 1 for row in rows)}
    with torch.no_grad():
        lm_free = fine_tuning(CLASSES, 0.5)(model, batch).parts["task_loss"]
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
    batches: Callable[[int, int], list[Batch]],
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
        evaluate=lambda: ({"loss": 0.0}, 0.0),
        save=lambda state: None,
        plan=Plan(steps=STEPS, log_every=1, eval_every=STEPS, checkpoint_every=STEPS),
        state=State(),
        run=folder,
        log=functools.partial(files.append_jsonl, folder / "metrics.jsonl"),
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
    return OpenAIGPTLMHeadModel(peer_config(V, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)).train()


def test_the_golden_curve_of_pretraining(peer, tmp_path):
    model = Transformer(model_config(**SHAPE, **NO_DROPOUT), V)
    model.load_state_dict(from_published(peer.state_dict()))
    factors = [0.5, 1, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]  # cosine, two of warm-up

    def loss_of(step: int) -> Tensor:
        rows = torch.tensor(windows(8, step))
        return F.cross_entropy(peer(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())

    def batches(step: int, halvings: int) -> list[Batch]:
        return [windows_batch(windows(8, step)[part]) for part in (slice(0, 3), slice(3, 6), slice(6, 8))]

    theirs = their_curve(peer, loss_of, factors)
    ours = our_curve(model, language_modelling, batches, lambda step: cosine(step, STEPS, 2), tmp_path)
    assert theirs[0] - theirs[-1] > 0.3  # it learns
    assert ours == pytest.approx(theirs, abs=1e-4)


def fine_tuned(
    peer: OpenAIGPTLMHeadModel,
    items: list[Item],
    outputs: int,
    task_loss: str,
    told: Callable[[Tensor, list[int | float]], Tensor],
    folder: Path,
    choice: bool = False,
    micro_batch: int = 4,
) -> tuple[list[float], list[float]]:
    """Our losses over ten updates and theirs, which see every sequence of an item as a whole row of its own.

    `told` is the task's mean loss from what the head gives for the sum of each item's states (a choice: for each).
    """
    model = Classifier(Transformer(model_config(**SHAPE, **NO_DROPOUT), V), outputs, head_dropout=0.0, choice=choice)
    model.body.load_state_dict(from_published(peer.state_dict()))
    theirs = nn.ModuleDict({"peer": peer.transformer, "head": nn.Linear(SHAPE["d_model"], 1 if choice else outputs)})
    theirs.head.load_state_dict(model.head.state_dict())
    feed = Epochs(items, batch_size=6, seed=0, micro_batch=micro_batch, token_budget=0)

    def loss_of(step: int) -> Tensor:
        epoch, position = divmod(step, feed.updates)
        order = np.random.default_rng([0, epoch]).permutation(len(items))[position * 6 : (position + 1) * 6]
        lm_losses, outputs = [], []
        for one in (items[i] for i in order):
            rows = [torch.tensor(tail, dtype=torch.int64)[None] for tail in one.apart().tails]
            hidden = [theirs.peer(row).last_hidden_state[0] for row in rows]
            lm = [
                F.cross_entropy(h[:-1] @ theirs.peer.tokens_embed.weight.T, row[0, 1:])
                for h, row in zip(hidden, rows, strict=True)
            ]
            ends = [h[-1] for h in hidden]
            outputs.append(torch.cat([theirs.head(end) for end in ends]) if choice else theirs.head(sum(ends)))
            lm_losses.append(torch.stack(lm).mean())
        return told(torch.stack(outputs), [items[i].label for i in order]) + 0.5 * torch.stack(lm_losses).mean()

    factors = [1 - step / STEPS for step in range(STEPS)]  # linear; 0.2% of ten updates is no warm-up
    theirs_losses = their_curve(theirs, loss_of, factors)
    objective = fine_tuning(TASK_LOSSES[task_loss], 0.5)
    ours = our_curve(model, objective, feed, lambda step: linear(step, STEPS, 0.002 * STEPS), folder)
    return ours, theirs_losses


def pairs_in_both_orders(count: int, labels: Callable[[list[int]], int | float]) -> list[Item]:
    draw = np.random.default_rng(2)
    texts = [[draw.integers(1, 34, draw.integers(1, 7)).tolist() for _ in "ab"] for _ in range(count)]
    return [Item.of([[34, *a, 35, *b, 36], [34, *b, 35, *a, 36]], labels(a)) for a, b in texts]


def of_class(values: Tensor, labels: list[int | float]) -> Tensor:
    return F.cross_entropy(values, torch.tensor(labels))


def squares(values: Tensor, labels: list[int | float]) -> Tensor:
    return sum((value[0] - label) ** 2 for value, label in zip(values, labels, strict=True)) / len(labels)


def two_levels(values: Tensor, labels: list[int | float]) -> Tensor:
    losses = []
    for log_p, label in zip(values.log_softmax(-1), labels, strict=True):
        low, share = int(label), label - int(label)
        losses.append(-(1 - share) * log_p[low] - (share * log_p[low + 1] if share else 0))
    return sum(losses) / len(losses)


def one_minus_f1(values: Tensor, labels: list[int | float]) -> Tensor:
    positive = [row[1].exp() / row.exp().sum() for row in values]
    found = sum(p for p, label in zip(positive, labels, strict=True) if label)
    missed = sum(1 - p for p, label in zip(positive, labels, strict=True) if label)
    wrong = sum(p for p, label in zip(positive, labels, strict=True) if not label)
    precision, recall = found / (found + wrong), found / (found + missed)
    return 1 - 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("kind", ["classification", "similarity", "soft_f1", "regression", "ordinal", "choice"])
def test_the_golden_curve_of_fine_tuning(kind, peer, tmp_path):
    made = {
        "classification": lambda: (labelled_rows(14), LABELS, "cross_entropy", of_class),
        "similarity": lambda: (pairs_in_both_orders(14, lambda a: a[0] % 2), 2, "cross_entropy", of_class),
        "soft_f1": lambda: (pairs_in_both_orders(14, lambda a: a[0] % 2), 2, "soft_f1", one_minus_f1),
        "regression": lambda: (pairs_in_both_orders(14, lambda a: a[0] / 10), 1, "mse", squares),
        "ordinal": lambda: (pairs_in_both_orders(14, lambda a: a[0] % 10 / 2), 6, "ordinal", two_levels),
        "choice": lambda: (questions(14), 4, "cross_entropy", of_class),
    }  # fmt: skip
    items, outputs, task_loss, told = made[kind]()
    whole = {"micro_batch": 6} if kind == "soft_f1" else {}
    ours, theirs = fine_tuned(peer, items, outputs, task_loss, told, tmp_path, choice=kind == "choice", **whole)
    assert theirs[0] - theirs[-1] > 0.1  # it learns
    assert ours == pytest.approx(theirs, abs=1e-4)


# --- prompts ----------------------------------------------------------------------------------------------------------


def plain_prompt_loss(body, rows, counts, words, label, right, lm_coef):
    """Whole rows one by one: cross entropy of the rows' scores, and the right row's other tokens, by plain torch."""
    scores, lm = [], None
    for k, row in enumerate(rows):
        logits = body.logits(body(torch.tensor([row[:-1]]))[0]).log_softmax(-1)  # [T-1,V]
        each = logits[torch.arange(len(row) - 1), torch.tensor(row[1:])]
        scores.append(each[-counts[k] :].sum())
        if k == right:
            first = len(row) - 1 - counts[k]
            others = [each[t] for t in range(len(row) - 1) if not first <= t < first + words[k]]
            lm = -sum(others) / len(others)
    return F.cross_entropy(torch.stack(scores)[None], torch.tensor([label])) + lm_coef * lm


@pytest.mark.parametrize("lm_coef", [0.0, 0.5])
@pytest.mark.parametrize("apart", [False, True])
def test_loss_and_gradients_of_prompts_are_those_of_whole_rows(model, lm_coef, apart):
    body, draw = model.body, np.random.default_rng(0)
    prompted = Prompted(body, (), "sum").train()
    items, losses = [], []
    for words, after in (((1, 1, 1), 0), ((1, 3, 2), 0), ((2, 1, 1), 4)):
        before, rest = draw.integers(1, 34, 5).tolist(), draw.integers(1, 34, after).tolist()
        rows = [[*before, *draw.integers(1, 34, n).tolist(), *rest] for n in words]
        counts, label = tuple(n + after for n in words), len(items) % 3
        made = Item.of(rows, label, len(before), Asked(counts, after, label))
        items.append(made.apart() if apart else made)
        losses.append(plain_prompt_loss(body, rows, counts, words, label, label, lm_coef))
    loss = fine_tuning(CLASSES, lm_coef)(prompted, items_batch(items))
    assert loss.count == 3
    torch.testing.assert_close(loss.total, sum(losses), rtol=1e-5, atol=1e-5)
    assert_same(gradients(loss.total, body), gradients(sum(losses), body))


def test_a_score_between_two_words_is_a_divergence_by_hand():
    outputs = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.3, 0.3]], dtype=torch.float64)
    shares = torch.tensor([0.25, 1.0, 0.0])
    wanted = 0.0
    for (low, high), share in zip(outputs.tolist(), shares.tolist(), strict=True):
        q = math.exp(high) / (math.exp(low) + math.exp(high))
        for p, other in ((share, q), (1 - share, 1 - q)):
            wanted += p * math.log(p / other) if p else 0.0
    assert interpolation(outputs, shares).item() == pytest.approx(wanted)
    same = torch.tensor([[0.25, 0.75]]).log()
    assert interpolation(same, torch.tensor([0.75])).item() == pytest.approx(0, abs=1e-7)  # none where both agree
