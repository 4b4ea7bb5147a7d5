"""Which demonstrations stand before a query: one of each class, never itself, by seed and update alone."""

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
from gpt1cli.prompts.demonstrations import Pool, check, embedded, likeness, orders_of_sets, orders_of_update
from gpt1cli.tasks.example import Example

TASK = build(TaskConfig, read("task/snli.yaml"))
POOL = Pool.of(TASK, [Example(str(i), (f"premise {i}", f"hypothesis {i}"), i % 3) for i in range(12)])
NEW = Example("0", ("a new one", "with an id that is there too"), None)


def chosen(order: list[int], query: Example, likeness: list[float] | None = None) -> tuple[int, ...]:
    (barred,) = POOL.barred([query], None if likeness is None else np.array([likeness]))
    return POOL.chosen(np.array(order), barred)


def test_the_first_of_each_class_in_the_order_of_the_set():
    assert chosen([3, 0, 7, 6, 1, 4, 5, 2, 8, 9, 10, 11], NEW) == (3, 7, 5)  # classes 0, 1 and 2
    assert chosen([11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], NEW) == (11, 10, 9)


def test_a_query_never_stands_before_itself():
    order = [3, 0, 7, 6, 1, 4, 5, 2, 8, 9, 10, 11]
    assert chosen(order, POOL.examples[3]) == (0, 7, 5)
    assert chosen(order, dataclasses.replace(POOL.examples[7], id="new", label=None)) == (3, 1, 5)  # by what it says
    for step in range(30):
        for i, order in enumerate(orders_of_update(13, step, 12, 12)):
            found = POOL.chosen(order, POOL.barred([POOL.examples[i]])[0])
            assert i not in found and sorted(POOL.classes[list(found)]) == [0, 1, 2]


def test_a_class_of_which_nothing_but_the_query_is_there_has_no_demonstration():
    pool = Pool.of(TASK, POOL.examples[:4])  # classes 0, 1, 2, 0
    (barred,) = pool.barred([POOL.examples[1]])
    assert pool.chosen(np.array([1, 0, 2, 3]), barred) == (0, 2)


def test_the_orders_follow_from_seed_and_update_alone():
    def said(*numbers: int) -> list[list[int]]:
        return [order.tolist() for order in orders_of_update(*numbers)]

    assert said(13, 5, 3, 8) == said(13, 5, 3, 8)
    others = [said(13, 5, 1, 8), said(13, 6, 1, 8), said(21, 5, 1, 8), [orders_of_sets(13, 1, 8)[0].tolist()]]
    assert len({str(other) for other in others}) == 4
    assert [order.tolist() for order in orders_of_sets(13, 2, 8)] == [x.tolist() for x in orders_of_sets(13, 9, 8)[:2]]


def test_every_example_of_a_class_comes_equally_often_and_every_order_of_classes():
    counts: collections.Counter = collections.Counter()
    for step in range(300):
        for order in orders_of_update(0, step, 4, 12):
            found = chosen(order.tolist(), NEW)
            counts.update([*found, POOL.classes[list(found)].tobytes()])
    assert len(counts) == 12 + 6
    assert all(counts[i] == pytest.approx(300, rel=0.25) for i in range(12))  # 1,200 draws, four of each class
    assert all(count == pytest.approx(200, rel=0.25) for key, count in counts.items() if isinstance(key, bytes))


def test_similar_keeps_the_half_of_each_class_that_is_most_like_the_query():
    like = [0.9, 0.1, 0.2, 0.8, 0.9, 0.3, -0.5, 0.8, 0.4, 0.7, 0.2, 0.5]
    (barred,) = POOL.barred([NEW], np.array([like]))
    assert np.flatnonzero(~barred).tolist() == [0, 3, 4, 7, 8, 11]  # 0.9 0.8 of class 0, 0.9 0.8 of 1, 0.5 0.4 of 2
    (barred,) = POOL.barred([POOL.examples[0]], np.array([like]))  # itself most alike, and not taken
    assert np.flatnonzero(~barred).tolist() == [3, 4, 7, 8, 9, 11]


def test_the_answers_of_a_choice_are_no_classes():
    content = read("task/demo_choice.yaml")["task"]
    pool = Pool.of(build(TaskConfig, content), [Example(str(i), ("c",), i % 2, (f"a{i}", "b")) for i in range(6)])
    (barred,) = pool.barred([Example("q", ("c",), None, ("a3", "b"))])
    assert pool.chosen(np.array([3, 1, 2, 0, 4, 5]), barred) == (1,)


def test_likeness_is_the_cosine():
    one, other = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[4.0, 3.0], [-6.0, -8.0], [0.0, 2.0]])
    np.testing.assert_allclose(likeness(one, other), [[24 / 25, -1, 0.8], [0, 0, 0]])


class Letters:
    """A tokenizer: a letter an id."""

    def encode_batch(self, texts):
        return [[ord(letter) % 37 for letter in text if letter != " "] for text in texts]


def test_the_models_own_states_are_means_over_the_tokens_of_the_texts():
    torch.manual_seed(0)
    model = Transformer(model_config(**SHAPE), 37)
    stir(model)
    sequences = [[3, 4, 5], [6], list(range(30)), [7, 8]]  # of thirty tokens n_positions keeps twenty
    found = mean_states(model.train(), sequences, None, 8)
    with torch.no_grad():
        wanted = [model.eval()(torch.tensor([row[:20]]))[0].mean(0) for row in sequences]
    np.testing.assert_allclose(found, torch.stack(wanted), atol=1e-5)
    pair = [Example("0", ("ab", "c"), None, ("d",))]
    by_states = embedded("states", pair, model, Letters(), None, None, 100)
    np.testing.assert_allclose(by_states, mean_states(model, [[ord(x) % 37 for x in "abcd"]], None, 100))


def test_sentence_embeddings_are_asked_of_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"similar_by=some/model needs sentence-transformers: pip install"):
        check("some/model", None)
    check("states", None)

    class SentenceTransformer:
        def __init__(self, name: str, device: str):
            self.name = name

        def encode(self, texts, convert_to_numpy, show_progress_bar):
            assert convert_to_numpy and not show_progress_bar
            return np.array([[len(text), len(self.name)] for text in texts], float)

    monkeypatch.setitem(
        sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=SentenceTransformer)
    )
    with pytest.raises(UserError, match="similar_by=some/model: no such folder"):
        check("some/model", str(tmp_path))
    (tmp_path / "some" / "model").mkdir(parents=True)
    check("some/model", str(tmp_path))
    model = Transformer(model_config(**SHAPE), 37)
    found = embedded(
        "some/model", [Example("0", ("ab", "c"), None, ("d",))], model, Letters(), str(tmp_path), None, 100
    )
    assert found.tolist() == [[len("ab c d"), len(str(tmp_path / "some" / "model"))]]
