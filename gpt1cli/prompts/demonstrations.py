"""Which labelled examples stand before a query as demonstrations: one of each class, never the query itself.

As in LM-BFF (Gao et al. 2021, section 6) they are sampled anew for every query of every update, and at evaluation the
scores behind several sets are averaged. A set is an order of all examples, drawn by seed: of each class the first one
that may stand before a query does. So most queries have the same demonstrations, which then need reading only once, and
the order of the classes, which matters to a model that reads from left to right, is another one in each set.

With `similar` only the half of each class that is most like the query may stand before it (section 6.2): by the cosine
of mean-pooled hidden states, or of sentence embeddings.

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

UPDATE, EVALUATION = 1, 2  # which draws: each kind has a stream of its own


@dataclass(frozen=True)
class Pool:
    """The examples that may be demonstrations; the answers of a choice are no classes, so there all are of one."""

    examples: Sequence[Example]
    classes: np.ndarray  # [n]
    places: Mapping[Hashable, list[int]]  # what an example says: where it stands

    @classmethod
    def of(cls, task: TaskConfig, examples: Sequence[Example]) -> Pool:
        """The labelled examples of a task."""
        labels = [0 if task.choices or e.label is None else few_shot.class_of(task, e.label) for e in examples]
        places: dict[Hashable, list[int]] = {}
        for i, example in enumerate(examples):
            places.setdefault((example.texts, example.choices), []).append(i)
        return cls(examples, np.array(labels), places)

    def barred(self, queries: Sequence[Example], likeness: np.ndarray | None = None) -> np.ndarray:
        """Which examples may not stand before each query: itself, and the half of a class less like it. -> bool [Q,n]

        likeness [Q,n]; None: all others may.
        """
        found = np.zeros((len(queries), len(self.classes)), bool)
        for row, query in zip(found, queries, strict=True):
            row[self.places.get((query.texts, query.choices), [])] = True
        if likeness is None:
            return found
        for number in np.unique(self.classes):
            members = np.flatnonzero(self.classes == number)
            nearest = np.argsort(-np.where(found[:, members], -np.inf, likeness[:, members]), axis=1, kind="stable")
            far = members[nearest[:, max(1, len(members) // 2) :]]  # [Q, the half of them]
            np.put_along_axis(found, far, True, axis=1)
        return found

    def chosen(self, order: np.ndarray, barred: np.ndarray) -> tuple[int, ...]:
        """The places of the demonstrations of a query, the farthest first. order [n], barred bool [n]

        A class of which nothing but the query is there has none.
        """
        allowed = order[~barred[order]]
        _, first = np.unique(self.classes[allowed], return_index=True)
        return tuple(allowed[np.sort(first)].tolist())


def orders_of_update(seed: int, step: int, queries: int, n: int) -> list[np.ndarray]:
    """An order of the examples for every query of an update: a pure function of (seed, step). -> [n] each"""
    generator = np.random.default_rng([seed, UPDATE, step])
    return [generator.permutation(n) for _ in range(queries)]


def orders_of_sets(seed: int, sets: int, n: int) -> list[np.ndarray]:
    """The orders of the sets that evaluation averages over. -> [n] each"""
    return [np.random.default_rng([seed, EVALUATION, number]).permutation(n) for number in range(sets)]


# --- likeness ---------------------------------------------------------------------------------------------------------

STATES = "states"  # of the model itself; any other word names a model of sentence-transformers


def likeness(queries: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Cosines. [Q,D], [n,D] -> [Q,n]"""
    one, other = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, examples))
    return one @ other.T


def embedded(
    by: str,
    examples: Sequence[Example],
    model: LanguageModel,
    vocabulary: Tokenizer,
    hub: str | None,
    micro_batch: int | None,
    token_budget: int,
) -> np.ndarray:
    """A vector for each example, of its texts and answers as one text. -> [N,D]"""
    texts = [" ".join((*example.texts, *example.choices)) for example in examples]
    if by == STATES:
        return mean_states(model, vocabulary.encode_batch(texts), micro_batch, token_budget)
    return _encoder(by, hub, str(device_of(model))).encode(texts, convert_to_numpy=True, show_progress_bar=False)


def check(by: str, hub: str | None) -> None:
    """UserError where sentence embeddings are asked for and cannot be had."""
    if by == STATES:
        return
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        way = "pip install 'gpt1[similar]', or similar_by=states for the model's own"
        raise UserError(f"similar_by={by} needs sentence-transformers: {way}") from None
    if hub is not None and not Path(hub, by).is_dir() and not Path(by).is_dir():
        raise UserError(f"similar_by={by}: no such folder, and none of that name below hub={hub}")


@functools.lru_cache(maxsize=1)
def _encoder(by: str, hub: str | None, device: str):  # type: ignore[no-untyped-def]  # a class of the extra
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(Path(hub, by)) if hub is not None and Path(hub, by).is_dir() else by, device=device)
