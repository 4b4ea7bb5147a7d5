"""Predictors: a fine-tuned model predicts with its head, or through a prompt, with or without demonstrations.

A predictor encodes examples as items and computes a value for each label; evaluate.py computes metrics and predictions
from these values.

N examples, L labels, n examples in the demonstration pool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError, build
from gpt1cli.config.task import TaskConfig
from gpt1cli.models.batch import Item, ScoredSpan
from gpt1cli.models.create import create_model
from gpt1cli.models.heads import Classifier, FineTunedModel, PromptedLM
from gpt1cli.models.inference import head_outputs
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.pretrained import locate
from gpt1cli.pretrained.load import COPY_HINT, check_tables_digest, load_weights, read_tensors
from gpt1cli.pretrained.locate import check_model_files
from gpt1cli.prompts import demonstrations
from gpt1cli.prompts.demonstrations import DemonstrationPool
from gpt1cli.prompts.prompt import Prompt, Query, pack_prompt
from gpt1cli.prompts.scoring import score_examples
from gpt1cli.tasks import few_shot
from gpt1cli.tasks.encode import encode_examples
from gpt1cli.tasks.example import Example, TokenIds
from gpt1cli.tasks.splits import EncodedExamples
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training.device import Machine

Resample = Callable[[Sequence[int], int], Sequence[Item]]  # indices of examples, step -> their items for this step

MIN_SHARED_QUERIES = 8  # from so many queries on, demonstrations that they share are read once for all of them


@dataclass(frozen=True)
class InputLimits:
    """How long a model's inputs may be, and how many are computed together."""

    n_positions: int
    branches: bool
    micro_batch: int | None
    token_budget: int

    @classmethod
    def from_model(cls, body: LanguageModel, machine: Machine) -> InputLimits:
        """The limits of this model on this machine."""
        return cls(body.config.n_positions, body.branches, machine.micro_batch, machine.token_budget)


@dataclass(frozen=True)
class HeadPredictor:
    """Predicts with the linear layer at the end of a row (paper, section 3.3)."""

    task: TaskConfig
    tokenizer: Tokenizer
    limits: InputLimits

    def checkpoint_entries(self) -> dict[str, Any]:
        """The entries of a checkpoint's config.json, besides the task."""
        return {"method": "head"}

    def encode(self, examples: Sequence[Example]) -> EncodedExamples:
        """Encode examples as items, and count the truncated ones."""
        limits = self.limits
        items, truncated = encode_examples(self.task, examples, self.tokenizer, limits.n_positions, limits.branches)
        return EncodedExamples(items, truncated)

    def outputs(self, model: FineTunedModel, examples: Sequence[Example], items: Sequence[Item]) -> np.ndarray:
        """The head's outputs for every example. -> [N,outputs], fp32"""
        return head_outputs(model, items, self.limits.micro_batch, self.limits.token_budget)


@dataclass(frozen=True)
class DemonstrationSets:
    """The demonstrations of a run. A checkpoint's config.json stores `kind`, `sets`, `seed`, `by` and the examples."""

    kind: str  # random, similar
    sets: int  # that evaluation averages over
    seed: int
    by: str  # the model whose vectors measure similarity
    hub: str | None
    pool: DemonstrationPool
    ids: Sequence[TokenIds]  # each example of the pool as a demonstration

    @classmethod
    def from_examples(
        cls, prompt: Prompt, examples: Sequence[Example], hub: str | None, **settings: Any
    ) -> DemonstrationSets:
        """Build the sets from the examples and the settings kind, sets, seed and by."""
        ids = [prompt.demonstration(example) for example in examples]
        return cls(hub=hub, pool=DemonstrationPool.from_examples(prompt.task, examples), ids=ids, **settings)

    def checkpoint_entries(self) -> dict[str, Any]:
        """The entry `demonstrations` of a checkpoint's config.json."""
        settings = {name: getattr(self, name) for name in ("kind", "sets", "seed", "by")}
        return {**settings, "examples": [dataclasses.asdict(example) for example in self.pool.examples]}

    def similarity(
        self, model: LanguageModel, tokenizer: Tokenizer, queries: Sequence[Example], limits: InputLimits
    ) -> np.ndarray | None:
        """Similarity of queries and pool examples under the model's current weights. -> [N,n]; None if kind=random"""
        if self.kind != "similar":
            return None
        batch = limits.micro_batch, limits.token_budget
        query_vectors, pool_vectors = (
            demonstrations.embed_examples(self.by, examples, model, tokenizer, self.hub, *batch)
            for examples in (queries, self.pool.examples)
        )
        return demonstrations.cosine_similarity(query_vectors, pool_vectors)


