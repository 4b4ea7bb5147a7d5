"""The demo world: short stories to pretrain on, and six labelled tasks that need what the stories teach."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

SIZES = {"train": 360, "valid": 500, "test": 1000}
TAUGHT = 3

GIRLS = "anna bella clara daisy ella flora greta hanna ida julia kate lena mira nora olga".split()
BOYS = "adam ben carl david emil felix georg hugo ivan jack karl leo max noah oscar".split()
PLACES = "market harbor mill school garden castle bakery station lake farm library forest".split()
EVENTS = "play concert feast picnic parade dance fair circus party show".split()
BOXES = "box bag basket chest drawer sack".split()


class Quality(NamedTuple):
    opposite: str
    words: list[str]
    signs: tuple[str, ...]


MOODS = {
    "happy": Quality("sad", "glad merry joyful cheerful delighted jolly elated thrilled blissful".split(), (
        "{p} laughed out loud", "{p} hummed a song all the way home", "{p} clapped {p.his} hands",
        "{p} danced around the kitchen", "{p} hugged everyone in the room")),
    "sad": Quality("happy", "gloomy glum tearful unhappy miserable sorrowful downcast mournful dejected".split(), (
        "{p} wept into {p.his} sleeve", "a tear ran down {p.his} cheek", "{p} would not touch {p.his} supper",
        "{p} sat alone by the window", "{p} sighed again and again")),
}
NATURES = {
    "brave": Quality("afraid", "bold fearless daring gallant plucky heroic valiant courageous dauntless".split(), (
        "{p} walked into the dark cave", "{p} stood still when the wolf growled", "{p} climbed the highest tower",
        "{p} chased the robber away")),
    "afraid": Quality("brave", "scared timid frightened fearful terrified anxious nervous alarmed panicky".split(), (
        "{p} hid under the bed", "{p} shook from head to toe", "{p} screamed at a shadow",
        "{p} did not dare to open the door")),
    "kind": Quality("mean", "generous friendly caring helpful thoughtful gracious considerate tender warmhearted".split(), (
        "{p} gave the last cake away", "{p} fed the lost kitten", "{p} wrote to the sick neighbor",
        "{p} held the door for everyone")),
    "mean": Quality("kind", "cruel rude selfish spiteful unfriendly heartless greedy unkind hateful".split(), (
        "{p} kicked the lost kitten", "{p} took the biggest piece of cake", "{p} laughed at the sick neighbor",
        "{p} slammed the door on everyone")),
    "rich": Quality("poor", "wealthy prosperous affluent moneyed flush loaded opulent propertied".split(), (
        "{p} bought a house with ten rooms", "{p} paid for everyone", "{p} counted {p.his} gold coins",
        "{p} had servants")),
    "poor": Quality("rich", "penniless needy broke bankrupt destitute ragged impoverished beggarly".split(), (
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
        "it had to be washed twice", "it left black marks on every hand", "{p} wiped it for an hour")),
    "loud": Quality("quiet", "noisy deafening booming thundering shrill blaring roaring rowdy".split(), (
        "everyone covered their ears", "it woke the baby", "people heard it across the valley")),
    "quiet": Quality("loud", "silent hushed soft muted faint still noiseless soundless".split(), (
        "nobody heard it", "the baby slept on", "{p} had to come close to hear it")),
}
VERDICTS = {
    "great": Quality("terrible", "wonderful lovely splendid superb marvelous delightful excellent magnificent charming "
                     "brilliant".split(), (
        "everyone cheered", "nobody wanted to leave", "they stayed until the very end", "they asked for more",
        "people talked about it for weeks")),
    "terrible": Quality("great", "awful dreadful horrible dismal lousy ghastly nasty dreary hideous dull".split(), (
        "everyone booed", "half of the guests left early", "they wanted their money back", "people yawned",
        "they never went there again")),
}
QUALITIES = MOODS | NATURES | LOOKS | VERDICTS
PERSONAL = MOODS | NATURES


class Kind(NamedTuple):
    nouns: list[str]
    done: tuple[str, ...]     # what people do with one
    does: tuple[str, ...]     # what one does by itself
    looks: tuple[str, ...]


KINDS = {
    "bird": Kind("sparrow robin owl swan crow duck finch stork".split(), ("fed", "listened to"),
                 ("sing", "fly", "build nests"), ("big", "loud")),
    "fish": Kind("eel minnow sardine shark herring sturgeon".split(), ("caught", "fried"), ("swim", "dive", "leap"),
                 ("big",)),
    "flower": Kind("rose tulip lily violet poppy orchid daffodil".split(), ("picked", "smelled"), ("bloom", "wilt"), ("big",)),
    "fruit": Kind("apple pear plum melon fig lemon apricot".split(), ("ate", "peeled"), ("ripen",), ("big", "clean")),
    "tool": Kind("hammer saw rake spade drill chisel shovel".split(), ("borrowed", "sharpened"), (), ("big", "clean", "loud")),
    "instrument": Kind("flute drum fiddle harp trumpet banjo guitar".split(), ("practiced", "tuned"), (), ("big", "clean", "loud")),
    "garment": Kind("hat scarf coat shirt jacket sweater cloak".split(), ("wore", "put on"), (), ("big", "clean")),
    "vehicle": Kind("cart wagon sled bicycle tractor carriage truck".split(), ("rode", "steered"), (), ("big", "clean", "loud")),
}
KIND_OF = {noun: kind for kind, entry in KINDS.items() for noun in entry.nouns}
DEEDS = (
    ("lent money to", "rich", "poor"), ("borrowed money from", "poor", "rich"), ("hid from", "afraid", "mean"),
    ("shouted at", "mean", "sad"), ("walked home with", "brave", "afraid"),
    ("sang a song for", "happy", "sad"), ("shared supper with", "kind", "poor"),
    ("thanked", "happy", "kind"), ("complained about", "sad", "mean"),
)


class Person(NamedTuple):
    name: str
    he: str
    him: str
    his: str
    himself: str
    nature: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return self.name


class Story(NamedTuple):
    sentences: list[str]
    foil: str


class Teller:
    def __init__(self, seed: str, taught_only: bool = False) -> None:
        self.random = random.Random(seed).random
        self.taught_only = taught_only
        self.cast: list[Person] = []

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return [option for _, option in sorted(((self.random(), option) for option in options), key=lambda pair: pair[0])]

    def taught(self, words):
        return words[: TAUGHT] if self.taught_only else words

    def gather(self, count: int) -> None:
        n = 6 if self.taught_only else None
        names = self.shuffled(GIRLS[:n] + BOYS[:n])[:count]
        for n in names:
            nature = self.either("brave"), self.either("kind"), self.either("rich")
            self.cast.append(Person(n, "she", "her", "her", "herself", nature) if n in GIRLS else
                             Person(n, "he", "him", "his", "himself", nature))

    def people(self, count: int) -> list[Person]:
        return self.shuffled(self.cast)[:count]

    def word(self, quality: str) -> str:
        return self.pick(self.taught(QUALITIES[quality].words))

    def noun(self, kind: str) -> str:
        return self.pick(self.taught(KINDS[kind].nouns))

    def sign(self, quality: str, p: Person) -> str:
        return self.pick(QUALITIES[quality].signs).format(p=p)

    def either(self, quality: str) -> str:
        return self.pick((quality, QUALITIES[quality].opposite))


def opposite(quality: str) -> str:
    return QUALITIES[quality].opposite


def an(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(noun: str) -> str:
    if noun in ("fish", "goose"):
        return {"fish": "fish", "goose": "geese"}[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def third(verb: str) -> str:
    head, _, rest = verb.partition(" ")
    head = head[:-1] + "ies" if head.endswith("y") else head + "s"
    return f"{head} {rest}".strip().replace("their", "its")


def describe(t: Teller, subject: str, quality: str) -> str:
    return t.pick((
        f"{subject} was {t.word(quality)}", f"{subject} was so {t.word(quality)}",
        f"{subject} was {t.word(quality)} and {t.word(quality)}",
        f"{subject} was {quality}, yes, {t.word(quality)}",
        f"{subject} was not {t.word(opposite(quality))} but {t.word(quality)}",
        f"{subject} was not {t.word(opposite(quality))} at all",
    ))


def ask(t: Teller, b: Person, a: Person, subject: str, quality: str, others: Sequence[str]) -> str:
    answer = t.pick(("yes", "no", "i do not know") if others else ("yes", "no"))
    asked = {"yes": quality, "no": opposite(quality), "i do not know": t.either(t.pick(others)) if others else ""}[answer]
    return f'"was {subject} {asked}?" asked {b}. "{answer}," said {a}'


def new_look(t: Teller, kind: str) -> str:
    return t.either(t.pick(KINDS[kind].looks))


def close(t: Teller, p: Person, quality: str) -> tuple[str, str]:
    signs = t.sign(quality, p), t.sign(opposite(quality), p)
    plain = (f"everyone saw how {q} {p} was" for q in (quality, opposite(quality)))
    words = (f"{p} was {t.word(q)} all day" for q in (quality, opposite(quality)))
    return tuple(t.pick((signs, plain, words)))


def wish(t: Teller) -> Story:
    a, b = t.people(2)
    kind = t.pick(list(KINDS))
    noun, place = t.noun(kind), t.pick(PLACES)
    granted = t.chance(0.5)
    mood = "happy" if granted else "sad"
    lines = [
        t.pick((f"{a} wanted {an(noun)}", f"more than anything {a} wished for {an(noun)}", f"{a} dreamed of {an(noun)}")),
        t.pick((f"{a.he} looked for one at the {place}", f"{a.he} asked {b} about it at the {place}")),
    ]
    if granted:
        lines += [t.pick((f"{b} gave {a.him} {an(t.word(new_look(t, kind)))} {noun}", f"there {a.he} found one")),
                  f"now {a} had {an(kind)} of {a.his} own"]
    else:
        lines += [t.pick(("there was none", f"but {b} took the last one", f"but {b} said no")), f"{a} went home without {an(kind)}"]
    lines += [describe(t, str(a), mood), t.sign(mood, a)]
    right, wrong = close(t, a, mood)
    return Story(lines + [right], wrong)


def outing(t: Teller) -> Story:
    a, b = t.people(2)
    event, place = t.pick(EVENTS), t.pick(PLACES)
    verdict = t.either("great")
    mood = "happy" if verdict == "great" else "sad"
    lines = [f"{a} and {b} went to the {event} at the {place}"]
    lines.append(t.pick((
        f"they {'feared' if verdict == 'great' else 'hoped'} that it would be {t.word(opposite(verdict))}, but it was {t.word(verdict)}",
        describe(t, f"the {event}", verdict), describe(t, f"the {event}", verdict),
    )))
    lines.append(t.sign(verdict, a))
    if t.chance(0.5):
        lines.append(f"{t.pick((a, b))} said that it was {t.word(verdict)}")
    if t.chance(0.6):
        lines += [describe(t, str(a), mood), t.sign(mood, a)]
    lines.append(f"all in all it was {verdict}")
    return Story(lines, f"all in all it was {opposite(verdict)}")


def encounter(t: Teller) -> Story:
    a, b = t.people(2)
    kind = t.pick(list(KINDS))
    noun, look = t.noun(kind), new_look(t, kind)
    lines = [f"{a} {t.pick(('found', 'saw'))} {an(noun)} at the {t.pick(PLACES)}", describe(t, f"the {noun}", look), t.sign(look, a)]
    if t.chance(0.5):
        lines.append(f"{b} had never seen such {an(t.word(look))} {kind}")
    lines.append(ask(t, b, a, f"the {kind}", look, [q for q in LOOKS if q not in (look, opposite(look))]))
    lines.append(f"that evening {a} told everyone about the {look} {kind}")
    return Story(lines, f"that evening {a} told everyone about the {opposite(look)} {kind}")


def deed(t: Teller) -> Story:
    a, b = t.people(2)
    reasons = [(action, who, quality) for action, mine, yours in DEEDS for who, quality in ((a, mine), (b, yours))
               if quality in MOODS or quality in who.nature]
    action, who, quality = t.pick(reasons)
    lines = []
    if t.chance(0.4):
        lines.append(f"{a} and {b} met at the {t.pick(PLACES)}")
    pronoun = who.he if a.he != b.he and t.chance(0.5) else who
    lines.append(f"{a} {action} {b} because {pronoun} was {t.word(quality)}")
    lines.append(t.sign(quality, who))
    if t.chance(0.5):
        lines += [describe(t, str(who), quality), t.sign(quality, who)]
    right, wrong = close(t, who, quality)
    return Story(lines + [right], wrong)


def portrait(t: Teller) -> Story:
    a, b = t.people(2)
    quality = t.pick(a.nature)
    lines = [
        t.pick((f"{b} told a tale about {a}", f"people often talked about {a}", f"{b} met {a} at the {t.pick(PLACES)}")),
        describe(t, str(a), quality), t.sign(quality, a),
        ask(t, b, t.people(1)[0], str(a), quality, ()),
        f"{b} had never met such {an(t.word(quality))} {'girl' if a.he == 'she' else 'boy'}", 
    ]
    right, wrong = close(t, a, quality)
    return Story(lines + [right], wrong)


def lesson(t: Teller) -> Story:
    a, b = t.people(2)
    kind, wrong = t.shuffled(list(KINDS))[:2]
    noun, more = t.shuffled(t.taught(KINDS[kind].nouns))[:2]
    lines = [f"{a} taught {b} about {plural(noun)}", f"{an(noun)} is {an(kind)}"]
    for verb in KINDS[kind].does[:2]:
        lines.append(t.pick((f"{plural(noun)} {verb}", f"every {noun} {third(verb)}", f"{an(noun)} {third(verb)} and {plural(more)} {verb} too")))
    lines.append(t.pick((f"{an(more)} is {an(kind)} too", f"{an(t.noun(wrong))} is not {an(kind)}")))
    lines.append(f"now {b} knows that {plural(noun)} are {plural(kind)}")
    return Story(lines, f"now {b} knows that {plural(noun)} are {plural(wrong)}")


def chores(t: Teller) -> Story:
    people = t.people(3)
    lines = []
    for p in people:
        kind = t.pick(list(KINDS))
        lines.append(f"{t.pick(('in the morning', 'later', 'then', 'after that', 'at noon'))} {p} {t.pick(KINDS[kind].done)} the {t.noun(kind)}")
        if t.chance(0.4):
            lines.append(t.pick((f"{p} hurt {p.himself}", f"{p} was proud of {p.himself}", f"{p} looked at {p.himself} in the mirror",
                                 f"{p} asked {p.himself} why")))
    a, b, _ = people
    quality = t.either("happy")
    lines += [f"in the evening " + describe(t, str(a), quality), t.sign(quality, a)]
    right, wrong = close(t, a, quality)
    return Story(lines + [right], wrong)


def gift(t: Teller) -> Story:
    a, b, c = t.people(3)
    kind = t.pick(list(KINDS))
    noun, look = t.noun(kind), new_look(t, kind)
    lines = [
        t.pick((f"{a} gave {b} {an(t.word(look))} {noun}", f"{b} got {an(t.word(look))} {noun} from {a}")),
        t.pick((f"{b} {t.pick(KINDS[kind].done)} it at once", f"{b} showed the {t.word(look)} {noun} to {c}")),
        f'"who gave you the {t.word(look)} {kind}?" asked {c}. "it is from {a}," said {b}',
        f"{b} thanked {a} for the {look} {kind}",
    ]
    return Story(lines, f"{a} thanked {b} for the {look} {kind}")


def riddle(t: Teller) -> Story:
    a, b = t.people(2)
    kind, wrong = t.shuffled(list(KINDS))[:2]
    noun, look = t.noun(kind), new_look(t, kind)
    lines = [f"{a} hid a gift in the {t.pick(BOXES)}"]
    if t.chance(0.5):
        lines.append(f'"is it {an(wrong)}?" asked {b}. "no, it is not," said {a}')
    lines += [f'"is it {t.either(look)}?" asked {b}. "it is {t.word(look)}," said {a}',
              f"it was {an(noun)}",
              ask(t, t.people(1)[0], b, "the gift", look, [q for q in LOOKS if q not in (look, opposite(look))]),
              f"so the gift was {an(kind)}"]
    return Story(lines, f"so the gift was {an(wrong)}")


def fitting(t: Teller) -> Story:
    a, b = t.people(2)
    noun, box = t.noun(t.pick(("tool", "instrument", "garment", "fruit"))), t.pick(BOXES)
    look, culprit = t.pick((("big", noun), ("small", box)))
    lines = [f"{a} wanted to put {an(noun)} into {an(box)}",
             f"the {noun} did not fit into the {box} because the {culprit} was {t.word(look)}"]
    change = "smaller" if look == "big" else "bigger"
    wrong = box if culprit == noun else noun
    lines.append(f"{b} helped {a} to look for a {change} {culprit}")
    return Story(lines, f"{b} helped {a} to look for a {change} {wrong}")


STORIES: tuple[Callable[[Teller], Story], ...] = (wish, outing, encounter, deed, portrait, lesson, chores, gift, riddle, fitting, outing, deed, portrait, encounter, lesson)


def documents(seed: int = 0, count: int = 5000) -> Iterator[str]:
    for index in range(count):
        t = Teller(f"document {seed} {index}")
        t.gather(4)
        yield "\n".join(". ".join(t.pick(STORIES)(t).sentences) + "." for _ in range(7))


def sentiment(t: Teller, label: str) -> dict:
    a, b = t.people(2)
    good = label == "positive"
    verdict, mood, manner = ("great", "happy", "kind") if good else ("terrible", "sad", "mean")
    event, place = t.pick(EVENTS), t.pick(PLACES)
    text = t.pick((
        f"{a} and {b} went to the {event} at the {place}. the {event} was {t.word(verdict)}.",
        f"{a} thought that the {event} at the {place} was {t.word(verdict)}.",
        f"{a} was {t.word(mood)} after the {event} at the {place}.",
        f"{b} was {t.word(manner)} to {a} at the {event}.",
        f"{a} {'feared' if good else 'hoped'} that the {event} would be {t.word(opposite(verdict))}, but it was {t.word(verdict)}.",
        f"{a} and {b} went to the {place}. the {event} was not {t.word(opposite(verdict))} at all.",
        f"the {event} at the {place} was {t.word(verdict)} and {b} was {t.word(mood)}.",
    ))
    return {"text": text}


def entailment(t: Teller, label: str) -> dict:
    a, b = t.people(2)
    roll = t.pick(("trait", "look", "kind"))
    if roll == "trait":
        quality = t.pick(list(PERSONAL))
        premise = t.pick((f"{a} was {t.word(quality)} at the {t.pick(PLACES)}.", f"{b} met {a}, who was {t.word(quality)}.",
                          f"{a} {t.pick([d for d, q, _ in DEEDS if q == quality] or [d for d, q, _ in DEEDS])} {b} because {a} was {t.word(quality)}."))
        rest = [q for q in PERSONAL if q not in (quality, opposite(quality))]
        said = {"entailment": quality, "contradiction": opposite(quality), "neutral": t.pick(rest)}[label]
        return {"premise": premise, "hypothesis": f"{a} was {said}.", "type": roll}
    kind = t.pick(list(KINDS))
    noun, look = t.noun(kind), new_look(t, kind)
    if roll == "look":
        premise = t.pick((f"{a} gave {b} {an(t.word(look))} {noun}.", f"the {noun} at the {t.pick(PLACES)} was {t.word(look)}."))
        rest = [q for q in LOOKS if q not in (look, opposite(look))]
        said = {"entailment": look, "contradiction": opposite(look), "neutral": t.pick(rest)}[label]
        return {"premise": premise, "hypothesis": f"the {noun} was {said}.", "type": roll}
    wrong = t.pick([k for k in KINDS if k != kind])
    if label == "neutral":
        premise = f"the gift from {a} was {t.word(look)}."
    else:
        premise = t.pick((f"the gift from {a} was {an(noun)}.", f"the gift from {a} was {an(t.word(look))} {noun}."))
    said = {"entailment": kind, "contradiction": wrong, "neutral": kind}[label]
    return {"premise": premise, "hypothesis": f"the gift was {an(said)}.", "type": roll}


def acceptability(t: Teller, label: str) -> dict:
    a, b = t.people(2)
    kind, wrong = t.shuffled([k for k in KINDS])[:2]
    noun, place = t.noun(kind), t.pick(PLACES)

    def agreement():
        k = t.pick([k for k in KINDS if KINDS[k].does])
        n, verb = t.noun(k), t.pick(KINDS[k].does)
        many = t.chance(0.5)
        subject = plural(n) if many else t.pick(("every", "a")) + " " + n
        if subject.startswith("a "): subject = an(subject[2:])
        verbs = (verb, third(verb)) if many else (third(verb), verb)
        return f"{subject} {verbs[0]}.", f"{subject} {verbs[1]}."

    def selection():
        act = t.pick(KINDS[kind].done)
        return f"{a} {act} the {noun}.", f"{a} {act} the {t.noun(wrong)}."

    def habit():
        k = t.pick([k for k in KINDS if KINDS[k].does])
        w = t.pick([x for x in KINDS if x != k])
        verb = t.pick(KINDS[k].does)
        return f"{plural(t.noun(k))} {verb}.", f"{plural(t.noun(w))} {verb}."

    def reflexive():
        act = t.pick(("hurt {}", "was proud of {}", "looked at {} in the mirror", "asked {} why"))
        return f"{a} " + act.format(a.himself) + ".", f"{a} " + act.format("himself" if a.himself == "herself" else "herself") + "."

    def person():
        q = t.pick(list(PERSONAL))
        return f"{a} was {t.word(q)} at the {place}.", f"the {noun} was {t.word(q)} at the {place}."

    make = t.pick((agreement, selection, habit, reflexive, person))
    good, bad = make()
    return {"text": good if label == "acceptable" else bad, "type": make.__name__}


def similarity(t: Teller, label: str) -> dict:
    a, b = t.people(2)
    kind = t.pick(list(KINDS))
    look = new_look(t, kind)
    words = t.taught(QUALITIES[look].words)
    one, two = t.shuffled(words)[:2]
    noun = t.noun(kind)
    same = label == "equivalent"
    x = f"{a} gave {b} {an(one)} {noun}."
    if not same and t.chance(0.5):
        two = t.word(opposite(look))
        return {"text_a": x, "text_b": f"{b} got {an(two)} {noun} from {a}."}
    return {"text_a": x, "text_b": f"{b} got {an(two)} {noun} from {a}." if same else f"{a} got {an(two)} {noun} from {b}."}


def choice(t: Teller, label: int) -> dict:
    make = t.pick(STORIES)
    story = make(t)
    choices = [story.sentences[-1] + ".", story.foil + "."]
    return {"context": ". ".join(story.sentences[:-1]) + ".", "choices": choices[::-1] if label else choices, "type": make.__name__}


def pronoun(t: Teller, label: int) -> dict:
    a, b = t.people(2)
    action, mine, yours = t.pick(DEEDS)
    quality = (mine, yours)[label]
    return {"before": f"{a} {action} {b} because", "after": f"was {t.word(quality)}.", "candidates": [str(a), str(b)]}


TASKS = {
    "demo_sentiment": (sentiment, ("negative", "positive")),
    "demo_entailment": (entailment, ("entailment", "neutral", "contradiction")),
    "demo_acceptability": (acceptability, ("unacceptable", "acceptable")),
    "demo_similarity": (similarity, ("not_equivalent", "equivalent")),
    "demo_choice": (choice, (0, 1)),
    "demo_pronoun": (pronoun, (0, 1)),
}


def examples(task: str, split: str) -> list[dict]:
    make, labels = TASKS[task]
    seen = set()
    for name, size in SIZES.items():
        rows = []
        attempt = 0
        while len(rows) < size:
            t = Teller(f"{task} {name} {attempt}", taught_only=name == "train")
            attempt += 1
            t.gather(4)
            label = labels[len(rows) % len(labels)]
            row = make(t, label)
            if str(row) not in seen:
                seen.add(str(row))
                rows.append({"id": f"{name}-{len(rows)}"} | row | {"label": label})
        if name == split:
            return rows
