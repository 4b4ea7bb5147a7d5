"""THE training loop. Pretraining and fine-tuning differ only in the objective and the batches they hand to it."""

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
from gpt1cli.training.epochs import ahead
from gpt1cli.training.objectives.causal import Loss
from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.state import State

M = TypeVar("M", bound=nn.Module)
RISES = 2  # validations in a row with a higher loss than the one before


@dataclass(frozen=True)
class Plan:
    """How long, and what happens how often; all in updates."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep: tuple[int, ...] = ()
    evaluate_first: bool = False


def fit(
    model: M,
    objective: Callable[[M, Batch], Loss],
    batches: Callable[[int, int], Iterable[Batch]],
    optimizer: Optimizer,
    learning_rate: Callable[[int], float],
    evaluate: Callable[[], tuple[dict[str, float], float]],
    save: Callable[[State], None],
    plan: Plan,
    state: State,
    run: Path,
    log: Callable[[Mapping[str, Any]], None],
    progress: Progress,
) -> State:
    """Train until plan.steps updates are done; the state at the end.

    `batches(step, halvings)` gives the micro-batches of an update, halved as often as memory has run out so far.
    `evaluate` gives the validation metrics and the score that the best checkpoint maximises; `save` writes a
    checkpoint, `log` a line of metrics. FloatingPointError when a loss is no longer finite; SystemExit(128 + signal)
    after Ctrl-C, SIGTERM or pre-emption (signals.py), checkpoint saved. UserError where more updates are done than
    planned: a resumed run does not go back.
    """
    if state.step > plan.steps:
        raise UserError(f"the run has done {state.step:,} updates already, more than the {plan.steps:,} asked for")
    if not collective.rank():
        folder.reopen(run)  # here and not earlier: whatever a resumed run is refused for, it stays finished
    device = next(model.parameters()).device
    batches = ahead(batches, plan.steps) if device.type == "cuda" else batches
    pending: list[dict[str, Tensor]] = []  # losses, norms and counts that are still on the device
    validated: list[tuple[int, float]] = []  # step and loss

    def validate() -> None:
        found, score = evaluate()
        if wrong := [f"{name} {value}" for name, value in found.items() if not math.isfinite(value)]:
            raise FloatingPointError(f"validation at step {state.step} gives {', '.join(wrong)}")
        if state.best_score is None or score > state.best_score:
            state.best_step, state.best_score, state.best_metrics = state.step, score, found
        log({"step": state.step, "split": "valid", **found, "seconds": round(state.seconds, 3)})
        progress.say(f"step {state.step:,}: valid " + " ".join(f"{name} {value:.4f}" for name, value in found.items()))
        validated.append((state.step, found["loss"]))
        if warning := rising(validated):
            progress.say(warning)

    if state.step == 0 and plan.evaluate_first:
        validate()
    line_seconds, line_tokens = state.seconds, state.tokens

    stopping = False
    with signals.noted() as stopped:
        began = time.perf_counter()
        while state.step < plan.steps:
            model.train()
            lr = learning_rate(state.step)
            try:
                sums = gradients(model, objective, batches(state.step, state.halvings), optimizer, device)
            except OutOfMemory as short:
                optimizer.forget()
                state.halvings += 1
                progress.say(short.told())
                continue
            sums = collective.summed(sums, device)
            count, tokens = sums.pop("count"), sums.pop("tokens")
            norm = optimizer.step(lr, count)
            means = {name: value / count for name, value in sums.items()}
            pending.append({**means, "gradient_norm": norm, "tokens": tokens})
            state.step += 1

            last = state.step == plan.steps
            log_due = state.step % plan.log_every == 0 or last
            stopping = bool(stopped)  # asked once: a signal may come at any line
            if collective.size() > 1:  # all stop after the same update, where the device is waited for anyway
                stopping = log_due and collective.any_of(stopping, device)
            eval_due = state.step % plan.eval_every == 0 or last
            save_due = eval_due or state.step % plan.checkpoint_every == 0 or state.step in plan.keep or stopping

            if log_due or save_due:  # the device is waited for, so that the seconds are those of the work
                done = _finite(pending, state.step)
                pending.clear()
                state.tokens += sum(int(update.pop("tokens")) for update in done)
                state.unreported += done
                state.seconds += time.perf_counter() - began
            if log_due:
                mean = {n: sum(u[n] for u in state.unreported) / len(state.unreported) for n in state.unreported[0]}
                state.unreported = []
                speed = (state.tokens - line_tokens) / max(1e-9, state.seconds - line_seconds)
                line_seconds, line_tokens = state.seconds, state.tokens
                line = {"step": state.step, "split": "train", **mean, "lr": lr, "tokens_per_second": round(speed, 1)}
                log({**line, "seconds": round(state.seconds, 3)})
                told = {name: mean[name] for name in ("loss", "task_loss") if name in mean}
                progress.update(state.step, **told, lr=lr, tokens_per_second=speed)
            if eval_due:
                validate()
            if save_due:
                save(state)
            if stopping:
                break
            if log_due or save_due:
                began = time.perf_counter()  # validation and saving are no training
    if stopping or stopped:  # it may have come behind the last update too, and what follows is not begun then
        number = signals.foremost(stopped or [signal.SIGTERM])  # none: another process was told to stop
        progress.say(f"stopped by {signal.Signals(number).name} at step {state.step:,}; checkpoint saved")
        progress.say(f"go on with resume={run}")
        signals.end(number)
    return state


def gradients(
    model: M,
    objective: Callable[[M, Batch], Loss],
    batches: Iterable[Batch],
    optimizer: Optimizer,
    device: torch.device,
) -> dict[str, Tensor]:
    """Bring the gradients of an update's micro-batches into the optimizer; losses, parts and counts, summed.

    OutOfMemory where a micro-batch does not fit.
    """
    sums: dict[str, Tensor] = {}
    for batch in batches:
        try:
            loss = objective(model, batch.to(device))
            if not batch.count:  # of several processes this one has no rows: it takes part, and counts nothing
                loss = loss.uncounted()
            loss.total.backward()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise OutOfMemory(*batch.tokens.shape) from None
            raise
        optimizer.accumulate()
        found = {"loss": loss.total.detach(), **loss.parts}
        found |= {"count": torch.tensor(loss.count), "tokens": torch.tensor(batch.real_tokens)}
        sums = {name: sums[name] + value if name in sums else value for name, value in found.items()}
    return sums


class OutOfMemory(Exception):
    """Memory ran out on a micro-batch of so many rows of so many tokens."""

    def __init__(self, rows: int, tokens: int):
        super().__init__(rows, tokens)
        self.rows, self.tokens = rows, tokens

    def told(self) -> str:
        """What is done about it; UserError where nothing can be done here."""
        what = f"memory ran out on {self.rows:,} x {self.tokens:,} tokens"
        if self.rows == 1:
            raise UserError(f"{what}: runtime.precision=bf16, a smaller model, shorter sequences need less") from None
        if collective.size() > 1:  # the others wait for this one's gradients
            raise UserError(f"{what}; name runtime.micro_batch={self.rows // 2}") from None
        return f"{what}: going on with half as much at a time, which changes dropout's masks and nothing else"


def result_of(command: str, config: TrainConfig, state: State, machine: Machine) -> dict[str, Any]:
    """The part of result.json that every training run has."""
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


def _finite(pending: list[dict[str, Tensor]], step: int) -> list[dict[str, float]]:
    """The numbers of the last updates, from the device; FloatingPointError names the first step that went wrong."""
    updates = [{name: float(value) for name, value in update.items()} for update in pending]
    for number, update in enumerate(updates, start=step - len(updates) + 1):
        for name, value in update.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} became {value} at step {number}; what was saved before is kept")
    return updates


def rising(losses: Sequence[tuple[int, float]]) -> str | None:
    """Of the validations so far, as (step, loss): told when the loss has risen twice in a row for the first time."""
    rose = [later > earlier for (_, earlier), (_, later) in itertools.pairwise(losses)]
    windows = [all(rose[end - RISES : end]) for end in range(RISES, len(rose) + 1)]
    if windows.count(True) != 1 or not windows[-1]:
        return None
    (step, low), (_, high) = losses[-RISES - 1], losses[-1]
    return (
        f"warning: the validation loss rises since step {step:,}, from {low:.4f} to {high:.4f}: what is learned now"
        " holds for the training data alone; fewer updates or more data would help, and `best` is kept"
    )
