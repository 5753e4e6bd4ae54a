"""The settings `sweep`: how the jobs of a sweep are found and run. No job knows of them."""

from dataclasses import dataclass

from llmtrain.errors import require, require_choice

SAMPLERS = ("grid", "random", "tpe", "cmaes")
PRUNERS = ("none", "median", "successive_halving", "hyperband")
METRICS = {"val_loss": "val_loss", "train_loss": "loss"}
"""Of result.json -> of the lines of metrics.jsonl, in which it is watched."""


@dataclass(kw_only=True)
class SweepConfig:
    """How several runs are made of one command line: -m, or sweep=NAME."""

    parallel: int = 1
    """Jobs that run at once; the GPUs, or the cores, are divided among them."""
    resume: str | None = None
    """The folder of a sweep to go on with: jobs that are completed are not repeated."""
    metric: str = "val_loss"
    """What is compared, the least first: val_loss | train_loss."""
    sampler: str = "grid"
    """Which values are tried: grid (every combination) | random | tpe | cmaes; all but grid need
    Optuna, and take interval() besides lists, choice() and range()."""
    trials: int | None = None
    """Jobs that a sampler other than grid tries, together."""
    seed: int = 0
    """Of the sampler; the runs have train.seed."""
    pruner: str = "none"
    """Which runs are stopped early, by their metric so far: none | median | successive_halving |
    hyperband; for samplers other than grid."""
    startup_trials: int | None = None
    """Trials that tpe and cmaes draw at random before they learn from them, and that end before
    median prunes any; null: what Optuna takes."""
    warmup_steps: int = 0
    """No run is pruned before this step of its training."""

    def __post_init__(self) -> None:
        require_choice("sweep.sampler", self.sampler, SAMPLERS)
        require_choice("sweep.pruner", self.pruner, PRUNERS)
        require_choice("sweep.metric", self.metric, METRICS)
        require(
            self.parallel > 0,
            f"sweep.parallel={self.parallel} must be positive; 1 runs one job after another.",
        )
        require(
            self.warmup_steps >= 0, f"sweep.warmup_steps={self.warmup_steps} must not be negative."
        )
        for key in ("trials", "startup_trials"):
            value = getattr(self, key)
            require(value is None or value > 0, f"sweep.{key}={value} must be positive.")
        if self.sampler == "grid":
            require(
                self.trials is None,
                f"sweep.trials={self.trials} is for a search, and sweep.sampler=grid tries every "
                "combination; choose sweep.sampler=tpe or random, or leave it out.",
            )
            require(
                self.pruner == "none",
                f"sweep.pruner={self.pruner} is for a search, and sweep.sampler=grid runs every "
                "combination to its end; choose sweep.sampler=tpe or random, or leave it out.",
            )
        else:
            require(
                self.trials is not None,
                f"sweep.sampler={self.sampler} does not end by itself: set the number of jobs with "
                "sweep.trials=20, say.",
            )

    @property
    def searches(self) -> bool:
        """Whether values are drawn, one job after another, instead of listed."""
        return self.sampler != "grid"
