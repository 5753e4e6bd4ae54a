"""The group `checkpoint`: when to save, how, and what to keep."""

from dataclasses import dataclass

from llmtrain.errors import require, require_choice


@dataclass(kw_only=True)
class CheckpointConfig:
    """Checkpoints. The last step is always saved, and kept until a newer one is whole."""

    every_steps: int | None = 500
    """Steps between checkpoints; null: only at the end and when stopped."""
    async_save: bool = False
    """Write while training goes on, from a copy in memory: of what each process holds, 12 to 16
    bytes a parameter of its share. One is in flight at most."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_best: int = 1
    """Checkpoints of lowest validation loss that are kept."""
    keep_every_steps: int | None = None
    """Checkpoints of steps that this divides are kept for good; null: none."""
    save_best: bool = True
    """Save after an evaluation that is the best so far."""
    hash: str = "xxh3"
    """xxh3 finds every accident, at the speed of the disk | sha256 finds a forger too."""
    on_error: str = "stop"
    """Where a checkpoint cannot be written (the disk is full): stop | go_on with a warning. What
    was saved before stays; the save at the end of a run stops it in any case."""
    grace_s: float = 600.0
    """Seconds from a signal to the last moment for the checkpoint that it asks for; what is not
    saved by then is left, and the next start goes on from the one before. Below what the scheduler
    waits (Slurm's KillWait is 30 s)."""

    def __post_init__(self) -> None:
        for key in ("every_steps", "keep_every_steps"):
            value = getattr(self, key)
            require(
                value is None or value > 0, f"checkpoint.{key}={value} must be positive, or null."
            )
        require(self.keep_last >= 1, f"checkpoint.keep_last={self.keep_last} must be at least 1.")
        require(self.keep_best >= 0, f"checkpoint.keep_best={self.keep_best} must be at least 0.")
        require_choice("checkpoint.hash", self.hash, ("xxh3", "sha256"))
        require_choice("checkpoint.on_error", self.on_error, ("stop", "go_on"))
        require(self.grace_s > 0, f"checkpoint.grace_s={self.grace_s} must be positive.")
