"""Prompts: templates, packing, and label scores, on models with known probabilities."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from fakes import BigramModel, CharacterTokenizer, LetterTokenizer, chain_probability, demo_tokenizer, shipped_task
from torch import nn
from worlds import SHAPE, model_config, stir

from gpt1cli.config import options
from gpt1cli.config import template as config_template
from gpt1cli.config.schema import UserError
from gpt1cli.data import demo_world
from gpt1cli.models.lstm import LSTM
from gpt1cli.models.transformer import Transformer
from gpt1cli.prompts.prompt import Prompt, PromptPart, Query, encode_literal, pack_prompt
from gpt1cli.prompts.scoring import score_examples
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.few_shot import class_index


def prompt_of(option: str = "demo_sentiment", **prompt: Any) -> Prompt:
    return Prompt.from_task(shipped_task(option, **prompt), demo_tokenizer())


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_template_is_parsed_into_parts():
    parts = config_template.parse_template("{{so}} {text}: {label}.")
    assert parts == [("{so} ", False), ("text", True), (": ", False), ("label", True), (".", False)]


@pytest.mark.parametrize(
    ("template", "fragment"),
    [
        ("{text} it was", "it has 0 {label}, but needs exactly one"),
        ("{label} {text} {label}", "it has 2 {label}, but needs exactly one"),
        ("{sentence} {label}", "unknown field {sentence}; known: {text}, {label}"),
        ("{text_b} {label}", "unknown field {text_b}; known: {text}, {label}"),
        ("{text!r} {label}", "braces may only hold a field name; write a literal brace as {{ or }}"),
        ("{} {label}", "braces may only hold a field name; write a literal brace as {{ or }}"),
        ("{text {label}", "unbalanced braces; write a literal brace as {{ or }}"),
        ("{text}} {label}", "unbalanced braces"),
    ],
)
def test_templates_that_do_not_fit_their_task_are_refused(template, fragment):
    with pytest.raises(UserError) as refused:
        shipped_task("demo_sentiment", template=template)
    assert f"prompt.template={template}: " in str(refused.value) and fragment in str(refused.value)


@pytest.mark.parametrize(
    ("option", "prompt", "fragment"),
    [
        (
            "demo_sentiment",
            {"words": {"positive": "great"}},
            "prompt.words: no word for negative; each of negative, positive",
        ),
        ("demo_sentiment", {"words": {"positive": "a", "negative": []}}, "prompt.words: no word for negative"),
        (
            "demo_sentiment",
            {"words": {"positive": "a", "negative": ["b", " "]}},
            "prompt.words: empty word for negative",
        ),
        ("demo_sentiment", {"words": {"positive": "a", "negative": "b", "pos": "c"}}, "pos: no such label of task="),
        ("demo_sentiment", {"template": None}, "task.prompt.template is needed: task=demo_sentiment has none"),
        ("demo_choice", {"words": {"0": "a", "1": "b"}}, "'1': 'b'}: remove it; the task's choices are its words"),
        ("stsb", {"words": {"low": "no", "high": "yes"}}, "prompt.words: no word for 0, 5; each of 0, 5 needs one"),
        ("stsb", {"normalise": "max"}, "prompt.normalise=max is refused: expected one of"),
        ("stsb", {"template": 3}, "expected string or null"),
    ],
)
def test_words_that_do_not_fit_their_task_are_refused(option, prompt, fragment):
    with pytest.raises(UserError) as refused:
        shipped_task(option, **prompt)
    assert fragment in str(refused.value)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ({"positive": "Yes", "negative": "yes"}, "yes (negative) and Yes (positive) have the same tokens"),
        ({"positive": "great", "negative": ["bad", "GREAT"]}, "GREAT (negative) and great (positive)"),
        ({"positive": ["good", "good"], "negative": "bad"}, "good (positive) and good (positive)"),
        ({"positive": "\x1b[1m", "negative": "bad"}, "no token of this vocabulary; use another word"),
    ],
)
def test_words_with_equal_or_no_tokens_are_refused(words, fragment):
    with pytest.raises(UserError) as refused:
        prompt_of(words=words)
    assert fragment in str(refused.value)


SHIPPED = [name for name in options.names("task") if "prompt" in options.values("task", name)]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_prompt_ends_with_its_slot_or_a_text(name):
    """A causal model profits most from this; build checks that the prompt fits its task."""
    task = shipped_task(name)
    last = config_template.parse_template(task.prompt.template)[-1]
    assert last.is_field and (last.text == "label") == (task.layout != "pronoun")


def test_all_tasks_have_a_prompt():
    assert set(options.names("task")) - set(SHIPPED) == {"file"}


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_line_breaks_at_the_ends_of_a_literal_are_kept():
    newline = len(demo_tokenizer()) - 1
    assert encode_literal(demo_tokenizer(), "\n") == [newline]
    assert encode_literal(demo_tokenizer(), "a\nb\n") == [*demo_tokenizer().encode("a\nb"), newline]
    assert encode_literal(demo_tokenizer(), "") == []


def test_an_example_becomes_a_query_and_a_demonstration():
    prompt = prompt_of(template="film : {text} . it was {label} !\n")
    example = Example("1", (" Anna sang .  ",), 1)
    query = prompt.query(example)
    encode = demo_tokenizer().encode
    assert [part.is_text for part in query.before] == [False, True, False]
    assert [part.ids for part in query.before] == [encode("film :"), encode("anna sang ."), encode(". it was")]
    assert list(query.words) == [encode("terrible"), encode("great")]
    newline = [len(demo_tokenizer()) - 1]
    assert query.after == [PromptPart([*encode("!"), *newline], False)]
    text = encode("film : anna sang . . it was great !")
    assert prompt.demonstration(example) == [*text, *newline, *newline]
    assert prompt_of(separator=" ## ").demonstration(example)[-2:] == encode("##")


def test_a_space_belongs_to_the_word_after_it():
    """In a byte-level vocabulary " great" is one token and "great" is others."""
    task = shipped_task(
        "demo_entailment", template="{premise} so {hypothesis}? {label} .", separator=" / ", description="q"
    )
    prompt = Prompt.from_task(task, CharacterTokenizer())
    query = prompt.query(Example("1", ("it is ", "he"), 0))
    spelled = [["".join(map(chr, part.ids)) for part in side] for side in (query.before, query.after)]
    assert spelled == [[" it is", " so", " he", "?"], [" ."]]
    assert ["".join(map(chr, word)) for word in query.words] == [" yes", " maybe", " no"]
    assert "".join(map(chr, prompt.description)) == "q /"
    assert "".join(map(chr, prompt.demonstration(Example("1", ("a", ""), 2)))) == " a so? no . /"


def test_words_of_alternatives_choices_and_scores():
    prompt = prompt_of(words={"positive": ["good", "great"], "negative": "bad"})
    assert list(prompt.alternatives) == [1, 2]  # in the order of the task's labels
    assert list(prompt.words) == demo_tokenizer().encode_batch(["bad", "good", "great"])
    question = Example("1", ("it rained .",), 1, ("he ran .", "he sat ."))
    choice = prompt_of("demo_choice")
    assert list(choice.query(question).words) == demo_tokenizer().encode_batch(question.choices)
    text = demo_tokenizer().encode("it rained . he sat .")
    assert choice.demonstration(question) == [*text, len(demo_tokenizer()) - 1]
    assert [class_index(shipped_task("stsb"), score) for score in (0, 2.4, 2.5, 5)] == [0, 0, 1, 1]


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
def test_template_fields_name_the_texts_of_an_example(option, fields):
    assert shipped_task(option).fields == fields


# --- packing ----------------------------------------------------------------------------------------------------------


QUERY = Query([PromptPart([1, 2, 3], True), PromptPart([4], False)], [[5], [6, 7]], [PromptPart([8, 9], True)])
DEMOS = [[21, 22, 23], [31, 32], [41, 42]]
PROMPT = dataclasses.replace(prompt_of(), separator=[90], description=[])


def test_whole_demonstrations_are_skipped_the_farthest_first():
    packed = pack_prompt(PROMPT, DEMOS, QUERY, 15)
    prefix = [21, 22, 23, 31, 32, 41, 42]
    assert packed == ([[*prefix, 1, 2, 3, 4, 5, 8, 9], [*prefix, 1, 2, 3, 4, 6, 7, 8, 9]], [3, 4], 11, 7, 0, False)
    assert pack_prompt(PROMPT, DEMOS, QUERY, 14)[2:] == (8, 4, 1, False)
    assert pack_prompt(PROMPT, DEMOS, QUERY, 12)[2:] == (8, 4, 1, False)
    assert pack_prompt(PROMPT, DEMOS, QUERY, 11)[2:] == (6, 2, 2, False)
    assert pack_prompt(PROMPT, DEMOS, QUERY, 9)[2:] == (4, 0, 3, False)
    uneven = [[1], [2, 3, 4, 5, 6, 7, 8], [9]]  # if one does not fit, those before it are skipped too
    assert pack_prompt(PROMPT, uneven, QUERY, 11).rows[0] == [9, 1, 2, 3, 4, 5, 8, 9]


def test_then_only_the_longest_text_is_truncated():
    assert pack_prompt(PROMPT, [], QUERY, 8).rows == [[1, 2, 3, 4, 5, 8, 9], [1, 2, 3, 4, 6, 7, 8, 9]]
    assert pack_prompt(PROMPT, DEMOS, QUERY, 7) == ([[1, 2, 4, 5, 8, 9], [1, 2, 4, 6, 7, 8, 9]], [3, 4], 3, 0, 3, True)
    assert pack_prompt(PROMPT, DEMOS, QUERY, 6).rows[1] in (
        [1, 4, 6, 7, 8, 9],
        [1, 2, 4, 6, 7, 8],
    )  # both texts now have the same length


def test_parts_that_are_never_truncated_must_fit():
    assert pack_prompt(PROMPT, DEMOS, QUERY, 5).rows[1] == [1, 4, 6, 7, 8]
    with pytest.raises(
        UserError, match=r"does not fit n_positions=4: .* take 3 tokens, and the texts need 2 or more; shorten"
    ):
        pack_prompt(PROMPT, DEMOS, QUERY, 4)
    described = dataclasses.replace(PROMPT, description=[50, 90])
    assert pack_prompt(described, DEMOS, QUERY, 11)[2:] == (6, 2, 3, False)
    with pytest.raises(UserError, match=r"n_positions=6: .* take 5 tokens"):
        pack_prompt(described, DEMOS, QUERY, 6)


def test_a_slot_without_text_before_it_follows_the_separator():
    query = Query([PromptPart([], True)], [[5], [6, 7]], [PromptPart([8, 9], True)])
    assert pack_prompt(PROMPT, [], query, 9) == ([[90, 5, 8, 9], [90, 6, 7, 8, 9]], [3, 4], 1, 1, 0, False)
    assert pack_prompt(PROMPT, [[3, 90]], query, 9).rows[0] == [3, 90, 5, 8, 9]
    without_separator = dataclasses.replace(PROMPT, separator=[])
    assert pack_prompt(without_separator, [], query, 9) == ([[5, 8, 9], [6, 7, 8, 9]], [2, 3], 0, 0, 0, False)


# --- scores -----------------------------------------------------------------------------------------------------------

A, B, C, D = range(4)


def label_probabilities(
    text: str, demos: tuple[tuple[str, int], ...] = (), model: nn.Module | None = None, **settings: Any
):
    """The probability of each label for a text: e to the power of its score."""
    words = {"negative": "d", "positive": "cad"}
    task = shipped_task("demo_sentiment", **{"separator": "c", "words": words, **settings})
    prompt = Prompt.from_task(task, LetterTokenizer())
    demonstrations = [prompt.demonstration(Example("", (text,), label)) for text, label in demos]
    results = score_examples(model or BigramModel(), prompt, demonstrations, [Example("1", (text,), None)], None, 100)
    return np.exp(results.scores[0])


def test_a_slot_at_the_end_scores_the_next_tokens():
    assert label_probabilities("a", template="{text} b {label}") == pytest.approx(
        [chain_probability("bd"), chain_probability("bcad")]
    )
    letters = {"negative": "d", "positive": "a"}
    assert label_probabilities("a", template="{text} b {label}", words=letters) == pytest.approx([0.25, 0.25])
    assert label_probabilities("c", template="{text} {label}", words=letters) == pytest.approx([0.1, 0.7])


def test_a_slot_in_the_middle_scores_all_tokens_after_it():
    assert label_probabilities("ab", template="c {label} {text}") == pytest.approx(
        [chain_probability("cdab"), chain_probability("ccadab")]
    )
    assert label_probabilities("d", template="{text} {label} a b") == pytest.approx(
        [chain_probability("ddab"), chain_probability("dcadab")]
    )


def test_a_slot_at_the_start_follows_the_separator():
    assert label_probabilities("ab", template="{label} {text}") == pytest.approx(
        [chain_probability("cdab"), chain_probability("ccadab")]
    )
    assert label_probabilities("", template="{text} {label}") == pytest.approx(
        [chain_probability("cd"), chain_probability("ccad")]
    )
    assert label_probabilities("b", (("b", 1),), template="{label} {text}") == pytest.approx(
        [chain_probability("cdb"), chain_probability("ccadb")]
    )
    alone = label_probabilities("ab", template="{label} {text}", separator="")
    assert alone == pytest.approx(
        [chain_probability("dab"), chain_probability("cadab")]
    )  # the first letter has no probability


def test_the_mean_is_over_words_and_the_tokens_after_them():
    probabilities = label_probabilities("ab", template="c {label} {text}", normalise="mean")
    assert probabilities == pytest.approx(
        [chain_probability("cdab") ** (1 / 3), chain_probability("ccadab") ** (1 / 5)]
    )


def test_probabilities_of_alternatives_are_added():
    words = {"negative": ["d", "bd"], "positive": ["a"]}
    assert label_probabilities("c", template="{text} {label}", words=words) == pytest.approx([0.1 + 0.1 * 0.25, 0.7])


def test_content_free_scores_are_subtracted():
    alone = label_probabilities("a", template="{text} {label}", content_free="d")
    assert alone == pytest.approx(
        [chain_probability("ad") / chain_probability("dd"), chain_probability("acad") / chain_probability("dcad")]
    )
    with_demo = label_probabilities("a", (("b", 0),), template="{text} {label} {text}", content_free="d")
    assert with_demo == pytest.approx(
        [chain_probability("ada") / chain_probability("ddd"), chain_probability("acada") / chain_probability("dcadd")]
    )


def test_choices_are_calibrated_per_example():
    prompt = Prompt.from_task(shipped_task("demo_choice", content_free="d", normalise="sum"), LetterTokenizer())
    examples = [Example("1", ("a",), 0, ("b", "dd")), Example("2", ("b",), 1, ("cc", "a"))]
    probabilities = np.exp(score_examples(BigramModel(), prompt, [], examples, None, 100).scores)
    expected = [
        [chain_probability("ab") / chain_probability("db"), chain_probability("add") / chain_probability("ddd")],
        [chain_probability("bcc") / chain_probability("dcc"), 0.25 / 0.4],
    ]
    assert probabilities == pytest.approx(np.array(expected))


def test_skipped_demonstrations_and_truncated_texts_are_counted():
    task = shipped_task(
        "demo_sentiment", template="{text} {label}", separator="c", words={"negative": "d", "positive": "a"}
    )
    prompt = Prompt.from_task(task, LetterTokenizer())
    demonstrations = [prompt.demonstration(Example("", (text,), 0)) for text in ("aa", "bb")]  # four letters each
    examples = [Example("1", ("a" * n,), None) for n in (1, 3, 4, 9)]
    results = score_examples(BigramModel(n_positions=8), prompt, demonstrations, examples, None, 100)
    assert (results.skipped, results.truncated) == ([1, 1, 2, 2], [False, False, False, True])


# --- shared and plain computation -------------------------------------------------------------------------------------


def plain_log_probability(model: nn.Module, row: list[int], scored: int) -> float:
    """The log-probability of a row's last tokens, computed in one row without sharing."""
    with torch.no_grad():
        log_p = model.eval().logits(model(torch.tensor([row])))[0, :, : len(demo_tokenizer())].log_softmax(-1)
    return sum(log_p[i - 1, row[i]].item() for i in range(len(row) - scored, len(row)))


