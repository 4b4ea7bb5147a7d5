"""What a training run takes, by arithmetic alone: parameters, floating point operations, memory, hours.

Plain functions of the model's shape; tests hold them to what torch really allocates, saves and counts.

B rows of T tokens, N = B x T; D width, F feed-forward width, H heads, L blocks, V vocabulary rows, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gpt1cli.config.data import TokenizerConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.models.attention import QUERIES
from gpt1cli.models.create import parameters
from gpt1cli.models.kernels import CHUNK_ROWS, VOCABULARY_TILE
from gpt1cli.runtime import Machine

PUBLISHED = {"words": (40_000, 478), "bytes": (50_000, 257)}  # merges; symbols, <unk> and newline, or <|endoftext|>


@dataclass(frozen=True)
class Work:
    """What a run has to do, whatever does it."""

    model: ModelConfig
    vocabulary: int  # rows of the token table
    outputs: int  # of the head; 0: there is none
    logits: bool  # whether a language-model loss is computed
    updates: int
    tokens: float  # in all updates
    context: float  # tokens of the row that the mean token stands in
    batch_size: int  # sequences (examples) in one update
    longest: int  # tokens of the longest row
    height: int = 1  # rows that a sequence (example) takes

    @property
    def parameters(self) -> dict[str, int]:
        """Learned numbers by part."""
        return parameters(self.model, self.vocabulary, self.outputs)

    @property
    def flops_per_token(self) -> float:
        """Floating point operations for the mean token; those of the head are too few to count."""
        return flops_per_token(self.model, self.vocabulary if self.logits else 0, self.context)

    @property
    def flops(self) -> float:
        """Floating point operations in all."""
        return self.tokens * self.flops_per_token

    def micro_batch(self, machine: Machine, devices: int = 1) -> int:
        """Sequences (examples) that a device computes at a time."""
        return min(machine.rows(self.longest * self.height), self.share(devices))

    def share(self, devices: int) -> int:
        """Sequences (examples) of an update that a device gets, at most."""
        return -(-self.batch_size // devices)

    def memory(self, machine: Machine, micro_batch: int, devices: int = 1) -> dict[str, int]:
        """Bytes on each device by part; every device holds all weights and moments, and the longest rows."""
        bf16 = machine.precision == torch.bfloat16
        P = sum(self.parameters.values())
        rows, V = micro_batch * self.height, self.vocabulary if self.logits else 0
        return {
            "weights": P * (4 + 2 * bf16),  # in bf16 the model holds rounded copies of fp32 masters
            "optimizer": P * 8,  # two fp32 moments
            "gradients": P * gradient_bytes(bf16, several=micro_batch < self.share(devices)),
            "activations": kept(self.model, V, rows, self.longest, machine)
            + passing(self.model, V, rows * self.longest, machine),
        }


# --- arithmetic -------------------------------------------------------------------------------------------------------


def vocabulary_of(config: TokenizerConfig) -> int:
    """Rows of a token table where no vocabulary is at hand: the merges, and as much beside them as the published."""
    merges, beside = PUBLISHED[config.level]
    return (config.merges or merges) + beside


def flops_per_token(config: ModelConfig, vocabulary: int, context: float) -> float:
    """Floating point operations of training on a token: 6 a weight, 12 a layer, channel and token of the context.

    Two for a multiplication and its addition, forward once and backward twice; the attention counts every pair of the
    row, seen or not, as is usual (Chowdhery et al. 2022, "PaLM", appendix B). vocabulary=0: no logits are computed.
    """
    D, U = config.d_model, config.lstm_units or 0
    if config.architecture == "lstm":
        return 6 * (4 * U * (D + U) + U * D + vocabulary * D)
    weights = config.n_layer * (4 * D**2 + 2 * D * config.d_ff) + vocabulary * D
    return 6 * weights + 12 * config.n_layer * D * context


def gradient_bytes(bf16: bool, several: bool) -> int:
    """A parameter's gradient: of several micro-batches in bf16 the sum is fp32, and the newest one stands beside it."""
    return 4 if not bf16 else 6 if several else 2


def kept(config: ModelConfig, vocabulary: int, rows: int, context: int, machine: Machine) -> int:
    """Bytes that a micro-batch's forward pass keeps for its backward pass, weights left out; without torch.compile."""
    D, F, N = config.d_model, config.d_ff, rows * context
    on_cpu, fp32 = machine.device.type == "cpu", machine.precision == torch.float32
    number, mask = 4 if fp32 else 2, 2 if on_cpu else 1  # bytes of an activation, of a place of a dropout mask
    loss = (N + vocabulary) * D * number * bool(vocabulary)  # cross entropy makes its gradients on the way forward
    if config.architecture == "lstm":
        U = config.lstm_units or 0
        dropouts = bool(config.embedding_dropout) * D + bool(config.residual_dropout) * U
        # inputs of the layer and of the projection, gates, cells (fp32), outputs; ids are int64; the first state
        return N * ((D + 6 * U) * number + U * 4 + mask * dropouts + 8) + rows * U * (number + 4) + loss
    # inputs of the four linear layers (D, D, D, F), of both norms (D, D), of attention (3D) and of GELU (F)
    block = N * (8 * D + 2 * F) * number
    block += N * 4 * 4  # mean and deviation in both norms
    block += N * 2 * D * mask * bool(config.residual_dropout)
    # NOTE: the choice is that of kernels.attention
    if on_cpu and (config.attention_dropout or not fp32):
        block += rows * config.n_head * _pairs(context) * number
    else:  # fused: no weights, but the result and a sum for each query
        block += N * D * number + N * config.n_head * 4
    embedded = N * (2 * 8 + D * mask * bool(config.embedding_dropout))  # ids and positions are int64
    final = N * (D * number + 2 * 4) * (config.norm == "pre")  # the last norm: input, mean and deviation
    return config.n_layer * block + embedded + final + loss


def _pairs(T: int) -> int:
    """Attention weights of a row and head where QUERIES queries at a time meet the keys up to their last."""
    ends = [min(start + QUERIES, T) for start in range(0, T, QUERIES)]
    return sum((end - start) * end for start, end in zip(range(0, T, QUERIES), ends, strict=True))


def passing(config: ModelConfig, vocabulary: int, tokens: int, machine: Machine) -> int:
    """Bytes that come and go at the moment when most is kept: the last hidden states, and a chunk of logits."""
    number, most = machine.precision.itemsize, CHUNK_ROWS[machine.device.type]
    chunk = min(tokens, most)
    tile = vocabulary if machine.device.type == "cuda" else min(VOCABULARY_TILE, vocabulary)  # in fp32
    summed = 4 * vocabulary * config.d_model if tokens > most and number < 4 else 0  # the table's gradient
    return tokens * config.d_model * number + chunk * (vocabulary * number + tile * 4) + summed


def hours(flops: float, tflops: float, devices: int) -> float:
    """Of `devices` that each sustain so many 10^12 operations a second, none waiting for another."""
    return flops / (tflops * 1e12 * devices) / 3600
