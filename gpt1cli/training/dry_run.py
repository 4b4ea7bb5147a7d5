"""What a training run takes, by arithmetic alone: parameters, floating point operations, memory, hours.

Plain functions of the model's shape; tests hold them to what torch really allocates, saves and counts.

B rows of T tokens, N = B x T; D width, F feed-forward width, H heads, L blocks, V vocabulary rows, P parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from gpt1cli.config.commands import TrainConfig
from gpt1cli.config.data import TokenizerConfig
from gpt1cli.config.model import ModelConfig
from gpt1cli.config.schema import UserError
from gpt1cli.models.attention import QUERIES
from gpt1cli.models.batch import Batch
from gpt1cli.models.create import parameters
from gpt1cli.models.kernels import CHUNK_ROWS, VOCABULARY_TILE
from gpt1cli.reporting.page import Table
from gpt1cli.runs.console import Progress, short
from gpt1cli.runs.files import write_json
from gpt1cli.runs.folder import finish
from gpt1cli.training.device import Machine, peak_memory_bytes
from gpt1cli.training.loop import OutOfMemory, gradients
from gpt1cli.training.objectives.causal import Loss
from gpt1cli.training.optimizer import Optimizer

PUBLISHED = {"words": (40_000, 478), "bytes": (50_000, 257)}  # merges; symbols, <unk> and newline, or <|endoftext|>
M = TypeVar("M", bound=nn.Module)
UPDATES = 3  # one of warm-up, two that are timed
PASSES = 4  # of an update: GPT-2's of 512 sequences would take half an hour on two cores


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


def dry_run(
    command: str,
    config: TrainConfig,
    folder: Path,
    work: Work,
    machine: Machine,
    model: M,
    objective: Callable[[M, Batch], Loss],
    updates: Iterable[Iterable[Batch]],
    optimizer: Optimizer,
) -> None:
    """Tell what the work takes, here and on a described machine; then rehearse it and tell the hours -> plan.json."""
    what, here, there = facts(work), machine_here(work, machine), described(work, config, machine)
    work_table(f"gpt1 {command} {config.name}", what).show()
    memory_table(here, there).show()
    write_json(folder / "plan.json", {**what, "here": here, "described": there})  # what is known so far
    whole = [list(batches) for batches in updates]
    done = [passes[:PASSES] for passes in whole]
    share = sum(map(len, done)) / sum(map(len, whole))
    with Progress(folder, sum(map(len, done)), config.runtime.progress, description="pass") as progress:
        part = f"{share:.1%} of " if share < 1 else ""
        progress.say(f"timing {part}{len(done)} updates, the first of which warms up")
        here |= measured(work, rehearse(model, objective, _followed(done, progress), optimizer), share)
    time_table(here, there).show()
    write_json(folder / "plan.json", {**what, "here": here, "described": there})
    told = {"status": "finished", "command": command, "dry_run": True, "name": config.name, "seed": config.seed}
    finish(folder, {**told, "hours": here["hours"]})
    print(f"a dry run: nothing was trained; plan: {folder / 'plan.json'}")


def _followed(updates: Iterable[Iterable[Batch]], progress: Progress) -> Iterator[Iterable[Batch]]:
    """The updates, of which every pass is told when it is done."""

    def told(passes: Iterable[Batch]) -> Iterator[Batch]:
        for batch in passes:
            yield batch
            progress.update(progress.step + 1)

    yield from map(told, updates)


@dataclass(frozen=True)
class Rehearsal:
    """What a few real updates showed."""

    seconds: float  # of the timed updates
    updates: int  # that were timed
    tokens: int  # in those
    pass_bytes: int  # what the first update held at most beside weights and moments: gradients and activations
    peak_memory_bytes: int


def rehearse(
    model: M, objective: Callable[[M, Batch], Loss], updates: Iterable[Iterable[Batch]], optimizer: Optimizer
) -> Rehearsal:
    """Do updates at a learning rate of 0; the first one warms up and shows the memory, the others are timed.

    UserError where the device has too little memory.
    """
    device = next(model.parameters()).device
    model.train()
    before = _held(device)
    count, began, tokens, pass_bytes = 0, 0.0, 0, 0
    try:
        for count, batches in enumerate(updates):
            if count == 1:
                began, tokens = time.perf_counter(), 0
            sums = gradients(model, objective, batches, optimizer, device)
            tokens += int(sums["tokens"])
            if count == 0:
                pass_bytes = peak_memory_bytes(device) - before
            optimizer.step(0.0, sums["count"])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except (OutOfMemory, torch.OutOfMemoryError) as error:
        raise UserError(
            f"an update does not fit into the memory of {device}: name a smaller runtime.micro_batch="
        ) from error
    return Rehearsal(time.perf_counter() - began, count, tokens, pass_bytes, peak_memory_bytes(device))


def _held(device: torch.device) -> int:
    """The memory held now; peak_memory_bytes counts from here on (not on macOS, where the peak so far stays)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_bytes(device)


def facts(work: Work) -> dict[str, Any]:
    """The work as plain data."""
    return {
        "parameters": {**work.parameters, "all": sum(work.parameters.values())},
        "updates": work.updates,
        "tokens": work.tokens,
        "flops_per_token": work.flops_per_token,
        "flops_per_update": work.flops / work.updates,
        "flops": work.flops,
    }


def machine_here(work: Work, machine: Machine) -> dict[str, Any]:
    """What is known of this machine before anything is computed on it."""
    micro_batch = work.micro_batch(machine)
    return {
        **machine.describe(),
        "micro_batch": micro_batch,
        "memory_bytes": work.memory(machine, micro_batch),
    }


