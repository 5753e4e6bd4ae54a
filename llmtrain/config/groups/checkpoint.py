"""The group `checkpoint`: when to save and what to keep."""

from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(kw_only=True)
class CheckpointConfig:
    """Checkpoints. The last step and the best evaluation are always kept."""

    every_steps: int | None = 500
    """Steps between checkpoints; null: only at the end and when stopped."""
    keep_last: int = 2
    """Newest checkpoints that are kept, besides the best."""
    save_best: bool = True
    """Save after an evaluation that is the best so far."""
    grace_s: float = 600.0
    """Seconds from a signal to the last moment for the checkpoint that it asks for; what is not
    saved by then is left, and the next start goes on from the one before. Below what the scheduler
    waits (Slurm's KillWait is 30 s)."""

    def __post_init__(self) -> None:
        require(
            self.every_steps is None or self.every_steps > 0,
            f"checkpoint.every_steps={self.every_steps} must be positive, or null.",
        )
        require(self.keep_last >= 1, f"checkpoint.keep_last={self.keep_last} must be at least 1.")
        require(self.grace_s > 0, f"checkpoint.grace_s={self.grace_s} must be positive.")
