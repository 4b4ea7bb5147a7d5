"""Words and templates ranked without training, on models whose probabilities are known, against plain enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import fakes
import numpy as np
import pytest
import torch
from fakes import NEXT, Bigrams, Letters, chain, task_of, vocabulary
from scipy.stats import pearsonr
from worlds import SHAPE, model_config, stir

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.lstm import LSTM
from gpt1cli.models.transformer import Transformer
from gpt1cli.prompts import search, template_search
from gpt1cli.prompts.prompt import Prompt
from gpt1cli.prompts.search import Candidate
from gpt1cli.tasks.example import Example


class Alphabet(Letters):
    """The letters a, b, c, d, there and back."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcd"[i] for i in ids)


EXAMPLES = [Example("1", ("bc",), 0), Example("2", ("cc",), 0), Example("3", ("ba",), 1), Example("4", ("d",), 1)]


def sentiment(template: str = "{text} {label}") -> TaskConfig:
    return task_of("demo_sentiment", template=template, separator="c", words={"negative": "a", "positive": "d"})


def found_words(task: TaskConfig, pieces: int = 4, combinations: int = 100, best: int = 50) -> list[Candidate]:
    return search.words(Bigrams(), task, Alphabet(), EXAMPLES, pieces, combinations, best, None, 100)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", ["", "b", "da"])
def test_combinations_are_ranked_by_what_they_answer_and_then_by_how_surely(monkeypatch, behind):
    apart = [[0.11, 0.19, 0.28, 0.42], [0.24, 0.27, 0.23, 0.26], [0.71, 0.09, 0.12, 0.08], [0.37, 0.31, 0.21, 0.11]]
    monkeypatch.setattr(fakes, "NEXT", apart)  # without ties
    ranked = []
    for first, second in itertools.permutations("abcd", 2):
        hits, sure = 0, 0.0
        for example in EXAMPLES:
            p = [chain(example.texts[0][-1] + word + behind) for word in (first, second)]
            hits += p[example.label] > p[1 - example.label]
            sure += math.log(p[example.label] / sum(p))
        ranked.append(({"negative": first, "positive": second}, hits / 4, sure / 4))
    ranked.sort(key=lambda one: (-one[1], -one[2]))
    found = found_words(sentiment(f"{{text}} {{label}} {behind}"))
    assert [one.prompt.words for one in found[:6]] == [words for words, *_ in ranked[:6]]
    assert [one.score for one in found] == pytest.approx([score for _, score, _ in ranked])
    assert [one.likelihood for one in found] == pytest.approx([sure for *_, sure in ranked])


def test_only_the_likeliest_of_each_class_are_combined():
    """After c comes a, then any; after a and d come a (0.1, 0.4), d (0.4, 0.1), b (0.2, 0.3), c (0.3, 0.2)."""
    mean = {w: np.mean([math.log(NEXT["abcd".index(x)]["abcd".index(w)]) for x in "ad"]) for w in "abcd"}
    assert max(mean, key=mean.__getitem__) == "b"
    assert [one.prompt.words for one in found_words(sentiment(), pieces=1)] == [{"negative": "a", "positive": "b"}]


def test_the_likeliest_pieces_are_those_of_the_mean_over_a_class():
    log_p = np.log([[0.5, 0.3, 0.1, 0.1], [0.1, 0.5, 0.2, 0.2], [0.7, 0.1, 0.15, 0.05]])
    allowed = np.array([True, True, True, False])
    first, second = search.likeliest(log_p, np.array([0, 0, 1]), allowed, 2)
    assert (first.tolist(), second.tolist()) == ([1, 0], [0, 2])
    assert len(search.likeliest(log_p, np.array([0, 0, 1]), allowed, 9)[0]) == 3


def test_many_classes_take_fewer_pieces_each():
    assert [search.most_each(100, classes, 10**6) for classes in (2, 3, 5, 6)] == [100, 100, 15, 10]
    assert search.most_each(100, 9, 5) == 1


def test_those_stay_that_are_nearest_to_the_tasks_own_words():
    angles = np.radians([0, 10, 80, 95, 170])
    table = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array([[1], [9], [1], [0.1], [2]])  # length says nothing
    pieces = [np.array([4, 3, 2, 1]), np.array([1, 0, 2, 3])]
    first, second = search.nearest(pieces, [np.array([0]), np.array([3, 4])], table, 2)
    assert (first.tolist(), second.tolist()) == ([2, 1], [2, 3])


