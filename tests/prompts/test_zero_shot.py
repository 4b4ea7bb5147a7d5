"""Zero-shot rules on a model with known probabilities: scores, predictions and metrics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef
from torch import Tensor, nn
from worlds import read

from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.batch import Item
from gpt1cli.models.inference import suffix_log_probabilities
from gpt1cli.prompts.zero_shot import (
    RULES,
    Question,
    best_threshold,
    compute_zero_shot_metrics,
    ending_scores,
    pack_question,
    threshold_scores,
    zero_shot_records,
)
from gpt1cli.reporting.figure2 import Curve, curves_csv, draw_curves, relative_score
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.splits import Split

A, B, C, D = range(4)
NEXT_TOKEN = [  # p(next token | this token)
    [0.1, 0.2, 0.3, 0.4],
    [0.25, 0.25, 0.25, 0.25],
    [0.7, 0.1, 0.1, 0.1],
    [0.4, 0.3, 0.2, 0.1],
]


class BigramModel(nn.Module):
    """Predicts from the last token only; its embeddings are the identity, so its states are the logits."""

    branches = True

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding.from_pretrained(torch.eye(4))

    def forward(self, tokens: Tensor, *_: Tensor | None, lengths: tuple[int, ...]) -> Tensor:
        return torch.tensor(NEXT_TOKEN).log()[tokens]


def rule_probabilities(
    rule: str, texts: list, choices: list, opening: tuple = (), normalise: str = "mean"
) -> list[float]:
    """The probability of each ending under the rule: e to the power of its score."""
    question = RULES[rule](texts, choices)
    packed = pack_question(question._replace(context=question.context or list(opening)), 8)
    items = [Item.from_sequences(packed.rows, None, packed.shared_length)]
    log_p = suffix_log_probabilities(BigramModel(), items, [packed.scored_counts], 4, None, 100)
    return np.exp(ending_scores(log_p, normalise, 4)[0]).tolist()


def geometric_mean(*p: float) -> float:
    """The geometric mean, which is e to the power of the mean logarithm."""
    return math.prod(p) ** (1 / len(p))


# --- rules ------------------------------------------------------------------------------------------------------------


def test_a_sentence_is_scored_without_its_first_token():
    assert rule_probabilities("sentence", [[A, D, B]], []) == pytest.approx([geometric_mean(0.4, 0.3)])
    assert rule_probabilities("sentence", [[A, D, B]], [], normalise="sum") == pytest.approx([0.4 * 0.3])


def test_after_an_opening_the_first_token_is_scored():
    assert rule_probabilities("sentence", [[A, D, B]], [], opening=(B, C)) == pytest.approx(
        [geometric_mean(0.7, 0.4, 0.3)]
    )
    both = rule_probabilities("answer", [], [[A, D], [D, A]], opening=(C,), normalise="sum")
    assert both == pytest.approx([0.7 * 0.4, 0.1 * 0.4])


def test_answers_are_scored_after_all_texts():
    assert rule_probabilities("answer", [[B, B], [A, C]], [[A], [D, A]]) == pytest.approx(
        [0.7, geometric_mean(0.1, 0.4)]
    )
    assert rule_probabilities("answer", [[B], [A, C]], [[A], [D, A]], normalise="sum") == pytest.approx(
        [0.7, 0.1 * 0.4]
    )


def test_sentences_are_compared_without_their_first_tokens():
    assert rule_probabilities("answer", [], [[A, D, B], [C, D]], normalise="sum") == pytest.approx([0.4 * 0.3, 0.1])


def test_only_the_tokens_after_the_candidate_are_scored():
    assert rule_probabilities("rest", [[B, A], [C, A]], [[D], [B, C]]) == pytest.approx(
        [geometric_mean(0.2, 0.7), geometric_mean(0.1, 0.7)]
    )
    assert rule_probabilities("rest", [[], [C, A]], [[D], [B, C]]) == pytest.approx(
        [geometric_mean(0.2, 0.7), geometric_mean(0.1, 0.7)]
    )


def test_an_ending_without_scored_tokens_gets_chance():
    assert rule_probabilities("sentence", [[A]], []) == pytest.approx([1 / 4])
    assert rule_probabilities("rest", [[B], []], [[A], [C, D]]) == pytest.approx([1 / 4, 1 / 4])
    assert rule_probabilities("answer", [[C]], [[], [A]]) == pytest.approx([1 / 4, 0.7])


def test_contexts_are_truncated_at_the_start_and_answers_never():
    question = Question([1, 2, 3, 4], [[5], [6, 7]], [0, 0])
    assert pack_question(question, 6) == ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7]], [1, 2], 4, False)
    assert pack_question(question, 5) == ([[2, 3, 4, 5], [2, 3, 4, 6, 7]], [1, 2], 3, True)
    assert pack_question(question, 3) == ([[4, 5], [4, 6, 7]], [1, 2], 1, True)
    with pytest.raises(UserError, match=r"n_positions=2 is too small for an ending of 2 tokens .* more positions"):
        pack_question(question, 2)
    assert pack_question(Question([], [[6, 7]], [0]), 2) == ([[6, 7]], [1], 0, False)
    with pytest.raises(UserError, match="n_positions=1 is too small for an ending of 2 tokens"):
        pack_question(Question([], [[6, 7]], [0]), 1)


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_the_best_possible(seed):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, 30)
    values = np.round(draw.normal(labels * 0.7, 1), 1)  # with ties
    threshold = best_threshold(values, labels)
    levels = np.unique(values)
    tried = {(a + b) / 2: matthews_corrcoef(labels, values > (a + b) / 2) for a, b in itertools.pairwise(levels)}
    assert threshold in tried and tried[threshold] == pytest.approx(max(tried.values()))


def test_thresholds_by_hand():
    assert best_threshold(np.array([-4.0, -1.0, -3.0, -2.0]), [0, 1, 0, 1]) == -2.5
    assert best_threshold(np.array([-4.0, -1.0, -3.0, -2.0, -9.0]), [0, 1, 1, 1, 0]) == -3.5
    assert best_threshold(np.array([-4.0, -4.0]), [0, 1]) == -4.0


def test_ties_count_half_and_are_reported():
    task = build(TaskConfig, read("task/winograd.yaml"))
    scores = np.array([[-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0], [-3.0, -3.0], [-1.0, -2.0]])
    metrics = compute_zero_shot_metrics(task, [0, 1, 0, 1, 1], scores)  # correct, correct, tied, tied, wrong
    assert metrics == {"accuracy": pytest.approx(3 / 5), "ties": 2}
    race = build(TaskConfig, read("task/race.yaml"))
    metrics = compute_zero_shot_metrics(race, [0, 3], np.array([[-1.0, -1.0, -1.0, -2.0], [-1.0, -1.0, -1.0, -2.0]]))
    assert metrics == {"accuracy": pytest.approx(1 / 6), "ties": 2}


def test_two_classes_also_get_the_area_under_the_curve():
    """There are six pairs of an acceptable and an unacceptable sentence: four are in order, one is tied."""
    task = build(TaskConfig, read("task/cola.yaml"))
    values, labels = np.array([[-1.0], [-2.0], [-3.0], [-2.0], [-4.0]]), [1, 0, 1, 1, 0]
    metrics = compute_zero_shot_metrics(task, labels, threshold_scores(-2.5, values))
    predicted = [1, 1, 0, 1, 0]
    assert metrics["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, predicted))
    assert (metrics["accuracy"], metrics["ties"]) == (pytest.approx(3 / 5), 0)
    assert metrics["roc_auc"] == pytest.approx(4.5 / 6)
    assert compute_zero_shot_metrics(task, [1, 1], threshold_scores(-2.5, values[:2]))["roc_auc"] == 0.5


def test_records_name_labels_and_ties_take_the_first():
    task = build(TaskConfig, read("task/sst2.yaml"))
    split = Split([Example("7", ("fine",), 1), Example("8", ("so so",), None)], [], 0, 0)
    first, second = zero_shot_records(task, split, np.array([[-2.0, -1.0], [-3.0, -3.0]]))
    assert first == {"id": "7", "label": "positive", "prediction": "positive",
                     "scores": {"negative": -2.0, "positive": -1.0}}  # fmt: skip
    assert (second["label"], second["prediction"]) == (None, "negative")


# --- a task's rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "zeroshot", "fragment"),
    [
        ("winograd", {"rule": "answer"}, "rule=rest and layout=pronoun need each other"),
        ("race", {"rule": "rest"}, "rule=rest and layout=pronoun need each other"),
        ("snli", {"rule": "sentence"}, "rule=sentence needs one text and two labels"),
        ("blimp", {"rule": "sentence"}, "sets its threshold on a train split; splits: test"),
        ("snli", {"rule": "answer", "words": ["yes"]}, "each of labels="),
        ("race", {"rule": "answer", "words": ["a"] * 4}, "only for rule=answer and tasks without choices"),
        ("cola", {"rule": "sentence", "cue": "very"}, "zeroshot.cue=very: only for rule=answer"),
        ("cola", {"rule": "sentence", "chance": 0.5, "reference": 0.5}, "reference=0.5 is not above chance=0.5"),
        ("cola", {"rule": "sentense"}, "expected one of sentence, answer, rest or null"),
        ("cola", {"norm": "sum"}, "zeroshot.norm: no such key"),
    ],
)
def test_rules_that_do_not_fit_their_task_are_refused(task, zeroshot, fragment):
    with pytest.raises(UserError) as refused:
        build(TaskConfig, read(f"task/{task}.yaml") | {"zeroshot": zeroshot})
    assert fragment in str(refused.value)


# --- curves -----------------------------------------------------------------------------------------------------------


def test_a_curve_runs_from_chance_to_the_reference():
    assert [relative_score(score, 0.25, 0.75) for score in (0.25, 0.5, 0.75, 0.125)] == [0, 0.5, 1, -0.25]
    assert relative_score(0.4, 0.25, None) == 0.4


def test_the_points_of_a_figure_as_csv():
    curves = [Curve("a/b", "transformer", [(100, 0.5), (10, 0.25)]), Curve("c, d", "lstm", [(10, -0.1), (100, 0.3)])]
    assert curves_csv(curves) == (
        "label,architecture,step,value\n"
        "a/b,transformer,10,0.25\na/b,transformer,100,0.5\n"
        '"c, d",lstm,10,-0.1\n"c, d",lstm,100,0.3\n'
    )  # fmt: skip
    drawn = draw_curves("zeroshot", "cola without training", "accuracy", curves)
    assert drawn.png.startswith(b"\x89PNG") and ">a/b<" in drawn.svg and ">c, d<" in drawn.svg
    assert drawn.svg.count("stroke-dasharray") == 2  # the LSTM's curve, and its line in the legend
