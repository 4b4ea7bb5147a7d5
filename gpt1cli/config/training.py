"""The optimizer, schedule, runtime and logger groups, the few-shot recipe and row limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from gpt1cli.config.schema import Field

PositiveInt = Annotated[int, Field("", at_least=1)]
NAME_PATTERN = r"\.*[\w-][\w.-]*"  # of a folder; never . or .., which would leave its parent folder


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay and global-norm clipping (paper, section 4.1)."""

    name: Annotated[Literal["adamw"], Field("name of the optimizer")]
    beta1: Annotated[float, Field("decay rate of the first moment", at_least=0, below=1)]
    beta2: Annotated[float, Field("decay rate of the second moment", at_least=0, below=1)]
    eps: Annotated[float, Field("epsilon added to the square root of the second moment", above=0)]
    weight_decay: Annotated[float, Field("decoupled weight decay of tensors with two or more dimensions", at_least=0)]
    clip_norm: Annotated[float, Field("gradient clipping: maximum global norm", above=0)]


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate's factor as a function of the step: see training/schedules.py."""

    name: Annotated[Literal["cosine", "linear", "constant"], Field("shape after the warm-up")]


@dataclass(frozen=True)
class Limit:
    """The first n rows of a seeded shuffle of each split, after filtering."""

    train: Annotated[int | None, Field("use only n training rows (null: all)", at_least=1)]
    valid: Annotated[int | None, Field("use only n rows of each validation split (null: all)", at_least=1)]
    test: Annotated[int | None, Field("use only n rows of each test split (null: all)", at_least=1)]


@dataclass(frozen=True)
class FewConfig:
    """The fine-tuning recipe that shots=K sets, for the keys that the user did not name."""

    steps: Annotated[int, Field("number of steps", at_least=1)]
    eval_every: Annotated[int, Field("steps between validations", at_least=1)]
    batch_size: Annotated[int, Field("examples per step", at_least=1)]
    warmup_fraction: Annotated[float, Field("warm-up, as a fraction of the steps", at_least=0, at_most=1)]
    weight_decay: Annotated[float, Field("weight decay of the optimizer", at_least=0)]
    aux_lm: Annotated[bool, Field("add the auxiliary language-model loss")]

    TARGET_KEYS: ClassVar[dict[str, str]] = {
        "weight_decay": "optimizer.weight_decay"
    }  # others set the key of their name


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how a run is executed; nothing here changes what is learned, except for rounding."""

    device: Annotated[Literal["auto", "cpu", "cuda"], Field("device (auto: cuda if available)")]
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], Field("floating-point precision (auto: bf16 if the hardware supports it)")
    ]
    compile: Annotated[bool, Field("compile the trained model with torch.compile")]
    threads: Annotated[int | None, Field("CPU threads per process (null: chosen by torch)", at_least=1)]
    devices: Annotated[int, Field("data-parallel processes on this machine (torchrun sets it)", at_least=1)]
    shard: Annotated[bool, Field("shard parameters, gradients and optimizer state (FSDP)")]
    micro_batch: Annotated[
        int | None, Field("sequences per forward pass (null: as many as fit into a token budget)", at_least=1)
    ]
    progress: Annotated[
        Literal["auto", "live", "plain", "none"],
        Field("progress display: a live line, or plain lines (auto: live on a terminal)"),
    ]


@dataclass(frozen=True)
class LoggerConfig:
    """The experiment tracker that receives metrics.jsonl: see runs/trackers.py."""

    name: Annotated[Literal["none", "tensorboard", "wandb", "mlflow", "trackio"], Field("experiment tracker")]
    project: Annotated[str | None, Field("project of the tracker (mlflow: experiment)", pattern=NAME_PATTERN)]

    def problems(self) -> Iterator[str]:
        if self.project is None and self.name in ("wandb", "mlflow", "trackio"):
            yield f"project is needed with logger={self.name}"
        if self.project is not None and self.name in ("none", "tensorboard"):
            yield f"project={self.project} needs logger=wandb, mlflow or trackio: logger={self.name} has no projects"
