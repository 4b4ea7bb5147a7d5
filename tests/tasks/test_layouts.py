"""Input transformations against rows written by hand from the paper's Figure 1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt1cli.config.schema import UserError
from gpt1cli.tasks.layouts import LAYOUTS, SpecialTokens, special_tokens, truncate

START, DELIMITER, CLASSIFY = 40478, 40479, 40480  # the released code, vocabulary size 40,478


def test_special_tokens_follow_the_vocabulary():
    assert special_tokens(40478) == SpecialTokens(start=START, delimiter=DELIMITER, classify=CLASSIFY)


def test_single_by_hand():
    assert LAYOUTS["single"]([[5, 6, 7]], [], special_tokens(40478), 512) == ([[START, 5, 6, 7, CLASSIFY]], False, 0)


def test_pair_by_hand():
    row = [START, 5, 6, DELIMITER, 7, CLASSIFY]
    assert LAYOUTS["pair"]([[5, 6], [7]], [], special_tokens(40478), 512) == ([row], False, 0)


def test_similarity_by_hand():
    rows = [[START, 5, 6, DELIMITER, 7, CLASSIFY], [START, 7, DELIMITER, 5, 6, CLASSIFY]]
    assert LAYOUTS["similarity"]([[5, 6], [7]], [], special_tokens(40478), 512) == (rows, False, 0)


def test_choice_by_hand():
    """Section 3.3: [z; q; $; a_k], nothing between document and question."""
    rows = [[START, 5, 6, 7, DELIMITER, 8, CLASSIFY], [START, 5, 6, 7, DELIMITER, 9, 10, CLASSIFY]]
    assert LAYOUTS["choice"]([[5, 6], [7]], [[8], [9, 10]], special_tokens(40478), 512) == (rows, False, 5)


def test_pronoun_by_hand():
    rows = [[START, 5, 6, DELIMITER, 1, 8, 9, CLASSIFY], [START, 5, 6, DELIMITER, 2, 3, 8, 9, CLASSIFY]]
    assert LAYOUTS["pronoun"]([[5, 6], [8, 9]], [[1], [2, 3]], special_tokens(40478), 512) == (rows, False, 4)


def test_document_is_truncated_once_for_the_longest_answer():
    """12 positions, 9 without the special tokens: 3 of the longest answer, 2 of the question, 4 of the document's 7."""
    document, question, answers = [1, 2, 3, 4, 5, 6, 7], [20, 21], [[30], [31, 32, 33]]
    rows, truncated, shared = LAYOUTS["choice"]([document, question], answers, special_tokens(40), 12)
    assert truncated and shared == 8
    assert rows == [[40, 1, 2, 3, 4, 20, 21, 41, 30, 42], [40, 1, 2, 3, 4, 20, 21, 41, 31, 32, 33, 42]]


def test_answers_are_truncated_only_if_they_are_the_longest():
    rows, truncated, _ = LAYOUTS["choice"](
        [[1, 2]], [[5] * 9, [6] * 3], special_tokens(40), 10
    )  # 7 without the special tokens
    assert truncated and rows == [[40, 1, 2, 41, 5, 5, 5, 5, 5, 42], [40, 1, 2, 41, 6, 6, 6, 42]]


def test_text_that_fits_exactly_is_kept_and_one_more_token_is_truncated():
    assert LAYOUTS["single"]([[1, 2, 3]], [], special_tokens(10), 5) == ([[10, 1, 2, 3, 12]], False, 0)
    assert LAYOUTS["single"]([[1, 2, 3, 4]], [], special_tokens(10), 5) == ([[10, 1, 2, 3, 12]], True, 0)


@pytest.mark.parametrize(
    "lengths, room, expected",
    [  # by hand: the longest is truncated first, until it is no longer than the next
        ((9, 2), 8, (6, 2)),
        ((2, 9), 8, (2, 6)),
        ((9, 5), 8, (4, 4)),
        ((5, 9), 7, (3, 4)),
        ((0, 9), 4, (0, 4)),
        ((4, 4), 8, (4, 4)),
        ((9, 8, 1), 9, (4, 4, 1)),
    ],
)
def test_longest_text_is_truncated_first(lengths, room, expected):
    texts, truncated = truncate([list(range(n)) for n in lengths], room)
    assert tuple(map(len, texts)) == expected
    assert truncated == (lengths != expected)


@given(st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=2, max_size=2), st.integers(5, 40))
def test_rows_fit_and_keep_special_tokens_and_use_all_positions(texts, n_positions):
    (row,), truncated, _ = LAYOUTS["pair"](texts, [], special_tokens(100), n_positions)
    assert len(row) == min(n_positions, len(texts[0]) + len(texts[1]) + 3)
    assert truncated == (len(texts[0]) + len(texts[1]) + 3 > n_positions)
    assert (row[0], row[-1]) == (100, 102) and [token for token in row if token >= 100] == [100, 101, 102]
    a, b = row[1 : row.index(101)], row[row.index(101) + 1 : -1]
    assert a == texts[0][: len(a)] and b == texts[1][: len(b)]
    whole = [len(kept) for kept, text in zip((a, b), texts, strict=True) if len(kept) == len(text)]
    shorter = [len(kept) for kept, text in zip((a, b), texts, strict=True) if len(kept) < len(text)]
    assert not shorter or min(shorter) >= max(shorter + whole) - 1  # a truncated text is still among the longest


def test_empty_text_gives_a_row_of_special_tokens():
    assert LAYOUTS["single"]([[]], [], special_tokens(10), 5) == ([[10, 12]], False, 0)


def test_too_few_positions_are_refused():
    with pytest.raises(UserError, match="n_positions is too small: 0 tokens remain for 1 text"):
        LAYOUTS["single"]([[1]], [], special_tokens(10), 2)
    with pytest.raises(UserError, match="n_positions is too small: 1 tokens remain for 2 text"):
        LAYOUTS["pair"]([[1], [2]], [], special_tokens(10), 4)
