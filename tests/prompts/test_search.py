"""Prompt search without training, on models with known probabilities, compared with plain enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import fakes
import numpy as np
import pytest
import torch
from fakes import NEXT_LETTER, BigramModel, LetterTokenizer, chain_probability, demo_tokenizer, shipped_task
from scipy.stats import pearsonr
from worlds import SHAPE, model_config, stir

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.lstm import LSTM
from gpt1cli.models.transformer import Transformer
from gpt1cli.prompts import search, template_search
from gpt1cli.prompts.prompt import Prompt
from gpt1cli.prompts.search import PromptCandidate
from gpt1cli.tasks.example import Example


class DecodingLetterTokenizer(LetterTokenizer):
    """The letters a, b, c, d; it can also decode."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcd"[i] for i in ids)


EXAMPLES = [Example("1", ("bc",), 0), Example("2", ("cc",), 0), Example("3", ("ba",), 1), Example("4", ("d",), 1)]


def sentiment_task(template: str = "{text} {label}") -> TaskConfig:
    return shipped_task("demo_sentiment", template=template, separator="c", words={"negative": "a", "positive": "d"})


def search_words(task: TaskConfig, pieces: int = 4, combinations: int = 100, best: int = 50) -> list[PromptCandidate]:
    return search.search_verbalizers(
        BigramModel(), task, DecodingLetterTokenizer(), EXAMPLES, pieces, combinations, best, None, 100
    )


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "b", "da"])
def test_combinations_are_ranked_by_accuracy_then_likelihood(monkeypatch, suffix):
    distinct = [[0.11, 0.19, 0.28, 0.42], [0.24, 0.27, 0.23, 0.26], [0.71, 0.09, 0.12, 0.08], [0.37, 0.31, 0.21, 0.11]]
    monkeypatch.setattr(fakes, "NEXT_LETTER", distinct)  # without ties
    ranked = []
    for first, second in itertools.permutations("abcd", 2):
        hits, log_p = 0, 0.0
        for example in EXAMPLES:
            p = [chain_probability(example.texts[0][-1] + word + suffix) for word in (first, second)]
            hits += p[example.label] > p[1 - example.label]
            log_p += math.log(p[example.label] / sum(p))
        ranked.append(({"negative": first, "positive": second}, hits / 4, log_p / 4))
    ranked.sort(key=lambda one: (-one[1], -one[2]))
    candidates = search_words(sentiment_task(f"{{text}} {{label}} {suffix}"))
    assert [one.prompt.words for one in candidates[:6]] == [words for words, *_ in ranked[:6]]
    assert [one.score for one in candidates] == pytest.approx([score for _, score, _ in ranked])
    assert [one.likelihood for one in candidates] == pytest.approx([log_p for *_, log_p in ranked])


def test_only_the_likeliest_tokens_of_each_class_are_combined():
    """After c, a is the likeliest. p after a and d: a (0.1, 0.4), d (0.4, 0.1), b (0.2, 0.3), c (0.3, 0.2)."""
    mean = {w: np.mean([math.log(NEXT_LETTER["abcd".index(x)]["abcd".index(w)]) for x in "ad"]) for w in "abcd"}
    assert max(mean, key=mean.__getitem__) == "b"
    assert [one.prompt.words for one in search_words(sentiment_task(), pieces=1)] == [
        {"negative": "a", "positive": "b"}
    ]


def test_the_likeliest_tokens_have_the_highest_mean_over_a_class():
    log_p = np.log([[0.5, 0.3, 0.1, 0.1], [0.1, 0.5, 0.2, 0.2], [0.7, 0.1, 0.15, 0.05]])
    allowed = np.array([True, True, True, False])
    first, second = search.likeliest_tokens(log_p, np.array([0, 0, 1]), allowed, 2)
    assert (first.tolist(), second.tolist()) == ([1, 0], [0, 2])
    assert len(search.likeliest_tokens(log_p, np.array([0, 0, 1]), allowed, 9)[0]) == 3


