"""The state of a training run that a checkpoint stores besides weights and optimizer state."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class TrainingState:
    """Progress of a training run. NOTE: the field names are the keys of state.json; renaming one breaks resume."""

    step: int = 0  # steps done
    seconds: float = 0.0  # of training, over all sessions
    tokens: int = 0  # tokens trained on
    halvings: int = 0  # how often the micro-batch was halved, because memory ran out
    best_step: int | None = None
    best_score: float | None = None
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    unreported: list[dict[str, float]] = dataclasses.field(default_factory=list)  # steps since the last metrics line
