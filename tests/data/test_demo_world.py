"""The demo world against pinned digests, counts, and the meanings of its words."""

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

DIGESTS = {  # of the first three documents and of each training set
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

# Written by hand, not from the tables: meanings, words, opposites.
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


def test_documents_have_the_pinned_digest():
    assert digest(list(documents(count=3))) == DIGESTS["documents"]


def test_documents_depend_on_seed_and_not_on_count():
    assert list(documents(count=2)) == list(itertools.islice(documents(), 2))
    assert list(documents(seed=1, count=2)) != list(documents(seed=0, count=2))
    assert not set(documents(seed=1, count=50)) & set(documents(seed=0, count=50))


def test_corpus_size_and_vocabulary():
    texts = list(documents())
    assert 1_500_000 < sum(len(document.split()) for document in texts) < 2_000_000
    assert sum(map(len, texts)) == pytest.approx(demo_world.CHARACTERS, rel=0.01)
    first_words, all_words = (
        set(re.findall(r"[a-z]+", " ".join(part))) for part in (texts[: demo_world.VOCABULARY_DOCUMENTS], texts)
    )
    assert first_words == all_words  # the vocabulary is trained on the first documents only


def test_documents_are_plain_sentences():
    for document in documents(count=300):
        paragraphs = document.split("\n")
        assert len(paragraphs) == demo_world.STORIES_PER_DOCUMENT
        assert all(re.fullmatch(r"([a-z]+[,?]? )*[a-z]+\.( ([a-z]+[,?]? )*[a-z]+\.)+", line) for line in paragraphs)
        assert not re.search(r"\ban? (an?|the)\b|\ba [aeiou]|\ban (?!hour)[^aeiou]", document)
        people = set(re.findall("[a-z]+", document)) & set(GIRLS + BOYS)
        assert 2 <= len(people) <= demo_world.PEOPLE_PER_DOCUMENT


def test_stories_are_consistent():
    """A person always wants the same thing, and the end of a story agrees with its sentences."""
    wanted, ends = collections.Counter(), 0
    for document in documents(count=300):
        for name in set(GIRLS + BOYS):
            wanted[len(set(re.findall(rf"\b{name} (?:wanted|wished for|dreamed of) an? (\w+)", document)))] += 1
        for line in document.split("\n"):
            if match := re.search(r"was (\w+)\. (?:[a-z ]+\. )*?so \w+ was (\w+)\.", line):
                assert MEANING.get(match[1], match[2]) == match[2]
                ends += match[1] in MEANING
    assert set(wanted) == {0, 1} and wanted[1] > 100
    assert ends > 50


# --- every task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_examples_have_the_pinned_digest_and_balanced_labels(task):
    assert digest(examples(task, "train")) == DIGESTS[task]
    for split, size in SIZES.items():
        rows = examples(task, split)
        counts = collections.Counter(row["label"] for row in rows)
        assert counts.keys() == set(TASKS[task].labels) and max(counts.values()) - min(counts.values()) <= 1
        assert len(rows) == size == len({row["id"] for row in rows})
        assert all(list(row) == KEYS[task] for row in rows)


@pytest.mark.parametrize("task", TASKS)
def test_no_text_is_in_two_splits(task):
    contents = [
        tuple(v for k, v in row.items() if isinstance(v, str) and k not in ("id", "label")) for row in rows(task)
    ]
    assert len(set(contents)) == len(contents) == sum(SIZES.values())


def test_the_test_sets_need_words_that_the_training_sets_do_not_have():
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
    ("task", "split", "message"),
    [
        ("demo_sentimental", "train", "'demo_sentimental': not one of demo_sentiment, demo_entailment"),
        ("demo_choice", "dev", "'dev': not one of train, valid, test"),
        ("sst2", "dev", "'sst2': not one of .*; split 'dev': not one of"),
    ],
)
def test_unknown_names_are_refused(task, split, message):
    with pytest.raises(ValueError, match=message):
        examples(task, split)


# --- the labels, checked with the meanings above ----------------------------------------------------------------------


def test_sentiment_labels():
    good = {"great", "happy", "kind"}
    checked = collections.Counter()
    for row in rows("demo_sentiment"):
        verdict = row["text"].split(", but it was ")[-1]  # "he feared that it would be awful, but it was lovely"
        if qualities := meanings(verdict):
            positive = (qualities[-1] in good) != (" not " in verdict)
            assert row["label"] == ("positive" if positive else "negative"), row
            checked[row["label"]] += 1
    assert min(checked.values()) > 200


def test_entailment_labels():
    checked = collections.Counter()
    for row in rows("demo_entailment"):
        claim = row["hypothesis"].rstrip(".").split()[-1]
        facts = [one for one in meanings(row["premise"]) if (one in THINGS) == (claim in THINGS)]
        only_a_look = re.fullmatch(r"the gift from \w+ was \w+\.", row["premise"])
        if facts or (only_a_look and claim in THINGS):
            contradicts = facts and (OPPOSITE.get(claim) in facts or (claim in THINGS and claim not in facts))
            expected = "entailment" if claim in facts else "contradiction" if contradicts else "neutral"
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
def test_acceptability_labels(pattern, label):
    labels = [row["label"] for row in rows("demo_acceptability") if re.fullmatch(pattern + r"\.", row["text"])]
    assert len(labels) >= 3 and set(labels) == {label}


def test_similarity_labels():
    checked = collections.Counter()
    for row in rows("demo_similarity"):
        facts, other = meanings(row["text_a"]), row["text_b"]
        facts = [one for one in facts if one not in THINGS]
        if facts:
            names = re.findall(r"\w+", row["text_a"])
            same_words = facts[0] in other.split() or f" {facts[0]}." in other
            same_roles = " gave " not in row["text_a"] or other.startswith(names[2])
            assert row["label"] == ("equivalent" if same_words and same_roles else "not_equivalent"), row
            checked[row["label"]] += 1
    assert min(checked.values()) > 200


def test_choice_labels():
    """The right one of the two ends agrees with the story, as far as the words above tell."""
    checked = 0
    for row in rows("demo_choice"):
        right, wrong = row["choices"][row["label"]], row["choices"][1 - row["label"]]
        assert right != wrong
        if (end := re.fullmatch(r"so (?:the )?\w+ was (?:an? )?(\w+)\.", right)) and " not " not in row["context"]:
            facts = meanings(re.sub(r"in the \w+", "", row["context"]))  # without the container of a gift
            facts = [one for one in facts if (one in THINGS) == (end[1] in THINGS)]
            if facts:
                assert end[1] in facts
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
def test_pronoun_labels(happening, first, second):
    matches = [row for row in rows("demo_pronoun") if happening in row["before"] and meanings(row["after"])]
    assert {row["label"] for row in matches} == {0, 1}
    for row in matches:
        assert meanings(row["after"]) == [(first, second)[row["label"]]]
        one, other = row["candidates"]
        assert row["before"].index(one) < row["before"].index(other) and row["before"].endswith(" because")


def test_the_text_has_not_changed():
    """A change of the text needs new DIGESTS: prepared corpora and resumed runs are checked against them."""
    text = hashlib.sha256()
    for document in demo_world.documents():
        text.update(document.encode() + b"\n")
    assert text.hexdigest()[:16] == "7f962f0deea2bb96"
