"""The demo world against pinned digests, counts, and what anyone knows about these words."""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import json
import re

import pytest

from gpt1cli.data import demo_world
from gpt1cli.data.demo_world import BOYS, GIRLS, KINDS, QUALITIES, SIZES, TASKS, documents, examples

DIGESTS = {  # of the first three documents, and of each training set
    "documents": "e2e395641895a09c",
    "demo_sentiment": "a6cf73048dead313",
    "demo_entailment": "c69f194ae5575e5a",
    "demo_acceptability": "312fdba3d1ba0d05",
    "demo_similarity": "f00d860d0dab9800",
    "demo_choice": "34ce8bfcd00b8008",
    "demo_pronoun": "21d128d2653f25a7",
}
KEYS = {
    "demo_sentiment": ["id", "text", "label"],
    "demo_entailment": ["id", "premise", "hypothesis", "label"],
    "demo_acceptability": ["id", "text", "label"],
    "demo_similarity": ["id", "text_a", "text_b", "label"],
    "demo_choice": ["id", "context", "choices", "label"],
    "demo_pronoun": ["id", "before", "candidates", "after", "label"],
}

# By hand, and not from the tables: words, what they mean, and the opposite of that.
MEANS = {
    "happy": "glad merry joyful cheerful jolly elated", "sad": "gloomy tearful unhappy miserable sorrowful mournful",
    "brave": "fearless plucky heroic valiant courageous", "afraid": "scared timid frightened terrified nervous",
    "kind": "friendly caring polite thoughtful", "mean": "cruel rude selfish spiteful unfriendly heartless",
    "big": "huge enormous giant massive immense colossal", "small": "tiny little miniature teeny minute",
    "clean": "spotless tidy washed scrubbed stainless", "dirty": "filthy muddy grimy dusty soiled",
    "loud": "noisy deafening booming thundering roaring", "quiet": "silent hushed muted noiseless soundless",
    "great": "wonderful lovely splendid superb excellent", "terrible": "awful dreadful horrible lousy ghastly",
    "bird": "sparrow robin owl swan eagle", "fish": "eel sardine shark herring", "flower": "rose tulip lily poppy",
    "fruit": "apple pear plum melon banana", "tool": "hammer rake spade drill", "garment": "hat scarf coat shirt",
    "instrument": "flute drum fiddle harp cello", "vehicle": "cart wagon tractor truck", "container": "box bag sack",
}  # fmt: skip
MEANING = {word: meaning for meaning, words in MEANS.items() for word in words.split()}
PAIRS = "happy sad brave afraid kind mean big small clean dirty loud quiet great terrible".split()
OPPOSITE = dict(zip(PAIRS[::2], PAIRS[1::2], strict=True)) | dict(zip(PAIRS[1::2], PAIRS[::2], strict=True))
THINGS = set(MEANS) - set(PAIRS)


@functools.cache
def rows(task: str) -> list[dict]:
    return [row for split in SIZES for row in examples(task, split)]


def texts(row: dict) -> str:
    return " ".join(" ".join(value) if isinstance(value, list) else str(value) for value in row.values())


def meanings(text: str) -> list[str]:
    return [MEANING[word] for word in re.findall("[a-z]+", text) if word in MEANING]


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# --- the corpus -------------------------------------------------------------------------------------------------------


def test_documents_are_the_same_everywhere():
    assert digest(list(documents(count=3))) == DIGESTS["documents"]


def test_documents_by_seed_and_count():
    assert list(documents(count=2)) == list(itertools.islice(documents(), 2))
    assert list(documents(seed=1, count=2)) != list(documents(seed=0, count=2))
    assert not set(documents(seed=1, count=50)) & set(documents(seed=0, count=50))


def test_size():
    told = list(documents())
    assert 1_500_000 < sum(len(document.split()) for document in told) < 2_000_000
    assert sum(map(len, told)) == pytest.approx(demo_world.CHARACTERS, rel=0.01)
    seen, all_of_them = (
        set(re.findall(r"[a-z]+", " ".join(part))) for part in (told[: demo_world.VOCABULARY_DOCUMENTS], told)
    )
    assert seen == all_of_them  # the vocabulary is trained on the first documents only


