"""A dry run: the plan of a training run, then a few of its updates, which show memory and speed (dry_run=true).

What it takes is told before anything is computed, here and on a machine that is described (plan.tflops and so on);
how fast this machine is no formula knows, so two updates are timed.
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
from gpt1cli.config.schema import InputError
from gpt1cli.fit import OutOfMemory, gradients
from gpt1cli.models.batch import Batch
from gpt1cli.objectives import Loss
from gpt1cli.optim import Optimizer
from gpt1cli.planning import Work, hours
from gpt1cli.reporting.page import Table
from gpt1cli.runs.console import Progress, short
from gpt1cli.runs.files import write_json
from gpt1cli.runs.folder import finish
from gpt1cli.runtime import Machine, peak_memory_bytes

M = TypeVar("M", bound=nn.Module)

UPDATES = 3  # one of warm-up, two that are timed
PASSES = 4  # of an update: GPT-2's of 512 sequences would take half an hour on two cores


# --- the run ----------------------------------------------------------------------------------------------------------


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

    InputError where the device has too little memory.
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
        raise InputError(
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


# --- the plan as plain data -------------------------------------------------------------------------------------------


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


# --- tables -----------------------------------------------------------------------------------------------------------


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
