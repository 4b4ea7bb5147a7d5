"""The model group: architecture, shape, and the recipes that suit the size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from gpt1cli.config.schema import Field


@dataclass(frozen=True)
class Pretraining:
    """The pretraining recipe that a model size brings with it."""

    batch_size: Annotated[int, Field("sequences in one update", at_least=1)]
    context: Annotated[int, Field("tokens in one sequence", at_least=2)]
    lr: Annotated[float, Field("highest learning rate", above=0)]
    warmup_steps: Annotated[int, Field("updates of linear warm-up", at_least=0)]
    lstm_lr: Annotated[float | None, Field("that of the LSTM of this size (null: the same)", above=0)] = None


@dataclass(frozen=True)
class Finetuning:
    """The fine-tuning recipe that a model size brings with it."""

    lr: Annotated[float, Field("highest learning rate", above=0)]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a language model (the Transformer's: paper, section 4.1) and the recipes that suit its size."""

    name: Annotated[str, Field("name of this size")]
    n_layer: Annotated[int, Field("decoder blocks", at_least=1)]
    d_model: Annotated[int, Field("width of the hidden states", at_least=1)]
    n_head: Annotated[int, Field("attention heads", at_least=1)]
    d_ff: Annotated[int, Field("width inside the feed-forward layer", at_least=1)]
    n_positions: Annotated[int, Field("learned positions: the longest sequence", at_least=2)]
    embedding_dropout: Annotated[float, Field("dropout on the summed embeddings", at_least=0, below=1)]
    attention_dropout: Annotated[float, Field("dropout on the attention weights", at_least=0, below=1)]
    residual_dropout: Annotated[float, Field("dropout before each residual sum", at_least=0, below=1)]
    layer_norm_eps: Annotated[float, Field("epsilon inside the root of LayerNorm", above=0)]
    init_std: Annotated[float, Field("standard deviation of fresh weights", above=0)]
    pretraining: Pretraining
    finetuning: Finetuning
    architecture: Annotated[Literal["transformer", "lstm"], Field("decoder blocks or a recurrent layer")] = (
        "transformer"
    )
    lstm_units: Annotated[int | None, Field("units of the recurrent layer (architecture=lstm)", at_least=1)] = None
    norm: Annotated[
        Literal["post", "pre"],
        Field("after each residual sum (GPT-1), or before attention and feed-forward and after the last block (GPT-2)"),
    ] = "post"

    SHAPES: ClassVar[dict[str, tuple[str, ...]]] = {  # what a checkpoint's weights fix
        "transformer": (
            *("architecture", "norm", "layer_norm_eps"),
            *("n_layer", "d_model", "n_head", "d_ff", "n_positions"),
        ),
        "lstm": ("architecture", "d_model", "lstm_units", "n_positions"),
    }

    @property
    def shape(self) -> dict[str, Any]:
        """What a checkpoint's weights fix."""
        return {name: getattr(self, name) for name in self.SHAPES[self.architecture]}

    def as_lstm(self) -> ModelConfig:
        """The recurrent model of this size; where no units are named 8/3 of the width, as 2048 are of base's 768."""
        return dataclasses.replace(self, architecture="lstm", lstm_units=self.lstm_units or self.d_model * 8 // 3)

    def problems(self) -> Iterator[str]:
        if self.architecture == "lstm" and self.lstm_units is None:
            yield "lstm_units is needed with architecture=lstm"
        if self.d_model % self.n_head:
            yield f"n_head={self.n_head} does not divide d_model={self.d_model}"
        if self.pretraining.context > self.n_positions:
            yield f"pretraining.context={self.pretraining.context} exceeds n_positions={self.n_positions}"
