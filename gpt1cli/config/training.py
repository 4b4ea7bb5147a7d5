"""The optimizer, schedule, runtime and logger groups, and the keys of few-shot draws and limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from gpt1cli.config.schema import Field

Count = Annotated[int, Field("", at_least=1)]
NAME = r"\.*[\w-][\w.-]*"  # of a folder: never . or .., which would lead out of the one it is to lie in


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay and global-norm clipping (paper, section 4.1)."""

    name: Annotated[Literal["adamw"], Field("name of the optimizer")]
    beta1: Annotated[float, Field("decay of the first moment", at_least=0, below=1)]
    beta2: Annotated[float, Field("decay of the second moment", at_least=0, below=1)]
    eps: Annotated[float, Field("added to the root of the second moment", above=0)]
    weight_decay: Annotated[float, Field("decoupled decay of every tensor of more than one dimension", at_least=0)]
    clip_norm: Annotated[float, Field("largest global norm of the gradient", above=0)]


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate's factor as a function of the step: see optim.SCHEDULES."""

    name: Annotated[Literal["cosine", "linear", "constant"], Field("shape after the warm-up")]


@dataclass(frozen=True)
class Limit:
    """The first n rows of a seeded shuffle of each split, after filtering."""

    train: Annotated[int | None, Field("training rows used", at_least=1)]
    valid: Annotated[int | None, Field("rows used of each validation split", at_least=1)]
    test: Annotated[int | None, Field("rows used of each test split", at_least=1)]


@dataclass(frozen=True)
class FewConfig:
    """The fine-tuning recipe that shots=K brings, where its keys are not named."""

    steps: Annotated[int, Field("updates", at_least=1)]
    eval_every: Annotated[int, Field("updates between two validations", at_least=1)]
    batch_size: Annotated[int, Field("examples in one update", at_least=1)]
    warmup_fraction: Annotated[float, Field("share of the updates spent in warm-up", at_least=0, at_most=1)]
    weight_decay: Annotated[float, Field("that of the optimizer", at_least=0)]
    aux_lm: Annotated[bool, Field("whether there is an auxiliary language-model loss")]

    PLACES: ClassVar[dict[str, str]] = {"weight_decay": "optimizer.weight_decay"}  # of others: the key of that name


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how a run is executed; nothing here changes what is learned, but for rounding."""

    device: Annotated[Literal["auto", "cpu", "cuda"], Field("where to compute (auto: cuda where there is one)")]
    precision: Annotated[Literal["auto", "fp32", "bf16"], Field("arithmetic (auto: bf16 where the hardware has it)")]
    compile: Annotated[bool, Field("compile the model that is trained, with torch.compile")]
    threads: Annotated[int | None, Field("CPU threads of a process (null: torch's choice)", at_least=1)]
    devices: Annotated[int, Field("processes on this machine that share each update (torchrun sets it)", at_least=1)]
    shard: Annotated[bool, Field("cut weights, gradients and moments up among the processes (FSDP)")]
    micro_batch: Annotated[
        int | None, Field("sequences computed at a time (null: as many as fit a token budget)", at_least=1)
    ]
    progress: Annotated[Literal["auto", "live", "plain", "none"], Field("a live line on a terminal, or plain lines")]


@dataclass(frozen=True)
class LoggerConfig:
    """The experiment tracker that follows metrics.jsonl: see trackers.TRACKERS."""

    name: Annotated[Literal["none", "tensorboard", "wandb", "mlflow", "trackio"], Field("the tracker")]
    project: Annotated[str | None, Field("project (of mlflow: experiment) that takes the run", pattern=NAME)]

    def problems(self) -> Iterator[str]:
        if self.project is None and self.name in ("wandb", "mlflow", "trackio"):
            yield f"project is needed with logger={self.name}"
        if self.project is not None and self.name in ("none", "tensorboard"):
            yield f"project={self.project} is for wandb, mlflow and trackio: logger={self.name} has no projects"
