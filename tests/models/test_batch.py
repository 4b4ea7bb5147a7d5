"""Batches compared with rows packed by hand; epochs as a pure function of seed and step."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from worlds import item, tokens_of

from gpt1cli.models.batch import Batch, Item, ScoredSpan, group_by_length, items_batch, windows_batch
from gpt1cli.training.epochs import Epochs, prefetch


def test_windows_predict_the_next_token():
    batch = windows_batch(np.array([[5, 6, 7, 8], [1, 2, 3, 4]], dtype=np.uint16))
    assert batch.tokens.tolist() == [[5, 6, 7], [1, 2, 3]] and batch.targets.tolist() == [[6, 7, 8], [2, 3, 4]]
    assert batch.weights.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert (batch.count, batch.real_tokens) == (6, 6)
    assert batch.document is batch.branch is batch.positions is None  # the fast causal path


def test_16_and_32_bit_token_ids_are_not_truncated():
    assert windows_batch(np.array([[40_480, 65_535]], dtype=np.uint16)).targets.item() == 65_535
    assert windows_batch(np.array([[0, 3_000_000_000]], dtype=np.uint32)).targets.item() == 3_000_000_000


def test_rows_are_padded_at_the_right_and_weights_sum_to_one():
    batch = items_batch([item([9, 4, 5, 6, 8], 1), item([9, 7, 8], 0)])
    assert batch.tokens[0].tolist() == [9, 4, 5, 6, 8] and batch.tokens[1, :3].tolist() == [9, 7, 8]
    assert batch.targets[0, :4].tolist() == [4, 5, 6, 8] and batch.targets[1, :2].tolist() == [7, 8]
    assert batch.weights.tolist() == [[0.25] * 4 + [0], [0.5, 0.5, 0, 0, 0]]
    assert batch.read_at.tolist() == [[4], [5 + 2]] and batch.labels.tolist() == [1, 0]
    assert (batch.count, batch.real_tokens) == (2, 8)


def test_row_of_one_token_has_no_target():
    assert items_batch([item([3], 0)]).weights.tolist() == [[0]]


def test_batch_without_labels():
    assert items_batch([item([1, 2])]).labels is None


# --- items of several sequences ---------------------------------------------------------------------------------------


def test_sequences_without_prefix_get_separate_rows():
    pair = Item.from_sequences([[9, 1, 2, 8], [9, 2, 1, 8]], 1)
    batch = items_batch([pair, Item.from_sequences([[9, 5, 8], [9, 6, 8]], 0)])
    assert batch.tokens.tolist() == [[9, 1, 2, 8], [9, 2, 1, 8], [9, 5, 8, 0], [9, 6, 8, 0]]
    assert batch.read_at.tolist() == [[3, 7], [10, 14]]  # into the flattened rows of four
    assert batch.weights.tolist() == [[pytest.approx(1 / 6)] * 3 + [0]] * 2 + [[0.25, 0.25, 0, 0]] * 2
    assert batch.branch is batch.document is batch.positions is None  # the fast causal path
    assert (batch.count, batch.real_tokens) == (2, 14)


def test_multiple_choice_is_packed_into_one_row():
    """start 9, document 1 2, delimiter 7; answers 3 and 4 5; classify 8. The delimiter starts both branches."""
    question = Item.from_sequences([[9, 1, 2, 7, 3, 8], [9, 1, 2, 7, 4, 5, 8]], 1, shared=4)
    assert question.prefix.tolist() == [9, 1, 2]
    assert [one.tolist() for one in question.continuations] == [[7, 3, 8], [7, 4, 5, 8]]
    assert (question.row_length, question.row_count) == (10, 1)
    batch = items_batch([question, Item.from_sequences([[9, 7, 8], [9, 7, 8]], 0, shared=2)])
    assert batch.tokens[0].tolist() == [9, 1, 2, 7, 3, 8, 7, 4, 5, 8]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert batch.branch[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert batch.document.tolist() == [[0] * 10, [0] * 5 + [1] * 5]
    assert batch.read_at.tolist() == [[5, 9], [12, 14]]
    real = batch.weights[0] > 0
    assert batch.targets[0][real].tolist() == [1, 2, 7, 3, 8, 4, 5, 8]
    # five targets in the first sequence, six in the second, weight 1/2 each; targets in the prefix count in both
    a, b = 1 / 5 / 2, 1 / 6 / 2
    assert batch.weights[0].tolist() == pytest.approx([a + b] * 3 + [a, a, 0] + [b, b, b, 0])
    assert batch.weights.sum(1).tolist() == pytest.approx([1, 1])


def test_unshared_item_has_whole_rows():
    rows = [[9, 1, 2, 7, 3, 8], [9, 1, 2, 7, 4, 5, 8]]
    unshared = Item.from_sequences(rows, 1, shared=4).unshared()
    assert [one.tolist() for one in unshared.continuations] == rows and not len(unshared.prefix)
    assert unshared.label == 1
    assert (unshared.row_length, unshared.row_count) == (7, 2)


def test_labels_can_be_scores():
    labels = items_batch([item([1, 2], 2.5), item([1, 2], 4.0)]).labels
    assert labels.dtype == torch.float32 and labels.tolist() == [2.5, 4.0]


def test_moving_a_batch_moves_every_tensor():
    batch = items_batch([item([1, 2], 0)]).to(torch.device("meta"))
    assert isinstance(batch, Batch) and batch.count == 1 and batch.branch is None
    assert {t.device.type for t in (batch.tokens, batch.targets, batch.weights, batch.read_at, batch.labels)} == {
        "meta"
    }


# --- groups of similar length -----------------------------------------------------------------------------------------

LENGTHS = [3, 50, 7, 7, 12, 1, 33, 8, 8, 20]


def rows_of(lengths: list[int]) -> list[Item]:
    """Rows that differ in their first token and their label."""
    return [item([i] * n, i) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("budget", [1, 40, 64, 1000])
def test_groups_are_sorted_complete_and_within_the_budget(budget):
    groups = list(group_by_length(rows_of(LENGTHS), None, budget))
    assert sorted(i for group in groups for i in group) == list(range(10))
    lengths = [[LENGTHS[i] for i in group] for group in groups]
    assert [n for group in lengths for n in group] == sorted(LENGTHS, reverse=True)
    assert all(len(group) * max(group) <= budget or len(group) == 1 for group in lengths)


def test_groups_use_the_whole_budget():
    assert list(map(len, group_by_length(rows_of(LENGTHS), None, 64))) == [1, 1, 3, 5]  # 50 | 33 | 20 12 8 | 8 7 7 3 1


def test_item_of_two_rows_counts_twice():
    items = [Item.from_sequences([[1] * 5, [2] * 5], 0) for _ in range(4)]
    assert list(map(len, group_by_length(items, None, 20))) == [2, 2]


def test_micro_batch_overrides_the_budget():
    assert list(map(len, group_by_length(rows_of(LENGTHS), 4, 1))) == [4, 4, 2]
    assert list(group_by_length([], 4, 1)) == []


# --- epochs -----------------------------------------------------------------------------------------------------------

ROWS = rows_of([2 + i % 5 for i in range(23)])


def epochs(seed: int = 0, micro_batch: int | None = 2) -> Epochs:
    return Epochs(ROWS, batch_size=5, seed=seed, micro_batch=micro_batch, token_budget=64)


def seen(batches: list[Batch]) -> list[int]:
    """Return the labels of the rows, after checking their tokens."""
    for batch in batches:
        T = batch.tokens.shape[1]
        for n, (end, label) in enumerate(zip(batch.read_at.flatten().tolist(), batch.labels, strict=True)):
            assert batch.tokens[n, : end - n * T + 1].tolist() == tokens_of(ROWS[label])
    return [label for batch in batches for label in batch.labels.tolist()]


@pytest.mark.parametrize("micro_batch", [None, 1, 2, 5])
def test_epoch_has_each_example_once_and_a_smaller_last_batch(micro_batch):
    feed = epochs(micro_batch=micro_batch)
    assert feed.steps_per_epoch == 5
    for epoch in range(3):
        steps = [seen(feed(epoch * 5 + i)) for i in range(5)]
        assert list(map(len, steps)) == [5, 5, 5, 5, 3]
        assert Counter(label for labels in steps for label in labels) == Counter(range(23))


def test_micro_batches_have_at_most_the_given_size():
    assert [batch.count for batch in epochs(micro_batch=2)(0)] == [2, 2, 1]


def test_order_depends_on_epoch_and_seed():
    def order(feed: Epochs, epoch: int) -> list[frozenset[int]]:
        return [frozenset(seen(feed(epoch * 5 + i))) for i in range(5)]

    orders = [order(epochs(seed), epoch) for seed in (0, 1, 2**63 - 1) for epoch in range(3)]
    assert len(set(map(tuple, orders))) == 9
    assert seen(epochs()(0) + epochs()(1)) != list(range(10))


def test_batch_depends_only_on_seed_and_step():
    forwards, backwards = epochs(), epochs()
    ascending = [seen(forwards(step)) for step in range(15)]
    descending = [seen(backwards(step)) for step in reversed(range(15))]
    assert ascending == descending[::-1]


def test_micro_batch_size_does_not_change_the_examples_of_a_step():
    for step in range(10):
        assert set(seen(epochs(micro_batch=1)(step))) == set(seen(epochs(micro_batch=None)(step)))


# --- prefetching ------------------------------------------------------------------------------------------------------


def test_next_step_is_prefetched_in_a_thread(monkeypatch):
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: batch)  # pinning needs a GPU
    calls, prepared = [], threading.Semaphore(0)

    def batches(step: int, halvings: int) -> list[Batch]:
        calls.append((step, halvings, threading.current_thread() is threading.main_thread()))
        prepared.release()
        return [windows_batch(np.full((1, 3), step))]

    source = prefetch(batches, steps=4)
    assert source(0, 0)[0].tokens.tolist() == [[0, 0]]
    prepared.acquire(), prepared.acquire()
    assert calls == [(0, 0, False), (1, 0, False)]  # before step 1 was requested
    assert source(1, 0)[0].tokens.tolist() == [[1, 1]]
    prepared.acquire()
    assert source(1, 1)[0].tokens.tolist() == [[1, 1]]  # out of memory: the same step again, in smaller micro-batches
    assert source(2, 1)[0].tokens.tolist() == [[2, 2]]
    assert source(3, 1)[0].tokens.tolist() == [[3, 3]]
    assert sorted({entry[:2] for entry in calls}) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 1)]


def test_error_in_the_prefetch_thread_is_raised_in_the_caller():
    def batches(step: int, halvings: int) -> list[Batch]:
        raise ValueError("no such window")

    with pytest.raises(ValueError, match="no such window"):
        prefetch(batches, steps=4)(0, 0)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_prompt_loss_weights_skip_the_label_words():
    # Prefix 5 6 7, label words 1 or 2 3, then 8 9: the correct sequence 5 6 7 2 3 8 9 has four other targets.
    prompt = Item.from_sequences([[5, 6, 7, 1, 8, 9], [5, 6, 7, 2, 3, 8, 9]], 1, 3, ScoredSpan((3, 4), 2, 1))
    batch = items_batch([prompt])
    assert batch.tokens.tolist() == [[5, 6, 7, 1, 8, 9, 7, 2, 3, 8, 9]]
    assert batch.targets.tolist() == [[6, 7, 1, 8, 9, 0, 2, 3, 8, 9, 0]]
    assert batch.weights.tolist() == [[0.25, 0.25, 0, 0, 0, 0, 0, 0, 0.25, 0.25, 0]]
    assert batch.read_at.tolist() == [[5, 10]] and batch.scored_counts.tolist() == [[3, 4]]
    unshared = items_batch([prompt.unshared()])
    assert unshared.weights.tolist() == [[0] * 7, [0.25, 0.25, 0, 0, 0.25, 0.25, 0]]
    unknown = items_batch([Item.from_sequences([[5, 6, 1], [5, 6, 2]], None, 2, ScoredSpan((1, 1), 0, None))])
    assert not unknown.weights.any() and unknown.labels is None


def test_resampled_items_follow_the_order_of_the_epoch():
    items = [item([n, n], n) for n in range(10)]
    calls: list[tuple[list[int], int]] = []

    def resample(indices, step):
        calls.append(([*map(int, indices)], step))
        return [item([100 + step, n], 0) for n in indices]

    plain = Epochs(items, 4, 7, None, 1000)
    resampled = Epochs(items, 4, 7, None, 1000, resample=resample)
    for step in (0, 2, 5, 2):
        expected = sorted(plain(step)[0].tokens[:, 0].tolist())
        (batch,) = resampled(step)
        assert sorted(batch.tokens[:, 1].tolist()) == expected and set(batch.tokens[:, 0].tolist()) == {100 + step}
    assert calls[1] == calls[3] and [step for _, step in calls] == [0, 2, 5, 2]
