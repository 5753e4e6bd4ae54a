"""`sync.simulate`: a mode on a virtual clock, to compare modes on one CPU."""

from dataclasses import dataclass

from llmtrain.errors import require, require_choice

SCHEDULES = ("constant", "straggler", "transient", "replay")


@dataclass(kw_only=True)
class SimulateConfig:
    """Replicas on a virtual clock: all of them in one process, the same numbers in every run."""

    workers: int | None = None
    """Virtual replicas; null: no simulation."""
    schedule: str = "constant"
    """How long steps take: constant | straggler (the last replica is slower) | transient (any step
    may be slower) | replay (in the order of the pushes that an earlier run logged)."""
    factor: float = 3.0
    """How many times as long a slow step takes."""
    probability: float = 0.05
    """Of a slow step, with schedule=transient, 0-1."""
    step_s: float = 1.0
    """Virtual seconds of a step that is not slow."""
    log: str | None = None
    """With schedule=replay: the pushes.jsonl of the run whose order of pushes is taken."""

    def __post_init__(self) -> None:
        require(
            self.workers is None or self.workers > 0,
            f"sync.simulate.workers={self.workers} must be positive.",
        )
        require_choice("sync.simulate.schedule", self.schedule, SCHEDULES)
        require(
            self.workers is not None or self.schedule == "constant",
            f"sync.simulate.schedule={self.schedule} is of virtual replicas: say how many with "
            "sync.simulate.workers=4.",
        )
        require(
            self.factor >= 1.0, f"sync.simulate.factor={self.factor} must be at least 1."
        )  # fmt: skip
        require(
            0.0 <= self.probability <= 1.0,
            f"sync.simulate.probability={self.probability} must be in [0, 1].",
        )
        require(self.step_s > 0, f"sync.simulate.step_s={self.step_s} must be positive.")
        require(
            (self.schedule == "replay") == (self.log is not None),
            f"sync.simulate.schedule={self.schedule} with sync.simulate.log={self.log}: replay "
            "needs sync.simulate.log=RUN_DIR/pushes.jsonl of an earlier run, and nothing else "
            "takes one.",
        )