def measured(work: Work, seen: Rehearsal, share: float = 1.0) -> dict[str, Any]:
    """What a rehearsal of a share of each update says of this machine: speed, hours without validation."""
    tokens_per_second = seen.tokens / seen.seconds
    whole = work.tokens / tokens_per_second / 3600
    return {
        "seconds_per_update": seen.seconds / seen.updates / share,
        "tokens_per_second": tokens_per_second,
        "tflops": tokens_per_second * work.flops_per_token / 1e12,
        "hours": whole,
        "device_hours": whole,
        "gradients_and_activations_bytes": seen.pass_bytes,
        "peak_memory_bytes": seen.peak_memory_bytes,
    }


def described(work: Work, config: TrainConfig, machine: Machine) -> dict[str, Any] | None:
    """The plan for the machine of plan.*: devices that compute as our CUDA path does, in bf16 unless told otherwise."""
    plan = config.plan
    if plan.tflops is None and plan.memory_gb is None:
        return None
    precision = torch.float32 if config.runtime.precision == "fp32" else torch.bfloat16
    gpu = dataclasses.replace(machine, device=torch.device("cuda"), precision=precision)
    devices = plan.devices or 1
    micro_batch = work.micro_batch(gpu, devices)
    memory = work.memory(gpu, micro_batch, devices)
    found: dict[str, Any] = {"devices": devices, "micro_batch": micro_batch, "memory_bytes": memory}
    if plan.memory_gb is not None:
        room = plan.memory_gb * 1e9
        sizes = range(1, work.share(devices) + 1)
        largest = max((size for size in sizes if sum(work.memory(gpu, size, devices).values()) <= room), default=None)
        fits = sum(memory.values()) <= room
        found |= {"memory_gb": plan.memory_gb, "fits": fits, "largest_micro_batch": largest, "share": sizes[-1]}
    if plan.tflops is not None:
        whole = hours(work.flops, plan.tflops, devices)
        found |= {
            "seconds_per_update": whole * 3600 / work.updates,
            "tokens_per_second": work.tokens / whole / 3600,
            "tflops": plan.tflops,
            "hours": whole,
            "device_hours": whole * devices,
        }
    return found


def work_table(title: str, what: dict[str, Any]) -> Table:
    """Parameters, updates, tokens, floating point operations."""
    parts = [f"{count:,} {name}" for name, count in what["parameters"].items() if name != "all" and count]
    rows = [
        ["parameters", f"{what['parameters']['all']:,} = {' + '.join(parts)}"],
        ["updates", f"{what['updates']:,}"],
        ["tokens", f"{what['tokens']:,.0f}"],
        ["FLOPs per token", f"{what['flops_per_token']:.4g}"],
        ["FLOPs per update", f"{what['flops_per_update']:.4g}"],
        ["FLOPs in all", f"{what['flops']:.4g}"],
    ]
    return Table(title, ["what", "how much"], rows)


def memory_table(here: dict[str, Any], there: dict[str, Any] | None) -> Table:
    """What a device holds, by the arithmetic above, and whether the described one can."""
    sides = [side for side in (here, there) if side]
    rows = [["sequences at a time", *(f"{side['micro_batch']:,}" for side in sides)]]
    rows += [[part, *(_bytes(side["memory_bytes"][part]) for side in sides)] for part in here["memory_bytes"]]
    rows += [["together", *(_bytes(sum(side["memory_bytes"].values())) for side in sides)]]
    if there and "fits" in there:
        rows += [[f"fits into {there['memory_gb']:,g} GB", "", "yes" if there["fits"] else "no"]]
        label = f"most sequences that fit, of its {there['share']:,}"
        rows += [[label, "", str(there["largest_micro_batch"] or "none")]]
    return Table("memory of a device, estimated", ["part", *_names(here, there)], rows)


def time_table(here: dict[str, Any], there: dict[str, Any] | None) -> Table:
    """Speed and hours: here measured, of a described machine what its tflops amount to."""
    sides = [side for side in (here, there) if side]
    formats = {
        "seconds per update": ("seconds_per_update", "{:,.3f}"),
        "tokens per second": ("tokens_per_second", "{:,.0f}"),
        "TFLOP/s of a device": ("tflops", "{:,.3g}"),
        "hours": ("hours", "{:,.2f}"),
        "device-hours": ("device_hours", "{:,.2f}"),
    }
    rows = [
        [name, *(form.format(side[key]) if key in side else "" for side in sides)]
        for name, (key, form) in formats.items()
    ]
    estimated = here["memory_bytes"]["gradients"] + here["memory_bytes"]["activations"]
    blank = [""] * (len(sides) - 1)
    rows += [
        ["gradients, activations: estimated", _bytes(estimated), *blank],
        ["gradients, activations: measured", _bytes(here["gradients_and_activations_bytes"]), *blank],
        ["peak memory, measured", _bytes(here["peak_memory_bytes"]), *blank],
    ]
    return Table("two updates, and what they say of all", ["what", *_names(here, there)], rows)


def _names(here: dict[str, Any], there: dict[str, Any] | None) -> list[str]:
    names = [f"here: {here['device']}, {here['precision']}"]
    if there:
        speed = f" x {there['tflops']:g} TFLOP/s" if "tflops" in there else ""
        names.append(f"described: {there['devices']}{speed}")
    return names


def _bytes(count: float) -> str:
    return f"{short(count)}B"
