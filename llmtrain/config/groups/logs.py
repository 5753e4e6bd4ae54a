"""`llmtrain logs RUN`: what to show of a run's logs."""

from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(kw_only=True)
class LogsConfig:
    """`llmtrain logs RUN [-f]`."""

    rank: int = 0
    """Whose log; what the run's Slurm job has printed is shown with rank 0's."""

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"rank={self.rank} must not be negative.")
