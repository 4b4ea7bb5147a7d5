"""Input transformations against rows written by hand from the paper's Figure 1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt1cli.config.schema import UserError
from gpt1cli.tasks.layouts import LAYOUTS, Special, shortened, special

START, DELIMITER, CLASSIFY = 40478, 40479, 40480  # the released code, with its 40,478 entries


def test_special_tokens_follow_the_vocabulary():
    assert special(40478) == Special(start=START, delimiter=DELIMITER, classify=CLASSIFY)


def test_single_by_hand():
    assert LAYOUTS["single"]([[5, 6, 7]], [], special(40478), 512) == ([[START, 5, 6, 7, CLASSIFY]], False, 0)


def test_pair_by_hand():
    row = [START, 5, 6, DELIMITER, 7, CLASSIFY]
    assert LAYOUTS["pair"]([[5, 6], [7]], [], special(40478), 512) == ([row], False, 0)


def test_similarity_by_hand():
    rows = [[START, 5, 6, DELIMITER, 7, CLASSIFY], [START, 7, DELIMITER, 5, 6, CLASSIFY]]
    assert LAYOUTS["similarity"]([[5, 6], [7]], [], special(40478), 512) == (rows, False, 0)


def test_choice_by_hand():
    """Section 3.3: [z; q; $; a_k], nothing between document and question."""
    rows = [[START, 5, 6, 7, DELIMITER, 8, CLASSIFY], [START, 5, 6, 7, DELIMITER, 9, 10, CLASSIFY]]
    assert LAYOUTS["choice"]([[5, 6], [7]], [[8], [9, 10]], special(40478), 512) == (rows, False, 5)


def test_pronoun_by_hand():
    rows = [[START, 5, 6, DELIMITER, 1, 8, 9, CLASSIFY], [START, 5, 6, DELIMITER, 2, 3, 8, 9, CLASSIFY]]
    assert LAYOUTS["pronoun"]([[5, 6], [8, 9]], [[1], [2, 3]], special(40478), 512) == (rows, False, 4)


def test_the_document_is_cut_once_for_the_longest_answer():
    """12 positions hold 9 tokens beside the special ones: 3 of the longest answer, 2 of the question, 4 of 7."""
    document, question, answers = [1, 2, 3, 4, 5, 6, 7], [20, 21], [[30], [31, 32, 33]]
    rows, cut, shared = LAYOUTS["choice"]([document, question], answers, special(40), 12)
    assert cut and shared == 8
    assert rows == [[40, 1, 2, 3, 4, 20, 21, 41, 30, 42], [40, 1, 2, 3, 4, 20, 21, 41, 31, 32, 33, 42]]


def test_answers_lose_their_end_only_when_they_are_the_longest():
    rows, cut, _ = LAYOUTS["choice"]([[1, 2]], [[5] * 9, [6] * 3], special(40), 10)  # 7 beside the special ones
    assert cut and rows == [[40, 1, 2, 41, 5, 5, 5, 5, 5, 42], [40, 1, 2, 41, 6, 6, 6, 42]]


def test_a_text_that_fits_exactly_is_whole_and_one_more_token_is_cut_at_the_end():
    assert LAYOUTS["single"]([[1, 2, 3]], [], special(10), 5) == ([[10, 1, 2, 3, 12]], False, 0)
    assert LAYOUTS["single"]([[1, 2, 3, 4]], [], special(10), 5) == ([[10, 1, 2, 3, 12]], True, 0)


@pytest.mark.parametrize(
    "lengths, room, left",
    [  # by hand: the longest loses first, until it is no longer than the next
        ((9, 2), 8, (6, 2)),
        ((2, 9), 8, (2, 6)),
        ((9, 5), 8, (4, 4)),
        ((5, 9), 7, (3, 4)),
        ((0, 9), 4, (0, 4)),
        ((4, 4), 8, (4, 4)),
        ((9, 8, 1), 9, (4, 4, 1)),
    ],
)
def test_the_longest_text_is_cut_first(lengths, room, left):
    texts, cut = shortened([list(range(n)) for n in lengths], room)
    assert tuple(map(len, texts)) == left
    assert cut == (lengths != left)


@given(st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=2, max_size=2), st.integers(5, 40))
def test_every_row_fits_keeps_its_special_tokens_and_wastes_no_room(texts, n_positions):
    (row,), cut, _ = LAYOUTS["pair"](texts, [], special(100), n_positions)
    assert len(row) == min(n_positions, len(texts[0]) + len(texts[1]) + 3)
    assert cut == (len(texts[0]) + len(texts[1]) + 3 > n_positions)
    assert (row[0], row[-1]) == (100, 102) and [token for token in row if token >= 100] == [100, 101, 102]
    a, b = row[1 : row.index(101)], row[row.index(101) + 1 : -1]
    assert a == texts[0][: len(a)] and b == texts[1][: len(b)]
    whole = [len(kept) for kept, text in zip((a, b), texts, strict=True) if len(kept) == len(text)]
    shorter = [len(kept) for kept, text in zip((a, b), texts, strict=True) if len(kept) < len(text)]
    assert not shorter or min(shorter) >= max(shorter + whole) - 1  # a text that was cut is still among the longest


def test_empty_text_is_a_row_of_special_tokens():
    assert LAYOUTS["single"]([[]], [], special(10), 5) == ([[10, 12]], False, 0)


def test_no_room_for_text_is_refused():
    with pytest.raises(UserError, match="n_positions leaves 0 tokens for 1 text"):
        LAYOUTS["single"]([[1]], [], special(10), 2)
    with pytest.raises(UserError, match="n_positions leaves 1 tokens for 2 text"):
        LAYOUTS["pair"]([[1], [2]], [], special(10), 4)
