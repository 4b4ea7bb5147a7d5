"""How a fine-tuned model is asked: by the head on top of it, or through a prompt, alone or behind demonstrations.

Either way examples become items, and the model gives a value for each label; what that answers evaluation.py tells.

N examples, L labels, n examples that may be demonstrations.
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
from gpt1cli.models.batch import Asked, Item
from gpt1cli.models.create import fresh
from gpt1cli.models.heads import Classifier, Prompted, Tuned
from gpt1cli.models.inference import head_outputs
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.pretrained import locate
from gpt1cli.pretrained.load import COPY, _check_tables, fill, read_tensors
from gpt1cli.pretrained.locate import _check_read
from gpt1cli.prompts import demonstrations
from gpt1cli.prompts.demonstrations import Pool
from gpt1cli.prompts.prompt import Prompt, Query, lay
from gpt1cli.prompts.scoring import answers
from gpt1cli.tasks import few_shot
from gpt1cli.tasks.encode import items_of
from gpt1cli.tasks.example import Example, Ids
from gpt1cli.tasks.splits import Arranged
from gpt1cli.text import bpe
from gpt1cli.text.bpe import Tokenizer
from gpt1cli.training.device import Machine

Anew = Callable[[Sequence[int], int], Sequence[Item]]  # places of examples, update -> their items there

TOGETHER = 8  # queries behind the same demonstrations from which on these are read once for all of them


@dataclass(frozen=True)
class Fit:
    """What a model can read, and how much of it at a time."""

    n_positions: int
    branches: bool
    micro_batch: int | None
    token_budget: int

    @classmethod
    def of(cls, body: LanguageModel, machine: Machine) -> Fit:
        """For this model on this machine."""
        return cls(body.config.n_positions, body.branches, machine.micro_batch, machine.token_budget)


@dataclass(frozen=True)
class ByHead:
    """The linear layer at the end of a row (paper, section 3.3)."""

    task: TaskConfig
    vocabulary: Tokenizer
    fit: Fit

    def about(self) -> dict[str, Any]:
        """What a checkpoint has to say of it, besides the task."""
        return {"method": "head"}

    def arrange(self, examples: Sequence[Example]) -> Arranged:
        """The examples as items, and how many were cut for that."""
        items, cut = items_of(self.task, examples, self.vocabulary, self.fit.n_positions, self.fit.branches)
        return Arranged(items, cut)

    def outputs(self, model: Tuned, examples: Sequence[Example], items: Sequence[Item]) -> np.ndarray:
        """What the head gives for every example. -> [N,outputs], fp32"""
        return head_outputs(model, items, self.fit.micro_batch, self.fit.token_budget)


@dataclass(frozen=True)
class Shown:
    """The demonstrations that a run was trained with: a checkpoint holds what it takes to have the same again."""

    kind: str  # random, similar
    sets: int
    seed: int
    by: str  # whose vectors say what is similar
    hub: str | None
    pool: Pool
    ids: Sequence[Ids]  # of each example of the pool, as a demonstration

    @classmethod
    def of(cls, prompt: Prompt, examples: Sequence[Example], hub: str | None, **how: Any) -> Shown:
        """From the examples and the four settings."""
        ids = [prompt.demonstration(example) for example in examples]
        return cls(hub=hub, pool=Pool.of(prompt.task, examples), ids=ids, **how)

    def about(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        how = {name: getattr(self, name) for name in ("kind", "sets", "seed", "by")}
        return {**how, "examples": [dataclasses.asdict(example) for example in self.pool.examples]}

    def likeness(
        self, model: LanguageModel, vocabulary: Tokenizer, queries: Sequence[Example], fit: Fit
    ) -> np.ndarray | None:
        """How like the queries the examples are, to the model as it is now. -> [N,n]; None where that says nothing"""
        if self.kind != "similar":
            return None
        one, other = (
            demonstrations.embedded(self.by, some, model, vocabulary, self.hub, fit.micro_batch, fit.token_budget)
            for some in (queries, self.pool.examples)
        )
        return demonstrations.likeness(one, other)


@dataclass(frozen=True)
class ByPrompt:
    """The words of the labels in a prompt, scored by the language model itself."""

    prompt: Prompt
    shown: Shown | None
    fit: Fit

    def about(self) -> dict[str, Any]:
        """What a checkpoint has to say of it, besides the task with its prompt."""
        return {"method": "prompt", "demonstrations": self.shown and self.shown.about()}

    def arrange(self, examples: Sequence[Example]) -> Arranged:
        """The examples as items behind the first set of demonstrations, and what was cut and left out for that."""
        places: Sequence[tuple[int, ...]] = [()] * len(examples)
        if self.shown:
            (order,) = demonstrations.orders_of_sets(self.shown.seed, 1, len(self.shown.ids))
            places = [self.shown.pool.chosen(order, barred) for barred in self.shown.pool.barred(examples)]
        return self.behind(list(self.prompt.queries(examples)), examples, places)

    def behind(
        self, queries: Sequence[Query], examples: Sequence[Example], places: Sequence[tuple[int, ...]]
    ) -> Arranged:
        """Queries as items, each behind the demonstrations in these places of the pool."""
        items, cut, left_out = [], 0, 0
        for query, example, chosen in zip(queries, examples, places, strict=True):
            ids = [self.shown.ids[i] for i in chosen] if self.shown else []
            laid = lay(self.prompt, ids, query, self.fit.n_positions)
            after = len(laid.rows[0]) - laid.shared - len(query.words[0])
            asked = Asked(tuple(laid.scored), after, right_of(self.prompt, example))
            items.append(Item.of(laid.rows, example.label, laid.shared if self.fit.branches else 0, asked))
            cut, left_out = cut + laid.cut, left_out + laid.dropped
        return Arranged(items, cut, left_out)

    def training(self, examples: Sequence[Example], model: LanguageModel) -> Anew | None:
        """What gives the items of an update: each time behind other demonstrations; None without demonstrations.

        How like each other the examples are is asked of the model once, as it is now.
        """
        shown = self.shown
        if shown is None:
            return None
        barred = shown.pool.barred(examples, shown.likeness(model, self.prompt.vocabulary, examples, self.fit))
        queries = list(self.prompt.queries(examples))

        def items_of_update(rows: Sequence[int], step: int) -> Sequence[Item]:
            orders = demonstrations.orders_of_update(shown.seed, step, len(rows), len(shown.ids))
            places = [shown.pool.chosen(order, barred[i]) for order, i in zip(orders, rows, strict=True)]
            return self.behind([queries[i] for i in rows], [examples[i] for i in rows], places).items

        return items_of_update

    def outputs(self, model: Tuned, examples: Sequence[Example], items: Sequence[Item]) -> np.ndarray:
        """The score of every label, the mean over all sets of demonstrations. -> [N,L], fp32"""
        shown = self.shown
        if shown is None:
            return head_outputs(model, items, self.fit.micro_batch, self.fit.token_budget)
        barred = shown.pool.barred(examples, shown.likeness(model.body, self.prompt.vocabulary, examples, self.fit))
        patterns, pattern = np.unique(barred, axis=0, return_inverse=True)  # hardly more than one of random
        found = []
        for order in demonstrations.orders_of_sets(shown.seed, shown.sets, len(shown.ids)):
            places = [shown.pool.chosen(order, each) for each in patterns]
            found.append(self._scores(model, shown, examples, [places[i] for i in pattern.ravel()]))
        return np.stack(found).mean(0).astype(np.float32)

    def _scores(
        self, model: Tuned, shown: Shown, examples: Sequence[Example], places: Sequence[tuple[int, ...]]
    ) -> np.ndarray:
        """The score of every label behind these demonstrations, which are read once where many queries share them."""
        sharing: dict[tuple[int, ...], list[int]] = {}
        for i, chosen in enumerate(places):
            sharing.setdefault(chosen, []).append(i)
        limits = self.fit.micro_batch, self.fit.token_budget
        parts: list[tuple[list[int], np.ndarray]] = []
        for chosen, members in sharing.items():
            if len(members) >= TOGETHER:
                ids, some = [shown.ids[i] for i in chosen], [examples[i] for i in members]
                parts.append((members, answers(model.body, self.prompt, ids, some, *limits).scores))
        if alone := [i for members in sharing.values() if len(members) < TOGETHER for i in members]:
            some = [examples[i] for i in alone]
            items = self.behind(list(self.prompt.queries(some)), some, [places[i] for i in alone]).items
            parts.append((alone, head_outputs(model, items, *limits)))
        scores = np.concatenate([part for _, part in parts])
        return scores[np.argsort([i for members, _ in parts for i in members])]


Asking = ByHead | ByPrompt


def right_of(prompt: Prompt, example: Example) -> int | None:
    """Which of a query's words is the right one: the first of its label's; None where the label is not known."""
    if example.label is None:
        return None
    label = few_shot.class_of(prompt.task, example.label)
    return sum(prompt.alternatives[:label]) if prompt.alternatives else label


def of(described: Mapping[str, Any], model: Tuned, vocabulary: Tokenizer, machine: Machine, hub: str | None) -> Asking:
    """How the model of a checkpoint is asked, from what its config.json says."""
    task, fit = build(TaskConfig, described["task"]), Fit.of(model.body, machine)
    if described.get("method", "head") == "head":
        return ByHead(task, vocabulary, fit)
    prompt, shown = Prompt.of(task, vocabulary), described.get("demonstrations")
    if shown is None:
        return ByPrompt(prompt, None, fit)
    demonstrations.check(shown["by"], hub)
    lines = shown["examples"]
    examples = [Example(e["id"], tuple(e["texts"]), e["label"], tuple(e["choices"])) for e in lines]
    how = {name: value for name, value in shown.items() if name != "examples"}
    return ByPrompt(prompt, Shown.of(prompt, examples, hub, **how), fit)


def load_tuned(folder: Path) -> tuple[Tuned, Tokenizer]:
    """A fine-tuned model, with its head where it has one, fp32, on the CPU; `folder` is that of a checkpoint."""
    config = locate.described(folder)
    _check_read(folder)
    vocabulary = bpe.load(folder)
    if len(vocabulary) != config["vocabulary"]:  # its special rows would be those of other symbols
        told = f"its tokenizer has {len(vocabulary)} entries, but its model was trained with {config['vocabulary']}"
        raise UserError(f"{folder}: {told}; {COPY}")
    _check_tables(folder, config, vocabulary)
    body = fresh(build(ModelConfig, config["model"]), config["vocabulary"] + config["special_rows"])
    weights = read_tensors(folder / "model.safetensors")
    if config.get("method") == "prompt":
        prompted = Prompted.of(body, build(TaskConfig, config["task"]))
        fill(prompted, weights, str(folder))
        return prompted, bpe.load(folder)
    if "head.weight" not in weights:
        raise UserError(f"{folder}: a language model, without the head that fine-tuning adds")
    choice = bool(config["task"]["choices"])
    model = Classifier(body, weights["head.weight"].shape[0], head_dropout=0.0, choice=choice)
    fill(model, weights, str(folder))
    return model, vocabulary
