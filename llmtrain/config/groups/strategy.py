"""The group `strategy`: how one model is spread over processes."""

from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(kw_only=True)
class StrategyConfig:
    """Sizes of the mesh axes. Their product is the number of processes.

    `null` leaves a size to the plan: the axis that data parallelism uses takes the rest of the
    processes, any other is 1. `-1` says so outright: the rest of the processes.
    """

    name: str
    """single | data."""
    dp_replicate: int | None = None
    """Replicas of the model. Between them only gradients (or, in semi-sync modes, weights) move."""
    dp_shard: int | None = None
    """Processes that share one replica's optimizer state, gradients and weights, as `zero` says."""
    zero: int = 0
    """What is sharded over dp_shard (ZeRO, arXiv:1910.02054): 0 nothing (DDP), 1 optimizer state,
    2 and gradients, 3 and weights (FSDP2)."""
    cp: int = 1
    """Context parallel: processes that share one sequence."""
    tp: int = 1
    """Tensor parallel: processes that share one layer."""
    pp: int = 1
    """Pipeline parallel: processes that share the stack of layers."""

    def __post_init__(self) -> None:
        for key in ("dp_replicate", "dp_shard", "cp", "tp", "pp"):
            value = getattr(self, key)
            require(
                value is None or value == -1 or value > 0,
                f"strategy.{key}={value} must be a positive count, or -1 for the rest.",
            )
        require(self.zero in (0, 1, 2, 3), f"strategy.zero={self.zero} must be 0, 1, 2 or 3.")


@dataclass(kw_only=True)
class SingleStrategyConfig(StrategyConfig):
    """One process."""

    name: str = "single"


@dataclass(kw_only=True)
class DataStrategyConfig(StrategyConfig):
    """Every process sees its own part of the batch: DDP, ZeRO-1/2/3, HSDP."""

    name: str = "data"