def test_documents_are_plain_sentences():
    for document in documents(count=300):
        paragraphs = document.split("\n")
        assert len(paragraphs) == demo_world.STORIES_PER_DOCUMENT
        assert all(re.fullmatch(r"([a-z]+[,?]? )*[a-z]+\.( ([a-z]+[,?]? )*[a-z]+\.)+", line) for line in paragraphs)
        assert not re.search(r"\ban? (an?|the)\b|\ba [aeiou]|\ban (?!hour)[^aeiou]", document)
        people = set(re.findall("[a-z]+", document)) & set(GIRLS + BOYS)
        assert 2 <= len(people) <= demo_world.PEOPLE_PER_DOCUMENT


def test_stories_hold_together():
    """What a person wants stays the same, and what the end says is what the sentences before it said."""
    wanted, ends = collections.Counter(), 0
    for document in documents(count=300):
        for name in set(GIRLS + BOYS):
            wanted[len(set(re.findall(rf"\b{name} (?:wanted|wished for|dreamed of) an? (\w+)", document)))] += 1
        for line in document.split("\n"):
            if found := re.search(r"was (\w+)\. (?:[a-z ]+\. )*?so \w+ was (\w+)\.", line):
                assert MEANING.get(found[1], found[2]) == found[2]
                ends += found[1] in MEANING
    assert set(wanted) == {0, 1} and wanted[1] > 100
    assert ends > 50


# --- every task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_examples(task):
    assert digest(examples(task, "train")) == DIGESTS[task]
    for split, size in SIZES.items():
        found = examples(task, split)
        counts = collections.Counter(row["label"] for row in found)
        assert counts.keys() == set(TASKS[task].labels) and max(counts.values()) - min(counts.values()) <= 1
        assert len(found) == size == len({row["id"] for row in found})
        assert all(list(row) == KEYS[task] for row in found)


@pytest.mark.parametrize("task", TASKS)
def test_no_text_is_in_two_splits(task):
    found = [tuple(v for k, v in row.items() if isinstance(v, str) and k not in ("id", "label")) for row in rows(task)]
    assert len(set(found)) == len(found) == sum(SIZES.values())