def test_more_classes_get_fewer_tokens_each():
    assert [search.tokens_per_class(100, classes, 10**6) for classes in (2, 3, 5, 6)] == [100, 100, 15, 10]
    assert search.tokens_per_class(100, 9, 5) == 1


def test_tokens_nearest_to_the_tasks_own_words_are_kept():
    angles = np.radians([0, 10, 80, 95, 170])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array(
        [[1], [9], [1], [0.1], [2]]
    )  # the length must not matter
    candidates = [np.array([4, 3, 2, 1]), np.array([1, 0, 2, 3])]
    first, second = search.nearest_tokens(candidates, [np.array([0]), np.array([3, 4])], embeddings, 2)
    assert (first.tolist(), second.tolist()) == ([2, 1], [2, 3])


def test_a_limit_on_combinations_keeps_tokens_near_the_tasks_own_words(monkeypatch):
    calls = []
    monkeypatch.setattr(
        search, "nearest_tokens", lambda tokens, words, embeddings, count: calls.append((words, count)) or tokens
    )
    search_words(sentiment_task(), combinations=9)
    ((words, count),) = calls
    assert [own.tolist() for own in words] == [[0], [3]] and count == 3


def test_three_classes_with_shared_words_match_enumeration(monkeypatch):
    monkeypatch.setattr(search, "MAX_VALUES", 200)  # several chunks
    rng = np.random.default_rng(0)
    task = shipped_task("demo_entailment")
    examples = [Example(str(i), ("", ""), i % 3) for i in range(12)]
    scores, columns = rng.normal(size=(12, 7)), [[0, 1, 2, 6], [2, 3, 4], [4, 5, 6, 0]]
    expected = []
    for chosen in itertools.product(*columns):
        if len(set(chosen)) == 3:
            hits = [max(chosen, key=lambda c, row=row: row[c]) == chosen[i % 3] for i, row in enumerate(scores)]
            expected.append((np.mean(hits), chosen))
    combinations = search.rank_combinations(scores, columns, task, examples, best=100)
    assert len(combinations) == len(expected) and {one.columns for one in combinations} == {
        chosen for _, chosen in expected
    }
    assert [one.score for one in combinations] == sorted((score for score, _ in expected), reverse=True)
    assert all(dict((c, s) for s, c in expected)[one.columns] == one.score for one in combinations)
    pairs = [(-one.score, -one.likelihood) for one in combinations]
    assert (
        pairs == sorted(pairs) and search.rank_combinations(scores, columns, task, examples, best=5) == combinations[:5]
    )


def test_regression_words_are_ranked_by_pearson():
    rng = np.random.default_rng(1)
    task = dataclasses.replace(shipped_task("stsb"), loss="interpolation")
    labels = [0, 1.5, 2, 3.2, 4, 5]
    examples = [Example(str(i), ("", ""), label) for i, label in enumerate(labels)]
    scores = rng.normal(size=(6, 4))
    combinations = search.rank_combinations(scores, [[0, 1], [2, 3, 1]], task, examples, best=9)
    assert len(combinations) == 5
    for one in combinations:
        low, high = np.exp(scores[:, list(one.columns)]).T
        assert one.score == pytest.approx(pearsonr(high / (low + high), labels)[0])
        share = np.array(labels) / 5
        log_p = (1 - share) * np.log(low / (low + high)) + share * np.log(high / (low + high))
        assert one.likelihood == pytest.approx(log_p.mean())


def test_words_are_tokens_that_end_a_word():
    allowed = search.whole_word_mask(demo_tokenizer(), " ")
    words = demo_tokenizer().subwords(np.flatnonzero(allowed))
    assert len(words) > 50 and all(word.endswith("</w>") and word != "\n</w>" for word in words)
    assert not allowed[0] and not allowed[len(demo_tokenizer()) - 1]  # the unknown token and the line break
    excluded = {subword for subword, is_word in zip(demo_tokenizer().vocabulary, allowed, strict=True) if not is_word}
    assert {"a", "xy"} & excluded == {"a", "xy"} & demo_tokenizer().vocabulary.keys()


