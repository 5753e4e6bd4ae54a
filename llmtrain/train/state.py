"""Where training stands: what a checkpoint keeps besides tensors."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class BadStepState:
    """What became of steps whose numbers were bad, and what such steps are told by."""

    count: int = 0
    """Bad steps after which training went on, those of abandoned stretches too."""
    in_row: int = 0
    """Those since the last good one that were skipped."""
    rollbacks: int = 0
    lr_ratio: float = 1.0
    """Multiplies the schedule's learning rate."""
    loss_mean: float = 0.0
    """Running mean of the losses of good steps, in nats; kept only where spikes are looked for."""
    losses: int = 0
    """How many of them there were."""


@dataclass
class TrainState:
    """Progress of a run. Random numbers need no state here: they are functions of the step."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Counted tokens seen, over all processes."""
    samples: int = 0
    """Sequences seen, over all processes: where the stream of samples goes on, whatever the batch
    size was and will be."""
    best_val_loss: float = math.inf
    evals_without_best: int = 0
    """Evaluations in a row without a new best."""
    evaluated_step: int = 0
    """Step of the last evaluation. A run stopped between a step and its evaluation makes up for it
    when it goes on."""
    bad: BadStepState = field(default_factory=BadStepState)

    def record_evaluation(self, val_loss: float) -> bool:
        """Take note of an evaluation of this step; return whether it is the best so far."""
        self.evaluated_step = self.step
        if val_loss < self.best_val_loss:
            self.best_val_loss = val_loss
            self.evals_without_best = 0
            return True
        self.evals_without_best += 1
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite best is null."""
        values = dataclasses.asdict(self)
        if math.isinf(self.best_val_loss):
            values["best_val_loss"] = None
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainState":
        """Take back what `to_dict` gave."""
        known = dict(values)
        if known.get("best_val_loss") is None:
            known["best_val_loss"] = math.inf
        known["bad"] = BadStepState(**known.get("bad", {}))
        return cls(**known)
