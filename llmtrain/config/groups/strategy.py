"""The group `strategy`: how one model is spread over processes."""

from dataclasses import dataclass

from llmtrain.errors import require, require_choice

SCHEDULES = {
    "GPipe": range(1, 2),
    "1F1B": range(1, 2),
    "Interleaved1F1B": range(2, 1000),
    "InterleavedZeroBubble": range(2, 1000),
    "ZBVZeroBubble": range(2, 3),
    "DualPipeV": range(2, 3),
}
"""PyTorch's names of pipeline schedules, and how many stages a process may hold in each."""


@dataclass(kw_only=True)
class StrategyConfig:
    """Sizes of the mesh axes. Their product is the number of processes.

    `null` leaves a size to the plan: the axis that data parallelism uses takes the rest of the
    processes, any other is 1. `-1` says so outright: the rest of the processes.
    """

    name: str
    """single | data | model | pipeline | hybrid."""
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
    sequence_parallel: bool = True
    """With tp: cut the activations between attention and feed-forward along the sequence too."""
    schedule: str = "1F1B"
    """With pp: GPipe | 1F1B | Interleaved1F1B | InterleavedZeroBubble | ZBVZeroBubble | DualPipeV.
    The micro-batches are those of train.micro_batch_size."""
    stages_per_rank: int | None = None
    """With pp: stages each process holds; null: 1 for GPipe and 1F1B, 2 for the others."""
    cut: str = "balanced"
    """With pp: uniform (as many blocks in each stage) | balanced (the slowest stage has the fewest
    multiplications, the head counted) | graph (the same by tracing the model, cut inside blocks
    too)."""
    stage_memory_gib: float | None = None
    """With pp and cut=balanced: GiB that a process may hold in weights, gradients, optimizer state
    and activations, as modelled in config/footprint.py; null: no bound."""

    def __post_init__(self) -> None:
        for key in ("dp_replicate", "dp_shard", "cp", "tp", "pp"):
            value = getattr(self, key)
            require(
                value is None or value == -1 or value > 0,
                f"strategy.{key}={value} must be a positive count, or -1 for the rest.",
            )
        require_choice("strategy.schedule", self.schedule, tuple(SCHEDULES))
        require_choice("strategy.cut", self.cut, ("uniform", "balanced", "graph"))
        wanted = SCHEDULES[self.schedule]
        require(
            self.stages_per_rank is None or self.stages_per_rank in wanted,
            f"strategy.stages_per_rank={self.stages_per_rank}: strategy.schedule={self.schedule} "
            f"takes {_spoken(wanted)} a process.",
        )
        limit = self.stage_memory_gib
        require(limit is None or limit > 0, f"strategy.stage_memory_gib={limit} must be positive.")
        require(
            limit is None or self.cut == "balanced",
            f"strategy.stage_memory_gib={limit} bounds what strategy.cut=balanced chooses, and "
            f"strategy.cut={self.cut} does not choose by it; set strategy.cut=balanced or "
            "strategy.stage_memory_gib=null.",
        )
        require(self.zero in (0, 1, 2, 3), f"strategy.zero={self.zero} must be 0, 1, 2 or 3.")

    @property
    def stages(self) -> int:
        """Stages of a pipeline that each process holds."""
        return self.stages_per_rank or SCHEDULES[self.schedule][0]


def _spoken(stages: range) -> str:
    """Return "2 stages" or "2 or more stages"."""
    more = "" if len(stages) == 1 else " or more"
    return f"{stages[0]}{more} stage{'s' if stages[0] > 1 or more else ''}"


@dataclass(kw_only=True)
class SingleStrategyConfig(StrategyConfig):
    """One process."""

    name: str = "single"


@dataclass(kw_only=True)
class DataStrategyConfig(StrategyConfig):
    """Every process sees its own part of the batch: DDP, ZeRO-1/2/3, HSDP."""

    name: str = "data"


@dataclass(kw_only=True)
class ModelStrategyConfig(StrategyConfig):
    """Every layer is cut over the processes: tensor and sequence parallel."""

    name: str = "model"
    tp: int = -1


@dataclass(kw_only=True)
class PipelineStrategyConfig(StrategyConfig):
    """The stack of layers is cut over the processes."""

    name: str = "pipeline"
    pp: int = -1


@dataclass(kw_only=True)
class HybridStrategyConfig(StrategyConfig):
    """Any product of the axes; data parallelism takes the rest of the processes."""

    name: str = "hybrid"
