"""The state of a training run: what resumes it, besides weights and optimizer state."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class State:
    """Where a training run stands: everything of the loop that is no tensor."""

    step: int = 0  # updates done
    seconds: float = 0.0  # of training, over all sessions
    tokens: int = 0  # trained on
    halvings: int = 0  # of the micro-batch, because memory ran out
    best_step: int | None = None
    best_score: float | None = None
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    unreported: list[dict[str, float]] = dataclasses.field(
        default_factory=list
    )  # updates since the last line of metrics
