"""The choices of `sync` in which a server holds the weights and replicas come and go.

A replica is told the weights, computes, pushes what came of it, and is told the weights again. No
replica waits for another but where a mode says so, and none ends because another died.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain.config.groups.sync import (
    AllReduceConfig,
    DiLoCoConfig,
    LocalSGDConfig,
    SyncConfig,
)
from llmtrain.errors import ConfigError, require, require_choice

STALENESS_POLICIES = ("accept", "decay", "reject")
COMPENSATIONS = ("none", "dc_asgd", "dc_asgd_adaptive")

PLAIN: Mapping[type[SyncConfig], Mapping[str, object]] = {
    AllReduceConfig: {"compression": "none"},
    LocalSGDConfig: {"warmup_sync_steps": 0, "inner_state": "keep"},
    DiLoCoConfig: {
        "warmup_sync_steps": 0, "fragments": 1, "overlap_steps": 0, "mix_alpha": 0.0,
        "wire_dtype": "fp32",
    },
}  # fmt: skip
"""Modes of lockstep that a server's rounds compute too, and what they must leave as it is."""


@dataclass(kw_only=True)
class ServedConfig(SyncConfig):
    """What every mode with a server has."""

    min_replicas: int = 1
    """Living replicas below which training waits for more."""
    dead_after_s: float = 30.0
    """Seconds without a sign of life after which a replica counts as dead; one whose connection is
    seen to break is dead at once."""
    max_restarts: int = 3
    """How often a replica that died is started again, in one start of the run."""
    servers: int = 1
    """Processes that hold the weights together, each a part of the tensors. They stay at one
    version; several share the traffic and the arithmetic of a large model."""

    def __post_init__(self) -> None:
        _require_positive("sync.min_replicas", self.min_replicas)
        _require_positive("sync.servers", self.servers)
        require(
            self.dead_after_s > 0, f"sync.dead_after_s={self.dead_after_s} must be positive."
        )  # fmt: skip
        require(
            self.max_restarts >= 0,
            f"sync.max_restarts={self.max_restarts} must not be negative.",
        )

    @property
    def payload(self) -> str:
        """What a replica pushes: gradient (one step's, for the server's optimizer) | delta (how far
        its own optimizer went) | weights (where it is)."""
        return "gradient"

    @property
    def local_steps(self) -> int:
        """Steps of a replica between two pushes."""
        return getattr(self, "sync_every_steps", 1)


@dataclass(kw_only=True)
class AsyncPSConfig(ServedConfig):
    """Replicas push gradients; the server steps with each at once (arXiv:1609.08326, section 2)."""

    name: str = "async_ps"
    staleness_policy: str = "accept"
    """Gradients computed at older weights: accept | decay (times 1 / (1 + versions behind)) |
    reject (beyond max_versions)."""
    max_versions: int | None = None
    """Versions behind that staleness_policy=reject lets pass."""
    compensation: str = "none"
    """How a late gradient is brought up to date: none | dc_asgd | dc_asgd_adaptive
    (arXiv:1609.08326, equations 10 and 14)."""
    compensation_strength: float | None = None
    """Its lambda, or lambda_0 where it is adaptive; null: 0.04, or 2 where it is adaptive."""
    compensation_decay: float = 0.95
    """With dc_asgd_adaptive: m of the running mean of squared gradients, 0-1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("sync.staleness_policy", self.staleness_policy, STALENESS_POLICIES)
        require_choice("sync.compensation", self.compensation, COMPENSATIONS)
        require(
            (self.staleness_policy == "reject") == (self.max_versions is not None),
            f"sync.staleness_policy={self.staleness_policy} with sync.max_versions="
            f"{self.max_versions}: reject needs a number of versions, and nothing else takes one; "
            "try sync.staleness_policy=reject sync.max_versions=4.",
        )
        require(
            self.compensation_strength is None or self.compensation != "none",
            f"sync.compensation_strength={self.compensation_strength} with sync.compensation=none: "
            "nothing is compensated; add sync.compensation=dc_asgd.",
        )
        require(
            0.0 <= self.compensation_decay < 1.0,
            f"sync.compensation_decay={self.compensation_decay} must be in [0, 1).",
        )


@dataclass(kw_only=True)
class SSPConfig(ServedConfig):
    """Stale synchronous parallel: as async_ps, but no replica runs far ahead (Ho et al. 2013)."""

    name: str = "ssp"
    max_staleness: int = 3
    """Clocks that a replica may start ahead of the slowest, s. 0: one step of all replicas'
    gradients together, as allreduce."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_staleness >= 0,
            f"sync.max_staleness={self.max_staleness} must not be negative; sync=async_ps has no "
            "bound.",
        )