@dataclass(frozen=True)
class PromptPredictor:
    """Predicts with a prompt: the language model itself scores the words of the labels."""

    prompt: Prompt
    demos: DemonstrationSets | None
    limits: InputLimits

    def checkpoint_entries(self) -> dict[str, Any]:
        """The entries of a checkpoint's config.json, besides the task with its prompt."""
        return {"method": "prompt", "demonstrations": self.demos and self.demos.checkpoint_entries()}

    def encode(self, examples: Sequence[Example]) -> EncodedExamples:
        """Encode examples after the first set of demonstrations; count truncated texts and skipped demonstrations."""
        selected: Sequence[tuple[int, ...]] = [()] * len(examples)
        if self.demos:
            (order,) = demonstrations.orders_for_evaluation(self.demos.seed, 1, len(self.demos.ids))
            selected = [self.demos.pool.select(order, excluded) for excluded in self.demos.pool.excluded(examples)]
        return self.encode_queries(list(self.prompt.queries(examples)), examples, selected)

    def encode_queries(
        self, queries: Sequence[Query], examples: Sequence[Example], selected: Sequence[tuple[int, ...]]
    ) -> EncodedExamples:
        """Encode queries as items, each after its selected demonstrations (indices in the pool)."""
        items, truncated, skipped = [], 0, 0
        for query, example, indices in zip(queries, examples, selected, strict=True):
            ids = [self.demos.ids[i] for i in indices] if self.demos else []
            packed = pack_prompt(self.prompt, ids, query, self.limits.n_positions)
            after = len(packed.rows[0]) - packed.shared_length - len(query.words[0])
            span = ScoredSpan(tuple(packed.scored_counts), after, correct_word(self.prompt, example))
            shared = packed.shared_length if self.limits.branches else 0
            items.append(Item.from_sequences(packed.rows, example.label, shared, span))
            truncated, skipped = truncated + packed.truncated, skipped + packed.skipped
        return EncodedExamples(items, truncated, skipped)

    def resampler(self, examples: Sequence[Example], model: LanguageModel) -> Resample | None:
        """A function that encodes examples for a step after newly sampled demonstrations; None without demonstrations.

        Similarity is computed once, with the model's weights before training.
        """
        demos = self.demos
        if demos is None:
            return None
        excluded = demos.pool.excluded(examples, demos.similarity(model, self.prompt.tokenizer, examples, self.limits))
        queries = list(self.prompt.queries(examples))

        def items_for_step(rows: Sequence[int], step: int) -> Sequence[Item]:
            orders = demonstrations.orders_for_step(demos.seed, step, len(rows), len(demos.ids))
            selected = [demos.pool.select(order, excluded[i]) for order, i in zip(orders, rows, strict=True)]
            return self.encode_queries([queries[i] for i in rows], [examples[i] for i in rows], selected).items

        return items_for_step

    def outputs(self, model: FineTunedModel, examples: Sequence[Example], items: Sequence[Item]) -> np.ndarray:
        """The score of every label, the mean over all sets of demonstrations. -> [N,L], fp32"""
        demos = self.demos
        if demos is None:
            return head_outputs(model, items, self.limits.micro_batch, self.limits.token_budget)
        similarity = demos.similarity(model.body, self.prompt.tokenizer, examples, self.limits)
        excluded = demos.pool.excluded(examples, similarity)
        patterns, pattern = np.unique(excluded, axis=0, return_inverse=True)  # few patterns if kind=random
        scores = []
        for order in demonstrations.orders_for_evaluation(demos.seed, demos.sets, len(demos.ids)):
            selected = [demos.pool.select(order, mask) for mask in patterns]
            scores.append(self._scores(model, demos, examples, [selected[i] for i in pattern.ravel()]))
        return np.stack(scores).mean(0).astype(np.float32)

    def _scores(
        self,
        model: FineTunedModel,
        demos: DemonstrationSets,
        examples: Sequence[Example],
        selected: Sequence[tuple[int, ...]],
    ) -> np.ndarray:
        """Score every label after the selected demonstrations, which are read once if many queries share them."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, indices in enumerate(selected):
            groups.setdefault(indices, []).append(i)
        limits = self.limits.micro_batch, self.limits.token_budget
        parts: list[tuple[list[int], np.ndarray]] = []
        for indices, members in groups.items():
            if len(members) >= MIN_SHARED_QUERIES:
                ids, queries = [demos.ids[i] for i in indices], [examples[i] for i in members]
                parts.append((members, score_examples(model.body, self.prompt, ids, queries, *limits).scores))
        if remaining := [i for members in groups.values() if len(members) < MIN_SHARED_QUERIES for i in members]:
            queries = [examples[i] for i in remaining]
            items = self.encode_queries(
                list(self.prompt.queries(queries)), queries, [selected[i] for i in remaining]
            ).items
            parts.append((remaining, head_outputs(model, items, *limits)))
        scores = np.concatenate([part for _, part in parts])
        return scores[np.argsort([i for members, _ in parts for i in members])]


Predictor = HeadPredictor | PromptPredictor


def correct_word(prompt: Prompt, example: Example) -> int | None:
    """Index of the correct word of a query: the first word of its label; None if the example has no label."""
    if example.label is None:
        return None
    label = few_shot.class_index(prompt.task, example.label)
    return sum(prompt.alternatives[:label]) if prompt.alternatives else label


def restore_predictor(
    config: Mapping[str, Any], model: FineTunedModel, tokenizer: Tokenizer, machine: Machine, hub: str | None
) -> Predictor:
    """Build the predictor of a checkpoint from its config.json."""
    task, limits = build(TaskConfig, config["task"]), InputLimits.from_model(model.body, machine)
    if config.get("method", "head") == "head":
        return HeadPredictor(task, tokenizer, limits)
    prompt, stored = Prompt.from_task(task, tokenizer), config.get("demonstrations")
    if stored is None:
        return PromptPredictor(prompt, None, limits)
    demonstrations.check_similarity_model(stored["by"], hub)
    examples = [Example(e["id"], tuple(e["texts"]), e["label"], tuple(e["choices"])) for e in stored["examples"]]
    settings = {name: value for name, value in stored.items() if name != "examples"}
    return PromptPredictor(prompt, DemonstrationSets.from_examples(prompt, examples, hub, **settings), limits)


def load_fine_tuned(folder: Path) -> tuple[FineTunedModel, Tokenizer]:
    """Load a fine-tuned model, with its head if it has one, in fp32 on the CPU, from the folder of a checkpoint.

    Raises UserError if files do not fit together, or if the checkpoint is a language model without a head.
    """
    config = locate.read_checkpoint_config(folder)
    check_model_files(folder)
    tokenizer = bpe.load(folder)
    if len(tokenizer) != config["vocabulary"]:  # the special tokens would have the embeddings of other tokens
        raise UserError(
            f"{folder}: the tokenizer has vocabulary size {len(tokenizer)}, but the model was trained with"
            f" {config['vocabulary']}; {COPY_HINT}"
        )
    check_tables_digest(folder, config, tokenizer)
    body = create_model(build(ModelConfig, config["model"]), config["vocabulary"] + config["special_rows"])
    weights = read_tensors(folder / "model.safetensors")
    if config.get("method") == "prompt":
        prompted = PromptedLM.from_task(body, build(TaskConfig, config["task"]))
        load_weights(prompted, weights, str(folder))
        return prompted, bpe.load(folder)
    if "head.weight" not in weights:
        raise UserError(f"{folder} is a language model without a fine-tuned head; name a run of gpt1 finetune")
    choice = bool(config["task"]["choices"])
    model = Classifier(body, weights["head.weight"].shape[0], head_dropout=0.0, choice=choice)
    load_weights(model, weights, str(folder))
    return model, tokenizer
