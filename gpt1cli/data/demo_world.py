"""The demo world: generated short stories for pretraining, and six labelled tasks that need what the stories teach.

People have moods and natures, things have looks and kinds, outings are great or terrible, and each sentence agrees with
the one before: someone elated hums a song, something colossal does not go through the door, a stork is a bird and birds
nest. No word is explained. Its meaning follows from how the stories continue, and from the questions after each story
("the stork was small? no").

The labelled tasks test that knowledge. Their small training sets use only the first third of every word list, and their
validation and test sets use all of it. So a model with random weights meets words it never saw, and a pretrained model
knows them from the stories. Nothing else favours it: no text is shared between splits, and no task defines its words.

All draws come from `random.Random(text).random()`, which gives the same numbers in every version of Python.

Longer than 300 lines: the tables of words, and one function per kind of story and per task.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

Option = TypeVar("Option")
DemoExample = dict[str, Any]

DOCUMENTS = 6000  # 1.9 million words
CHARACTERS = 9_500_000  # of all documents, approximately
VOCABULARY_DOCUMENTS = 600  # the vocabulary is trained on the first documents, which contain every word
# Number of documents -> digest, which identifies them in prepared corpora and resumed runs.
# NOTE: a change of the text needs new digests; a test compares the text with these.
DIGESTS = {
    DOCUMENTS: "1cd02795c4250a40608ebde3543ed1b462ccdbb8a78d5bd97a2085549347d9d7",
    VOCABULARY_DOCUMENTS: "880dd71d732d23cc67dc4d2c1ce175f04f309f6a2810bffc91caacafc72b6355",
}
STORIES_PER_DOCUMENT = 8
PEOPLE_PER_DOCUMENT = 4
SIZES = {"train": 480, "valid": 500, "test": 1000}  # labelled examples of each task

# --- the world --------------------------------------------------------------------------------------------------------

GIRLS = "anna bella clara ella flora greta hanna ida julia kate lena mira nora olga vera".split()
BOYS = "adam ben carl david emil felix georg hugo ivan jack karl leo max noah oscar".split()
PLACES = "market harbor mill school garden castle bakery station lake farm library forest".split()
EVENTS = "play concert feast picnic parade dance fair circus party show".split()
TIMES = ("in the morning", "at noon", "later", "after that", "then")


class Quality(NamedTuple):
    opposite: str
    words: list[str]  # synonyms
    signs: list[str]  # sentences that show the quality; {p} is the person of the story


MOODS = {
    "happy": Quality(
        "sad",
        "glad merry joyful cheerful delighted jolly elated thrilled blissful".split(),
        [
            "{p} laughed out loud",
            "{p} hummed a song",
            "{p} clapped {p.his} hands",
            "{p} danced around the kitchen",
            "{p} hugged everyone",
            "{p} smiled at the sky",
        ],
    ),
    "sad": Quality(
        "happy",
        "gloomy glum tearful unhappy miserable sorrowful downcast mournful dejected".split(),
        [
            "{p} wept all night",
            "{p} cried into a pillow",
            "{p} did not eat supper",
            "{p} sat alone by the window",
            "{p} sighed again and again",
            "{p} hung {p.his} head",
        ],
    ),
}
NATURES = {
    "brave": Quality(
        "afraid",
        "fearless gallant plucky heroic valiant gutsy spunky courageous dauntless".split(),
        [
            "{p} walked into the dark cave",
            "{p} did not run from the wolf",
            "{p} climbed the highest tower",
            "{p} chased the robber away",
            "{p} swam across the deep river",
            "{p} went first",
        ],
    ),
    "afraid": Quality(
        "brave",
        "scared timid frightened fearful terrified anxious nervous jittery panicky".split(),
        [
            "{p} hid under the bed",
            "{p} shook from head to toe",
            "{p} screamed at a shadow",
            "{p} did not open the door",
            "{p} ran from a mouse",
            "{p} turned pale",
        ],
    ),
    "kind": Quality(
        "mean",
        "friendly caring polite thoughtful gracious merciful courteous charitable giving".split(),
        [
            "{p} gave the last cake away",
            "{p} took the lost kitten home",
            "{p} wrote to the sick neighbor",
            "{p} held the door for everyone",
            "{p} helped the old woman",
            "{p} forgave everyone",
        ],
    ),
    "mean": Quality(
        "kind",
        "cruel rude selfish spiteful unfriendly heartless greedy unkind stingy".split(),
        [
            "{p} kept the last cake",
            "{p} kicked the lost kitten",
            "{p} mocked the sick neighbor",
            "{p} slammed the door on everyone",
            "{p} pushed the old woman",
            "{p} blamed everyone",
        ],
    ),
}
LOOKS = {
    "big": Quality(
        "small",
        "huge enormous giant massive vast immense mighty hulking colossal".split(),
        ["it did not go through the door", "it took up half the room", "everyone saw it from far away"],
    ),
    "small": Quality(
        "big",
        "tiny little wee miniature petite teeny puny minute dainty".split(),
        ["it went into a pocket", "it almost got lost in the grass", "{p} had to look twice to see it"],
    ),
    "clean": Quality(
        "dirty",
        "spotless tidy washed polished scrubbed gleaming stainless pure sparkling".split(),
        ["it shone like a mirror", "nobody had to wipe it", "there was not one spot on it"],
    ),
    "dirty": Quality(
        "clean",
        "filthy muddy grimy dusty stained grubby soiled messy sooty".split(),
        ["it left black marks on every hand", "{p} had to wipe it for an hour", "nobody wanted to touch it"],
    ),
    "loud": Quality(
        "quiet",
        "noisy deafening booming thundering shrill blaring roaring rowdy clamorous".split(),
        ["everyone covered their ears", "it woke the baby", "people heard it across the valley"],
    ),
    "quiet": Quality(
        "loud",
        "silent hushed soft muted faint still noiseless soundless whispering".split(),
        ["nobody heard it", "the baby slept on", "{p} had to come close to hear it"],
    ),
}
WORTH = {
    "great": Quality(
        "terrible",
        "wonderful lovely splendid superb marvelous delightful excellent magnificent brilliant".split(),
        [
            "everyone cheered",
            "nobody wanted to leave",
            "they stayed until the very end",
            "they asked for more",
            "people talked about it for weeks",
            "they came again the next day",
        ],
    ),
    "terrible": Quality(
        "great",
        "awful dreadful horrible dismal lousy ghastly nasty dreary hideous".split(),
        [
            "everyone booed",
            "half of the guests left early",
            "they wanted their money back",
            "people yawned",
            "they never went there again",
            "someone threw an egg",
        ],
    ),
}
QUALITY_GROUPS = (MOODS | NATURES, LOOKS, WORTH)  # of people, things, events
QUALITIES = MOODS | NATURES | LOOKS | WORTH
GOOD, BAD = ("great", "happy", "kind"), ("terrible", "sad", "mean")
WORTH_OF = {"happy": "great", "sad": "terrible"}


class ThingKind(NamedTuple):
    nouns: list[str]
    done: tuple[str, str]  # what people did only to this kind
    does: tuple[str, str]  # what only this kind does
    looks: tuple[str, ...]  # the qualities that it or its opposite can have


KINDS = {
    "bird": ThingKind(
        "sparrow robin owl swan crow duck finch stork eagle".split(),
        ("fed", "tamed"),
        ("sing", "nest"),
        ("big", "loud"),
    ),
    "fish": ThingKind(
        "eel minnow sardine shark herring sturgeon guppy piranha anchovy".split(),
        ("caught", "fried"),
        ("swim", "dive"),
        ("big",),
    ),
    "flower": ThingKind(
        "rose tulip lily violet poppy orchid daffodil marigold sunflower".split(),
        ("picked", "watered"),
        ("bloom", "wilt"),
        ("big",),
    ),
    "fruit": ThingKind(
        "apple pear plum melon fig lemon apricot mango banana".split(),
        ("peeled", "tasted"),
        ("ripen", "rot"),
        ("clean",),
    ),
    "tool": ThingKind(
        "hammer rake spade drill chisel shovel sickle axe wrench".split(),
        ("sharpened", "swung"),
        ("rust", "snap"),
        ("clean", "loud"),
    ),
    "instrument": ThingKind(
        "flute drum fiddle harp trumpet banjo guitar clarinet cello".split(),
        ("practiced", "tuned"),
        ("resound", "vibrate"),
        ("loud",),
    ),
    "garment": ThingKind(
        "hat scarf coat shirt jacket sweater cloak mitten vest".split(),
        ("wore", "sewed"),
        ("shrink", "fade"),
        ("clean",),
    ),
    "vehicle": ThingKind(
        "cart wagon sled bicycle tractor carriage truck van scooter".split(),
        ("rode", "parked"),
        ("roll", "brake"),
        ("clean", "loud"),
    ),
    "container": ThingKind(
        "box bag basket chest drawer sack trunk crate purse".split(),
        ("opened", "emptied"),
        ("overflow", "burst"),
        ("big",),
    ),
}
ANIMALS = ("bird", "fish")  # only they can be kind or mean, brave or afraid

DEEDS = (  # deed, quality of the first person that explains it, quality of the second that explains it
    ("hid from", "afraid", "mean"),
    ("walked home with", "brave", "afraid"),
    ("sang a song for", "happy", "sad"),
    ("shared supper with", "kind", "sad"),
    ("thanked", "happy", "kind"),
    ("complained about", "sad", "mean"),
)
MISHAPS = (  # event, kinds of the first and second thing, quality of the first and second that explains it
    ("the {} did not fit into the {}", ("fruit", "tool", "instrument", "garment"), ("container",), "big", "small"),
    ("nobody heard the {} over the {}", ("bird", "instrument"), ("vehicle", "tool"), "quiet", "loud"),
)

# --- words ------------------------------------------------------------------------------------------------------------


class Person(NamedTuple):
    name: str
    he: str
    him: str
    his: str
    wish: tuple[str, str]  # kind and noun of the one thing that this person wants in every story

    def __format__(self, spec: str) -> str:
        return self.name


class StoryTeller:
    """Draws the people and the words of one document, or of one labelled example."""

    def __init__(self, seed: str, training_words_only: bool = False) -> None:
        self.random = random.Random(seed).random
        self.training_words_only = training_words_only
        names = self.shuffle(self.restrict(GIRLS) + self.restrict(BOYS))
        self.cast = [self.person(name) for name in names[:PEOPLE_PER_DOCUMENT]]

    def pick(self, options: Sequence[Option]) -> Option:
        return options[int(self.random() * len(options))]

    def shuffle(self, options: Sequence[Option]) -> list[Option]:
        return [options[index] for _, index in sorted((self.random(), index) for index in range(len(options)))]

    def restrict(self, words: list[str]) -> list[str]:
        """Return all words, or their first third for a labelled training set."""
        return words[: len(words) // 3] if self.training_words_only else words

    def person(self, name: str) -> Person:
        kind = self.kind()
        pronouns = ("she", "her", "her") if name in GIRLS else ("he", "him", "his")
        return Person(name, *pronouns, wish=(kind, self.noun(kind)))

    def people(self, count: int) -> list[Person]:
        return self.shuffle(self.cast)[:count]

    def kind(self) -> str:
        return self.pick(list(KINDS))

    def nouns(self, kind: str) -> list[str]:
        return self.shuffle(self.restrict(KINDS[kind].nouns))

    def noun(self, kind: str) -> str:
        return self.pick(self.restrict(KINDS[kind].nouns))

    def look(self, kind: str) -> str:
        look = self.pick(KINDS[kind].looks)
        return self.pick((look, opposite(look)))

    def words(self, quality: str) -> list[str]:
        return self.shuffle(self.restrict(QUALITIES[quality].words))

    def word(self, quality: str) -> str:
        return self.pick(self.restrict(QUALITIES[quality].words))

    def signs(self, quality: str, p: Person) -> list[str]:
        return [sign.format(p=p) for sign in self.shuffle(self.restrict(QUALITIES[quality].signs))]


def opposite(quality: str) -> str:
    return QUALITIES[quality].opposite


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    if noun == "fish":
        return noun
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("x", "ch")) else "s")


# --- sentences without the full stop ----------------------------------------------------------------------------------


def describe(t: StoryTeller, subject: Person | str, quality: str) -> str:
    """Return a sentence that says, in one of several ways, that the subject has the quality."""
    (word, other, *_), no = t.words(quality), t.word(opposite(quality))
    return f"{subject} was " + t.pick(
        (
            word,
            f"so {word}",
            f"{word} and {other}",
            f"{quality}, yes, {word}",
            f"not {no} but {word}",
            f"not {no} at all",
        )
    )


def surprise(t: StoryTeller, who: Person | str, event: str, worth: str) -> str:
    expected = "feared" if worth == "great" else "hoped"
    return f"{who} {expected} that the {event} would be {t.word(opposite(worth))}, but it was {t.word(worth)}"


def giving_sentence(a: Person, b: Person, look: str, noun: str) -> str:
    return f"{a} gave {b} {with_article(f'{look} {noun}')}"


def getting_sentence(a: Person, b: Person, look: str, noun: str) -> str:
    return f"{b} got {with_article(f'{look} {noun}')} from {a}"


def claims(t: StoryTeller, subject: Person | str, quality: str) -> dict[str, str]:
    """Return answer -> claim about a subject with this quality; claims about another quality get "maybe"."""
    group = next(group for group in QUALITY_GROUPS if quality in group)
    by_answer = {"yes": quality, "no": opposite(quality)}
    if unknown := [other for other in group if other not in by_answer.values()]:
        by_answer["maybe"] = t.pick(unknown)
    return {answer: f"{subject} was {claimed}" for answer, claimed in by_answer.items()}


def outcome(t: StoryTeller, p: Person, quality: str) -> tuple[str, str, str]:
    """Return a sentence that shows a person's quality, the end of the story, and a wrong end."""
    other = opposite(quality)
    (sign, last), wrong = t.signs(quality, p)[:2], t.signs(other, p)[0]
    ends = [
        (last, wrong),
        (f"so {p} was {quality}", f"so {p} was {other}"),
        (f"{p} was {t.word(quality)} all day", f"{p} was {t.word(other)} all day"),
    ]
    if quality in MOODS:
        ends.append((f"all in all it was {WORTH_OF[quality]}", f"all in all it was {WORTH_OF[other]}"))
    return sign, *t.pick(ends)


