"""Prompts: what goes into a template, how it fits, and what labels score, on models whose probabilities are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Bigrams, Letters, Spelling, chain, task_of, vocabulary
from torch import nn
from worlds import SHAPE, model_config, stir

from gpt1cli.config import options
from gpt1cli.config import template as config_template
from gpt1cli.config.schema import UserError
from gpt1cli.data import demo_world
from gpt1cli.models.lstm import LSTM
from gpt1cli.models.transformer import Transformer
from gpt1cli.prompts.prompt import Piece, Prompt, Query, class_of, lay, literal
from gpt1cli.prompts.scoring import answers
from gpt1cli.tasks.example import Example


def prompt_of(option: str = "demo_sentiment", **prompt: Any) -> Prompt:
    return Prompt.of(task_of(option, **prompt), vocabulary())


def said(prompt: Prompt, query: Query) -> str:
    """A query as text, its slot empty."""
    return vocabulary().decode([t for side in (query.before, query.after) for piece in side for t in piece.ids])


# --- templates --------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_template():
    parts = config_template.parse("{{so}} {text}: {label}.")
    assert parts == [("{so} ", False), ("text", True), (": ", False), ("label", True), (".", False)]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{text} it was", "no {label}: one slot says where the label's words stand"),
        ("{label} {text} {label}", "2 {label}: one slot"),
        ("{sentence} {label}", "no field {sentence}; there are {text}, {label}"),
        ("{text_b} {label}", "no field {text_b}; there are {text}, {label}"),
        ("{text!r} {label}", "braces hold the name of a field alone"),
        ("{} {label}", "braces hold the name of a field alone"),
        ("{text {label}", "its braces do not match; those that are meant as such are doubled"),
        ("{text}} {label}", "its braces do not match"),
    ],
)
def test_a_template_that_does_not_fit_its_task_is_refused(template, told):
    with pytest.raises(UserError) as refused:
        task_of("demo_sentiment", template=template)
    assert f"prompt.template={template}: " in str(refused.value) and told in str(refused.value)


@pytest.mark.parametrize(
    ("option", "prompt", "told"),
    [
        ("demo_sentiment", {"words": {"positive": "great"}}, "prompt.words: none for negative; each of negative, pos"),
        ("demo_sentiment", {"words": {"positive": "a", "negative": []}}, "prompt.words: none for negative"),
        ("demo_sentiment", {"words": {"positive": "a", "negative": ["b", " "]}}, "an empty one for negative"),
        ("demo_sentiment", {"words": {"positive": "a", "negative": "b", "pos": "c"}}, "pos: no such label of task="),
        ("demo_sentiment", {"template": None}, "task.prompt.template is needed: task=demo_sentiment has none"),
        ("demo_choice", {"words": {"0": "a", "1": "b"}}, "a task with choices fills the slot with these"),
        ("stsb", {"words": {"low": "no", "high": "yes"}}, "prompt.words: none for 0, 5; each of 0, 5 needs a word"),
        ("stsb", {"normalise": "max"}, "prompt.normalise takes one of sum, mean"),
        ("stsb", {"template": 3}, "prompt.template takes a text or null"),
    ],
)
def test_words_that_do_not_fit_their_task_are_refused(option, prompt, told):
    with pytest.raises(UserError) as refused:
        task_of(option, **prompt)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"positive": "Yes", "negative": "yes"}, "yes (negative) and Yes (positive) are the same to this vocabulary"),
        ({"positive": "great", "negative": ["bad", "GREAT"]}, "GREAT (negative) and great (positive)"),
        ({"positive": ["good", "good"], "negative": "bad"}, "good (positive) and good (positive)"),
        ({"positive": "\x1b[1m", "negative": "bad"}, "nothing is left of it"),
    ],
)
def test_words_that_the_vocabulary_cannot_tell_apart_are_refused(words, told):
    with pytest.raises(UserError) as refused:
        prompt_of(words=words)
    assert told in str(refused.value)


SHIPPED = [name for name in options.names("task") if "prompt" in options.values("task", name)]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_prompt_ends_in_its_slot_or_in_a_text(name):
    """Where a causal model profits most; that it fits its task is what build sees."""
    task = task_of(name)
    last = config_template.parse(task.prompt.template)[-1]
    assert last.named and (last.text == "label") == (task.layout != "pronoun")


def test_all_tasks_have_a_prompt():
    assert set(options.names("task")) - set(SHIPPED) == {"file"}


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_line_breaks_count_at_the_ends_of_a_literal():
    newline = len(vocabulary()) - 1
    assert literal(vocabulary(), "\n") == [newline]
    assert literal(vocabulary(), "a\nb\n") == [*vocabulary().encode("a\nb"), newline]
    assert literal(vocabulary(), "") == []


def test_an_example_becomes_pieces_and_a_demonstration():
    prompt = prompt_of(template="film : {text} . it was {label} !\n")
    example = Example("1", (" Anna sang .  ",), 1)
    query = prompt.query(example)
    encode = vocabulary().encode
    assert [piece.is_text for piece in query.before] == [False, True, False]
    assert [piece.ids for piece in query.before] == [encode("film :"), encode("anna sang ."), encode(". it was")]
    assert list(query.words) == [encode("terrible"), encode("great")]
    newline = [len(vocabulary()) - 1]
    assert query.after == [Piece([*encode("!"), *newline], False)]
    shown = encode("film : anna sang . . it was great !")
    assert prompt.demonstration(example) == [*shown, *newline, *newline]
    assert prompt_of(separator=" ## ").demonstration(example)[-2:] == encode("##")


def test_a_blank_belongs_to_the_word_behind_it():
    """Of a byte-level vocabulary " great" is one piece and "great" are others."""
    task = task_of("demo_entailment", template="{premise} so {hypothesis}? {label} .", separator=" / ", description="q")
    prompt = Prompt.of(task, Spelling())
    query = prompt.query(Example("1", ("it is ", "he"), 0))
    spelled = [["".join(map(chr, piece.ids)) for piece in side] for side in (query.before, query.after)]
    assert spelled == [[" it is", " so", " he", "?"], [" ."]]
    assert ["".join(map(chr, word)) for word in query.words] == [" yes", " maybe", " no"]
    assert "".join(map(chr, prompt.description)) == "q /"
    assert "".join(map(chr, prompt.demonstration(Example("1", ("a", ""), 2)))) == " a so? no . /"


def test_alternatives_choices_and_scores_have_their_words():
    prompt = prompt_of(words={"positive": ["good", "great"], "negative": "bad"})
    assert list(prompt.alternatives) == [1, 2]  # in the order of the task's labels
    assert list(prompt.words) == vocabulary().encode_batch(["bad", "good", "great"])
    question = Example("1", ("it rained .",), 1, ("he ran .", "he sat ."))
    choice = prompt_of("demo_choice")
    assert list(choice.query(question).words) == vocabulary().encode_batch(question.choices)
    told = vocabulary().encode("it rained . he sat .")
    assert choice.demonstration(question) == [*told, len(vocabulary()) - 1]
    assert [class_of(task_of("stsb"), score) for score in (0, 2.4, 2.5, 5)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("option", "fields"),
    [
        ("sst2", {"text": 0, "sentence": 0}),
        ("demo_similarity", {"text": 0, "text_a": 0, "text_b": 1}),
        ("winograd", {"text": 0, "text_b": 1, "before": 0, "after": 1}),
        ("story_cloze", {"text": 0, "story": 0}),
        ("blimp", {}),
    ],
)
def test_fields_are_the_texts_of_an_example(option, fields):
    assert task_of(option).fields == fields


# --- laid out ---------------------------------------------------------------------------------------------------------


QUERY = Query([Piece([1, 2, 3], True), Piece([4], False)], [[5], [6, 7]], [Piece([8, 9], True)])
DEMOS = [[21, 22, 23], [31, 32], [41, 42]]
PROMPT = dataclasses.replace(prompt_of(), separator=[90], description=[])


def test_demonstrations_are_dropped_whole_the_farthest_first():
    laid = lay(PROMPT, DEMOS, QUERY, 15)
    ahead = [21, 22, 23, 31, 32, 41, 42]
    assert laid == ([[*ahead, 1, 2, 3, 4, 5, 8, 9], [*ahead, 1, 2, 3, 4, 6, 7, 8, 9]], [3, 4], 11, 7, 0, False)
    assert lay(PROMPT, DEMOS, QUERY, 14)[2:] == (8, 4, 1, False)
    assert lay(PROMPT, DEMOS, QUERY, 12)[2:] == (8, 4, 1, False)
    assert lay(PROMPT, DEMOS, QUERY, 11)[2:] == (6, 2, 2, False)
    assert lay(PROMPT, DEMOS, QUERY, 9)[2:] == (4, 0, 3, False)
    behind = [[1], [2, 3, 4, 5, 6, 7, 8], [9]]  # one that does not fit hides those before it: the order is kept
    assert lay(PROMPT, behind, QUERY, 11).rows[0] == [9, 1, 2, 3, 4, 5, 8, 9]


def test_then_the_longest_text_is_cut_and_nothing_else():
    assert lay(PROMPT, [], QUERY, 8).rows == [[1, 2, 3, 4, 5, 8, 9], [1, 2, 3, 4, 6, 7, 8, 9]]
    assert lay(PROMPT, DEMOS, QUERY, 7) == ([[1, 2, 4, 5, 8, 9], [1, 2, 4, 6, 7, 8, 9]], [3, 4], 3, 0, 3, True)
    assert lay(PROMPT, DEMOS, QUERY, 6).rows[1] in ([1, 4, 6, 7, 8, 9], [1, 2, 4, 6, 7, 8])  # then both are as long


def test_what_is_never_cut_has_to_fit():
    assert lay(PROMPT, DEMOS, QUERY, 5).rows[1] == [1, 4, 6, 7, 8]
    with pytest.raises(UserError, match="does not fit n_positions=4: 3 tokens of it are no text of an example, 2 or"):
        lay(PROMPT, DEMOS, QUERY, 4)
    described = dataclasses.replace(PROMPT, description=[50, 90])
    assert lay(described, DEMOS, QUERY, 11)[2:] == (6, 2, 3, False)
    with pytest.raises(UserError, match="n_positions=6: 5 tokens of it"):
        lay(described, DEMOS, QUERY, 6)


def test_a_separator_stands_before_a_slot_that_nothing_precedes():
    query = Query([Piece([], True)], [[5], [6, 7]], [Piece([8, 9], True)])
    assert lay(PROMPT, [], query, 9) == ([[90, 5, 8, 9], [90, 6, 7, 8, 9]], [3, 4], 1, 1, 0, False)
    assert lay(PROMPT, [[3, 90]], query, 9).rows[0] == [3, 90, 5, 8, 9]
    bare = dataclasses.replace(PROMPT, separator=[])
    assert lay(bare, [], query, 9) == ([[5, 8, 9], [6, 7, 8, 9]], [2, 3], 0, 0, 0, False)


# --- scores -----------------------------------------------------------------------------------------------------------

A, B, C, D = range(4)


def asked(text: str, shown: tuple[tuple[str, int], ...] = (), model: nn.Module | None = None, **prompt: Any):
    """The probabilities that a prompt gives to the labels of a text: e to the scores."""
    words = {"negative": "d", "positive": "cad"}
    task = task_of("demo_sentiment", **{"separator": "c", "words": words, **prompt})
    made = Prompt.of(task, Letters())
    demonstrations = [made.demonstration(Example("", (text,), label)) for text, label in shown]
    found = answers(model or Bigrams(), made, demonstrations, [Example("1", (text,), None)], None, 100)
    return np.exp(found.scores[0])


def test_a_slot_at_the_end_is_the_next_token_rule():
    assert asked("a", template="{text} b {label}") == pytest.approx([chain("bd"), chain("bcad")])
    one = {"negative": "d", "positive": "a"}
    assert asked("a", template="{text} b {label}", words=one) == pytest.approx([0.25, 0.25])
    assert asked("c", template="{text} {label}", words=one) == pytest.approx([0.1, 0.7])


def test_behind_a_slot_in_the_middle_all_that_follows_counts():
    assert asked("ab", template="c {label} {text}") == pytest.approx([chain("cdab"), chain("ccadab")])
    assert asked("d", template="{text} {label} a b") == pytest.approx([chain("ddab"), chain("dcadab")])


def test_a_slot_at_the_beginning_stands_behind_the_separator():
    assert asked("ab", template="{label} {text}") == pytest.approx([chain("cdab"), chain("ccadab")])
    assert asked("", template="{text} {label}") == pytest.approx([chain("cd"), chain("ccad")])
    assert asked("b", (("b", 1),), template="{label} {text}") == pytest.approx([chain("cdb"), chain("ccadb")])
    bare = asked("ab", template="{label} {text}", separator="")
    assert bare == pytest.approx([chain("dab"), chain("cadab")])  # the first letter has no probability


def test_the_mean_is_over_the_words_and_what_follows():
    found = asked("ab", template="c {label} {text}", normalise="mean")
    assert found == pytest.approx([chain("cdab") ** (1 / 3), chain("ccadab") ** (1 / 5)])


def test_alternatives_add_up():
    words = {"negative": ["d", "bd"], "positive": ["a"]}
    assert asked("c", template="{text} {label}", words=words) == pytest.approx([0.1 + 0.1 * 0.25, 0.7])


def test_what_a_content_free_text_scores_is_taken_away():
    found = asked("a", template="{text} {label}", content_free="d")
    assert found == pytest.approx([chain("ad") / chain("dd"), chain("acad") / chain("dcad")])
    behind = asked("a", (("b", 0),), template="{text} {label} {text}", content_free="d")
    assert behind == pytest.approx([chain("ada") / chain("ddd"), chain("acada") / chain("dcadd")])


def test_choices_are_calibrated_each_by_itself():
    prompt = Prompt.of(task_of("demo_choice", content_free="d", normalise="sum"), Letters())
    examples = [Example("1", ("a",), 0, ("b", "dd")), Example("2", ("b",), 1, ("cc", "a"))]
    found = np.exp(answers(Bigrams(), prompt, [], examples, None, 100).scores)
    wanted = [[chain("ab") / chain("db"), chain("add") / chain("ddd")], [chain("bcc") / chain("dcc"), 0.25 / 0.4]]
    assert found == pytest.approx(np.array(wanted))


def test_what_was_left_out_is_told():
    task = task_of("demo_sentiment", template="{text} {label}", separator="c", words={"negative": "d", "positive": "a"})
    made = Prompt.of(task, Letters())
    demonstrations = [made.demonstration(Example("", (text,), 0)) for text in ("aa", "bb")]  # four letters each
    examples = [Example("1", ("a" * n,), None) for n in (1, 3, 4, 9)]
    found = answers(Bigrams(n_positions=8), made, demonstrations, examples, None, 100)
    assert (found.dropped, found.cut) == ([1, 1, 2, 2], [False, False, False, True])


# --- shared against plain ---------------------------------------------------------------------------------------------


def plain(model: nn.Module, row: list[int], scored: int) -> float:
    """The log-probability of a row's last tokens, computed by itself in one piece."""
    with torch.no_grad():
        log_p = model.eval().logits(model(torch.tensor([row])))[0, :, : len(vocabulary())].log_softmax(-1)
    return sum(log_p[i - 1, row[i]].item() for i in range(len(row) - scored, len(row)))


