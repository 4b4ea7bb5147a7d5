"""The training loop. Pretraining and fine-tuning pass it different objectives and batches."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gpt1cli.config.commands import TrainConfig
from gpt1cli.config.schema import UserError
from gpt1cli.models.batch import Batch
from gpt1cli.runs import folder, signals
from gpt1cli.runs.console import Progress
from gpt1cli.training import collective
from gpt1cli.training.device import Machine, peak_memory_bytes
from gpt1cli.training.epochs import prefetch
from gpt1cli.training.objectives.causal import Loss
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.state import TrainingState

M = TypeVar("M", bound=nn.Module)
OVERFITTING_RISES = 2  # consecutive validations with a higher loss than the one before


@dataclass(frozen=True)
class LoopConfig:
    """Number of steps and intervals, all in steps."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: tuple[int, ...] = ()
    evaluate_first: bool = False


def fit(
    model: M,
    objective: Callable[[M, Batch], Loss],
    batches: Callable[[int, int], Iterable[Batch]],
    optimizer: Optimizer,
    learning_rate: Callable[[int], float],
    evaluate: Callable[[], tuple[dict[str, float], float]],
    save: Callable[[TrainingState], None],
    config: LoopConfig,
    state: TrainingState,
    run: Path,
    log: Callable[[Mapping[str, Any]], None],
    progress: Progress,
) -> TrainingState:
    """Train until step `config.steps` and return the final state.

    `batches(step, halvings)` returns the micro-batches of a step, halved once for each time memory ran out.
    `evaluate` returns the validation metrics and the score that the best checkpoint maximises; `save` writes a
    checkpoint, `log` a line of metrics. Raises FloatingPointError if a loss is not finite; SystemExit(128 + signal)
    after Ctrl-C, SIGTERM or pre-emption (signals.py), with the checkpoint saved; UserError if a resumed run has
    already done more steps than `config.steps`.
    """
    if state.step > config.steps:
        raise UserError(f"steps={config.steps:,}: the run has already done {state.step:,} steps; use a larger steps=")
    if not collective.rank():
        folder.reopen_run(run)  # not earlier: a resumed run that is refused stays finished
    device = next(model.parameters()).device
    batches = prefetch(batches, config.steps) if device.type == "cuda" else batches
    pending: list[dict[str, Tensor]] = []  # losses, norms and counts still on the device
    validated: list[tuple[int, float]] = []  # step and loss

    def validate() -> None:
        metrics, score = evaluate()
        if wrong := [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]:
            raise FloatingPointError(f"validation at step {state.step}: {', '.join(wrong)} is not finite")
        if state.best_score is None or score > state.best_score:
            state.best_step, state.best_score, state.best_metrics = state.step, score, metrics
        log({"step": state.step, "split": "valid", **metrics, "seconds": round(state.seconds, 3)})
        values = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        progress.say(f"step {state.step:,}: valid {values}")
        validated.append((state.step, metrics["loss"]))
        if warning := warn_overfitting(validated):
            progress.say(warning)

    if state.step == 0 and config.evaluate_first:
        validate()
    line_seconds, line_tokens = state.seconds, state.tokens

    stopping = False
    with signals.record_stop_signals() as stopped:
        started = time.perf_counter()
        while state.step < config.steps:
            model.train()
            lr = learning_rate(state.step)
            try:
                sums = accumulate_gradients(model, objective, batches(state.step, state.halvings), optimizer, device)
            except OutOfMemory as error:
                optimizer.zero_grad()
                state.halvings += 1
                progress.say(error.retry_message())
                continue
            sums = collective.all_reduce_sum(sums, device)
            count, tokens = sums.pop("count"), sums.pop("tokens")
            norm = optimizer.step(lr, count)
            means = {name: value / count for name, value in sums.items()}
            pending.append({**means, "gradient_norm": norm, "tokens": tokens})
            state.step += 1

            last = state.step == config.steps
            log_due = state.step % config.log_every == 0 or last
            stopping = bool(stopped)  # read once: a signal may arrive at any line
            if collective.world_size() > 1:  # all processes stop after the same step, at a synchronisation
                stopping = log_due and collective.any_rank(stopping, device)
            eval_due = state.step % config.eval_every == 0 or last
            save_due = (
                eval_due
                or state.step % config.checkpoint_every == 0
                or state.step in config.keep_checkpoints
                or stopping
            )

            if log_due or save_due:  # waits for the device, so that the time includes its work
                finished = _check_finite(pending, state.step)
                pending.clear()
                state.tokens += sum(int(values.pop("tokens")) for values in finished)
                state.unreported += finished
                state.seconds += time.perf_counter() - started
            if log_due:
                mean = {n: sum(u[n] for u in state.unreported) / len(state.unreported) for n in state.unreported[0]}
                state.unreported = []
                speed = (state.tokens - line_tokens) / max(1e-9, state.seconds - line_seconds)
                line_seconds, line_tokens = state.seconds, state.tokens
                line = {"step": state.step, "split": "train", **mean, "lr": lr, "tokens_per_second": round(speed, 1)}
                log({**line, "seconds": round(state.seconds, 3)})
                losses = {name: mean[name] for name in ("loss", "task_loss") if name in mean}
                progress.update(state.step, **losses, lr=lr, tokens_per_second=speed)
            if eval_due:
                validate()
            if save_due:
                save(state)
            if stopping:
                break
            if log_due or save_due:
                started = time.perf_counter()  # without the time of validation and saving
    if stopping or stopped:  # also after the last step: then nothing that follows is started
        number = signals.deciding_signal(stopped or [signal.SIGTERM])  # empty: another process got the signal
        progress.say(f"stopped by {signal.Signals(number).name} at step {state.step:,}; checkpoint saved")
        progress.say(f"to continue: the same command with resume={run}")
        signals.exit_after_signal(number)
    return state