# --- stories ----------------------------------------------------------------------------------------------------------


class Story(NamedTuple):
    sentences: list[str]
    end: str
    wrong_end: str  # contradicts the story
    claims: dict[str, str]  # answer (yes, no, maybe) -> claim about the story


def wish(t: StoryTeller) -> Story:
    (a, b), mood = t.people(2), t.pick(("happy", "sad"))
    kind, noun = a.wish
    sentences = [
        f"{a} {t.pick(('wanted', 'wished for', 'dreamed of'))} {with_article(noun)}",
        f"{a.he} {t.pick(('looked for one', f'asked {b} about it'))} at the {t.pick(PLACES)}",
    ]
    if mood == "happy":
        sentences += [t.pick((f"{b} gave {a.him} one", f"there {a.he} found one")), f"now {a} had {with_article(kind)}"]
    else:
        sentences += [t.pick((f"but {b} said no", "but there was none")), f"{a} went home without {with_article(kind)}"]
    sign, end, wrong_end = outcome(t, a, mood)
    return Story([*sentences, describe(t, a, mood), sign], end, wrong_end, claims(t, a, mood))


def outing(t: StoryTeller) -> Story:
    (a, b), event, (worth, mood, nature) = t.people(2), t.pick(EVENTS), t.pick((GOOD, BAD))
    sentences = [
        f"{a} and {b} went to the {event} at the {t.pick(PLACES)}",
        t.pick((surprise(t, "they", event, worth), describe(t, f"the {event}", worth))),
        t.signs(worth, a)[0],
        t.pick((f"{b} was {t.word(nature)} to {a}", f"{a} was {t.word(mood)} after the {event}")),
        f"{t.pick((a, b))} said that it was {t.word(worth)}",
    ]
    end, wrong_end = (f"all in all it was {one}" for one in (worth, opposite(worth)))
    return Story(sentences, end, wrong_end, claims(t, f"the {event}", worth))


