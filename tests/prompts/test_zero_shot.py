"""The rules of zero-shot, on a model whose probabilities are known: what is scored, answered, and measured."""

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
from gpt1cli.models.inference import ending_log_probabilities
from gpt1cli.prompts.zero_shot import RULES, Question, against, best_threshold, lay, likelihoods, measured, predictions
from gpt1cli.reporting.figure2 import Curve, picture, relative, table
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.splits import Split

A, B, C, D = range(4)
NEXT = [  # p(next token | this one)
    [0.1, 0.2, 0.3, 0.4],
    [0.25, 0.25, 0.25, 0.25],
    [0.7, 0.1, 0.1, 0.1],
    [0.4, 0.3, 0.2, 0.1],
]


class Bigrams(nn.Module):
    """Knows nothing but the last token; its table is the identity, so that its states are the logits."""

    branches = True

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding.from_pretrained(torch.eye(4))

    def forward(self, tokens: Tensor, *_: Tensor | None, lengths: tuple[int, ...]) -> Tensor:
        return torch.tensor(NEXT).log()[tokens]


def scored(rule: str, texts: list, choices: list, opening: tuple = (), normalise: str = "mean") -> list[float]:
    """The probability that the rule gives each ending: e to the score."""
    question = RULES[rule](texts, choices)
    laid = lay(question._replace(context=question.context or list(opening)), 8)
    items = [Item.of(laid.rows, None, laid.shared)]
    found = ending_log_probabilities(Bigrams(), items, [laid.scored], 4, None, 100)
    return np.exp(likelihoods(found, normalise, 4)[0]).tolist()


def mean(*p: float) -> float:
    """The geometric mean: e to the mean of logarithms."""
    return math.prod(p) ** (1 / len(p))


# --- rules ------------------------------------------------------------------------------------------------------------


def test_a_sentence_is_scored_but_for_its_first_token():
    assert scored("sentence", [[A, D, B]], []) == pytest.approx([mean(0.4, 0.3)])
    assert scored("sentence", [[A, D, B]], [], normalise="sum") == pytest.approx([0.4 * 0.3])


def test_behind_an_opening_the_first_token_counts_too():
    assert scored("sentence", [[A, D, B]], [], opening=(B, C)) == pytest.approx([mean(0.7, 0.4, 0.3)])
    both = scored("answer", [], [[A, D], [D, A]], opening=(C,), normalise="sum")
    assert both == pytest.approx([0.7 * 0.4, 0.1 * 0.4])


def test_answers_are_scored_behind_all_texts():
    assert scored("answer", [[B, B], [A, C]], [[A], [D, A]]) == pytest.approx([0.7, mean(0.1, 0.4)])
    assert scored("answer", [[B], [A, C]], [[A], [D, A]], normalise="sum") == pytest.approx([0.7, 0.1 * 0.4])


def test_whole_sentences_are_compared_without_their_first_tokens():
    assert scored("answer", [], [[A, D, B], [C, D]], normalise="sum") == pytest.approx([0.4 * 0.3, 0.1])


def test_what_follows_the_candidate_is_scored_and_the_candidate_is_not():
    assert scored("rest", [[B, A], [C, A]], [[D], [B, C]]) == pytest.approx([mean(0.2, 0.7), mean(0.1, 0.7)])
    assert scored("rest", [[], [C, A]], [[D], [B, C]]) == pytest.approx([mean(0.2, 0.7), mean(0.1, 0.7)])


def test_where_there_is_nothing_to_score_it_is_one_token_of_chance():
    assert scored("sentence", [[A]], []) == pytest.approx([1 / 4])
    assert scored("rest", [[B], []], [[A], [C, D]]) == pytest.approx([1 / 4, 1 / 4])
    assert scored("answer", [[C]], [[], [A]]) == pytest.approx([1 / 4, 0.7])


def test_a_context_loses_its_beginning_and_an_answer_nothing():
    question = Question([1, 2, 3, 4], [[5], [6, 7]], [0, 0])
    assert lay(question, 6) == ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7]], [1, 2], 4, False)
    assert lay(question, 5) == ([[2, 3, 4, 5], [2, 3, 4, 6, 7]], [1, 2], 3, True)
    assert lay(question, 3) == ([[4, 5], [4, 6, 7]], [1, 2], 1, True)
    with pytest.raises(UserError, match="n_positions=2 leaves no room before an ending of 2 tokens"):
        lay(question, 2)
    assert lay(Question([], [[6, 7]], [0]), 2) == ([[6, 7]], [1], 0, False)
    with pytest.raises(UserError, match="n_positions=1 leaves no room before an ending of 2 tokens"):
        lay(Question([], [[6, 7]], [0]), 1)


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_the_best_of_all_there_are(seed):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, 30)
    values = np.round(draw.normal(labels * 0.7, 1), 1)  # some of them equal
    threshold = best_threshold(values, labels)
    levels = np.unique(values)
    tried = {(a + b) / 2: matthews_corrcoef(labels, values > (a + b) / 2) for a, b in itertools.pairwise(levels)}
    assert threshold in tried and tried[threshold] == pytest.approx(max(tried.values()))