class ByteLevelTokenizer:
    """Treats spaces as a byte-level tokenizer does: " good" and "good" are two tokens."""

    TOKENS = (" good", "good", " g", "o", "d", " ", " bad", "\n")

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.TOKENS[i] for i in ids)

    def encode_batch(self, texts) -> list[list[int]]:
        whole = {" good": [0], "good": [1], " g": [2], "o": [3], " o": [5, 3], "d": [4], " d": [5, 4], " bad": [6]}
        return [whole.get(text, []) for text in texts]

    def __len__(self) -> int:
        return len(self.TOKENS)


def test_byte_level_words_start_with_a_space():
    assert np.flatnonzero(search.whole_word_mask(ByteLevelTokenizer(), " ")).tolist() == [0, 2, 6]


def test_word_search_needs_text_before_the_slot():
    task = shipped_task(
        "demo_sentiment", template="{label} {text}", separator="", words={"negative": "a", "positive": "d"}
    )
    with pytest.raises(UserError, match=r"needs text before the slot.*task.prompt.template"):
        search_words(task)


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_prompt_is_evaluated_by_the_likelihood_of_correct_words():
    candidate = search.evaluate_prompt(
        BigramModel(), sentiment_task("{text} b {label}"), DecodingLetterTokenizer(), EXAMPLES, None, 100
    )
    assert candidate.likelihood == pytest.approx(math.log(0.25)) and candidate.score == 0.5  # ties: the first label
    candidate = search.evaluate_prompt(BigramModel(), sentiment_task(), DecodingLetterTokenizer(), EXAMPLES, None, 100)
    expected = [math.log(chain_probability(two)) for two in ("ca", "ca", "ad", "dd")]
    assert candidate.likelihood == pytest.approx(np.mean(expected)) and candidate.score == 0.75


def test_regression_targets_are_shared_between_the_two_words():
    task = dataclasses.replace(
        shipped_task("stsb", template="{sentence1} {sentence2} {label}", words={"0": "a", "5": "d"}),
        loss="interpolation",
    )
    examples = [Example("1", ("a", "c"), 1.0), Example("2", ("a", "a"), 5.0)]
    candidate = search.evaluate_prompt(BigramModel(), task, DecodingLetterTokenizer(), examples, None, 100)
    first = 0.8 * math.log(chain_probability("ca")) + 0.2 * math.log(chain_probability("cd"))
    assert candidate.likelihood == pytest.approx(
        (first + math.log(chain_probability("ad"))) / 2
    ) and candidate.score == pytest.approx(1)


def test_cues_are_ranked_by_mean_log_probability_over_examples():
    """All texts of up to three letters, by the mean over the examples of their log-probability."""
    means: dict[int, dict[str, float]] = {1: {}, 2: {}, 3: {}}
    for size, values in means.items():
        for text in map("".join, itertools.product("abcd", repeat=size)):
            log_p = [math.log(chain_probability(example.texts[0][-1] + text)) for example in EXAMPLES[:3]]
            values[text] = float(np.mean(log_p))
    templates = template_search.generate_templates(
        BigramModel(), sentiment_task(), DecodingLetterTokenizer(), EXAMPLES[:3], 84, 3, 100
    )
    texts = [template.removeprefix("{text} ").removesuffix(" {label}") for template in templates]
    assert [len(text) for text in texts] == [1] * 4 + [2] * 16 + [3] * 64 and len(set(texts)) == 84
    for size, values in means.items():
        ranked = [values[text] for text in texts if len(text) == size]
        assert ranked == pytest.approx(sorted(values.values(), reverse=True))
    extended = [text for text in texts[4:20] if text[0] in texts[:2]]
    narrow = template_search.generate_templates(
        BigramModel(), sentiment_task(), DecodingLetterTokenizer(), EXAMPLES[:3], 2, 2, 100
    )
    assert narrow == [f"{{text}} {text} {{label}}" for text in (*texts[:2], *extended[:2])]


