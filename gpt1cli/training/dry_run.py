"""Dry run: estimate parameters, FLOPs and memory of a training run, and time a few real steps.

The estimates are plain functions of the model's shape; tests compare them with what torch allocates, saves and counts.
NOTE: the keys of plan.json say "update" for a step, and "described" for the target machine of plan.*.

B rows of T tokens, N = B x T; D width, F feed-forward width, V vocabulary rows, P parameters; FLOP: floating point
operation.

Longer than 300 lines: one formula per part of the model and of memory.
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
from gpt1cli.models.attention import QUERY_CHUNK
from gpt1cli.models.batch import Batch
from gpt1cli.models.create import parameter_counts
from gpt1cli.models.kernels import CHUNK_ROWS, VOCABULARY_TILE
from gpt1cli.reporting.page import ReportTable
from gpt1cli.runs.console import Progress, abbreviate_number
from gpt1cli.runs.files import write_json
from gpt1cli.runs.folder import finish_run
from gpt1cli.training.device import Machine, peak_memory_bytes
from gpt1cli.training.loop import OutOfMemory, accumulate_gradients
from gpt1cli.training.objectives.causal import Loss
from gpt1cli.training.optimizer import Optimizer

# merges, and other tokens: symbols, <unk> and newline, or <|endoftext|>
PUBLISHED_VOCABULARIES = {"words": (40_000, 478), "bytes": (50_000, 257)}
M = TypeVar("M", bound=nn.Module)
PROFILED_STEPS = 3  # one for warm-up, two timed
MAX_PASSES = 4  # micro-batches per step: a GPT-2 step of 512 sequences would take half an hour on two cores


@dataclass(frozen=True)
class TrainingCost:
    """The size of a training run, on any machine."""

    model: ModelConfig
    vocabulary: int  # rows of the token embedding
    outputs: int  # of the head; 0: no head
    logits: bool  # whether there is a language-model loss
    steps: int
    tokens: float  # in all steps
    context: float  # row length, averaged over tokens
    batch_size: int  # sequences (examples) per step
    longest_row: int  # tokens of the longest row
    rows_per_sequence: int = 1  # rows of one sequence (example)

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each part."""
        return parameter_counts(self.model, self.vocabulary, self.outputs)

    @property
    def flops_per_token(self) -> float:
        """FLOPs per token on average, without the head, whose FLOPs are negligible."""
        return flops_per_token(self.model, self.vocabulary if self.logits else 0, self.context)

    @property
    def flops(self) -> float:
        """Total FLOPs."""
        return self.tokens * self.flops_per_token

    def micro_batch(self, machine: Machine, devices: int = 1) -> int:
        """Return the micro-batch size of a device in sequences (examples)."""
        return min(machine.micro_batch_rows(self.longest_row * self.rows_per_sequence), self.device_batch_size(devices))

    def device_batch_size(self, devices: int) -> int:
        """Return the largest number of sequences (examples) of a step on one device."""
        return -(-self.batch_size // devices)

    def memory_bytes(self, machine: Machine, micro_batch: int, devices: int = 1) -> dict[str, int]:
        """Estimate bytes per device by part: all weights and optimizer state, and activations of the longest rows."""
        bf16 = machine.precision == torch.bfloat16
        P = sum(self.parameters.values())
        rows, V = micro_batch * self.rows_per_sequence, self.vocabulary if self.logits else 0
        return {
            "weights": P * (4 + 2 * bf16),  # in bf16: fp32 masters and rounded copies
            "optimizer": P * 8,  # two fp32 moments
            "gradients": P * gradient_bytes(bf16, several=micro_batch < self.device_batch_size(devices)),
            "activations": saved_bytes(self.model, V, rows, self.longest_row, machine)
            + transient_bytes(self.model, V, rows * self.longest_row, machine),
        }


def vocabulary_size(config: TokenizerConfig) -> int:
    """Estimate the vocabulary size without a tokenizer: its merges, and other tokens as in the published vocabulary."""
    merges, others = PUBLISHED_VOCABULARIES[config.level]
    return (config.merges or merges) + others


def flops_per_token(config: ModelConfig, vocabulary: int, context: float) -> float:
    """Return training FLOPs per token: 6 per weight, and 12 per layer, channel and token of context.

    A multiply-add is two FLOPs; the backward pass costs two forward passes. Attention counts all pairs of a row,
    visible or not, as usual (Chowdhery et al. 2022, "PaLM", appendix B). vocabulary=0: no logits are computed.
    """
    D, U = config.d_model, config.lstm_units or 0
    if config.architecture == "lstm":
        return 6 * (4 * U * (D + U) + U * D + vocabulary * D)
    weights = config.n_layer * (4 * D**2 + 2 * D * config.d_ff) + vocabulary * D
    return 6 * weights + 12 * config.n_layer * D * context


def gradient_bytes(bf16: bool, several: bool) -> int:
    """Return gradient bytes per parameter: several bf16 micro-batches need an fp32 sum and the newest gradient."""
    return 4 if not bf16 else 6 if several else 2


def saved_bytes(config: ModelConfig, vocabulary: int, rows: int, context: int, machine: Machine) -> int:
    """Return the bytes that a forward pass saves for the backward pass, without weights and without torch.compile."""
    D, F, N = config.d_model, config.d_ff, rows * context
    on_cpu, fp32 = machine.device.type == "cpu", machine.precision == torch.float32
    size, mask = 4 if fp32 else 2, 2 if on_cpu else 1  # bytes of an activation, of an element of a dropout mask
    loss = (N + vocabulary) * D * size * bool(vocabulary)  # cross entropy computes its gradients in the forward pass
    if config.architecture == "lstm":
        U = config.lstm_units or 0
        dropouts = bool(config.embedding_dropout) * D + bool(config.residual_dropout) * U
        # inputs of the layer and of the projection, gates, cells (fp32), outputs; ids are int64; the first state
        return N * ((D + 6 * U) * size + U * 4 + mask * dropouts + 8) + rows * U * (size + 4) + loss
    # inputs of the four linear layers (D, D, D, F), of both norms (D, D), of attention (3D) and of GELU (F)
    block = N * (8 * D + 2 * F) * size
    block += N * 4 * 4  # mean and standard deviation in both norms
    block += N * 2 * D * mask * bool(config.residual_dropout)
    # NOTE: must be the same choice as in models/attention.py
    if on_cpu and (config.attention_dropout or not fp32):
        block += rows * config.n_head * _attention_pairs(context) * size
    else:  # fused: no attention weights, but the output and one sum per query
        block += N * D * size + N * config.n_head * 4
    embedded = N * (2 * 8 + D * mask * bool(config.embedding_dropout))  # ids and positions are int64
    final = N * (D * size + 2 * 4) * (config.norm == "pre")  # the last norm: input, mean and standard deviation
    return config.n_layer * block + embedded + final + loss


def _attention_pairs(T: int) -> int:
    """Count attention weights per row and head: QUERY_CHUNK queries at a time, keys up to the last of them."""
    ends = [min(start + QUERY_CHUNK, T) for start in range(0, T, QUERY_CHUNK)]
    return sum((end - start) * end for start, end in zip(range(0, T, QUERY_CHUNK), ends, strict=True))


def transient_bytes(config: ModelConfig, vocabulary: int, tokens: int, machine: Machine) -> int:
    """Return the temporary bytes at the memory peak: the last hidden states and one chunk of logits."""
    size, max_rows = machine.precision.itemsize, CHUNK_ROWS[machine.device.type]
    chunk = min(tokens, max_rows)
    tile = vocabulary if machine.device.type == "cuda" else min(VOCABULARY_TILE, vocabulary)  # in fp32
    fp32_sum = (
        4 * vocabulary * config.d_model if tokens > max_rows and size < 4 else 0
    )  # gradient of the token embedding
    return tokens * config.d_model * size + chunk * (vocabulary * size + tile * 4) + fp32_sum


def training_hours(flops: float, tflops: float, devices: int) -> float:
    """Return the hours on `devices` that each sustain `tflops` x 10^12 FLOPs per second, without waiting times."""
    return flops / (tflops * 1e12 * devices) / 3600


def dry_run(
    command: str,
    config: TrainConfig,
    folder: Path,
    cost: TrainingCost,
    machine: Machine,
    model: M,
    objective: Callable[[M, Batch], Loss],
    steps: Iterable[Iterable[Batch]],
    optimizer: Optimizer,
) -> None:
    """Report the cost here and on the target machine, time a few steps, report the hours, write plan.json."""
    summary, here, there = cost_summary(cost), local_plan(cost, machine), target_plan(cost, config, machine)
    cost_table(f"gpt1 {command} {config.name}", summary).show()
    memory_table(here, there).show()
    write_json(folder / "plan.json", {**summary, "here": here, "described": there})  # what is known before timing
    complete = [list(batches) for batches in steps]
    timed = [batches[:MAX_PASSES] for batches in complete]
    share = sum(map(len, timed)) / sum(map(len, complete))
    with Progress(folder, sum(map(len, timed)), config.runtime.progress, description="pass") as progress:
        part = f"{share:.1%} of " if share < 1 else ""
        progress.say(f"timing {part}{len(timed)} steps; the first is a warm-up")
        profile = profile_steps(model, objective, _track_passes(timed, progress), optimizer)
        here |= profile_metrics(cost, profile, share)
    time_table(here, there).show()
    write_json(folder / "plan.json", {**summary, "here": here, "described": there})
    result = {"status": "finished", "command": command, "dry_run": True, "name": config.name, "seed": config.seed}
    finish_run(folder, {**result, "hours": here["hours"]})
    print(f"dry run: nothing was trained; plan: {folder / 'plan.json'}")


def _track_passes(steps: Iterable[Iterable[Batch]], progress: Progress) -> Iterator[Iterable[Batch]]:
    """Yield the steps, and update the progress after every micro-batch."""

    def track(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            progress.update(progress.step + 1)

    yield from map(track, steps)


@dataclass(frozen=True)
class ProfileResult:
    """Measurements of a few real steps."""

    seconds: float  # of the timed steps
    steps: int  # timed steps
    tokens: int  # in the timed steps
    pass_bytes: int  # peak of the first step: gradients and activations, without weights and optimizer state
    peak_memory_bytes: int


def profile_steps(
    model: M, objective: Callable[[M, Batch], Loss], steps: Iterable[Iterable[Batch]], optimizer: Optimizer
) -> ProfileResult:
    """Run steps with a learning rate of 0: the first warms up and measures memory, the others are timed.

    Raises UserError if a step does not fit into memory.
    """
    device = next(model.parameters()).device
    model.train()
    initial_bytes = _reset_peak_memory(device)
    count, started, tokens, pass_bytes = 0, 0.0, 0, 0
    try:
        for count, batches in enumerate(steps):
            if count == 1:
                started, tokens = time.perf_counter(), 0
            sums = accumulate_gradients(model, objective, batches, optimizer, device)
            tokens += int(sums["tokens"])
            if count == 0:
                pass_bytes = peak_memory_bytes(device) - initial_bytes
            optimizer.step(0.0, sums["count"])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except (OutOfMemory, torch.OutOfMemoryError) as error:
        raise UserError(
            f"a step does not fit into the memory of {device}: use a smaller runtime.micro_batch="
        ) from error
    return ProfileResult(time.perf_counter() - started, count, tokens, pass_bytes, peak_memory_bytes(device))


def _reset_peak_memory(device: torch.device) -> int:
    """Reset the peak memory and return the memory in use (on macOS the peak is not reset)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_bytes(device)


def cost_summary(cost: TrainingCost) -> dict[str, Any]:
    """Return the cost as entries of plan.json."""
    return {
        "parameters": {**cost.parameters, "all": sum(cost.parameters.values())},
        "updates": cost.steps,
        "tokens": cost.tokens,
        "flops_per_token": cost.flops_per_token,
        "flops_per_update": cost.flops / cost.steps,
        "flops": cost.flops,
    }


def local_plan(cost: TrainingCost, machine: Machine) -> dict[str, Any]:
    """Return what is known about this machine before timing."""
    micro_batch = cost.micro_batch(machine)
    return {
        **machine.describe(),
        "micro_batch": micro_batch,
        "memory_bytes": cost.memory_bytes(machine, micro_batch),
    }


def profile_metrics(cost: TrainingCost, profile: ProfileResult, share: float = 1.0) -> dict[str, Any]:
    """Extrapolate speed and hours (without validation) from timing a share of each step."""
    tokens_per_second = profile.tokens / profile.seconds
    total_hours = cost.tokens / tokens_per_second / 3600
    return {
        "seconds_per_update": profile.seconds / profile.steps / share,
        "tokens_per_second": tokens_per_second,
        "tflops": tokens_per_second * cost.flops_per_token / 1e12,
        "hours": total_hours,
        "device_hours": total_hours,
        "gradients_and_activations_bytes": profile.pass_bytes,
        "peak_memory_bytes": profile.peak_memory_bytes,
    }


def target_plan(cost: TrainingCost, config: TrainConfig, machine: Machine) -> dict[str, Any] | None:
    """Return the plan for the machine of plan.*: devices like our CUDA path, in bf16 unless precision=fp32."""
    plan = config.plan
    if plan.tflops is None and plan.memory_gb is None:
        return None
    precision = torch.float32 if config.runtime.precision == "fp32" else torch.bfloat16
    gpu = dataclasses.replace(machine, device=torch.device("cuda"), precision=precision)
    devices = plan.devices or 1
    micro_batch = cost.micro_batch(gpu, devices)
    memory = cost.memory_bytes(gpu, micro_batch, devices)
    target: dict[str, Any] = {"devices": devices, "micro_batch": micro_batch, "memory_bytes": memory}
    if plan.memory_gb is not None:
        limit = plan.memory_gb * 1e9
        sizes = range(1, cost.device_batch_size(devices) + 1)
        largest = max(
            (size for size in sizes if sum(cost.memory_bytes(gpu, size, devices).values()) <= limit), default=None
        )
        fits = sum(memory.values()) <= limit
        target |= {"memory_gb": plan.memory_gb, "fits": fits, "largest_micro_batch": largest, "share": sizes[-1]}
    if plan.tflops is not None:
        total_hours = training_hours(cost.flops, plan.tflops, devices)
        target |= {
            "seconds_per_update": total_hours * 3600 / cost.steps,
            "tokens_per_second": cost.tokens / total_hours / 3600,
            "tflops": plan.tflops,
            "hours": total_hours,
            "device_hours": total_hours * devices,
        }
    return target


def cost_table(title: str, summary: dict[str, Any]) -> ReportTable:
    """Tabulate parameters, steps, tokens and FLOPs."""
    parts = [f"{count:,} {name}" for name, count in summary["parameters"].items() if name != "all" and count]
    rows = [
        ["parameters", f"{summary['parameters']['all']:,} = {' + '.join(parts)}"],
        ["steps", f"{summary['updates']:,}"],
        ["tokens", f"{summary['tokens']:,.0f}"],
        ["FLOPs per token", f"{summary['flops_per_token']:.4g}"],
        ["FLOPs per step", f"{summary['flops_per_update']:.4g}"],
        ["total FLOPs", f"{summary['flops']:.4g}"],
    ]
    return ReportTable(title, ["quantity", "value"], rows)


def memory_table(here: dict[str, Any], there: dict[str, Any] | None) -> ReportTable:
    """Tabulate the estimated memory of a device, and whether it fits into the target device."""
    sides = [side for side in (here, there) if side]
    rows = [["sequences per micro-batch", *(f"{side['micro_batch']:,}" for side in sides)]]
    rows += [[part, *(_format_bytes(side["memory_bytes"][part]) for side in sides)] for part in here["memory_bytes"]]
    rows += [["total", *(_format_bytes(sum(side["memory_bytes"].values())) for side in sides)]]
    if there and "fits" in there:
        rows += [[f"fits into {there['memory_gb']:,g} GB", "", "yes" if there["fits"] else "no"]]
        label = f"largest micro-batch that fits (at most {there['share']:,})"
        rows += [[label, "", str(there["largest_micro_batch"] or "none")]]
    return ReportTable("estimated memory of a device", ["part", *_column_names(here, there)], rows)


def time_table(here: dict[str, Any], there: dict[str, Any] | None) -> ReportTable:
    """Tabulate speed and hours: measured here, computed from plan.tflops for the target machine."""
    sides = [side for side in (here, there) if side]
    formats = {
        "seconds per step": ("seconds_per_update", "{:,.3f}"),
        "tokens per second": ("tokens_per_second", "{:,.0f}"),
        "TFLOP/s per device": ("tflops", "{:,.3g}"),
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
        ["gradients and activations, estimated", _format_bytes(estimated), *blank],
        ["gradients and activations, measured", _format_bytes(here["gradients_and_activations_bytes"]), *blank],
        ["peak memory, measured", _format_bytes(here["peak_memory_bytes"]), *blank],
    ]
    return ReportTable("measured on two steps, extrapolated", ["quantity", *_column_names(here, there)], rows)


def _column_names(here: dict[str, Any], there: dict[str, Any] | None) -> list[str]:
    names = [f"here: {here['device']}, {here['precision']}"]
    if there:
        speed = f" x {there['tflops']:g} TFLOP/s" if "tflops" in there else ""
        names.append(f"target: {there['devices']}{speed}")
    return names


def _format_bytes(count: float) -> str:
    return f"{abbreviate_number(count)}B"