def test_the_training_sets_leave_words_out_that_the_test_sets_need():
    names, nouns = [GIRLS, BOYS], [kind.nouns for kind in KINDS.values()]
    lists = [*names, *nouns, *(quality.words for quality in QUALITIES.values())]
    held_out = {word for words in lists for word in words[len(words) // 3 :]}
    held_out |= {demo_world.plural(noun) for words in nouns for noun in words[len(words) // 3 :]}
    signs = {sign.split("{p}")[-1].strip() for q in QUALITIES.values() for sign in q.signs[len(q.signs) // 3 :]}
    signs = {sign for sign in signs if "{" not in sign}
    seen = {split: [texts(row) for task in TASKS for row in examples(task, split)] for split in SIZES}
    words = {split: collections.Counter(re.findall("[a-z]+", " ".join(seen[split]))) for split in SIZES}
    assert not held_out & words["train"].keys()
    assert not [sign for sign in signs if any(sign in text for text in seen["train"])]
    assert held_out <= words["test"].keys()
    read = collections.Counter(word for text in documents(count=1000) for word in re.findall("[a-z]+", text))
    assert min(read[word] for word in held_out) > 25  # a sixth of the corpus


@pytest.mark.parametrize(
    ("task", "split", "told"),
    [
        ("demo_sentimental", "train", "'demo_sentimental': not one of demo_sentiment, demo_entailment"),
        ("demo_choice", "dev", "'dev': not one of train, valid, test"),
        ("sst2", "dev", "'sst2': not one of .*; split 'dev': not one of"),
    ],
)
def test_unknown_names_are_refused(task, split, told):
    with pytest.raises(ValueError, match=told):
        examples(task, split)


# --- the labels, by hand ----------------------------------------------------------------------------------------------


def test_sentiment():
    good = {"great", "happy", "kind"}
    checked = collections.Counter()
    for row in rows("demo_sentiment"):
        verdict = row["text"].split(", but it was ")[-1]  # "he feared that it would be awful, but it was lovely"
        if found := meanings(verdict):
            positive = (found[-1] in good) != (" not " in verdict)
            assert row["label"] == ("positive" if positive else "negative"), row
            checked[row["label"]] += 1
    assert min(checked.values()) > 200


def test_entailment():
    checked = collections.Counter()
    for row in rows("demo_entailment"):
        said = row["hypothesis"].rstrip(".").split()[-1]
        told = [one for one in meanings(row["premise"]) if (one in THINGS) == (said in THINGS)]
        bare = re.fullmatch(r"the gift from \w+ was \w+\.", row["premise"])
        if told or (bare and said in THINGS):
            against = told and (OPPOSITE.get(said) in told or (said in THINGS and said not in told))
            expected = "entailment" if said in told else "contradiction" if against else "neutral"
            assert row["label"] == expected, row
            checked[expected] += 1
    assert min(checked.values()) > 200


@pytest.mark.parametrize(
    ("pattern", "label"),
    [
        (r"the (sparrow|robin|owl|swan|duck) (sings|nests)", "acceptable"),
        (r"the (sparrow|robin|owl|swan|duck) (sing|nest)", "unacceptable"),
        (r"the (lilies|poppies|roses|tulips) (bloom|wilt)", "acceptable"),
        (r"the (lilies|poppies|roses|tulips) (blooms|wilts)", "unacceptable"),
        (r"\w+ peeled the (apple|pear|plum|melon|banana)", "acceptable"),
        (r"\w+ (peeled|fried|rode|tuned) the (hammer|scarf|coat|rose|box)", "unacceptable"),
        (r"the (hat|drum|hammer|apple|box|truck) was (noisy|huge|tiny|muddy|spotless|filthy)", "acceptable"),
        (r"the (hat|drum|hammer|apple|box|truck) was (polite|cruel|rude|timid|fearless|scared)", "unacceptable"),
    ],
)
def test_acceptability(pattern, label):
    found = [row["label"] for row in rows("demo_acceptability") if re.fullmatch(pattern + r"\.", row["text"])]
    assert len(found) >= 3 and set(found) == {label}


def test_similarity():
    checked = collections.Counter()
    for row in rows("demo_similarity"):
        told, said = meanings(row["text_a"]), row["text_b"]
        told = [one for one in told if one not in THINGS]
        if told:
            names = re.findall(r"\w+", row["text_a"])
            same_words = told[0] in said.split() or f" {told[0]}." in said
            same_roles = " gave " not in row["text_a"] or said.startswith(names[2])
            assert row["label"] == ("equivalent" if same_words and same_roles else "not_equivalent"), row
            checked[row["label"]] += 1
    assert min(checked.values()) > 200


def test_choice():
    """Of two ends the right one agrees with what is told, by the words known here."""
    checked = 0
    for row in rows("demo_choice"):
        right, wrong = row["choices"][row["label"]], row["choices"][1 - row["label"]]
        assert right != wrong
        if (said := re.fullmatch(r"so (?:the )?\w+ was (?:an? )?(\w+)\.", right)) and " not " not in row["context"]:
            told = meanings(re.sub(r"in the \w+", "", row["context"]))  # but for what the gift was hidden in
            told = [one for one in told if (one in THINGS) == (said[1] in THINGS)]
            if told:
                assert said[1] in told
                checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    ("happening", "first", "second"),
    [
        ("did not fit into", "big", "small"),
        ("nobody heard", "quiet", "loud"),
        ("hid from", "afraid", "mean"),
        ("walked home with", "brave", "afraid"),
        ("sang a song for", "happy", "sad"),
        ("complained about", "sad", "mean"),
    ],
)
def test_pronoun(happening, first, second):
    found = [row for row in rows("demo_pronoun") if happening in row["before"] and meanings(row["after"])]
    assert {row["label"] for row in found} == {0, 1}
    for row in found:
        assert meanings(row["after"]) == [(first, second)[row["label"]]]
        one, other = row["candidates"]
        assert row["before"].index(one) < row["before"].index(other) and row["before"].endswith(" because")


def test_the_digests_belong_to_this_text():
    """A change of the text needs new DIGESTS: prepared corpora and resumed runs are checked against them."""
    text = hashlib.sha256()
    for document in demo_world.documents():
        text.update(document.encode() + b"\n")
    assert text.hexdigest()[:16] == "7f962f0deea2bb96"
