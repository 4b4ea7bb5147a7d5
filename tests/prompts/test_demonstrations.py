"""Demonstrations of a query: one of each class, never the query itself, determined by seed and step."""

from __future__ import annotations

import collections
import dataclasses
import sys
import types

import numpy as np
import pytest
import torch
from worlds import SHAPE, model_config, read, stir

from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.inference import mean_states
from gpt1cli.models.transformer import Transformer
from gpt1cli.prompts.demonstrations import (
    DemonstrationPool,
    check_similarity_model,
    cosine_similarity,
    embed_examples,
    orders_for_evaluation,
    orders_for_step,
)
from gpt1cli.tasks.example import Example

TASK = build(TaskConfig, read("task/snli.yaml"))
POOL = DemonstrationPool.from_examples(
    TASK, [Example(str(i), (f"premise {i}", f"hypothesis {i}"), i % 3) for i in range(12)]
)
NEW = Example("0", ("a new text", "with an id that the pool also has"), None)


def select(order: list[int], query: Example) -> tuple[int, ...]:
    (excluded,) = POOL.excluded([query])
    return POOL.select(np.array(order), excluded)


def test_the_first_example_of_each_class_is_selected():
    assert select([3, 0, 7, 6, 1, 4, 5, 2, 8, 9, 10, 11], NEW) == (3, 7, 5)  # classes 0, 1 and 2
    assert select([11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], NEW) == (11, 10, 9)


def test_a_query_is_never_its_own_demonstration():
    order = [3, 0, 7, 6, 1, 4, 5, 2, 8, 9, 10, 11]
    assert select(order, POOL.examples[3]) == (0, 7, 5)
    assert select(order, dataclasses.replace(POOL.examples[7], id="new", label=None)) == (
        3,
        1,
        5,
    )  # compared by texts, not by id
    for step in range(30):
        for i, order in enumerate(orders_for_step(13, step, 12, 12)):
            selected = POOL.select(order, POOL.excluded([POOL.examples[i]])[0])
            assert i not in selected and sorted(POOL.classes[list(selected)]) == [0, 1, 2]


def test_a_class_with_only_the_query_has_no_demonstration():
    pool = DemonstrationPool.from_examples(TASK, POOL.examples[:4])  # classes 0, 1, 2, 0
    (excluded,) = pool.excluded([POOL.examples[1]])
    assert pool.select(np.array([1, 0, 2, 3]), excluded) == (0, 2)


def test_orders_depend_only_on_seed_and_step():
    def step_orders(*numbers: int) -> list[list[int]]:
        return [order.tolist() for order in orders_for_step(*numbers)]

    assert step_orders(13, 5, 3, 8) == step_orders(13, 5, 3, 8)
    others = [
        step_orders(13, 5, 1, 8),
        step_orders(13, 6, 1, 8),
        step_orders(21, 5, 1, 8),
        [orders_for_evaluation(13, 1, 8)[0].tolist()],
    ]
    assert len({str(other) for other in others}) == 4
    assert [order.tolist() for order in orders_for_evaluation(13, 2, 8)] == [
        x.tolist() for x in orders_for_evaluation(13, 9, 8)[:2]
    ]


def test_examples_and_orders_of_classes_are_uniformly_sampled():
    counts: collections.Counter = collections.Counter()
    for step in range(300):
        for order in orders_for_step(0, step, 4, 12):
            selected = select(order.tolist(), NEW)
            counts.update([*selected, POOL.classes[list(selected)].tobytes()])
    assert len(counts) == 12 + 6
    assert all(
        counts[i] == pytest.approx(300, rel=0.25) for i in range(12)
    )  # 1,200 orders, four examples of each class
    assert all(count == pytest.approx(200, rel=0.25) for key, count in counts.items() if isinstance(key, bytes))


def test_similar_excludes_the_less_similar_half_of_each_class():
    similarity = [0.9, 0.1, 0.2, 0.8, 0.9, 0.3, -0.5, 0.8, 0.4, 0.7, 0.2, 0.5]
    (excluded,) = POOL.excluded([NEW], np.array([similarity]))
    assert np.flatnonzero(~excluded).tolist() == [0, 3, 4, 7, 8, 11]  # 0.9 0.8 of class 0, 0.9 0.8 of 1, 0.5 0.4 of 2
    (excluded,) = POOL.excluded(
        [POOL.examples[0]], np.array([similarity])
    )  # the most similar example is the query itself: excluded
    assert np.flatnonzero(~excluded).tolist() == [3, 4, 7, 8, 9, 11]


def test_choices_are_not_classes():
    content = read("task/demo_choice.yaml")["task"]
    pool = DemonstrationPool.from_examples(
        build(TaskConfig, content), [Example(str(i), ("c",), i % 2, (f"a{i}", "b")) for i in range(6)]
    )
    (excluded,) = pool.excluded([Example("q", ("c",), None, ("a3", "b"))])
    assert pool.select(np.array([3, 1, 2, 0, 4, 5]), excluded) == (1,)


def test_cosine_similarity():
    queries, examples = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[4.0, 3.0], [-6.0, -8.0], [0.0, 2.0]])
    np.testing.assert_allclose(cosine_similarity(queries, examples), [[24 / 25, -1, 0.8], [0, 0, 0]])


class LetterIds:
    """A tokenizer with one id for each letter; it ignores spaces."""

    def encode_batch(self, texts):
        return [[ord(letter) % 37 for letter in text if letter != " "] for text in texts]


def test_hidden_states_are_averaged_over_the_tokens_of_the_texts():
    torch.manual_seed(0)
    model = Transformer(model_config(**SHAPE), 37)
    stir(model)
    sequences = [[3, 4, 5], [6], list(range(30)), [7, 8]]  # thirty tokens are truncated to n_positions=20
    actual = mean_states(model.train(), sequences, None, 8)
    with torch.no_grad():
        expected = [model.eval()(torch.tensor([row[:20]]))[0].mean(0) for row in sequences]
    np.testing.assert_allclose(actual, torch.stack(expected), atol=1e-5)
    pair = [Example("0", ("ab", "c"), None, ("d",))]
    by_states = embed_examples("states", pair, model, LetterIds(), None, None, 100)
    np.testing.assert_allclose(by_states, mean_states(model, [[ord(x) % 37 for x in "abcd"]], None, 100))


def test_sentence_embeddings_need_an_optional_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        UserError, match=r"similar_by=some/model needs sentence-transformers: pip install .*similar_by=states"
    ):
        check_similarity_model("some/model", None)
    check_similarity_model("states", None)

    class SentenceTransformer:
        def __init__(self, name: str, device: str):
            self.name = name

        def encode(self, texts, convert_to_numpy, show_progress_bar):
            assert convert_to_numpy and not show_progress_bar
            return np.array([[len(text), len(self.name)] for text in texts], float)

    monkeypatch.setitem(
        sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=SentenceTransformer)
    )
    with pytest.raises(UserError, match=r"similar_by=some/model: folder not found, .*hub="):
        check_similarity_model("some/model", str(tmp_path))
    (tmp_path / "some" / "model").mkdir(parents=True)
    check_similarity_model("some/model", str(tmp_path))
    model = Transformer(model_config(**SHAPE), 37)
    vectors = embed_examples(
        "some/model", [Example("0", ("ab", "c"), None, ("d",))], model, LetterIds(), str(tmp_path), None, 100
    )
    assert vectors.tolist() == [[len("ab c d"), len(str(tmp_path / "some" / "model"))]]
