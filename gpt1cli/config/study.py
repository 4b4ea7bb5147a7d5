"""The ablation and study groups: named lists of overrides, and the grids they span."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from gpt1cli.config.schema import Field
from gpt1cli.config.training import NAME, Count


@dataclass(frozen=True)
class AblationConfig:
    """One ingredient taken away: a named list of ordinary overrides, applied after the user's own."""

    name: Annotated[str, Field("name of the ablation")]
    overrides: Annotated[list[str], Field("the overrides it stands for")]


@dataclass(frozen=True)
class GridConfig:
    """Values of which the validation split picks one for every task, row and seed of a study on few examples."""

    batch_size: Annotated[list[Count] | None, Field("examples in one update")] = None
    lr: Annotated[list[Annotated[float, Field("", above=0)]] | None, Field("highest learning rate")] = None

    def problems(self) -> Iterator[str]:
        for name, values in dataclasses.asdict(self).items():
            if values is not None and (not values or len(set(values)) < len(values)):
                yield f"{name}={values}: at least one, each once"


@dataclass(frozen=True)
class StudyConfig:
    """A table or figure of the paper as the runs that it takes: its cells."""

    name: Annotated[str, Field("name of the study", pattern=NAME)]
    kind: Annotated[
        Literal["transfer", "few"], Field("what its rows are: ablations, or ways to learn from few examples (LM-BFF)")
    ] = "transfer"
    tasks: Annotated[list[str], Field("tasks of the table, one column each")] = field(default_factory=list)
    variants: Annotated[
        list[str], Field("ablations of the table, one row each; of kind=few those of fewstudy.ROWS")
    ] = field(default_factory=list)
    transfer: Annotated[list[str], Field("tasks fine-tuned behind 0, 1, ... transferred blocks (Figure 2, left)")] = (
        field(default_factory=list)
    )
    zeroshot: Annotated[list[str], Field("tasks scored at every kept checkpoint, untrained (Figure 2, right)")] = field(
        default_factory=list
    )
    pretraining: Annotated[
        list[str], Field("overrides of gpt1 pretrain for a Transformer and an LSTM of its own (empty: init is named)")
    ] = field(default_factory=list)
    overrides: Annotated[list[str], Field("overrides of gpt1 finetune for every cell")] = field(default_factory=list)
    grid: Annotated[GridConfig, Field("values that the validation split chooses from (kind=few)")] = field(
        default_factory=GridConfig
    )
    search: Annotated[list[str], Field("overrides of gpt1 search for the automatic prompts (kind=few)")] = field(
        default_factory=list
    )

    def problems(self) -> Iterator[str]:
        if self.kind == "few" and (self.transfer or self.zeroshot):
            yield "transfer and zeroshot are figures of GPT-1's paper: a study of kind=few has none"
        if self.kind != "few" and (self.search or self.grid != GridConfig()):
            yield "grid and search are for a study of kind=few"
        if not (self.tasks or self.transfer or self.zeroshot):
            yield "tasks, transfer and zeroshot are empty: nothing to run"
        if self.tasks and not self.variants:
            yield "variants is empty: name at least one ablation, as in [full]"
        if self.zeroshot and not self.pretraining:
            yield "zeroshot scores the checkpoints of the study's own pretraining: name pretraining overrides too"