@pytest.mark.usefixtures("exact_arithmetic")
@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
@pytest.mark.parametrize("token_budget", [1, 4096])
@pytest.mark.parametrize(
    ("option", "prompt"),
    [
        ("demo_sentiment", {}),
        ("demo_sentiment", {"template": "{label} : {text} ."}),
        ("demo_entailment", {"template": "{premise} , {label} , {hypothesis} .", "description": "true or not ?"}),
        ("demo_choice", {"separator": ""}),
        ("demo_pronoun", {"normalise": "sum"}),
    ],
)
def test_behind_what_is_kept_and_shared_scores_are_those_of_whole_rows(architecture, token_budget, option, prompt):
    torch.manual_seed(0)
    shape = model_config(**SHAPE | {"n_positions": 96}, architecture=architecture, lstm_units=24)
    model = (LSTM if architecture == "lstm" else Transformer)(shape, len(vocabulary()) + 3)
    stir(model)
    task = task_of(option, **prompt)
    made = Prompt.of(task, vocabulary())
    columns = [*task.columns, *task.choices]
    examples = []
    for row in demo_world.examples(option, "valid")[:6]:
        texts, choices = (tuple(row[c] for c in task.columns), tuple(row[c] for c in task.choices))
        choices = tuple(one for several in choices for one in several)
        examples.append(Example(row["id"], texts, task.labels.index(str(row["label"])), choices))
    assert columns
    demonstrations = [made.demonstration(example) for example in examples[:2]]
    found = answers(model, made, demonstrations, examples[2:], None, token_budget)
    alone = answers(model, made, [], examples[2:], None, token_budget)
    for shown, result in ((demonstrations, found), ([], alone)):
        for example, scores in zip(examples[2:], result.scores, strict=True):
            laid = lay(made, shown, made.query(example), 96)
            wanted = [plain(model, row, n) for row, n in zip(laid.rows, laid.scored, strict=True)]
            if task.prompt.normalise == "mean":
                wanted = [value / n for value, n in zip(wanted, laid.scored, strict=True)]
            assert scores == pytest.approx(wanted, abs=1e-5)
