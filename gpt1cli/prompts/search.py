"""Prompt search: rank label words or templates on a few examples, without training.

Gao, Fisch and Chen 2021, "Making Pre-trained Language Models Better Few-shot Learners", section 5, for a causal model.
Words: for each class take the likeliest tokens in the slot over its examples, and rank all combinations of them by
accuracy. Templates: rank them by the log-probability of the correct words. Training and the ranking on validation
follow in commands/search.py.

N examples, L labels, W candidate tokens, R combinations, V vocabulary size, D width.
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
from gpt1cli.prompts.prompt import Prompt, pack_prompt
from gpt1cli.prompts.scoring import score_examples
from gpt1cli.tasks.classification import decode_outputs
from gpt1cli.tasks.example import Example
from gpt1cli.tasks.few_shot import class_index
from gpt1cli.tasks.metrics import pearson
from gpt1cli.text.bpe import Tokenizer

MAX_VALUES = 4_000_000  # numbers in memory while combinations are ranked


class PromptCandidate(NamedTuple):
    """A prompt with its accuracy (regression: Pearson correlation) and mean log-likelihood on the training examples."""

    prompt: PromptConfig
    score: float
    likelihood: float

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {**self._asdict(), "prompt": dataclasses.asdict(self.prompt)}


def target_distribution(task: TaskConfig, examples: Sequence[Example]) -> np.ndarray:
    """Target probability of each label for each example. -> [N,L]

    Classes: 1 for the example's class. Regression: the two ends of the range share 1 by the position of the score.
    """
    labels = [example.label for example in examples if example.label is not None]
    if task.is_classification:
        return np.eye(len(task.labels))[[int(label) for label in labels]]
    assert task.range
    low, high = task.range
    position = (np.array(labels, float) - low) / (high - low)
    return np.stack([1 - position, position], 1)


# --- words ------------------------------------------------------------------------------------------------------------


def whole_word_mask(tokenizer: Tokenizer, spaces: str) -> np.ndarray:
    """The tokens that can be words in a slot after these spaces: their text encodes to the token itself. -> bool [V]

    With </w> these are the tokens that end a word; with byte-level BPE those that start with a space.
    """
    texts = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
    encoded = tokenizer.encode_batch(spaces + text for text in texts)
    mask = [ids == [i] and bool(text) for i, (ids, text) in enumerate(zip(encoded, texts, strict=True))]
    return np.array(mask)


def likeliest_tokens(log_p: np.ndarray, classes: np.ndarray, allowed: np.ndarray, count: int) -> list[np.ndarray]:
    """For each class the tokens with the highest mean log-probability over its examples, the likeliest first.

    log_p [N,V], classes [N], allowed bool [V] -> [at most `count`] for each class
    """
    means = [np.where(allowed, log_p[classes == number].mean(0), -np.inf) for number in np.unique(classes)]
    return [np.argsort(-mean, kind="stable")[: min(count, int(allowed.sum()))] for mean in means]


def tokens_per_class(count: int, classes: int, combinations: int) -> int:
    """The largest number of tokens per class, from 1 to `count`, with at most this number of combinations."""
    return max(k for k in range(1, count + 1) if k == 1 or k**classes <= combinations)


def nearest_tokens(
    candidates: Sequence[np.ndarray], words: Sequence[np.ndarray], embeddings: np.ndarray, count: int
) -> list[np.ndarray]:
    """Keep each class's `count` candidate tokens nearest to the class's own words, in the given order.

    The distance is the cosine between token embeddings. words: the token ids of all words of each class, whose mean
    embedding is used; embeddings [V,D].
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    kept = []
    for tokens, own in zip(candidates, words, strict=True):
        cosines = unit[tokens] @ unit[own].mean(0)  # [W]; the length of the mean does not change the order
        kept.append(tokens[np.sort(np.argsort(-cosines, kind="stable")[:count])])
    return kept


class Combination(NamedTuple):
    """A token for each label, by its column, with accuracy (regression: Pearson) and mean log-likelihood."""

    columns: tuple[int, ...]
    score: float
    likelihood: float