def accumulate_gradients(
    model: M,
    objective: Callable[[M, Batch], Loss],
    batches: Iterable[Batch],
    optimizer: Optimizer,
    device: torch.device,
) -> dict[str, Tensor]:
    """Accumulate the gradients of a step's micro-batches in the optimizer; return summed losses, parts and counts.

    Raises OutOfMemory if a micro-batch does not fit into memory.
    """
    sums: dict[str, Tensor] = {}
    for batch in batches:
        try:
            loss = objective(model, batch.to(device))
            if not batch.count:  # this process has no rows: it takes part, but counts nothing
                loss = loss.zeroed()
            loss.total.backward()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise OutOfMemory(*batch.tokens.shape) from None
            raise
        optimizer.accumulate()
        values = {"loss": loss.total.detach(), **loss.parts}
        values |= {"count": torch.tensor(loss.count), "tokens": torch.tensor(batch.real_tokens)}
        sums = {name: sums[name] + value if name in sums else value for name, value in values.items()}
    return sums


class OutOfMemory(Exception):
    """Memory ran out on a micro-batch of `rows` x `tokens`."""

    def __init__(self, rows: int, tokens: int):
        super().__init__(rows, tokens)
        self.rows, self.tokens = rows, tokens

    def retry_message(self) -> str:
        """Return the message for a retry with smaller micro-batches. Raises UserError if a retry is not possible."""
        problem = f"out of memory with a micro-batch of {self.rows:,} x {self.tokens:,} tokens"
        if self.rows == 1:
            raise UserError(f"{problem}: use runtime.precision=bf16, a smaller model or shorter sequences") from None
        if collective.world_size() > 1:  # the other processes wait for the gradients of this one
            raise UserError(f"{problem}: use runtime.micro_batch={self.rows // 2}") from None
        return f"{problem}: continuing with half of it; only the dropout masks change"


def training_result(command: str, config: TrainConfig, state: TrainingState, machine: Machine) -> dict[str, Any]:
    """Return the entries of result.json that all training runs have."""
    return {
        "status": "finished",
        "command": command,
        "name": config.name,
        "seed": config.seed,
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "tokens": state.tokens,
        "tokens_per_second": round(state.tokens / state.seconds, 1),
        "peak_memory_bytes": peak_memory_bytes(machine.device),
    }


def _check_finite(pending: list[dict[str, Tensor]], step: int) -> list[dict[str, float]]:
    """Copy the values of the last steps from the device. Raises FloatingPointError for the first that is not finite."""
    steps = [{name: float(value) for name, value in values.items()} for values in pending]
    for number, values in enumerate(steps, start=step - len(steps) + 1):
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value} at step {number}; earlier checkpoints are kept")
    return steps


def warn_overfitting(losses: Sequence[tuple[int, float]]) -> str | None:
    """Return a warning when the validation loss has risen twice in a row for the first time. losses: (step, loss)."""
    rose = [later > earlier for (_, earlier), (_, later) in itertools.pairwise(losses)]
    windows = [all(rose[end - OVERFITTING_RISES : end]) for end in range(OVERFITTING_RISES, len(rose) + 1)]
    if windows.count(True) != 1 or not windows[-1]:
        return None
    (step, low), (_, high) = losses[-OVERFITTING_RISES - 1], losses[-1]
    return (
        f"warning: the validation loss has been rising since step {step:,}, from {low:.4f} to {high:.4f}: the model is"
        " overfitting. Use fewer steps or more data; the best checkpoint is kept"
    )
