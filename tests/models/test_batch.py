"""Batches against rows laid out by hand; epochs as a pure function of seed and step."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from worlds import item, tokens_of

from gpt1cli.models.batch import Asked, Batch, Item, by_length, items_batch, windows_batch
from gpt1cli.training.epochs import Epochs, ahead


def test_windows_predict_the_next_token():
    batch = windows_batch(np.array([[5, 6, 7, 8], [1, 2, 3, 4]], dtype=np.uint16))
    assert batch.tokens.tolist() == [[5, 6, 7], [1, 2, 3]] and batch.targets.tolist() == [[6, 7, 8], [2, 3, 4]]
    assert batch.weights.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert (batch.count, batch.real_tokens) == (6, 6)
    assert batch.document is batch.branch is batch.positions is None  # the fast causal path


def test_token_ids_of_16_and_32_bits_arrive_whole():
    assert windows_batch(np.array([[40_480, 65_535]], dtype=np.uint16)).targets.item() == 65_535
    assert windows_batch(np.array([[0, 3_000_000_000]], dtype=np.uint32)).targets.item() == 3_000_000_000


def test_rows_are_padded_at_the_right_and_weigh_one_together():
    batch = items_batch([item([9, 4, 5, 6, 8], 1), item([9, 7, 8], 0)])
    assert batch.tokens[0].tolist() == [9, 4, 5, 6, 8] and batch.tokens[1, :3].tolist() == [9, 7, 8]
    assert batch.targets[0, :4].tolist() == [4, 5, 6, 8] and batch.targets[1, :2].tolist() == [7, 8]
    assert batch.weights.tolist() == [[0.25] * 4 + [0], [0.5, 0.5, 0, 0, 0]]
    assert batch.ends.tolist() == [[4], [5 + 2]] and batch.labels.tolist() == [1, 0]
    assert (batch.count, batch.real_tokens) == (2, 8)


def test_a_row_of_one_token_has_nothing_to_predict():
    assert items_batch([item([3], 0)]).weights.tolist() == [[0]]


def test_rows_without_labels_make_a_batch_without_labels():
    assert items_batch([item([1, 2])]).labels is None


# --- items of several sequences ---------------------------------------------------------------------------------------


def test_sequences_without_a_prefix_lie_in_rows_of_their_own():
    pair = Item.of([[9, 1, 2, 8], [9, 2, 1, 8]], 1)
    batch = items_batch([pair, Item.of([[9, 5, 8], [9, 6, 8]], 0)])
    assert batch.tokens.tolist() == [[9, 1, 2, 8], [9, 2, 1, 8], [9, 5, 8, 0], [9, 6, 8, 0]]
    assert batch.ends.tolist() == [[3, 7], [10, 14]]  # into the flattened rows of four
    assert batch.weights.tolist() == [[pytest.approx(1 / 6)] * 3 + [0]] * 2 + [[0.25, 0.25, 0, 0]] * 2
    assert batch.branch is batch.document is batch.positions is None  # the fast causal path
    assert (batch.count, batch.real_tokens) == (2, 14)


def test_a_question_lies_in_one_row_by_hand():
    """start 9, document 1 2, delimiter 7; answers 3 and 4 5; classify 8. The delimiter opens both branches."""
    question = Item.of([[9, 1, 2, 7, 3, 8], [9, 1, 2, 7, 4, 5, 8]], 1, shared=4)
    assert question.prefix.tolist() == [9, 1, 2]
    assert [tail.tolist() for tail in question.tails] == [[7, 3, 8], [7, 4, 5, 8]]
    assert (question.width, question.height) == (10, 1)
    batch = items_batch([question, Item.of([[9, 7, 8], [9, 7, 8]], 0, shared=2)])
    assert batch.tokens[0].tolist() == [9, 1, 2, 7, 3, 8, 7, 4, 5, 8]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert batch.branch[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert batch.document.tolist() == [[0] * 10, [0] * 5 + [1] * 5]
    assert batch.ends.tolist() == [[5, 9], [12, 14]]
    real = batch.weights[0] > 0
    assert batch.targets[0][real].tolist() == [1, 2, 7, 3, 8, 4, 5, 8]
    # five targets in the first sequence, six in the second, half a question each; the prefix's count in both
    a, b = 1 / 5 / 2, 1 / 6 / 2
    assert batch.weights[0].tolist() == pytest.approx([a + b] * 3 + [a, a, 0] + [b, b, b, 0])
    assert batch.weights.sum(1).tolist() == pytest.approx([1, 1])


def test_apart_is_the_plain_form():
    rows = [[9, 1, 2, 7, 3, 8], [9, 1, 2, 7, 4, 5, 8]]
    apart = Item.of(rows, 1, shared=4).apart()
    assert [tail.tolist() for tail in apart.tails] == rows and not len(apart.prefix) and apart.label == 1
    assert (apart.width, apart.height) == (7, 2)


def test_scores_are_labels_too():
    labels = items_batch([item([1, 2], 2.5), item([1, 2], 4.0)]).labels
    assert labels.dtype == torch.float32 and labels.tolist() == [2.5, 4.0]


def test_moving_a_batch_moves_every_tensor():
    batch = items_batch([item([1, 2], 0)]).to(torch.device("meta"))
    assert isinstance(batch, Batch) and batch.count == 1 and batch.branch is None
    assert {t.device.type for t in (batch.tokens, batch.targets, batch.weights, batch.ends, batch.labels)} == {"meta"}


# --- groups of like length --------------------------------------------------------------------------------------------

LENGTHS = [3, 50, 7, 7, 12, 1, 33, 8, 8, 20]


def rows_of(lengths: list[int]) -> list[Item]:
    """Rows that can be told apart by their first token and their label."""
    return [item([i] * n, i) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("budget", [1, 40, 64, 1000])
def test_groups_hold_every_row_once_longest_first_and_no_more_than_the_budget(budget):
    groups = list(by_length(rows_of(LENGTHS), None, budget))
    assert sorted(i for group in groups for i in group) == list(range(10))
    lengths = [[LENGTHS[i] for i in group] for group in groups]
    assert [n for group in lengths for n in group] == sorted(LENGTHS, reverse=True)
    assert all(len(group) * max(group) <= budget or len(group) == 1 for group in lengths)


def test_the_budget_is_used_up():
    assert list(map(len, by_length(rows_of(LENGTHS), None, 64))) == [1, 1, 3, 5]  # 50 | 33 | 20 12 8 | 8 7 7 3 1


def test_an_item_of_two_rows_takes_the_room_of_two():
    items = [Item.of([[1] * 5, [2] * 5], 0) for _ in range(4)]
    assert list(map(len, by_length(items, None, 20))) == [2, 2]


def test_micro_batch_is_a_number_of_rows_whatever_the_budget():
    assert list(map(len, by_length(rows_of(LENGTHS), 4, 1))) == [4, 4, 2]
    assert list(by_length([], 4, 1)) == []


# --- epochs -----------------------------------------------------------------------------------------------------------

ROWS = rows_of([2 + i % 5 for i in range(23)])


def epochs(seed: int = 0, micro_batch: int | None = 2) -> Epochs:
    return Epochs(ROWS, batch_size=5, seed=seed, micro_batch=micro_batch, token_budget=64)


def seen(batches: list[Batch]) -> list[int]:
    """Which rows, checked to be whole."""
    for batch in batches:
        T = batch.tokens.shape[1]
        for n, (end, label) in enumerate(zip(batch.ends.flatten().tolist(), batch.labels, strict=True)):
            assert batch.tokens[n, : end - n * T + 1].tolist() == tokens_of(ROWS[label])
    return [label for batch in batches for label in batch.labels.tolist()]


@pytest.mark.parametrize("micro_batch", [None, 1, 2, 5])
def test_an_epoch_shows_each_example_once_in_full_batches_but_for_the_last(micro_batch):
    feed = epochs(micro_batch=micro_batch)
    assert feed.updates == 5
    for epoch in range(3):
        updates = [seen(feed(epoch * 5 + i)) for i in range(5)]
        assert list(map(len, updates)) == [5, 5, 5, 5, 3]
        assert Counter(label for update in updates for label in update) == Counter(range(23))


def test_micro_batches_are_no_larger_than_asked():
    assert [batch.count for batch in epochs(micro_batch=2)(0)] == [2, 2, 1]


def test_every_epoch_and_every_seed_has_its_own_order():
    def order(feed: Epochs, epoch: int) -> list[frozenset[int]]:
        return [frozenset(seen(feed(epoch * 5 + i))) for i in range(5)]

    orders = [order(epochs(seed), epoch) for seed in (0, 1, 2**63 - 1) for epoch in range(3)]
    assert len(set(map(tuple, orders))) == 9
    assert seen(epochs()(0) + epochs()(1)) != list(range(10))


def test_a_batch_follows_from_seed_and_step_alone():
    forwards, backwards = epochs(), epochs()
    there = [seen(forwards(step)) for step in range(15)]
    back = [seen(backwards(step)) for step in reversed(range(15))]
    assert there == back[::-1]


def test_the_split_does_not_change_which_examples_are_in_an_update():
    for step in range(10):
        assert set(seen(epochs(micro_batch=1)(step))) == set(seen(epochs(micro_batch=None)(step)))


# --- ahead of time ----------------------------------------------------------------------------------------------------


def test_the_next_update_is_prepared_while_this_one_is_computed(monkeypatch):
    monkeypatch.setattr(Batch, "pinned", lambda batch: batch)  # there may be no GPU to pin memory for
    asked, prepared = [], threading.Semaphore(0)

    def batches(step: int, halvings: int) -> list[Batch]:
        asked.append((step, halvings, threading.current_thread() is threading.main_thread()))
        prepared.release()
        return [windows_batch(np.full((1, 3), step))]

    source = ahead(batches, steps=4)
    assert source(0, 0)[0].tokens.tolist() == [[0, 0]]
    prepared.acquire(), prepared.acquire()
    assert asked == [(0, 0, False), (1, 0, False)]  # before anyone wanted update 1
    assert source(1, 0)[0].tokens.tolist() == [[1, 1]]
    prepared.acquire()
    assert source(1, 1)[0].tokens.tolist() == [[1, 1]]  # memory ran out: the same update again, otherwise cut
    assert source(2, 1)[0].tokens.tolist() == [[2, 2]]
    assert source(3, 1)[0].tokens.tolist() == [[3, 3]]
    assert sorted({entry[:2] for entry in asked}) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 1)]


def test_what_a_thread_stumbles_over_is_raised_where_it_is_wanted():
    def batches(step: int, halvings: int) -> list[Batch]:
        raise ValueError("no such window")

    with pytest.raises(ValueError, match="no such window"):
        ahead(batches, steps=4)(0, 0)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_of_a_prompt_the_language_model_is_asked_for_all_tokens_but_the_words_of_the_label():
    # A shared 5 6 7, then the words 1 or 2 3, then 8 9: of the right sequence 5 6 7 2 3 8 9 four targets are no words.
    prompt = Item.of([[5, 6, 7, 1, 8, 9], [5, 6, 7, 2, 3, 8, 9]], 1, 3, Asked((3, 4), 2, 1))
    batch = items_batch([prompt])
    assert batch.tokens.tolist() == [[5, 6, 7, 1, 8, 9, 7, 2, 3, 8, 9]]
    assert batch.targets.tolist() == [[6, 7, 1, 8, 9, 0, 2, 3, 8, 9, 0]]
    assert batch.weights.tolist() == [[0.25, 0.25, 0, 0, 0, 0, 0, 0, 0.25, 0.25, 0]]
    assert batch.ends.tolist() == [[5, 10]] and batch.asked.tolist() == [[3, 4]]
    apart = items_batch([prompt.apart()])
    assert apart.weights.tolist() == [[0] * 7, [0.25, 0.25, 0, 0, 0.25, 0.25, 0]]
    unknown = items_batch([Item.of([[5, 6, 1], [5, 6, 2]], None, 2, Asked((1, 1), 0, None))])
    assert not unknown.weights.any() and unknown.labels is None


def test_items_made_anew_are_those_of_the_epochs_places_at_each_update():
    items = [item([n, n], n) for n in range(10)]
    asked: list[tuple[list[int], int]] = []

    def anew(places, step):
        asked.append(([*map(int, places)], step))
        return [item([100 + step, n], 0) for n in places]

    plain = Epochs(items, 4, 7, None, 1000)
    made = Epochs(items, 4, 7, None, 1000, anew=anew)
    for step in (0, 2, 5, 2):
        wanted = sorted(plain(step)[0].tokens[:, 0].tolist())
        (batch,) = made(step)
        assert sorted(batch.tokens[:, 1].tolist()) == wanted and set(batch.tokens[:, 0].tolist()) == {100 + step}
    assert asked[1] == asked[3] and [step for _, step in asked] == [0, 2, 5, 2]
