"""Select demonstrations for a query: one labelled example of each class, never the query itself.

As in LM-BFF (Gao et al. 2021, section 6), every query of every training step gets newly sampled demonstrations, and at
evaluation the scores of several sets are averaged. A set is a random order of all examples: from each class, the
first example that is not excluded for the query is its demonstration. So most queries have the same demonstrations,
which the model reads only once, and each set has another order of the classes, which matters to a causal model.

With `similar`, only the half of each class that is most similar to the query is allowed (section 6.2): by the cosine
similarity of mean-pooled hidden states, or of sentence embeddings.

n examples, Q queries, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.inference import device_of, mean_states
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.tasks import few_shot
from gpt1cli.tasks.example import Example
from gpt1cli.text.bpe import Tokenizer

STEP_STREAM, EVALUATION_STREAM = 1, 2  # second part of the random seed: training and evaluation have their own streams


@dataclass(frozen=True)
class DemonstrationPool:
    """The examples to select demonstrations from; examples with choices all have class 0: a choice is no class."""

    examples: Sequence[Example]
    classes: np.ndarray  # [n]
    indices: Mapping[Hashable, list[int]]  # (texts, choices) of an example -> its indices in `examples`

    @classmethod
    def from_examples(cls, task: TaskConfig, examples: Sequence[Example]) -> DemonstrationPool:
        """Build the pool from a task's labelled examples."""
        classes = [0 if task.choices or e.label is None else few_shot.class_index(task, e.label) for e in examples]
        indices: dict[Hashable, list[int]] = {}
        for i, example in enumerate(examples):
            indices.setdefault((example.texts, example.choices), []).append(i)
        return cls(examples, np.array(classes), indices)

    def excluded(self, queries: Sequence[Example], similarity: np.ndarray | None = None) -> np.ndarray:
        """The examples excluded for each query: the query itself, and the less similar half of each class.

        similarity [Q,n], or None to exclude only the query itself. -> bool [Q,n]
        """
        mask = np.zeros((len(queries), len(self.classes)), bool)
        for row, query in zip(mask, queries, strict=True):
            row[self.indices.get((query.texts, query.choices), [])] = True
        if similarity is None:
            return mask
        for number in np.unique(self.classes):
            members = np.flatnonzero(self.classes == number)
            nearest = np.argsort(-np.where(mask[:, members], -np.inf, similarity[:, members]), axis=1, kind="stable")
            far = members[nearest[:, max(1, len(members) // 2) :]]  # [Q, half of the members]
            np.put_along_axis(mask, far, True, axis=1)
        return mask

    def select(self, order: np.ndarray, excluded: np.ndarray) -> tuple[int, ...]:
        """Indices of a query's demonstrations, the farthest from the query first. order [n], excluded bool [n]

        A class whose examples are all excluded has no demonstration.
        """
        allowed = order[~excluded[order]]
        _, first = np.unique(self.classes[allowed], return_index=True)
        return tuple(allowed[np.sort(first)].tolist())


def orders_for_step(seed: int, step: int, queries: int, n: int) -> list[np.ndarray]:
    """A random order of the n examples for every query of a step: a pure function of (seed, step). -> [n] each"""
    generator = np.random.default_rng([seed, STEP_STREAM, step])
    return [generator.permutation(n) for _ in range(queries)]


def orders_for_evaluation(seed: int, sets: int, n: int) -> list[np.ndarray]:
    """A random order of the n examples for each set that evaluation averages over. -> [n] each"""
    return [np.random.default_rng([seed, EVALUATION_STREAM, number]).permutation(n) for number in range(sets)]


# --- similarity -------------------------------------------------------------------------------------------------------

HIDDEN_STATES = "states"  # the model's own hidden states; any other value names a sentence-transformers model


def cosine_similarity(queries: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Cosine similarity of each query to each example. [Q,D], [n,D] -> [Q,n]"""
    q, e = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, examples))
    return q @ e.T


def embed_examples(
    encoder: str,
    examples: Sequence[Example],
    model: LanguageModel,
    tokenizer: Tokenizer,
    hub: str | None,
    micro_batch: int | None,
    token_budget: int,
) -> np.ndarray:
    """A vector for each example, from its texts and choices joined to one text. -> [N,D]"""
    texts = [" ".join((*example.texts, *example.choices)) for example in examples]
    if encoder == HIDDEN_STATES:
        return mean_states(model, tokenizer.encode_batch(texts), micro_batch, token_budget)
    return _load_encoder(encoder, hub, str(device_of(model))).encode(
        texts, convert_to_numpy=True, show_progress_bar=False
    )


def check_similarity_model(encoder: str, hub: str | None) -> None:
    """Raise UserError if similar_by= names a sentence-embedding model that is not available."""
    if encoder == HIDDEN_STATES:
        return
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        raise UserError(
            f"similar_by={encoder} needs sentence-transformers: pip install 'gpt1[similar]', or use similar_by=states"
            " (the model's own hidden states)"
        ) from None
    if hub is not None and not Path(hub, encoder).is_dir() and not Path(encoder).is_dir():
        raise UserError(
            f"similar_by={encoder}: folder not found, neither {encoder} nor {Path(hub, encoder)} (hub={hub})"
        )


@functools.lru_cache(maxsize=1)
def _load_encoder(encoder: str, hub: str | None, device: str):  # type: ignore[no-untyped-def]  # a class of an optional package
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(Path(hub, encoder)) if hub is not None and Path(hub, encoder).is_dir() else encoder, device=device
    )
