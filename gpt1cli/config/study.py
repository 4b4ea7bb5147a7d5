"""The ablation and study groups: named lists of overrides, and the grids that they span."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from gpt1cli.config.schema import Field
from gpt1cli.config.training import NAME_PATTERN, PositiveInt


@dataclass(frozen=True)
class AblationConfig:
    """One component removed: a named list of ordinary overrides, applied after the user's own."""

    name: Annotated[str, Field("name of the ablation")]
    overrides: Annotated[list[str], Field("the overrides of this ablation")]


@dataclass(frozen=True)
class GridConfig:
    """Hyperparameter values of a few-shot study; validation selects one for each task, row and seed."""

    batch_size: Annotated[list[PositiveInt] | None, Field("examples per step")] = None
    lr: Annotated[list[Annotated[float, Field("", above=0)]] | None, Field("maximum learning rate")] = None

    def problems(self) -> Iterator[str]:
        for name, values in dataclasses.asdict(self).items():
            if values is not None and (not values or len(set(values)) < len(values)):
                yield f"{name}={values}: needs at least one value, without duplicates"


@dataclass(frozen=True)
class StudyConfig:
    """A table or figure of a paper, as the runs (cells) that it needs."""

    name: Annotated[str, Field("name of the study", pattern=NAME_PATTERN)]
    kind: Annotated[
        Literal["transfer", "few"], Field("rows of the table: ablations (transfer), or few-shot methods (few, LM-BFF)")
    ] = "transfer"
    tasks: Annotated[list[str], Field("tasks: the columns of the table")] = field(default_factory=list)
    variants: Annotated[
        list[str], Field("rows of the table: ablations, or few-shot methods (kind=few; see studies/few_shot.py)")
    ] = field(default_factory=list)
    transfer: Annotated[list[str], Field("tasks fine-tuned with 0, 1, ... transferred layers (Figure 2, left)")] = (
        field(default_factory=list)
    )
    zeroshot: Annotated[list[str], Field("tasks scored zero-shot at every kept checkpoint (Figure 2, right)")] = field(
        default_factory=list
    )
    pretraining: Annotated[
        list[str],
        Field("overrides of gpt1 pretrain, for the study's own Transformer and LSTM (empty: init= is needed)"),
    ] = field(default_factory=list)
    overrides: Annotated[list[str], Field("overrides of gpt1 finetune for every cell")] = field(default_factory=list)
    grid: Annotated[GridConfig, Field("hyperparameter values to select by validation (kind=few)")] = field(
        default_factory=GridConfig
    )
    search: Annotated[list[str], Field("overrides of gpt1 search for the automatic prompts (kind=few)")] = field(
        default_factory=list
    )

    def problems(self) -> Iterator[str]:
        if self.kind == "few" and (self.transfer or self.zeroshot):
            yield "transfer and zeroshot are figures of the GPT-1 paper: remove them from a study of kind=few"
        if self.kind != "few" and (self.search or self.grid != GridConfig()):
            yield f"grid and search need kind=few, not kind={self.kind}"
        if not (self.tasks or self.transfer or self.zeroshot):
            yield "tasks, transfer and zeroshot are empty: nothing to run; name at least one task"
        if self.tasks and not self.variants:
            yield "variants is empty: name at least one ablation, as in [full]"
        if self.zeroshot and not self.pretraining:
            yield "zeroshot scores the checkpoints of the study's own pretraining: add pretraining overrides"