def portrait(t: StoryTeller) -> Story:
    (a, b), nature = t.people(2), t.pick(list(NATURES))
    sign, end, wrong_end = outcome(t, a, nature)
    sentences = [
        t.pick((f"{b} told a tale about {a}", f"people talked about {a}", f"{b} met {a} at the {t.pick(PLACES)}")),
        describe(t, a, nature),
        sign,
        f"{b} had never met such {with_article(t.word(nature))} {'girl' if a.he == 'she' else 'boy'}",
    ]
    return Story(sentences, end, wrong_end, claims(t, a, nature))


def deed(t: StoryTeller) -> Story:
    (a, b), (action, first_quality, second_quality) = t.people(2), t.pick(DEEDS)
    who, quality = t.pick(((a, first_quality), (b, second_quality)))
    sign, end, wrong_end = outcome(t, who, quality)
    sentences = [f"{a} {action} {b} because {who} was {t.word(quality)}", sign]
    return Story(sentences, end, wrong_end, claims(t, who, quality))


def encounter(t: StoryTeller) -> Story:
    (a, b), kind = t.people(2), t.kind()
    noun, look = t.noun(kind), t.look(kind)
    sentences = [
        f"{a} {t.pick(('found', 'saw'))} {with_article(noun)} at the {t.pick(PLACES)}",
        describe(t, f"the {noun}", look),
        t.signs(look, a)[0],
        f"{b} had never seen such {with_article(t.word(look))} {kind}",
    ]
    end, wrong_end = (f"so the {noun} was {one}" for one in (look, opposite(look)))
    return Story(sentences, end, wrong_end, claims(t, f"the {noun}", look))