def test_a_beam_of_one_follows_the_likeliest_token():
    steps = list(
        template_search.beam_search(
            lambda texts: np.log([NEXT_LETTER[text[-1] if text else 2] for text in texts]),
            lambda _: np.ones(4, bool),
            1,
            3,
        )
    )
    assert [beam[0].ids for beam in steps] == [(0,), (0, 3), (0, 3, 0)]  # a after c, d after a, a after d
    assert steps[2][0].total == pytest.approx(math.log(0.7 * 0.4 * 0.4))


def test_finished_texts_are_not_extended():
    def allowed(ids: tuple[int, ...]) -> np.ndarray:
        return np.zeros(4, bool) if ids[-1:] == (3,) else np.ones(4, bool)

    steps = list(template_search.beam_search(lambda texts: np.log([NEXT_LETTER[0]] * len(texts)), allowed, 4, 2))
    assert [one.ids for one in steps[0]] == [(3,), (2,), (1,), (0,)]
    assert {one.ids[0] for one in steps[1]} == {2, 1} and steps[1][0].ids == (2, 3)
    assert (
        len(
            list(
                template_search.beam_search(
                    lambda texts: np.log([NEXT_LETTER[0]] * len(texts)), lambda ids: np.array([not ids] * 4), 2, 9
                )
            )
        )
        == 1
    )


@pytest.mark.parametrize(
    ("option", "prompt", "expected"),
    [
        ("sst2", {}, ["{sentence}"]),
        ("snli", {}, ["{premise} {hypothesis}", "{premise} is it true that {hypothesis}"]),
        ("snli", {"template": "{{so}} {premise} {label}"}, ["{premise} {hypothesis}", "{{so}} {premise}"]),
        ("snli", {"template": "{premise} {label} {hypothesis}"}, ["{premise} {hypothesis}"]),
        ("blimp", {}, []),
    ],
)  # fmt: skip
def test_a_cue_continues_the_texts_or_the_tasks_own_prompt(option, prompt, expected):
    assert template_search.template_prefixes(shipped_task(option, **prompt)) == expected


@pytest.mark.usefixtures("exact_arithmetic")
@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
def test_next_token_scores_with_cached_contexts_equal_whole_rows(architecture):
    torch.manual_seed(0)
    shape = model_config(**SHAPE, architecture=architecture, lstm_units=24)
    model = (LSTM if architecture == "lstm" else Transformer)(shape, 40).eval()
    stir(model)
    contexts, texts = [[5], [7, 8, 9, 3], [1, 2]], [(4, 4), (0, 38), (12, 3)]
    actual = template_search._model_scorer(model, contexts, 39, 7)(texts)
    expected = np.zeros((3, 39))
    with torch.no_grad():
        for context, (row, text) in itertools.product(contexts, enumerate(texts)):
            logits = model.logits(model(torch.tensor([[*context, *text]])))[0, -1, :39]
            expected[row] += logits.log_softmax(-1).numpy() / 3
    assert actual == pytest.approx(expected, abs=1e-5)


