"""The model group: architecture, shape and the training recipes for its size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from gpt1cli.config.schema import Field


@dataclass(frozen=True)
class Pretraining:
    """The pretraining recipe of a model size."""

    batch_size: Annotated[int, Field("sequences per step", at_least=1)]
    context: Annotated[int, Field("tokens per sequence", at_least=2)]
    lr: Annotated[float, Field("maximum learning rate", above=0)]
    warmup_steps: Annotated[int, Field("steps of linear warm-up", at_least=0)]
    lstm_lr: Annotated[float | None, Field("maximum learning rate of this size's LSTM (null: lr)", above=0)] = None


@dataclass(frozen=True)
class Finetuning:
    """The fine-tuning recipe of a model size."""

    lr: Annotated[float, Field("maximum learning rate", above=0)]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a language model (the Transformer: paper, section 4.1) and the recipes for its size."""

    name: Annotated[str, Field("name of this model size")]
    n_layer: Annotated[int, Field("Transformer layers", at_least=1)]
    d_model: Annotated[int, Field("width of the hidden states", at_least=1)]
    n_head: Annotated[int, Field("attention heads", at_least=1)]
    d_ff: Annotated[int, Field("inner width of the feed-forward network", at_least=1)]
    n_positions: Annotated[int, Field("learned positions: maximum sequence length", at_least=2)]
    embedding_dropout: Annotated[
        float, Field("dropout on the sum of token and position embeddings", at_least=0, below=1)
    ]
    attention_dropout: Annotated[float, Field("dropout on the attention weights", at_least=0, below=1)]
    residual_dropout: Annotated[float, Field("dropout before each residual addition", at_least=0, below=1)]
    layer_norm_eps: Annotated[float, Field("epsilon of LayerNorm, inside the square root", above=0)]
    init_std: Annotated[float, Field("standard deviation of randomly initialized weights", above=0)]
    pretraining: Pretraining
    finetuning: Finetuning
    architecture: Annotated[
        Literal["transformer", "lstm"], Field("transformer: decoder layers; lstm: one recurrent layer")
    ] = "transformer"
    lstm_units: Annotated[int | None, Field("hidden units of the LSTM (architecture=lstm)", at_least=1)] = None
    norm: Annotated[
        Literal["post", "pre"],
        Field(
            "LayerNorm: after each residual sum (post, GPT-1), or before each sublayer and after the last (pre, GPT-2)"
        ),
    ] = "post"

    SHAPE_KEYS: ClassVar[dict[str, tuple[str, ...]]] = {  # the keys that a checkpoint's weights fix
        "transformer": (
            *("architecture", "norm", "layer_norm_eps"),
            *("n_layer", "d_model", "n_head", "d_ff", "n_positions"),
        ),
        "lstm": ("architecture", "d_model", "lstm_units", "n_positions"),
    }

    @property
    def shape(self) -> dict[str, Any]:
        """The keys and values that a checkpoint's weights fix."""
        return {name: getattr(self, name) for name in self.SHAPE_KEYS[self.architecture]}

    def as_lstm(self) -> ModelConfig:
        """Return the LSTM of this size; its default number of units is 8/3 of d_model, as base has 2048 for 768."""
        return dataclasses.replace(self, architecture="lstm", lstm_units=self.lstm_units or self.d_model * 8 // 3)

    def problems(self) -> Iterator[str]:
        if self.architecture == "lstm" and self.lstm_units is None:
            yield "lstm_units is needed with architecture=lstm"
        if self.d_model % self.n_head:
            yield f"n_head={self.n_head} does not divide d_model={self.d_model}"
        if self.pretraining.context > self.n_positions:
            yield f"pretraining.context={self.pretraining.context} exceeds n_positions={self.n_positions}"