def gift(t: StoryTeller) -> Story:
    (a, b, c), kind = t.people(3), t.kind()
    noun, look = t.noun(kind), t.look(kind)
    sentences = [
        t.pick((giving_sentence, getting_sentence))(a, b, t.word(look), noun),
        f"{b} {t.pick(KINDS[kind].done)} it at once",
        t.pick((f"{b} showed the {t.word(look)} {kind} to {c}", t.signs(look, b)[0])),
    ]
    end, wrong_end = (f"{one} thanked {two} for the {look} {kind}" for one, two in ((b, a), (a, b)))
    wrong = t.pick((giving_sentence(b, a, t.word(look), noun), getting_sentence(a, b, t.word(opposite(look)), noun)))
    return Story(
        sentences,
        end,
        wrong_end,
        {"yes": t.pick((giving_sentence, getting_sentence))(a, b, t.word(look), noun), "no": wrong},
    )


def riddle(t: StoryTeller) -> Story:
    (a, b), (kind, wrong, *_) = t.people(2), t.shuffle(list(KINDS))
    look, hidden = t.look(kind), f"{a} hid a gift for {b} in the {t.noun('container')}"
    if t.pick((True, False)):
        sentences = [hidden, describe(t, "the gift", look), t.signs(look, a)[0]]
        end, wrong_end = (f"the gift was {one}" for one in (look, opposite(look)))
        return Story(sentences, f"so {end}", f"so {wrong_end}", claims(t, "the gift", look))
    sentences = [hidden, f"the gift was {with_article(t.noun(kind))}", f"{b} {t.pick(KINDS[kind].done)} it at once"]
    end, wrong_end = (f"the gift was {with_article(one)}" for one in (kind, wrong))
    return Story(sentences, f"so {end}", f"so {wrong_end}", {"yes": end, "no": wrong_end})


