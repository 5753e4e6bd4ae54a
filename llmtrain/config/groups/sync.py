"""The group `sync`: when replicas talk to each other, and what they say.

A replica is everything inside one coordinate of dp_replicate, sharded and cut as it may be.
"""

from dataclasses import dataclass, field

from llmtrain.config.groups.simulate import SimulateConfig
from llmtrain.errors import require, require_choice

WIRE_DTYPES = ("fp32", "bf16", "fp16", "int8", "int4")
"""How numbers travel; fp32 stands for the weights' own format."""

COMPRESSIONS = ("none", "fp16", "powersgd")

INNER_STATES = ("keep", "average")


@dataclass(kw_only=True)
class SyncConfig:
    """What every mode has."""

    name: str
    """allreduce | local_sgd | hierarchical | diloco | quorum_diloco | ssp | async_ps |
    async_local_sgd | easgd | gossip."""
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    """Virtual replicas in one process, in place of processes."""

    @property
    def warmup_steps(self) -> int:
        """Steps of all replicas together before they train apart."""
        return getattr(self, "warmup_sync_steps", 0)


@dataclass(kw_only=True)
class AllReduceConfig(SyncConfig):
    """Gradients are averaged over all replicas in every step: what one process would compute."""

    name: str = "allreduce"
    compression: str = "none"
    """How gradients travel: none | fp16 | powersgd (arXiv:1905.13727). Under DDP only."""
    powersgd_rank: int = 4
    """Columns of the two factors that a matrix travels as."""
    powersgd_start_step: int = 1000
    """Steps at the start whose gradients travel whole."""

    def __post_init__(self) -> None:
        require_choice("sync.compression", self.compression, COMPRESSIONS)
        _require_positive("sync.powersgd_rank", self.powersgd_rank)
        require(
            self.powersgd_start_step >= 0,
            f"sync.powersgd_start_step={self.powersgd_start_step} must not be negative.",
        )


@dataclass(kw_only=True)
class SemiSyncConfig(SyncConfig):
    """What the modes have in which replicas train apart and meet now and then."""

    warmup_sync_steps: int = 0
    """Synchronous steps at the start, before replicas train apart (arXiv:1808.07217)."""

    def __post_init__(self) -> None:
        require(
            self.warmup_sync_steps >= 0,
            f"sync.warmup_sync_steps={self.warmup_sync_steps} must not be negative.",
        )


@dataclass(kw_only=True)
class LocalSGDConfig(SemiSyncConfig):
    """Replicas average their weights every few steps (arXiv:1805.09767)."""

    name: str = "local_sgd"
    sync_every_steps: int = 8
    """Steps of a replica between two averages, H."""
    inner_state: str = "keep"
    """The inner optimizer's state at an average: keep each replica's own, or average it too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive("sync.sync_every_steps", self.sync_every_steps)
        require_choice("sync.inner_state", self.inner_state, INNER_STATES)


@dataclass(kw_only=True)
class LevelConfig:
    """One level of hierarchical averaging."""

    replicas: int = -1
    """Neighbouring replicas that average together; -1, or more than there are: all."""
    every_steps: int = 8
    """Steps between two averages."""


@dataclass(kw_only=True)
class HierarchicalConfig(SemiSyncConfig):
    """Neighbouring replicas average often, all of them seldom."""

    name: str = "hierarchical"
    levels: list[LevelConfig] = field(
        default_factory=lambda: [
            LevelConfig(replicas=2, every_steps=4), LevelConfig(replicas=-1, every_steps=16)
        ]
    )  # fmt: skip
    """Innermost first; the last one's is of all replicas."""
    inner_state: str = "keep"
    """The inner optimizer's state at an average: keep each replica's own, or average it too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("sync.inner_state", self.inner_state, INNER_STATES)
        require(bool(self.levels), "sync.levels is empty; name one level at least.")
        for i, level in enumerate(self.levels):
            _require_positive(f"sync.levels.{i}.every_steps", level.every_steps)
            require(
                level.replicas > 0 or level.replicas == -1,
                f"sync.levels.{i}.replicas={level.replicas} must be positive, or -1 for all.",
            )
        for inner, outer in zip(self.levels, self.levels[1:], strict=False):
            require(
                outer.every_steps % inner.every_steps == 0
                and outer.every_steps > inner.every_steps,
                f"sync.levels: every_steps={outer.every_steps} must be a multiple of the level "
                f"inside it, every_steps={inner.every_steps}; try {2 * inner.every_steps}.",
            )


@dataclass(kw_only=True)
class DiLoCoConfig(SemiSyncConfig):
    """Replicas train apart; the mean of how far they got is a gradient for an outer optimizer.

    DiLoCo (arXiv:2311.08105); with several fragments and overlap Streaming DiLoCo
    (arXiv:2501.18512).
    """

    name: str = "diloco"
    sync_every_steps: int = 100
    """Steps of a replica between two exchanges of the same weights, H."""
    outer_lr: float = 0.7
    """Learning rate of the outer SGD."""
    outer_momentum: float = 0.9
    """Momentum of the outer SGD."""
    outer_nesterov: bool = True
    """Whether that momentum is Nesterov's; of no effect where outer_momentum is 0."""
    fragments: int = 1
    """Parts of the model, whole blocks dealt out evenly by size, that are exchanged one after the
    other."""
    overlap_steps: int = 0
    """Steps that are trained while an exchange is under way, tau."""
    mix_alpha: float = 0.0
    """Share of a replica's own weights in what it goes on from after an exchange, 0-1."""
    wire_dtype: str = "fp32"
    """How differences travel: fp32 (as they are) | bf16 | fp16 | int8 | int4."""
    error_feedback: bool = True
    """With int8 and int4: what was rounded off travels with the next exchange."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive("sync.sync_every_steps", self.sync_every_steps)
        _require_positive("sync.fragments", self.fragments)
        require_choice("sync.wire_dtype", self.wire_dtype, WIRE_DTYPES)
        require(self.outer_lr > 0, f"sync.outer_lr={self.outer_lr} must be positive.")
        require(
            0 <= self.outer_momentum < 1,
            f"sync.outer_momentum={self.outer_momentum} must be in [0, 1).",
        )
        require(0 <= self.mix_alpha < 1, f"sync.mix_alpha={self.mix_alpha} must be in [0, 1).")
        every, parts = self.sync_every_steps, self.fragments
        require(
            every % parts == 0,
            f"sync.sync_every_steps={every} must be a multiple of sync.fragments={parts}, which "
            f"take turns; try {-(-every // parts) * parts}.",
        )
        require(
            0 <= self.overlap_steps < every // parts,
            f"sync.overlap_steps={self.overlap_steps} must be under sync.sync_every_steps / "
            f"sync.fragments = {every // parts}: one exchange ends before the next begins.",
        )


def _require_positive(key: str, value: int) -> None:
    require(value > 0, f"{key}={value} must be positive.")