def test_a_bound_on_combinations_keeps_the_words_near_the_tasks_own(monkeypatch):
    kept = []
    monkeypatch.setattr(search, "nearest", lambda found, words, table, most: kept.append((words, most)) or found)
    found_words(sentiment(), combinations=9)
    ((words, most),) = kept
    assert [own.tolist() for own in words] == [[0], [3]] and most == 3


def test_three_classes_and_equal_words_against_enumeration(monkeypatch):
    monkeypatch.setattr(search, "AT_ONCE", 200)  # several turns
    rng = np.random.default_rng(0)
    task = task_of("demo_entailment")
    examples = [Example(str(i), ("", ""), i % 3) for i in range(12)]
    scores, columns = rng.normal(size=(12, 7)), [[0, 1, 2, 6], [2, 3, 4], [4, 5, 6, 0]]
    wanted = []
    for chosen in itertools.product(*columns):
        if len(set(chosen)) == 3:
            hits = [max(chosen, key=lambda c, row=row: row[c]) == chosen[i % 3] for i, row in enumerate(scores)]
            wanted.append((np.mean(hits), chosen))
    found = search.combined(scores, columns, task, examples, best=100)
    assert len(found) == len(wanted) and {one.columns for one in found} == {chosen for _, chosen in wanted}
    assert [one.score for one in found] == sorted((score for score, _ in wanted), reverse=True)
    assert all(dict((c, s) for s, c in wanted)[one.columns] == one.score for one in found)
    pairs = [(-one.score, -one.likelihood) for one in found]
    assert pairs == sorted(pairs) and search.combined(scores, columns, task, examples, best=5) == found[:5]


def test_words_of_scores_are_ranked_by_pearson():
    rng = np.random.default_rng(1)
    task = dataclasses.replace(task_of("stsb"), loss="interpolation")
    labels = [0, 1.5, 2, 3.2, 4, 5]
    examples = [Example(str(i), ("", ""), label) for i, label in enumerate(labels)]
    scores = rng.normal(size=(6, 4))
    found = search.combined(scores, [[0, 1], [2, 3, 1]], task, examples, best=9)
    assert len(found) == 5
    for one in found:
        low, high = np.exp(scores[:, list(one.columns)]).T
        assert one.score == pytest.approx(pearsonr(high / (low + high), labels)[0])
        share = np.array(labels) / 5
        sure = (1 - share) * np.log(low / (low + high)) + share * np.log(high / (low + high))
        assert one.likelihood == pytest.approx(sure.mean())


def test_words_are_pieces_that_end_a_word():
    allowed = search.whole_words(vocabulary(), " ")
    words = vocabulary().pieces(np.flatnonzero(allowed))
    assert len(words) > 50 and all(word.endswith("</w>") and word != "\n</w>" for word in words)
    assert not allowed[0] and not allowed[len(vocabulary()) - 1]  # unknown, and the line break
    lost = {piece for piece, may in zip(vocabulary().vocabulary, allowed, strict=True) if not may}
    assert {"a", "xy"} & lost == {"a", "xy"} & vocabulary().vocabulary.keys()


class Bytes:
    """A vocabulary on the level of bytes, as far as blanks are concerned: " good" is another piece than "good"."""

    PIECES = (" good", "good", " g", "o", "d", " ", " bad", "\n")

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.PIECES[i] for i in ids)

    def encode_batch(self, texts) -> list[list[int]]:
        whole = {" good": [0], "good": [1], " g": [2], "o": [3], " o": [5, 3], "d": [4], " d": [5, 4], " bad": [6]}
        return [whole.get(text, []) for text in texts]

    def __len__(self) -> int:
        return len(self.PIECES)


def test_on_the_level_of_bytes_words_begin_with_a_blank():
    assert np.flatnonzero(search.whole_words(Bytes(), " ")).tolist() == [0, 2, 6]


def test_nothing_before_the_slot_is_refused():
    task = task_of("demo_sentiment", template="{label} {text}", separator="", words={"negative": "a", "positive": "d"})
    with pytest.raises(UserError, match="nothing stands before the slot"):
        found_words(task)


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_prompt_is_worth_the_likelihood_of_what_is_right():
    found = search.worth(Bigrams(), sentiment("{text} b {label}"), Alphabet(), EXAMPLES, None, 100)
    assert found.likelihood == pytest.approx(math.log(0.25)) and found.score == 0.5  # all alike: the first
    found = search.worth(Bigrams(), sentiment(), Alphabet(), EXAMPLES, None, 100)
    wanted = [math.log(chain(two)) for two in ("ca", "ca", "ad", "dd")]
    assert found.likelihood == pytest.approx(np.mean(wanted)) and found.score == 0.75


