"""What a prompt might say instead, ranked on a few examples without training: words for its labels, or its template.

Gao, Fisch and Chen 2021, "Making Pre-trained Language Models Better Few-shot Learners", section 5, for a model that
reads from left to right. Words: of each class the pieces that are likeliest in the slot over its examples, all
combinations of them ranked by how many of the examples they answer rightly. Templates: by how likely they make the
right words. Training and a ranking by validation follow in commands/search.py.

N examples, L labels, W pieces that may be words, R combinations, V vocabulary rows, D width.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt1cli.config.prompt import PromptConfig
from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.inference import next_log_probabilities
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.prompts.prompt import Prompt, lay
from gpt1cli.prompts.scoring import answers
from gpt1cli.tasks.classification import predictions
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.few_shot import class_of
from gpt1cli.tasks.metrics import pearson
from gpt1cli.text.bpe import Tokenizer

AT_ONCE = 4_000_000  # numbers held in memory while combinations are ranked


class Candidate(NamedTuple):
    """A prompt, and what it is worth on the training examples: accuracy (of scores Pearson), and log-likelihood."""

    prompt: PromptConfig
    score: float
    likelihood: float

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {**self._asdict(), "prompt": dataclasses.asdict(self.prompt)}


def rightness(task: TaskConfig, examples: Sequence[Example]) -> np.ndarray:
    """How right each label is for each example: 1 for its class, of a score its place between the two ends. -> [N,L]"""
    labels = [example.label for example in examples if example.label is not None]
    if task.classes:
        return np.eye(len(task.labels))[[int(label) for label in labels]]
    assert task.range
    low, high = task.range
    place = (np.array(labels, float) - low) / (high - low)
    return np.stack([1 - place, place], 1)


# --- words ------------------------------------------------------------------------------------------------------------


def whole_words(vocabulary: Tokenizer, blanks: str) -> np.ndarray:
    """Which pieces a text can name as a word in a slot behind these blanks: those that its own spelling gives. -> [V]

    With </w> they are the pieces that end a word, on the level of bytes those that begin with a blank.
    """
    texts = [vocabulary.decode([i]).strip() for i in range(len(vocabulary))]
    spelled = vocabulary.encode_batch(blanks + text for text in texts)
    found = [ids == [i] and bool(text) for i, (ids, text) in enumerate(zip(spelled, texts, strict=True))]
    return np.array(found)


def likeliest(log_p: np.ndarray, classes: np.ndarray, allowed: np.ndarray, pieces: int) -> list[np.ndarray]:
    """For each class the pieces of the highest mean log-probability over its examples, the likeliest first.

    log_p [N,V], classes [N], allowed bool [V] -> [at most `pieces`] each
    """
    means = [np.where(allowed, log_p[classes == number].mean(0), -np.inf) for number in np.unique(classes)]
    return [np.argsort(-mean, kind="stable")[: min(pieces, int(allowed.sum()))] for mean in means]


def most_each(pieces: int, classes: int, combinations: int) -> int:
    """As many pieces of each class, at most `pieces`, as keep the number of combinations within bounds; at least 1."""
    return max(k for k in range(1, pieces + 1) if k == 1 or k**classes <= combinations)


def nearest(found: Sequence[np.ndarray], words: Sequence[np.ndarray], table: np.ndarray, most: int) -> list[np.ndarray]:
    """Of each class's pieces those nearest to its own words, by the cosine in the token table; their order stays.

    words: the ids of all pieces of each class's words, of which the mean counts. table [V,D]
    """
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    kept = []
    for pieces, own in zip(found, words, strict=True):
        near = unit[pieces] @ unit[own].mean(0)  # [W]; the length of the other vector changes no order
        kept.append(pieces[np.sort(np.argsort(-near, kind="stable")[:most])])
    return kept


class Combination(NamedTuple):
    """A piece for each label, by its column, with its accuracy (Pearson) and its mean log-likelihood."""

    columns: tuple[int, ...]
    score: float
    likelihood: float


def combined(
    scores: np.ndarray, columns: Sequence[Sequence[int]], task: TaskConfig, examples: Sequence[Example], best: int
) -> list[Combination]:
    """The best combinations of a column for each label, no column twice; of equals the one that is surer of the right.

    scores [N,W]; columns: those that may stand for each label
    """
    right = rightness(task, examples)  # [N,L]
    chunk = max(1, AT_ONCE // right.size)
    found: list[Combination] = []
    product = itertools.product(*columns)
    while several := list(itertools.islice(product, chunk)):
        chosen = np.array(several)  # [R,L]
        apart = np.sort(chosen, 1)
        chosen = chosen[(np.diff(apart, axis=1) > 0).all(1)]
        each = scores.T[chosen]  # [R,L,N]
        log_p = each - np.logaddexp.reduce(each, axis=1, keepdims=True)
        likelihood = np.einsum("rln,nl->r", log_p, right) / len(right)
        score = _scored(task, examples, log_p)
        order = np.lexsort((-likelihood, -score))[:best]
        found += [Combination(tuple(chosen[i].tolist()), float(score[i]), float(likelihood[i])) for i in order]
        found = sorted(found, key=lambda one: (-one.score, -one.likelihood))[:best]  # stable: of equals the first
    return found


def _scored(task: TaskConfig, examples: Sequence[Example], log_p: np.ndarray) -> np.ndarray:
    """Accuracy over the examples, of scores Pearson's correlation. log_p [R,L,N] -> [R]"""
    labels = np.array([example.label for example in examples], float)
    if task.classes:
        return (log_p.argmax(1) == labels).mean(1)
    assert task.range
    said = np.exp(log_p[:, 1])  # [R,N], between the ends of the range
    x, y = said - said.mean(1, keepdims=True), labels - labels.mean()
    spread = np.sqrt((x**2).sum(1) * (y**2).sum())
    return np.divide(x @ y, spread, out=np.zeros(len(x)), where=spread > 0)