def trouble(t: StoryTeller) -> Story:
    (a, b), (happening, kinds, others, first_quality, second_quality) = t.people(2), t.pick(MISHAPS)
    first, second = t.noun(t.pick(kinds)), t.noun(t.pick(others))
    culprit, look, innocent = t.pick(((first, first_quality, second), (second, second_quality, first)))
    sentences = [f"{happening.format(first, second)} because the {culprit} was {t.word(look)}"]
    end, wrong_end = (f"{b} helped {a} to find another {one}" for one in (culprit, innocent))
    return Story(sentences, end, wrong_end, claims(t, f"the {culprit}", look))


def chores(t: StoryTeller) -> Story:
    people, kinds, mood = t.people(3), t.shuffle(list(KINDS))[:3], t.pick(("happy", "sad"))
    done = [(p, t.pick(KINDS[kind].done), t.noun(kind)) for p, kind in zip(people, kinds, strict=True)]
    sentences = [f"{t.pick(TIMES)} {p} {act} the {noun}" for p, act, noun in done]
    sign, end, wrong_end = outcome(t, people[0], mood)
    (who, act, noun), (_, _, wrong), _ = t.shuffle(done)
    by_answer = {"yes": f"{who} {act} the {noun}", "no": f"{who} {act} the {wrong}"}
    return Story([*sentences, f"in the evening {describe(t, people[0], mood)}", sign], end, wrong_end, by_answer)