def test_scores_are_worth_what_lies_between_the_ends():
    task = dataclasses.replace(
        task_of("stsb", template="{sentence1} {sentence2} {label}", words={"0": "a", "5": "d"}), loss="interpolation"
    )
    examples = [Example("1", ("a", "c"), 1.0), Example("2", ("a", "a"), 5.0)]
    found = search.worth(Bigrams(), task, Alphabet(), examples, None, 100)
    first = 0.8 * math.log(chain("ca")) + 0.2 * math.log(chain("cd"))
    assert found.likelihood == pytest.approx((first + math.log(chain("ad"))) / 2) and found.score == pytest.approx(1)


def test_cues_are_shared_by_all_examples_the_likeliest_of_each_length_first():
    """All texts of up to three letters, by the mean over the examples of their log-probability."""
    means: dict[int, dict[str, float]] = {1: {}, 2: {}, 3: {}}
    for size, found in means.items():
        for text in map("".join, itertools.product("abcd", repeat=size)):
            values = [math.log(chain(example.texts[0][-1] + text)) for example in EXAMPLES[:3]]
            found[text] = float(np.mean(values))
    templates = template_search.by_model(Bigrams(), sentiment(), Alphabet(), EXAMPLES[:3], 84, 3, 100)
    texts = [one.removeprefix("{text} ").removesuffix(" {label}") for one in templates]
    assert [len(text) for text in texts] == [1] * 4 + [2] * 16 + [3] * 64 and len(set(texts)) == 84
    for size, wanted in means.items():
        said = [wanted[text] for text in texts if len(text) == size]
        assert said == pytest.approx(sorted(wanted.values(), reverse=True))
    behind_the_best = [text for text in texts[4:20] if text[0] in texts[:2]]
    narrow = template_search.by_model(Bigrams(), sentiment(), Alphabet(), EXAMPLES[:3], 2, 2, 100)
    assert narrow == [f"{{text}} {text} {{label}}" for text in (*texts[:2], *behind_the_best[:2])]


def test_a_narrow_beam_follows_the_likeliest():
    steps = list(
        template_search.beam_search(
            lambda texts: np.log([NEXT[text[-1] if text else 2] for text in texts]), lambda _: np.ones(4, bool), 1, 3
        )
    )
    assert [beam[0].ids for beam in steps] == [(0,), (0, 3), (0, 3, 0)]  # after c a, after a d, after d a
    assert steps[2][0].total == pytest.approx(math.log(0.7 * 0.4 * 0.4))


def test_what_has_ended_is_not_gone_on_with():
    def allowed(ids: tuple[int, ...]) -> np.ndarray:
        return np.zeros(4, bool) if ids[-1:] == (3,) else np.ones(4, bool)

    steps = list(template_search.beam_search(lambda texts: np.log([NEXT[0]] * len(texts)), allowed, 4, 2))
    assert [one.ids for one in steps[0]] == [(3,), (2,), (1,), (0,)]
    assert {one.ids[0] for one in steps[1]} == {2, 1} and steps[1][0].ids == (2, 3)
    assert (
        len(
            list(
                template_search.beam_search(
                    lambda texts: np.log([NEXT[0]] * len(texts)), lambda ids: np.array([not ids] * 4), 2, 9
                )
            )
        )
        == 1
    )


@pytest.mark.parametrize(
    ("option", "prompt", "wanted"),
    [
        ("sst2", {}, ["{sentence}"]),
        ("snli", {}, ["{premise} {hypothesis}", "{premise} is it true that {hypothesis}"]),
        ("snli", {"template": "{{so}} {premise} {label}"}, ["{premise} {hypothesis}", "{{so}} {premise}"]),
        ("snli", {"template": "{premise} {label} {hypothesis}"}, ["{premise} {hypothesis}"]),
        ("blimp", {}, []),
    ],
)  # fmt: skip
def test_a_cue_goes_on_from_the_texts_or_from_the_tasks_own_prompt(option, prompt, wanted):
    assert template_search.openings(task_of(option, **prompt)) == wanted


@pytest.mark.usefixtures("exact_arithmetic")
@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
def test_what_comes_next_behind_kept_contexts_is_that_of_whole_rows(architecture):
    torch.manual_seed(0)
    shape = model_config(**SHAPE, architecture=architecture, lstm_units=24)
    model = (LSTM if architecture == "lstm" else Transformer)(shape, 40).eval()
    stir(model)
    contexts, texts = [[5], [7, 8, 9, 3], [1, 2]], [(4, 4), (0, 38), (12, 3)]
    found = template_search._following(model, contexts, 39, 7)(texts)
    wanted = np.zeros((3, 39))
    with torch.no_grad():
        for context, (row, text) in itertools.product(contexts, enumerate(texts)):
            logits = model.logits(model(torch.tensor([[*context, *text]])))[0, -1, :39]
            wanted[row] += logits.log_softmax(-1).numpy() / 3
    assert found == pytest.approx(wanted, abs=1e-5)