def test_thresholds_by_hand():
    assert best_threshold(np.array([-4.0, -1.0, -3.0, -2.0]), [0, 1, 0, 1]) == -2.5
    assert best_threshold(np.array([-4.0, -1.0, -3.0, -2.0, -9.0]), [0, 1, 1, 1, 0]) == -3.5
    assert best_threshold(np.array([-4.0, -4.0]), [0, 1]) == -4.0


def test_a_tie_counts_half_and_is_told():
    task = build(TaskConfig, read("task/winograd.yaml"))
    scores = np.array([[-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0], [-3.0, -3.0], [-1.0, -2.0]])
    found = measured(task, [0, 1, 0, 1, 1], scores)  # right, right, tied, tied, wrong
    assert found == {"accuracy": pytest.approx(3 / 5), "ties": 2}
    race = build(TaskConfig, read("task/race.yaml"))
    found = measured(race, [0, 3], np.array([[-1.0, -1.0, -1.0, -2.0], [-1.0, -1.0, -1.0, -2.0]]))
    assert found == {"accuracy": pytest.approx(1 / 6), "ties": 2}


def test_two_classes_are_also_measured_without_a_threshold():
    """Of the six pairs of an acceptable and an unacceptable sentence, four are in order and one is even."""
    task = build(TaskConfig, read("task/cola.yaml"))
    values, labels = np.array([[-1.0], [-2.0], [-3.0], [-2.0], [-4.0]]), [1, 0, 1, 1, 0]
    found = measured(task, labels, against(-2.5, values))
    predicted = [1, 1, 0, 1, 0]
    assert found["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, predicted))
    assert (found["accuracy"], found["ties"]) == (pytest.approx(3 / 5), 0)
    assert found["roc_auc"] == pytest.approx(4.5 / 6)
    assert measured(task, [1, 1], against(-2.5, values[:2]))["roc_auc"] == 0.5


def test_a_prediction_names_labels_and_the_first_of_equals():
    task = build(TaskConfig, read("task/sst2.yaml"))
    split = Split([Example("7", ("fine",), 1), Example("8", ("so so",), None)], [], 0, 0)
    first, second = predictions(task, split, np.array([[-2.0, -1.0], [-3.0, -3.0]]))
    assert first == {"id": "7", "label": "positive", "prediction": "positive",
                     "scores": {"negative": -2.0, "positive": -1.0}}  # fmt: skip
    assert (second["label"], second["prediction"]) == (None, "negative")


# --- a task's rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "zeroshot", "told"),
    [
        ("winograd", {"rule": "answer"}, "rule rest and layout pronoun go together"),
        ("race", {"rule": "rest"}, "rule rest and layout pronoun go together"),
        ("snli", {"rule": "sentence"}, "rule=sentence tells two labels of one text apart"),
        ("blimp", {"rule": "sentence"}, "takes its threshold from a train split; there: test"),
        ("snli", {"rule": "answer", "words": ["yes"]}, "one is needed for each of labels="),
        ("race", {"rule": "answer", "words": ["a"] * 4}, "they are for rule answer, of tasks without choices"),
        ("cola", {"rule": "sentence", "cue": "very"}, "zeroshot.cue=very: it is for rule answer"),
        ("cola", {"rule": "sentence", "chance": 0.5, "reference": 0.5}, "reference=0.5 is not above chance=0.5"),
        ("cola", {"rule": "sentense"}, "zeroshot.rule takes one of sentence, answer, rest or null"),
        ("cola", {"norm": "sum"}, "zeroshot.norm: no such key"),
    ],
)
def test_a_rule_that_does_not_fit_its_task_is_refused(task, zeroshot, told):
    with pytest.raises(UserError) as refused:
        build(TaskConfig, read(f"task/{task}.yaml") | {"zeroshot": zeroshot})
    assert told in str(refused.value)


# --- curves -----------------------------------------------------------------------------------------------------------


def test_a_curve_runs_from_chance_to_the_reference():
    assert [relative(score, 0.25, 0.75) for score in (0.25, 0.5, 0.75, 0.125)] == [0, 0.5, 1, -0.25]
    assert relative(0.4, 0.25, None) == 0.4


def test_the_points_of_a_figure_are_also_a_table():
    curves = [Curve("a/b", "transformer", [(100, 0.5), (10, 0.25)]), Curve("c, d", "lstm", [(10, -0.1), (100, 0.3)])]
    assert table(curves) == (
        "label,architecture,step,value\n"
        "a/b,transformer,10,0.25\na/b,transformer,100,0.5\n"
        '"c, d",lstm,10,-0.1\n"c, d",lstm,100,0.3\n'
    )  # fmt: skip
    drawn = picture("zeroshot", "cola without training", "accuracy", curves)
    assert drawn.png.startswith(b"\x89PNG") and ">a/b<" in drawn.svg and ">c, d<" in drawn.svg
    assert drawn.svg.count("stroke-dasharray") == 2  # the LSTM's curve, and its line in the legend
