"""The group `scheduler`: the factor on the learning rate as a function of the step."""

from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(kw_only=True)
class SchedulerConfig:
    """What every schedule has: a linear warm-up from lr / warmup_steps to lr."""

    name: str
    """constant | linear | cosine | wsd | inverse_sqrt."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; null: a tenth of training, at most 100."""

    def __post_init__(self) -> None:
        require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            f"scheduler.warmup_steps={self.warmup_steps} must not be negative.",
        )
        ratio = getattr(self, "min_lr_ratio", 0.0)
        require(0 <= ratio <= 1, f"scheduler.min_lr_ratio={ratio} must be in [0, 1].")
        decay = getattr(self, "decay_steps", None)
        require(
            decay is None or decay > 0,
            f"scheduler.decay_steps={decay} must be positive, or null.",
        )


@dataclass(kw_only=True)
class ConstantConfig(SchedulerConfig):
    """lr after the warm-up."""

    name: str = "constant"
    warmup_steps: int | None = 0


@dataclass(kw_only=True)
class LinearConfig(SchedulerConfig):
    """From lr down to min_lr_ratio * lr in a straight line."""

    name: str = "linear"
    min_lr_ratio: float = 0.0
    """Last factor on lr, 0 to 1."""
    decay_steps: int | None = None
    """Steps the fall takes, after the warm-up; null: to the end of training."""


@dataclass(kw_only=True)
class CosineConfig(SchedulerConfig):
    """From lr down to min_lr_ratio * lr along half a cosine (arXiv:1608.03983)."""

    name: str = "cosine"
    min_lr_ratio: float = 0.1
    """Last factor on lr, 0 to 1."""
    decay_steps: int | None = None
    """Steps the fall takes, after the warm-up; null: to the end of training."""


@dataclass(kw_only=True)
class WSDConfig(SchedulerConfig):
    """Warm-up, stable, decay: constant, then a straight fall at the end (arXiv:2404.06395)."""

    name: str = "wsd"
    min_lr_ratio: float = 0.0
    """Last factor on lr, 0 to 1."""
    decay_steps: int | None = None
    """Steps of the fall at the end; null: a tenth of training."""


@dataclass(kw_only=True)
class InverseSqrtConfig(SchedulerConfig):
    """lr * sqrt(warmup / step) after the warm-up (Vaswani et al. 2017, section 5.3)."""

    name: str = "inverse_sqrt"