@dataclass(kw_only=True)
class AsyncLocalSGDConfig(ServedConfig):
    """Replicas train apart; each one's progress moves the server's weights when it arrives.

    Delayed Nesterov and dynamic local updates (arXiv:2401.09135, algorithms 3 and section 5).
    """

    name: str = "async_local_sgd"
    sync_every_steps: int = 50
    """Steps of a replica between two pushes, H."""
    outer_lr: float = 1.0
    """Learning rate of the outer steps; each takes its share of it, one replica's."""
    outer_momentum: float = 0.0
    """Momentum of the outer steps, applied once in as many pushes as there are replicas."""
    adapt_local_steps: bool = True
    """Give slow replicas fewer steps, so that all push equally often (DyLU)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive("sync.sync_every_steps", self.sync_every_steps)
        _require_outer(self.outer_lr, self.outer_momentum)

    @property
    def payload(self) -> str:
        """How far the replica's own optimizer went."""
        return "delta"


@dataclass(kw_only=True)
class EASGDConfig(ServedConfig):
    """Replicas loosely tied to a centre that the server holds (arXiv:1412.6651, algorithm 1)."""

    name: str = "easgd"
    sync_every_steps: int = 10
    """Steps of a replica between two pulls towards the centre, tau."""
    beta: float = 0.9
    """How much the centre moves when every replica has pulled it, 0-1: alpha = beta / replicas."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive("sync.sync_every_steps", self.sync_every_steps)
        require(0 < self.beta <= 1, f"sync.beta={self.beta} must be in (0, 1].")

    @property
    def payload(self) -> str:
        """Where the replica is."""
        return "weights"


@dataclass(kw_only=True)
class QuorumDiLoCoConfig(ServedConfig):
    """DiLoCo whose rounds end when enough replicas are in, not only when all are."""

    name: str = "quorum_diloco"
    sync_every_steps: int = 100
    """Steps of a replica in a round, H."""
    outer_lr: float = 0.7
    """Learning rate of the outer SGD."""
    outer_momentum: float = 0.9
    """Momentum of the outer SGD. What a quorum leaves for later rounds acts as momentum, too: with
    few local steps 0.6 is better then (docs/sync.md)."""
    outer_nesterov: bool = True
    """Whether that momentum is Nesterov's; of no effect where outer_momentum is 0."""
    quorum: int | None = None
    """Replicas that end a round, K; null: all the living. The others' progress counts in the round
    in which it arrives."""
    grace_s: float = 0.0
    """Seconds that a round waits for the others once its quorum is in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive("sync.sync_every_steps", self.sync_every_steps)
        _require_positive("sync.quorum", self.quorum)
        _require_outer(self.outer_lr, self.outer_momentum)
        require(self.grace_s >= 0, f"sync.grace_s={self.grace_s} must not be negative.")
        require(
            self.quorum is not None or self.grace_s == 0,
            f"sync.grace_s={self.grace_s} is how long a round waits after its quorum: set "
            "sync.quorum too.",
        )

    @property
    def payload(self) -> str:
        """How far the replica's own optimizer went."""
        return "delta"


def _require_positive(key: str, value: int | None) -> None:
    require(value is None or value > 0, f"{key}={value} must be positive.")


def _require_outer(lr: float, momentum: float) -> None:
    require(lr > 0, f"sync.outer_lr={lr} must be positive.")
    require(0 <= momentum < 1, f"sync.outer_momentum={momentum} must be in [0, 1).")


def as_served(sync: SyncConfig) -> ServedConfig:
    """Return a mode with a server that computes what `sync` does, for a simulation.

    Raises:
        ConfigError: when there is none.
    """
    if isinstance(sync, ServedConfig):
        return sync
    workers = sync.simulate.workers
    plain = PLAIN.get(type(sync))
    if plain is None:
        raise ConfigError(
            f"sync={sync.name} cannot be simulated (sync.simulate.workers={workers}). What can: "
            "sync=allreduce, local_sgd, diloco, and every mode with a server (ssp, async_ps, "
            "async_local_sgd, easgd, quorum_diloco). Leave sync.simulate.workers out to run it "
            "with processes."
        )
    others = {key: getattr(sync, key) for key in plain if getattr(sync, key) != plain[key]}
    if others:
        raise ConfigError(
            f"sync={sync.name} with {_words(others)} cannot be simulated (sync.simulate.workers="
            f"{workers}); set {_words({key: plain[key] for key in others})}, or leave "
            "sync.simulate.workers out to run it with processes."
        )
    if isinstance(sync, AllReduceConfig):
        return SSPConfig(max_staleness=0, simulate=sync.simulate)
    assert isinstance(sync, LocalSGDConfig | DiLoCoConfig)
    served = QuorumDiLoCoConfig(
        sync_every_steps=sync.sync_every_steps, outer_lr=1.0, outer_momentum=0.0,
        simulate=sync.simulate,
    )  # fmt: skip
    if isinstance(sync, DiLoCoConfig):
        served.outer_lr, served.outer_momentum = sync.outer_lr, sync.outer_momentum
        served.outer_nesterov = sync.outer_nesterov
    return served


def _words(values: Mapping[str, object]) -> str:
    return " ".join(f"sync.{key}={value}" for key, value in values.items())
