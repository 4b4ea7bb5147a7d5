"""Few-shot splits against LM-BFF's md5 sums and a shuffle written by hand."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import random

import numpy as np
import pytest
from worlds import read

from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.tasks import splits
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.few_shot import class_index, draw_examples, draw_order, few_shot_task


def configured(name: str, **changes: object) -> TaskConfig:
    content = read(f"task/{name}.yaml")
    return dataclasses.replace(build(TaskConfig, content.get("task", content)), **changes)


def rows(labels: list[float]) -> list[Example]:
    return [Example(str(i), (f"text {i}",), label) for i, label in enumerate(labels)]


def shuffled(n: int, seeds: list[int]) -> list[int]:
    """Fisher-Yates from the end with words of the Mersenne twister, as in numpy's legacy shuffle of a list.

    Python's generator is the same twister; a number up to `top` is the lowest bits of the next word, redrawn if larger.
    """
    order = list(range(n))
    for seed in seeds:
        numpy_state = np.random.RandomState(seed).get_state()
        twister = random.Random()
        twister.setstate((3, (*map(int, numpy_state[1]), int(numpy_state[2])), None))
        for top in range(n - 1, 0, -1):
            mask = 2 ** top.bit_length() - 1
            while (drawn := twister.getrandbits(32) & mask) > top:
                pass
            order[top], order[drawn] = order[drawn], order[top]
    return order


@pytest.mark.parametrize("seed", [0, 13, 100, 2**32 - 1])
def test_draw_order_equals_numpys_legacy_shuffle(seed):
    assert draw_order("rte", 300, seed).tolist() == shuffled(300, [seed])


def test_cola_rows_are_shuffled_in_place_by_the_released_seeds():
    assert draw_order("cola", 50, 100).tolist() == shuffled(50, [100])
    assert draw_order("cola", 50, 21).tolist() == shuffled(50, [100, 13, 21])
    assert draw_order("cola", 50, 87).tolist() == shuffled(50, [100, 13, 21, 42, 87])
    assert draw_order("cola", 50, 7).tolist() == shuffled(50, [7])  # not a released seed


def test_first_rows_of_each_class_are_for_training_and_the_next_for_validation():
    task, labels = configured("sst2"), [0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0] * 5
    train, valid = draw_examples(task, rows(labels), 4, 42)
    by_class: dict[int, list[str]] = {}
    for i in shuffled(len(labels), [42]):
        by_class.setdefault(labels[i], []).append(str(i))
    assert [row.id for row in train] == [i for members in by_class.values() for i in members[:4]]
    assert [row.id for row in valid] == [i for members in by_class.values() for i in members[4:8]]


def test_scores_have_two_classes_split_at_the_middle_of_the_range():
    task = configured("stsb")
    assert [class_index(task, score) for score in (0.0, 2.499, 2.5, 5.0)] == [0, 0, 1, 1]
    train, valid = draw_examples(task, rows([0.5, 2.4, 2.5, 4.0] * 8), 3, 13)
    for split in (train, valid):
        assert collections.Counter(row.label >= 2.5 for row in split) == {False: 3, True: 3}
    assert not {row.id for row in train} & {row.id for row in valid}


def test_class_with_too_few_examples_is_named():
    with pytest.raises(UserError, match=r"task=rte: shots=3 needs 6 .* too few \(not_entailment: 5\)"):
        draw_examples(configured("rte"), rows([0] * 6 + [1] * 5), 3, 0)
    draw_examples(configured("rte"), rows([0] * 6 + [1] * 6), 3, 0)
    with pytest.raises(UserError, match=r"a score of 2.5 or more: 0"):
        draw_examples(configured("stsb"), rows([1.0] * 9), 2, 0)
    with pytest.raises(UserError, match=r"neutral: 1, contradiction: 0"):
        draw_examples(configured("snli"), rows([0] * 9 + [1]), 1, 0)


def test_validation_split_is_the_test_set_if_glue_hides_test_labels():
    assert few_shot_task(configured("rte")).splits == {"train": "train", "valid": "train", "test": "validation"}
    assert few_shot_task(configured("rte")).submission == {}
    assert few_shot_task(configured("mnli")).splits == {
        "train": "train", "valid": "train", "test": "validation_matched", "test_mismatched": "validation_mismatched",
    }  # fmt: skip
    assert few_shot_task(configured("demo_sentiment")).splits == {"train": "train", "valid": "train", "test": "test"}
    race = few_shot_task(configured("race")).splits
    assert race["valid"] == "train" and race["test_high"] == configured("race").splits["test_high"]
    without = configured("demo_sentiment", splits={"train": "a", "valid": "b"})
    assert few_shot_task(without).splits == {"train": "a", "valid": "a", "test": "b"}


# --- the released splits ----------------------------------------------------------------------------------------------

RTE = {  # data/k-shot/checksum of princeton-nlp/LM-BFF: seed -> train.tsv, dev.tsv
    13: ("0aaae3483435626089adbc4ae851b75d", "8fc45ab58e72e16cf90547710f3b5d15"),
    21: ("79490f931a776fad7f3b2ba31f9142d1", "96ac052f30101901e6bc04adb4875edb"),
    42: ("4d45391333d2f56d16633d7b85d3e051", "a64069d0ca424995d35e05e67c03ceb9"),
    87: ("46af88a12bc44c12a40ea2cb79e94837", "19ee5593b53d1b290737eb9de2ca4869"),
    100: ("548d8775d98ca0638615b9e0bfbe5c32", "bc66584b1fa19f9620051e8db7bcc1dc"),
}


def md5(task: TaskConfig, examples: list[Example]) -> str:
    """The md5 sum of a file in GLUE's format: number, two sentences, the label's name."""
    lines = ["index\tsentence1\tsentence2\tlabel\n"]
    lines += ["\t".join([row.id, *row.texts, task.labels[row.label]]) + "\n" for row in examples]
    return hashlib.md5("".join(lines).encode()).hexdigest()


@pytest.mark.realdata
def test_rte_draws_match_the_released_md5_sums(test_hub, tmp_path):
    task = configured("rte")
    train = splits.load_labelled(task, "train", test_hub, tmp_path).examples
    for seed, sums in RTE.items():
        assert tuple(md5(task, split) for split in draw_examples(task, train, 16, seed)) == sums, seed
    test = splits.load_labelled(few_shot_task(task), "test", test_hub, tmp_path).examples
    assert md5(task, test) == "973cb4178d4534cf745a01c309d4a66c"