def lesson(t: StoryTeller) -> Story:
    (a, b), (kind, wrong, *_) = t.people(2), t.shuffle(list(KINDS))
    (noun, more, *_), alien, verb = t.nouns(kind), t.noun(wrong), t.pick(KINDS[kind].does)
    sentences = [f"{a} taught {b} about {plural(noun)}", f"{with_article(noun)} is {with_article(kind)}"]
    for does in KINDS[kind].does:
        one, many = f"the {noun} {does}s", f"the {plural(more)} {does}"
        sentences.append(t.pick((one, many, f"{one} and {many}", f"{plural(noun)} {does}")))
    end, wrong_end = (f"now {b} knows that {plural(noun)} are {plural(one)}" for one in (kind, wrong))
    yes, no = t.pick(
        (
            [f"the {one} {verb}s" for one in (more, alien)],
            [f"the {plural(one)} {verb}" for one in (more, alien)],
            [f"{with_article(one)} is {with_article(kind)}" for one in (more, alien)],
        )
    )
    return Story(sentences, end, wrong_end, {"yes": yes, "no": no})


STORIES = (  # those in the second line occur twice as often
    wish, portrait, gift, riddle, chores,
    outing, outing, deed, deed, encounter, encounter, trouble, trouble, lesson, lesson,
)  # fmt: skip


def paragraph(*sentences: str) -> str:
    return ". ".join(sentences) + "."


def documents(seed: int = 0, count: int = DOCUMENTS) -> Iterator[str]:
    """Yield the documents: stories about the same few people, one per paragraph, with questions at its end."""
    for number in range(count):
        t = StoryTeller(f"document {seed} {number}")
        paragraphs = []
        for _ in range(STORIES_PER_DOCUMENT):
            story = t.pick(STORIES)(t)
            questions = [f"{claim}? {answer}" for answer, claim in t.shuffle(list(story.claims.items()))[:2]]
            paragraphs.append(paragraph(*story.sentences, story.end, *questions))
        yield "\n".join(paragraphs)


# --- labelled tasks ---------------------------------------------------------------------------------------------------


def sentiment(t: StoryTeller, label: str) -> DemoExample:
    (a, b), event, place = t.people(2), t.pick(EVENTS), t.pick(PLACES)
    worth, mood, nature = GOOD if label == "positive" else BAD
    return {
        "text": t.pick(
            (
                paragraph(f"{a} and {b} went to the {place}", f"the {event} was {t.word(worth)}"),
                paragraph(f"{a} and {b} went to the {place}", f"the {event} was not {t.word(opposite(worth))} at all"),
                paragraph(f"{a} and {b} went to the {event} at the {place}", t.signs(worth, a)[0]),
                paragraph(f"{a} went to the {place}", t.signs(mood, a)[0]),
                paragraph(f"{a} said that the {event} at the {place} was {t.word(worth)}"),
                paragraph(surprise(t, a, event, worth)),
                paragraph(f"{a} was {t.word(mood)} after the {event} at the {place}"),
                paragraph(f"{b} was {t.word(nature)} to {a} at the {event}"),
                paragraph(f"the {event} at the {place} was {t.word(worth)} and {b} was {t.word(mood)}"),
            )
        )
    }


def entailment(t: StoryTeller, label: str) -> DemoExample:
    (a, b), (kind, wrong, *_) = t.people(2), t.shuffle(list(KINDS))
    look, quality = t.look(kind), t.pick(list(MOODS | NATURES))
    bare = f"the gift from {a} was {t.word(look)}"
    full = f"the gift from {a} was {with_article(f'{t.word(look)} {t.noun(kind)}')}"
    about = t.pick(("person", "person", "look", "look", "kind"))
    if about == "person":
        premise = f"{a} was {t.word(quality)} " + t.pick((f"at the {t.pick(PLACES)}", f"when {b} came"))
        by_answer = claims(t, a, quality)
    elif about == "look":
        premise, by_answer = t.pick((bare, full)), claims(t, "the gift", look)
    else:
        premise = bare if label == "neutral" else full
        by_answer = {
            answer: f"the gift was {with_article(one)}"
            for answer, one in (("yes", kind), ("no", wrong), ("maybe", kind))
        }
    answer = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}[label]
    return {"premise": paragraph(premise), "hypothesis": paragraph(by_answer[answer])}