def test_every_template_encodes_to_the_generated_tokens():
    torch.manual_seed(0)
    model = Transformer(model_config(**SHAPE | {"n_positions": 64}), len(demo_tokenizer()))
    stir(model)
    task = shipped_task("demo_entailment", template="{premise} / {hypothesis} ? {label}")
    examples = [
        Example(str(i), ("the cat sat .", f"it was {word} ."), i) for i, word in enumerate(("so", "big", "sad"))
    ]
    templates = template_search.generate_templates(model, task, demo_tokenizer(), examples, 8, 3, 4096)
    starts = {one.startswith("{premise} / {hypothesis} ") for one in templates}
    assert len(templates) == len(set(templates)) and starts == {True, False}
    for one in templates:
        prompt = Prompt.from_task(search.with_template(task, one), demo_tokenizer())
        assert one.endswith(" {label}") and 1 <= len(prompt.before[-1]) <= 3
    with pytest.raises(UserError, match=r"length=63 does not fit .* n_positions=64: use a length of 62 or less"):
        template_search.generate_templates(model, task, demo_tokenizer(), examples, 8, 63, 4096)


# --- templates from a T5 ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A hub with a T5 with random weights, and a vocabulary of words and T5's sentinel tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *"the cat sat it was so good bad . {".split(),
        *(f"<extra_id_{n}>" for n in range(3)),
    ]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"additional_special_tokens": words[-3:]}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **special
    )
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(words), **shape))
    stir(model, 0.5)
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder / "some" / "t5")
    tokenizer.save_pretrained(folder / "some" / "t5")
    return folder


def test_a_t5_fills_the_masks_with_the_likeliest_words(t5):
    task = shipped_task("demo_sentiment", words={"negative": "bad", "positive": "good"})
    examples = [Example("1", ("the cat sat .",), 1), Example("2", ("it was so .",), 0)]
    templates = template_search.generate_templates_with_t5("some/t5", str(t5), task, examples, 200, 3, "cpu")
    model, tokenizer = template_search._load_t5("some/t5", str(t5), "cpu")
    words, x, y, z, end = range(2, 13), 13, 14, 15, 1

    def template_scores(source_format: str, template: str) -> dict[str, float]:
        """The score of every template whose two masks have at most one word together."""
        values: dict[str, float] = {}
        with torch.no_grad():
            for a, b in [(0, 0), (0, 1), (1, 0)]:
                for fill in itertools.product(words, repeat=a + b):
                    for last in (z, end):
                        ids = [*fill[:a], y, *fill[a:], last]
                        total = 0.0
                        for example in examples:
                            text = source_format.format(example.texts[0], ("bad", "good")[example.label])
                            source = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], end]])
                            rows = torch.tensor([[0, x, *ids[:-1]]])
                            log_p = model(input_ids=source, decoder_input_ids=rows).logits[0].log_softmax(-1)[1:]
                            total += log_p[range(len(ids)), ids].sum().item() / 2
                        parts = [tokenizer.decode(part).replace("{", "{{") for part in (fill[:a], fill[a:])]
                        filled = " ".join(template.format(*parts).split())
                        values[filled] = max(values.get(filled, -math.inf), total)
        return values

    scores = template_scores("{} <extra_id_0> {} <extra_id_1>", "{{text}} {} {{label}} {}")
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:5]
    assert [one for one in templates if one.startswith("{text}")][:5] == best
    assert any(one.endswith("{text}") for one in templates)
    for one in templates:
        Prompt.from_task(search.with_template(task, one), demo_tokenizer())


@pytest.mark.parametrize(
    ("option", "expected"), [("sst2", [([0], []), ([], [0])]), ("snli", [([0], [1]), ([0, 1], [])])]
)
def test_mask_placements_of_a_t5(option, expected):
    assert template_search.mask_placements(shipped_task(option)) == expected


def test_a_t5_that_is_not_available_is_refused(t5, monkeypatch):
    with pytest.raises(UserError, match=r"t5=other/t5: folder not found, .*hub="):
        template_search.check_t5("other/t5", str(t5))
    (t5 / "some" / "broken").mkdir()
    with pytest.raises(UserError, match="t5=some/broken cannot be loaded"):
        template_search._load_t5("some/broken", str(t5), "cpu")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'gpt1\[t5\]', or use generator=model"):
        template_search.check_t5("some/t5", str(t5))