def rank_combinations(
    scores: np.ndarray, columns: Sequence[Sequence[int]], task: TaskConfig, examples: Sequence[Example], best: int
) -> list[Combination]:
    """The best combinations of one column for each label, no column twice; ties are ranked by log-likelihood.

    scores [N,W]; columns: the candidates for each label
    """
    targets = target_distribution(task, examples)  # [N,L]
    chunk_size = max(1, MAX_VALUES // targets.size)
    ranking: list[Combination] = []
    product = itertools.product(*columns)
    while chunk := list(itertools.islice(product, chunk_size)):
        chosen = np.array(chunk)  # [R,L]
        ordered = np.sort(chosen, 1)
        chosen = chosen[(np.diff(ordered, axis=1) > 0).all(1)]
        label_scores = scores.T[chosen]  # [R,L,N]
        log_p = label_scores - np.logaddexp.reduce(label_scores, axis=1, keepdims=True)
        likelihood = np.einsum("rln,nl->r", log_p, targets) / len(targets)
        score = _combination_scores(task, examples, log_p)
        order = np.lexsort((-likelihood, -score))[:best]
        ranking += [Combination(tuple(chosen[i].tolist()), float(score[i]), float(likelihood[i])) for i in order]
        ranking = sorted(ranking, key=lambda one: (-one.score, -one.likelihood))[:best]  # stable: of ties the first
    return ranking


def _combination_scores(task: TaskConfig, examples: Sequence[Example], log_p: np.ndarray) -> np.ndarray:
    """Accuracy over the examples, or for regression the Pearson correlation. log_p [R,L,N] -> [R]"""
    labels = np.array([example.label for example in examples], float)
    if task.is_classification:
        return (log_p.argmax(1) == labels).mean(1)
    assert task.range
    predicted = np.exp(log_p[:, 1])  # [R,N], as a position between the ends of the range
    x, y = predicted - predicted.mean(1, keepdims=True), labels - labels.mean()
    spread = np.sqrt((x**2).sum(1) * (y**2).sum())
    return np.divide(x @ y, spread, out=np.zeros(len(x)), where=spread > 0)


def search_verbalizers(
    model: LanguageModel,
    task: TaskConfig,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    pieces: int,
    combinations: int,
    best: int,
    micro_batch: int | None,
    token_budget: int,
) -> list[PromptCandidate]:
    """The best prompts with other label words for the task's template, the best first.

    pieces: tokens per class to combine. Raises UserError if there is no text before the slot, or if the vocabulary has
    too few whole words.
    """
    prompt = Prompt.from_task(task, tokenizer)
    packed = [pack_prompt(prompt, [], query, model.config.n_positions) for query in prompt.queries(examples)]
    contexts = [query.rows[0][: query.shared_length] for query in packed]
    if not all(contexts):
        raise UserError(
            "what=words needs text before the slot, which makes some words likelier than others; change"
            " task.prompt.template, or set task.prompt.separator"
        )
    log_p = next_log_probabilities(model, contexts, len(tokenizer), micro_batch, token_budget)
    classes = np.array([class_index(task, example.label) for example in examples if example.label is not None])
    allowed = whole_word_mask(tokenizer, prompt.slot_spaces)
    if allowed.sum() < len(task.answer_labels):
        raise UserError(
            f"what=words: task={task.name} needs {len(task.answer_labels)} words, but only {allowed.sum()} tokens of"
            " this vocabulary are whole words; use a model with a larger vocabulary"
        )
    candidates = likeliest_tokens(log_p, classes, allowed, pieces)
    count = tokens_per_class(min(map(len, candidates)), len(candidates), combinations)
    if count < max(map(len, candidates)):
        ends = np.cumsum(prompt.alternatives)
        own = [np.concatenate(prompt.words[end - n : end]) for n, end in zip(prompt.alternatives, ends, strict=True)]
        candidates = nearest_tokens(candidates, own, model.tokens.weight.detach().float().cpu().numpy(), count)
    union = sorted({int(token) for tokens in candidates for token in tokens})
    column_of = {token: column for column, token in enumerate(union)}
    one_word_labels = dataclasses.replace(prompt, words=[[token] for token in union], alternatives=[1] * len(union))
    scores = score_examples(model, one_word_labels, [], examples, micro_batch, token_budget).scores  # [N,W]
    columns = [[column_of[int(token)] for token in tokens] for tokens in candidates]
    texts = [tokenizer.decode([token]).strip() for token in union]
    prompts = []
    for one in rank_combinations(scores, columns, task, examples, best):
        words: dict[str, list[str] | str] = {
            label: texts[column] for label, column in zip(task.answer_labels, one.columns, strict=True)
        }
        prompts.append(PromptCandidate(dataclasses.replace(task.prompt, words=words), one.score, one.likelihood))
    return prompts


# --- templates --------------------------------------------------------------------------------------------------------


def evaluate_prompt(
    model: LanguageModel,
    task: TaskConfig,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    micro_batch: int | None,
    token_budget: int,
) -> PromptCandidate:
    """Evaluate the task's own prompt: accuracy (regression: Pearson) and mean log-probability of the correct words."""
    scores = score_examples(
        model, Prompt.from_task(task, tokenizer), [], examples, micro_batch, token_budget
    ).scores  # [N,L]
    likelihood = float((target_distribution(task, examples) * scores).sum(1).mean())
    labels = [example.label for example in examples if example.label is not None]
    predictions = decode_outputs(task, scores)
    score = float(np.mean(predictions == np.array(labels))) if task.is_classification else pearson(labels, predictions)
    return PromptCandidate(task.prompt, score, likelihood)


def with_template(task: TaskConfig, template: str) -> TaskConfig:
    """The task with another template and the same words."""
    return dataclasses.replace(task, prompt=dataclasses.replace(task.prompt, template=template))


def rank_candidates(candidates: Iterable[PromptCandidate]) -> list[PromptCandidate]:
    """Sort templates by log-likelihood, the best first; ties stay in order."""
    return sorted(candidates, key=lambda one: -one.likelihood)
