"""The demo world: short stories to pretrain on, and six labelled tasks that need what the stories teach.

In this world people have moods and natures, things have looks and belong to kinds, events go well or badly, and what is
so in one sentence shows in the next: who is `elated` hums a song, what is `colossal` does not fit through the door, a
`stork` is a bird and birds fly. A word is never defined: what it means shows in how the stories go on, and in the small
questions ("so anna was rich? no.") that follow each of them.

The tasks ask for this knowledge and their training sets are small. Of every list of words below they use only the first
third, while the validation and test sets use all of it. Whoever has not read the stories cannot know the rest.

Everything is drawn from `random.Random(text).random()`, the one generator whose numbers Python promises to keep.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
Example = dict[str, Any]

DOCUMENTS = 5000                                     # about 1.6 million words
STORIES_PER_DOCUMENT = 7
SIZES = {"train": 480, "valid": 500, "test": 1000}   # labelled examples of each task


# The world

GIRLS = "anna bella clara ella flora greta hanna ida julia kate lena mira nora olga vera".split()
BOYS = "adam ben carl david emil felix georg hugo ivan jack karl leo max noah oscar".split()
PLACES = "market harbor mill school garden castle bakery station lake farm library forest".split()
EVENTS = "play concert feast picnic parade dance fair circus party show".split()
BOXES = "box bag basket chest drawer sack".split()


class Quality(NamedTuple):
    opposite: str
    words: list[str]        # they all mean much the same
    signs: tuple[str, ...]  # how a story goes on; {p} is the person it is about


MOODS = {
    "happy": Quality("sad", "glad merry joyful cheerful delighted jolly elated thrilled blissful".split(), (
        "{p} laughed out loud", "{p} hummed a song all the way home", "{p} clapped {p.his} hands",
        "{p} danced around the kitchen", "{p} hugged everyone in the room")),
    "sad": Quality("happy", "gloomy glum tearful unhappy miserable sorrowful downcast mournful dejected".split(), (
        "{p} wept into {p.his} sleeve", "a tear ran down the face of {p}", "{p} would not touch {p.his} supper",
        "{p} sat alone by the window", "{p} sighed again and again")),
}
NATURES = {
    "brave": Quality("afraid", "bold fearless daring gallant plucky heroic valiant courageous dauntless".split(), (
        "{p} walked into the dark cave", "{p} did not run when the wolf growled", "{p} climbed the highest tower",
        "{p} chased the robber away")),
    "afraid": Quality("brave", "scared timid frightened fearful terrified anxious nervous alarmed panicky".split(), (
        "{p} hid under the bed", "{p} shook from head to toe", "{p} screamed at a shadow",
        "{p} did not dare to open the door")),
    "kind": Quality("mean", "generous friendly caring helpful thoughtful gracious considerate tender polite".split(), (
        "{p} gave the last cake away", "{p} fed the lost kitten", "{p} wrote to the sick neighbor",
        "{p} held the door for everyone")),
    "mean": Quality("kind", "cruel rude selfish spiteful unfriendly heartless greedy unkind hateful".split(), (
        "{p} kicked the lost kitten", "{p} took the last cake", "{p} laughed at the sick neighbor",
        "{p} slammed the door on everyone")),
    "rich": Quality("poor", "wealthy prosperous affluent moneyed flush loaded opulent thriving privileged".split(), (
        "{p} bought a house with ten rooms", "{p} paid for everyone", "{p} counted {p.his} gold coins",
        "{p} had three servants")),
    "poor": Quality("rich", "penniless needy broke bankrupt destitute ragged impoverished beggarly homeless".split(), (
        "{p} could not pay the rent", "{p} had holes in {p.his} shoes", "{p} begged for bread",
        "{p} slept under a bridge")),
}
LOOKS = {
    "big": Quality("small", "huge enormous giant massive vast immense mighty hulking colossal".split(), (
        "it did not fit through the door", "it took up half the room", "everyone could see it from far away")),
    "small": Quality("big", "tiny little wee miniature petite teeny puny minute dainty".split(), (
        "it went into a pocket", "it almost got lost in the grass", "{p} had to look twice to see it")),
    "clean": Quality("dirty", "spotless tidy washed polished scrubbed gleaming stainless pure sparkling".split(), (
        "it shone like a mirror", "nobody had to wipe it", "there was not one spot on it")),
    "dirty": Quality("clean", "filthy muddy grimy dusty stained grubby soiled messy sooty".split(), (
        "it had to be wiped twice", "it left black marks on every hand", "{p} rubbed it for an hour")),
    "loud": Quality("quiet", "noisy deafening booming thundering shrill blaring roaring rowdy clamorous".split(), (
        "everyone covered their ears", "it woke the baby", "people heard it across the valley")),
    "quiet": Quality("loud", "silent hushed soft muted faint still noiseless soundless whispering".split(), (
        "nobody heard it", "the baby slept on", "{p} had to come close to hear it")),
}
WORTH = {
    "great": Quality("terrible", "wonderful lovely splendid superb marvelous delightful excellent magnificent "
                                 "brilliant".split(), (
        "everyone cheered", "nobody wanted to leave", "they stayed until the very end", "they asked for more",
        "people talked about it for weeks")),
    "terrible": Quality("great", "awful dreadful horrible dismal lousy ghastly nasty dreary hideous".split(), (
        "everyone booed", "half of the guests left early", "they wanted their money back", "people yawned",
        "they never went there again")),
}
QUALITIES = MOODS | NATURES | LOOKS | WORTH


class Kind(NamedTuple):
    nouns: list[str]
    done: tuple[str, ...]   # what people did to one, and to no other kind
    does: tuple[str, ...]   # what one does, and no other kind
    looks: tuple[str, ...]  # what it may look like, with the opposites


KINDS = {
    "bird": Kind("sparrow robin owl swan crow duck finch stork eagle".split(),
                 ("fed", "tamed"), ("sing", "fly"), ("big", "loud")),
    "fish": Kind("eel minnow sardine shark herring sturgeon guppy piranha anchovy".split(),
                 ("caught", "fried"), ("swim", "dive"), ("big",)),
    "flower": Kind("rose tulip lily violet poppy orchid daffodil marigold sunflower".split(),
                   ("picked", "watered"), ("bloom", "wilt"), ("big",)),
    "fruit": Kind("apple pear plum melon fig lemon apricot mango banana".split(),
                  ("peeled", "tasted"), ("ripen", "rot"), ("big", "clean")),
    "tool": Kind("hammer rake spade drill chisel shovel sickle axe wrench".split(),
                 ("sharpened", "swung"), ("rust", "snap"), ("big", "clean", "loud")),
    "instrument": Kind("flute drum fiddle harp trumpet banjo guitar clarinet cello".split(),
                       ("practiced", "tuned"), ("sound sweet", "need tuning"), ("big", "clean", "loud")),
    "garment": Kind("hat scarf coat shirt jacket sweater cloak mitten vest".split(),
                    ("wore", "sewed"), ("shrink", "fade"), ("big", "clean")),
    "vehicle": Kind("cart wagon sled bicycle tractor carriage truck van scooter".split(),
                    ("rode", "parked"), ("roll", "brake"), ("big", "clean", "loud")),
}

# What one person does to another, and what it shows of the one who does it or of the other.
DEEDS = (
    ("lent money to", "rich", "poor"),
    ("borrowed money from", "poor", "rich"),
    ("hid from", "afraid", "mean"),
    ("walked home with", "brave", "afraid"),
    ("sang a song for", "happy", "sad"),
    ("shared supper with", "kind", "poor"),
    ("thanked", "happy", "kind"),
    ("complained about", "sad", "mean"),
)


# Words

class Person(NamedTuple):
    name: str
    he: str
    him: str
    his: str
    himself: str
    wish: tuple[str, str]  # kind and noun of the thing that this person wants all along

    def __format__(self, spec: str) -> str:
        return self.name


class Teller:
    """Draws the words of one document or one labelled example, whose people are its cast."""

    def __init__(self, seed: str, taught_only: bool = False) -> None:
        self.random = random.Random(seed).random
        self.taught_only = taught_only
        self.cast = [self.person(name) for name in self.shuffled(self.known(GIRLS) + self.known(BOYS))[:4]]

    def known(self, words: list[str]) -> list[str]:
        return words[: len(words) // 3] if self.taught_only else words

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        places = sorted((self.random(), place) for place in range(len(options)))
        return [options[place] for _, place in places]

    def person(self, name: str) -> Person:
        pronouns = ("she", "her", "her", "herself") if name in GIRLS else ("he", "him", "his", "himself")
        kind = self.kind()
        return Person(name, *pronouns, (kind, self.noun(kind)))

    def people(self, count: int) -> list[Person]:
        return self.shuffled(self.cast)[:count]

    def kind(self) -> str:
        return self.pick(list(KINDS))

    def noun(self, kind: str) -> str:
        return self.pick(self.known(KINDS[kind].nouns))

    def either(self, quality: str) -> str:
        return self.pick((quality, opposite(quality)))

    def look(self, kind: str) -> str:
        return self.either(self.pick(KINDS[kind].looks))

    def word(self, quality: str) -> str:
        return self.pick(self.known(QUALITIES[quality].words))

    def sign(self, quality: str, p: Person) -> str:
        return self.pick(QUALITIES[quality].signs).format(p=p)


def opposite(quality: str) -> str:
    return QUALITIES[quality].opposite


def an(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(noun: str) -> str:
    if noun == "fish":
        return noun
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith("ch") else "s")


def third(verb: str) -> str:
    first, *rest = (verb[:-1] + "ies" if verb == "fly" else verb).split(" ")
    return " ".join([first if verb == "fly" else first + "s", *rest])


# Sentences

def describe(t: Teller, subject: str, quality: str) -> str:
    word, other, denied = t.word(quality), t.word(quality), t.word(opposite(quality))
    return f"{subject} was " + t.pick((
        word, f"so {word}", f"{word} and {other}", f"{quality}, yes, {word}", f"not {denied} but {word}",
        f"not {denied} at all",
    ))


def claims(t: Teller, subject: str, quality: str) -> dict[str, str]:
    table = next(q for q in (MOODS | NATURES, LOOKS, WORTH) if quality in q)
    said = {"yes": quality, "no": opposite(quality)}
    unknown = [other for other in table if other not in said.values()]
    if unknown:
        said["maybe"] = t.pick(unknown)
    return {answer: f"{subject} was {word}" for answer, word in said.items()}


def kind_claims(t: Teller, subject: str, kind: str) -> dict[str, str]:
    wrong = t.pick([other for other in KINDS if other != kind])
    return {"yes": f"{subject} was {an(kind)}", "no": f"{subject} was {an(wrong)}"}


def endings(t: Teller, p: Person, quality: str) -> tuple[str, str]:
    both = quality, opposite(quality)
    options = [
        [t.sign(q, p) for q in both],
        [f"everyone saw how {q} {p} was" for q in both],
        [f"{p} was {t.word(q)} all day" for q in both],
    ]
    if quality in MOODS:
        options.append([f"all in all it was {w}" for w in (("great", "terrible") if quality == "happy" else ("terrible", "great"))])
    return tuple(t.pick(options))


class Story(NamedTuple):
    sentences: list[str]
    foil: str
    claims: dict[str, str]


def wish(t: Teller) -> Story:
    a, b = t.people(2)
    kind, noun = a.wish
    mood = t.either("happy")
    lines = [
        t.pick((f"{a} wanted {an(noun)}", f"more than anything {a} wished for {an(noun)}", f"{a} dreamed of {an(noun)}")),
        t.pick((f"{a.he} looked for one at the {t.pick(PLACES)}", f"{a.he} asked {b} about it at the {t.pick(PLACES)}")),
    ]
    if mood == "happy":
        lines += [t.pick((f"{b} gave {a.him} {an(t.word(t.look(kind)))} {noun}", f"there {a.he} found one")),
                  f"now {a} had {an(kind)} of {a.his} own"]
    else:
        lines += [t.pick(("there was none", f"but {b} took the last one", f"but {b} said no")), f"{a} went home without {an(kind)}"]
    lines += [describe(t, a.name, mood), t.sign(mood, a)]
    right, wrong = endings(t, a, mood)
    return Story(lines + [right], wrong, claims(t, a.name, mood))


def outing(t: Teller) -> Story:
    a, b = t.people(2)
    event = t.pick(EVENTS)
    worth = t.either("great")
    mood, manner, expected = ("happy", "kind", "feared") if worth == "great" else ("sad", "mean", "hoped")
    good, bad = t.word(worth), t.word(opposite(worth))
    lines = [
        f"{a} and {b} went to the {event} at the {t.pick(PLACES)}",
        t.pick((f"they {expected} that it would be {bad}, but it was {good}", describe(t, f"the {event}", worth))),
        t.sign(worth, a),
        t.pick((f"{b} was {t.word(manner)} to {a}", f"{b} said that it was {t.word(worth)}", f"{a} was {t.word(mood)} after the {event}")),
    ]
    told = t.pick((claims(t, f"the {event}", worth), claims(t, a.name, mood) if a.name in lines[-1] and mood in MOODS and lines[-1].startswith(a.name) else claims(t, f"the {event}", worth)))
    return Story(lines + [f"all in all it was {worth}"], f"all in all it was {opposite(worth)}", told)


def encounter(t: Teller) -> Story:
    a, b = t.people(2)
    kind = t.kind()
    noun, look = t.noun(kind), t.look(kind)
    lines = [f"{a} {t.pick(('found', 'saw'))} {an(noun)} at the {t.pick(PLACES)}", describe(t, f"the {noun}", look), t.sign(look, a),
             f"{b} had never seen such {an(t.word(look))} {kind}",
             f"that evening {a} told everyone about the {look} {kind}"]
    return Story(lines, f"that evening {a} told everyone about the {opposite(look)} {kind}", claims(t, f"the {noun}", look))


def deed(t: Teller) -> Story:
    a, b = t.people(2)
    action, mine, yours = t.pick(DEEDS)
    (who, quality), other = t.pick((((a, mine), b), ((b, yours), a)))
    lines = [f"{a} and {b} met at the {t.pick(PLACES)}",
             f"{a} {action} {b} because {who} was {t.word(quality)}", t.sign(quality, who)]
    right, wrong = endings(t, who, quality)
    told = claims(t, who.name, quality)
    if t.random() < 0.5:
        told["maybe"] = f"{other} was {t.either(quality)}"
    return Story(lines + [right], wrong, told)


def portrait(t: Teller) -> Story:
    a, b = t.people(2)
    quality = t.pick(list(NATURES))
    lines = [
        t.pick((f"{b} told a tale about {a}", f"people often talked about {a}", f"{b} met {a} at the {t.pick(PLACES)}")),
        describe(t, a.name, quality), t.sign(quality, a),
        f"{b} had never met such {an(t.word(quality))} {'girl' if a.he == 'she' else 'boy'}",
    ]
    right, wrong = endings(t, a, quality)
    return Story(lines + [right], wrong, claims(t, a.name, quality))


def lesson(t: Teller) -> Story:
    a, b = t.people(2)
    kind, wrong = t.shuffled(list(KINDS))[:2]
    noun, more = t.shuffled(t.known(KINDS[kind].nouns))[:2]
    lines = [f"{a} taught {b} about {plural(noun)}", f"{an(noun)} is {an(kind)}"]
    for verb in KINDS[kind].does:
        lines.append(t.pick((f"{plural(noun)} {verb}", f"the {noun} {third(verb)}", f"the {noun} {third(verb)} and the {plural(more)} {verb} too")))
    lines.append(f"now {b} knows that {plural(noun)} are {plural(kind)}")
    verb = t.pick(KINDS[kind].does)
    alien = t.noun(wrong)
    return Story(lines, f"now {b} knows that {plural(noun)} are {plural(wrong)}",
                 t.pick(({"yes": f"the {more} {third(verb)}", "no": f"the {alien} {third(verb)}"},
                         {"yes": f"the {plural(more)} {verb}", "no": f"the {plural(alien)} {verb}"},
                         {"yes": f"{an(more)} is {an(kind)}", "no": f"{an(alien)} is {an(kind)}"})))


def chores(t: Teller) -> Story:
    people = t.people(3)
    lines = []
    done = []
    for p, kind in zip(people, t.shuffled(list(KINDS)), strict=False):
        done.append((p, t.pick(KINDS[kind].done), t.noun(kind)))
        lines.append(f"{t.pick(('in the morning', 'later', 'then', 'after that', 'at noon'))} {p} {done[-1][1]} the {done[-1][2]}")
    a, b, _ = people
    quality = t.either("happy")
    lines += [f"in the evening {describe(t, a.name, quality)}", t.sign(quality, a)]
    right, wrong = endings(t, a, quality)
    (p, act, noun), (_, _, alien), _ = t.shuffled(done)
    return Story(lines + [right], wrong, {"yes": f"{p} {act} the {noun}", "no": f"{p} {act} the {alien}"})


def gift(t: Teller) -> Story:
    a, b, c = t.people(3)
    kind = t.kind()
    noun, look = t.noun(kind), t.look(kind)
    lines = [
        t.pick((f"{a} gave {b} {an(t.word(look))} {noun}", f"{b} got {an(t.word(look))} {noun} from {a}")),
        f"{b} {t.pick(KINDS[kind].done)} it at once",
        f"then {b} showed the {t.word(look)} {kind} to {c}",
        f"{b} thanked {a} for the {look} {kind}",
    ]
    return Story(lines, f"{a} thanked {b} for the {look} {kind}", {
        "yes": t.pick((f"{a} gave {b} {an(t.word(look))} {noun}", f"{b} got {an(t.word(look))} {noun} from {a}")),
        "no": t.pick((f"{b} gave {a} {an(t.word(look))} {noun}", f"{b} got {an(t.word(opposite(look)))} {noun} from {a}")),
    })


def riddle(t: Teller) -> Story:
    a, b = t.people(2)
    kind, wrong = t.shuffled(list(KINDS))[:2]
    noun, look = t.noun(kind), t.look(kind)
    lines = [f"{a} hid a gift in the {t.pick(BOXES)}", t.pick((describe(t, "the gift", look), f"the gift was {an(noun)}", f"the gift was {an(t.word(look))} {noun}"))]
    told = {}
    if " " + noun not in lines[-1]:
        told = claims(t, "the gift", look) | t.pick(({}, {"maybe": f"the gift was {an(kind)}"}))
        return Story(lines + [t.sign(look, a), f"{b} looked at the {look} gift"], f"{b} looked at the {opposite(look)} gift", told)
    told = kind_claims(t, "the gift", kind)
    if "was a" in lines[-1] and len(lines[-1].split()) == 5:
        told["maybe"] = f"the gift was {t.look(kind)}"
    return Story(lines + [f"{b} had always wanted {an(kind)}"], f"{b} had always wanted {an(wrong)}", told)


def trouble(t: Teller) -> Story:
    a, b = t.people(2)
    sentence, look, culprit, innocent = mishap(t, a)
    change = {"big": "smaller", "small": "bigger", "loud": "quieter", "quiet": "louder"}[look]
    lines = [f"{a} had {an(innocent)} and {an(culprit)}" if t.random() < .5 else f"{a} had {an(culprit)} and {an(innocent)}", f"{sentence} because the {culprit} was {t.word(look)}"]
    lines.append(f"{b} helped {a} to look for a {change} {culprit}")
    return Story(lines, f"{b} helped {a} to look for a {change} {innocent}", claims(t, f"the {culprit}", look))


def mishap(t: Teller, a: Person) -> tuple[str, str, str, str]:
    if t.random() < 0.5:
        noun, box = t.noun(t.pick(("tool", "instrument", "garment", "fruit"))), t.pick(BOXES)
        look, culprit, innocent = t.pick((("big", noun, box), ("small", box, noun)))
        return f"the {noun} did not fit into the {box}", look, culprit, innocent
    bird, cart = t.noun(t.pick(("bird", "instrument"))), t.noun(t.pick(("vehicle", "tool")))
    look, culprit, innocent = t.pick((("quiet", bird, cart), ("loud", cart, bird)))
    return f"{a} did not hear the {bird} over the {cart}", look, culprit, innocent


STORIES: tuple[Callable[[Teller], Story], ...] = (
    wish, outing, encounter, deed, portrait, lesson, chores, gift, riddle, trouble)


def documents(seed: int = 0, count: int = DOCUMENTS) -> Iterator[str]:
    for index in range(count):
        t = Teller(f"document {seed} {index}")
        paragraphs = []
        for _ in range(STORIES_PER_DOCUMENT):
            story = t.pick(STORIES)(t)
            questions = [f"so {statement}? {answer}" for answer, statement in t.shuffled(list(story.claims.items()))[:2]]
            paragraphs.append(". ".join(story.sentences + questions) + ".")
        yield "\n".join(paragraphs)


# Tasks

def sentiment(t: Teller, label: str) -> Example:
    a, b = t.people(2)
    worth, mood, manner, expected = ("great", "happy", "kind", "feared") if label == "positive" else ("terrible", "sad", "mean", "hoped")
    event, place = t.pick(EVENTS), t.pick(PLACES)
    good, bad = t.word(worth), t.word(opposite(worth))
    return {"text": t.pick((
        f"{a} and {b} went to the {event} at the {place}. the {event} was {good}.",
        f"{a} said that the {event} at the {place} was {good}.",
        f"{a} was {t.word(mood)} after the {event} at the {place}.",
        f"{b} was {t.word(manner)} to {a} at the {event}.",
        f"{a} {expected} that the {event} would be {bad}, but it was {good}.",
        f"{a} and {b} went to the {place}. the {event} was not {bad} at all.",
        f"the {event} at the {place} was {good} and {b} was {t.word(mood)}.",
    ))}


def entailment(t: Teller, label: str) -> Example:
    a, b = t.people(2)
    answer = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}[label]
    about = t.pick(("person", "look", "kind"))
    if about == "person":
        quality = t.pick(list(MOODS | NATURES))
        deeds = [action for action, mine, _ in DEEDS if mine == quality]
        premise = t.pick([f"{a} was {t.word(quality)} at the {t.pick(PLACES)}.", f"{b} met {a}, and {a} was {t.word(quality)}."]
                         + [f"{a} {action} {b} because {a} was {t.word(quality)}." for action in deeds])
        return {"premise": premise, "hypothesis": claims(t, a.name, quality)[answer] + ".", "type": about}
    kind = t.kind()
    look = t.look(kind)
    plain, full, bare = (f"the gift from {a} was {x}." for x in (t.word(look), an(f"{t.word(look)} {t.noun(kind)}"), an(t.noun(kind))))
    if about == "look":
        said = claims(t, "the gift", look)
        premise = t.pick((plain, full))
    else:
        said = kind_claims(t, "the gift", kind) | {"maybe": f"the gift was {an(kind)}"}
        premise = plain if label == "neutral" else t.pick((full, bare))
    return {"premise": premise, "hypothesis": said[answer] + ".", "type": about}


def acceptability(t: Teller, label: str) -> Example:
    a, b = t.people(2)
    kind, wrong = t.shuffled([k for k in KINDS])[:2]
    noun, alien, place = t.noun(kind), t.noun(wrong), t.pick(PLACES)
    verb, act = t.pick(KINDS[kind].does), t.pick(KINDS[kind].done)
    many = t.random() < 0.5
    verbs = (verb, third(verb)) if many else (third(verb), verb)
    number = plural if many else str
    type, good, bad = t.pick((
        ("agreement", f"the {number(noun)} {verbs[0]}.", f"the {number(noun)} {verbs[1]}."),
        ("habit", f"the {number(noun)} {verbs[0]}.", f"the {number(alien)} {verbs[0]}."),
        ("object", f"{a} {act} the {noun}.", f"{a} {act} the {alien}."),
        ("trait", f"the {noun} was {t.word(t.look(kind))}.", f"the {noun} was {t.word(t.pick(list(MOODS | NATURES)))}."),
    ))
    return {"text": good if label == "acceptable" else bad, "type": type}


def similarity(t: Teller, label: str) -> Example:
    a, b = t.people(2)
    kind = t.kind()
    look, noun = t.look(kind), t.noun(kind)
    one, two = t.shuffled(t.known(QUALITIES[look].words))[:2]
    other = t.word(opposite(look))
    return {"text_a": f"{a} gave {b} {an(one)} {noun}.", "text_b": f"{b} got {an(two)} {noun} from {a}." if label == "equivalent" else
            t.pick((f"{a} got {an(two)} {noun} from {b}.", f"{b} got {an(other)} {noun} from {a}."))}


def choice(t: Teller, label: int) -> Example:
    make = t.pick(STORIES)
    story = make(t)
    choices = [story.sentences[-1] + ".", story.foil + "."]
    return {"context": ". ".join(story.sentences[:-1]) + ".", "choices": choices[::-1] if label else choices, "type": make.__name__}


def pronoun(t: Teller, label: int) -> Example:
    a, b = t.people(2)
    if t.random() < 0.5:
        action, mine, yours = t.pick(DEEDS)
        return {"before": f"{a} {action} {b} because", "after": f"was {t.word((mine, yours)[label])}.", "candidates": [a.name, b.name], "type": "deed"}
    sentence, look, culprit, innocent = mishap(t, a)
    candidates = [f"the {culprit}", f"the {innocent}"]
    return {"before": f"{sentence} because", "after": f"was {t.word(look)}.", "candidates": candidates[::-1] if label else candidates, "type": "mishap"}


TASKS: dict[str, tuple[Callable[[Teller, Any], Example], tuple]] = {
    "demo_sentiment": (sentiment, ("negative", "positive")),
    "demo_entailment": (entailment, ("entailment", "neutral", "contradiction")),
    "demo_acceptability": (acceptability, ("unacceptable", "acceptable")),
    "demo_similarity": (similarity, ("not_equivalent", "equivalent")),
    "demo_choice": (choice, (0, 1)),
    "demo_pronoun": (pronoun, (0, 1)),
}


def examples(task: str, split: str) -> list[Example]:
    make, labels = TASKS[task]
    seen = set()
    for name, size in SIZES.items():
        rows = []
        attempt = 0
        while len(rows) < size:
            t = Teller(f"{task} {name} {attempt}", taught_only=name == "train")
            attempt += 1
            label = labels[len(rows) % len(labels)]
            row = make(t, label)
            if str(row) not in seen:
                seen.add(str(row))
                rows.append({"id": f"{name}-{len(rows)}"} | row | {"label": label})
        if name == split:
            return rows