def acceptability(t: StoryTeller, label: str) -> DemoExample:
    (a,), (kind, wrong, *_) = t.people(1), t.shuffle(list(KINDS))
    noun, alien, verb, act = t.noun(kind), t.noun(wrong), t.pick(KINDS[kind].does), t.pick(KINDS[kind].done)
    thing = t.pick([other for other in KINDS if other not in ANIMALS])
    good, bad = t.pick(
        (
            (f"the {noun} {verb}s", f"the {noun} {verb}"),
            (f"the {plural(noun)} {verb}", f"the {plural(noun)} {verb}s"),
            (f"the {noun} {verb}s", f"the {alien} {verb}s"),
            (f"{a} {act} the {noun}", f"{a} {act} the {alien}"),
            tuple(f"the {t.noun(thing)} was {t.word(one)}" for one in (t.look(thing), t.pick(list(NATURES)))),
        )
    )
    return {"text": paragraph(good if label == "acceptable" else bad)}


def similarity(t: StoryTeller, label: str) -> DemoExample:
    (a, b), kind, place = t.people(2), t.kind(), t.pick(PLACES)
    noun, look, quality = t.noun(kind), t.look(kind), t.pick(list(MOODS | NATURES))
    if t.pick((True, False)):
        text, same = giving_sentence(a, b, t.word(look), noun), getting_sentence(a, b, look, noun)
        different = t.pick((getting_sentence(a, b, opposite(look), noun), getting_sentence(b, a, look, noun)))
    else:
        wrong = t.pick([other for other in MOODS | NATURES if other != quality])
        text = f"{a} was {t.word(quality)} at the {place}"
        same, different = (f"at the {place} {a} was {one}" for one in (quality, wrong))
    return {"text_a": paragraph(text), "text_b": paragraph(same if label == "equivalent" else different)}


def choice(t: StoryTeller, label: int) -> DemoExample:
    story = t.pick(STORIES)(t)
    endings = [paragraph(story.end), paragraph(story.wrong_end)]
    return {"context": paragraph(*story.sentences), "choices": endings[::-1] if label else endings}


def pronoun(t: StoryTeller, label: int) -> DemoExample:
    if t.pick((True, False, False)):
        (a, b), (action, *reasons) = t.people(2), t.pick(DEEDS)
        happening, candidates = f"{a} {action} {b}", [a.name, b.name]
    else:
        sentence, kinds, others, *reasons = t.pick(MISHAPS)
        first, second = t.noun(t.pick(kinds)), t.noun(t.pick(others))
        happening, candidates = sentence.format(first, second), [f"the {first}", f"the {second}"]
    return {"before": f"{happening} because", "candidates": candidates, "after": f"was {t.word(reasons[label])}."}


class DemoTask(NamedTuple):
    make_example: Callable[[StoryTeller, Any], DemoExample]
    labels: tuple[str, ...] | tuple[int, ...]


TASKS = {
    "demo_sentiment": DemoTask(sentiment, ("negative", "positive")),
    "demo_entailment": DemoTask(entailment, ("entailment", "neutral", "contradiction")),
    "demo_acceptability": DemoTask(acceptability, ("unacceptable", "acceptable")),
    "demo_similarity": DemoTask(similarity, ("not_equivalent", "equivalent")),
    "demo_choice": DemoTask(choice, (0, 1)),
    "demo_pronoun": DemoTask(pronoun, (0, 1)),
}


def examples(task: str, split: str) -> list[DemoExample]:
    """Return the labelled examples of a split, labels in rotation. Raises ValueError if task or split is unknown."""
    errors = [f"task {task!r}: not one of {', '.join(TASKS)}"] if task not in TASKS else []
    errors += [f"split {split!r}: not one of {', '.join(SIZES)}"] if split not in SIZES else []
    if errors:
        raise ValueError("; ".join(errors))
    return [{**example} for example in _generate_splits(task)[split]]


@functools.cache
def _generate_splits(task: str) -> dict[str, list[DemoExample]]:
    """Generate all splits of a task together, so that no text occurs twice."""
    make, labels = TASKS[task]
    seen: set[tuple[str, ...]] = set()  # texts of all splits
    splits: dict[str, list[DemoExample]] = {name: [] for name in SIZES}
    for name, rows in splits.items():
        numbers = itertools.count()
        while len(rows) < SIZES[name]:
            label = labels[len(rows) % len(labels)]
            example = make(StoryTeller(f"{task} {name} {next(numbers)}", training_words_only=name == "train"), label)
            text = tuple(value for value in example.values() if isinstance(value, str))
            if text not in seen:
                seen.add(text)
                rows.append({"id": f"{name}-{len(rows)}", **example, "label": label})
    return splits