def words(
    model: LanguageModel,
    task: TaskConfig,
    vocabulary: Tokenizer,
    examples: Sequence[Example],
    pieces: int,
    combinations: int,
    best: int,
    micro_batch: int | None,
    token_budget: int,
) -> list[Candidate]:
    """Prompts with other words, the best first, for the template that the task has. UserError where there are none."""
    prompt = Prompt.of(task, vocabulary)
    laid = [lay(prompt, [], query, model.config.n_positions) for query in prompt.queries(examples)]
    before = [one.rows[0][: one.shared] for one in laid]
    if not all(before):
        raise UserError("what=words: nothing stands before the slot, so that no piece is likelier than another there")
    log_p = next_log_probabilities(model, before, len(vocabulary), micro_batch, token_budget)
    classes = np.array([class_of(task, example.label) for example in examples if example.label is not None])
    allowed = whole_words(vocabulary, prompt.blanks)
    if allowed.sum() < len(task.answers):
        raise UserError(f"what=words: {allowed.sum()} pieces of this vocabulary are words: too few for {task.name}")
    found = likeliest(log_p, classes, allowed, pieces)
    most = most_each(min(map(len, found)), len(found), combinations)
    if most < max(map(len, found)):
        ends = np.cumsum(prompt.alternatives)
        own = [np.concatenate(prompt.words[end - n : end]) for n, end in zip(prompt.alternatives, ends, strict=True)]
        found = nearest(found, own, model.tokens.weight.detach().float().cpu().numpy(), most)
    union = sorted({int(piece) for several in found for piece in several})
    place = {piece: column for column, piece in enumerate(union)}
    asked = dataclasses.replace(prompt, words=[[piece] for piece in union], alternatives=[1] * len(union))
    scores = answers(model, asked, [], examples, micro_batch, token_budget).scores  # [N,W]
    columns = [[place[int(piece)] for piece in several] for several in found]
    texts = [vocabulary.decode([piece]).strip() for piece in union]
    found_words = []
    for one in combined(scores, columns, task, examples, best):
        chosen: dict[str, list[str] | str] = {
            label: texts[column] for label, column in zip(task.answers, one.columns, strict=True)
        }
        found_words.append(Candidate(dataclasses.replace(task.prompt, words=chosen), one.score, one.likelihood))
    return found_words


# --- templates --------------------------------------------------------------------------------------------------------


def worth(
    model: LanguageModel,
    task: TaskConfig,
    vocabulary: Tokenizer,
    examples: Sequence[Example],
    micro_batch: int | None,
    token_budget: int,
) -> Candidate:
    """What the task's own prompt is worth: how it answers, and the mean log-probability of what is right."""
    scores = answers(model, Prompt.of(task, vocabulary), [], examples, micro_batch, token_budget).scores  # [N,L]
    likelihood = float((rightness(task, examples) * scores).sum(1).mean())
    labels = [example.label for example in examples if example.label is not None]
    found = predictions(task, scores)
    score = float(np.mean(found == np.array(labels))) if task.classes else pearson(labels, found)
    return Candidate(task.prompt, score, likelihood)


def with_template(task: TaskConfig, template: str) -> TaskConfig:
    """The task with another template, and the same words."""
    return dataclasses.replace(task, prompt=dataclasses.replace(task.prompt, template=template))


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Templates by how likely they make what is right, of equals the first."""
    return sorted(candidates, key=lambda one: -one.likelihood)