def test_every_template_is_read_as_it_was_written():
    torch.manual_seed(0)
    model = Transformer(model_config(**SHAPE | {"n_positions": 64}), len(vocabulary()))
    stir(model)
    task = task_of("demo_entailment", template="{premise} / {hypothesis} ? {label}")
    examples = [
        Example(str(i), ("the cat sat .", f"it was {word} ."), i) for i, word in enumerate(("so", "big", "sad"))
    ]
    found = template_search.by_model(model, task, vocabulary(), examples, 8, 3, 4096)
    kinds = {one.startswith("{premise} / {hypothesis} ") for one in found}
    assert len(found) == len(set(found)) and kinds == {True, False}
    for one in found:
        prompt = Prompt.of(search.with_template(task, one), vocabulary())
        assert one.endswith(" {label}") and 1 <= len(prompt.before[-1]) <= 3
    with pytest.raises(UserError, match="length=63: n_positions=64 leave no room"):
        template_search.by_model(model, task, vocabulary(), examples, 8, 63, 4096)


# --- written by a T5 --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A hub with a T5 of random weights, and a vocabulary of words with T5's names for gaps."""
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
    peer = T5ForConditionalGeneration(T5Config(vocab_size=len(words), **shape))
    stir(peer, 0.5)
    folder = tmp_path_factory.mktemp("hub")
    peer.save_pretrained(folder / "some" / "t5")
    tokenizer.save_pretrained(folder / "some" / "t5")
    return folder


def test_the_gaps_of_a_t5_are_the_likeliest_of_all(t5):
    task = task_of("demo_sentiment", words={"negative": "bad", "positive": "good"})
    examples = [Example("1", ("the cat sat .",), 1), Example("2", ("it was so .",), 0)]
    found = template_search.by_t5("some/t5", str(t5), task, examples, 200, 3, "cpu")
    peer, tokenizer = template_search._loaded("some/t5", str(t5), "cpu")
    words, x, y, z, end = range(2, 13), 13, 14, 15, 1

    def wanted(form: str, template: str) -> dict[str, float]:
        """All pairs of gaps of at most one word together."""
        values: dict[str, float] = {}
        with torch.no_grad():
            for a, b in [(0, 0), (0, 1), (1, 0)]:
                for gap in itertools.product(words, repeat=a + b):
                    for last in (z, end):
                        ids = [*gap[:a], y, *gap[a:], last]
                        total = 0.0
                        for example in examples:
                            text = form.format(example.texts[0], ("bad", "good")[example.label])
                            source = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], end]])
                            rows = torch.tensor([[0, x, *ids[:-1]]])
                            log_p = peer(input_ids=source, decoder_input_ids=rows).logits[0].log_softmax(-1)[1:]
                            total += log_p[range(len(ids)), ids].sum().item() / 2
                        parts = [tokenizer.decode(part).replace("{", "{{") for part in (gap[:a], gap[a:])]
                        told = " ".join(template.format(*parts).split())
                        values[told] = max(values.get(told, -math.inf), total)
        return values

    first = wanted("{} <extra_id_0> {} <extra_id_1>", "{{text}} {} {{label}} {}")
    best = sorted(first, key=first.__getitem__, reverse=True)[:5]
    assert [one for one in found if one.startswith("{text}")][:5] == best
    assert any(one.endswith("{text}") for one in found)
    for one in found:
        Prompt.of(search.with_template(task, one), vocabulary())


@pytest.mark.parametrize(("option", "wanted"), [("sst2", [([0], []), ([], [0])]), ("snli", [([0], [1]), ([0, 1], [])])])
def test_where_a_t5_has_its_gaps(option, wanted):
    assert template_search.gaps(task_of(option)) == wanted


def test_a_t5_that_is_not_there_is_told(t5, monkeypatch):
    with pytest.raises(UserError, match="t5=other/t5: no such folder, and none of that name below hub="):
        template_search.check("other/t5", str(t5))
    (t5 / "some" / "broken").mkdir()
    with pytest.raises(UserError, match="t5=some/broken: it cannot be loaded"):
        template_search._loaded("some/broken", str(t5), "cpu")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match="pip install 'gpt1\\[t5\\]', or generator=model"):
        template_search.check("some/t5", str(t5))