@pytest.mark.usefixtures("exact_arithmetic")
@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
@pytest.mark.parametrize("token_budget", [1, 4096])
@pytest.mark.parametrize(
    ("option", "settings"),
    [
        ("demo_sentiment", {}),
        ("demo_sentiment", {"template": "{label} : {text} ."}),
        ("demo_entailment", {"template": "{premise} , {label} , {hypothesis} .", "description": "true or not ?"}),
        ("demo_choice", {"separator": ""}),
        ("demo_pronoun", {"normalise": "sum"}),
    ],
)
def test_cached_and_shared_scores_equal_those_of_whole_rows(architecture, token_budget, option, settings):
    torch.manual_seed(0)
    shape = model_config(**SHAPE | {"n_positions": 96}, architecture=architecture, lstm_units=24)
    model = (LSTM if architecture == "lstm" else Transformer)(shape, len(demo_tokenizer()) + 3)
    stir(model)
    task = shipped_task(option, **settings)
    prompt = Prompt.from_task(task, demo_tokenizer())
    columns = [*task.columns, *task.choices]
    examples = []
    for row in demo_world.examples(option, "valid")[:6]:
        texts, choices = (tuple(row[c] for c in task.columns), tuple(row[c] for c in task.choices))
        choices = tuple(choice for column in choices for choice in column)
        examples.append(Example(row["id"], texts, task.labels.index(str(row["label"])), choices))
    assert columns
    demonstrations = [prompt.demonstration(example) for example in examples[:2]]
    with_demos = score_examples(model, prompt, demonstrations, examples[2:], None, token_budget)
    alone = score_examples(model, prompt, [], examples[2:], None, token_budget)
    for demos, results in ((demonstrations, with_demos), ([], alone)):
        for example, scores in zip(examples[2:], results.scores, strict=True):
            packed = pack_prompt(prompt, demos, prompt.query(example), 96)
            expected = [
                plain_log_probability(model, row, n) for row, n in zip(packed.rows, packed.scored_counts, strict=True)
            ]
            if task.prompt.normalise == "mean":
                expected = [value / n for value, n in zip(expected, packed.scored_counts, strict=True)]
            assert scores == pytest.approx(expected, abs=1e-5)
