"""The group `launcher`: how processes start."""

from dataclasses import dataclass

from llmtrain.errors import require, require_choice


@dataclass(kw_only=True)
class LauncherConfig:
    """What every launcher has."""

    name: str
    """local | torchrun | slurm."""
    nnodes: int = 1
    """Hosts; each runs launcher.nproc_per_node processes."""
    nproc_per_node: int | None = None
    """Processes on each host; null: what the strategy needs (an open axis takes one process a
    GPU, or two where there is none)."""
    threads_per_process: int | None = None
    """CPU threads of each process; null: the machine's cores divided among them."""
    max_restarts: int = 0
    """How often a start begins again from the newest checkpoint when a process has died; a user's
    mistake is never tried again, nor what dies at the same step three times."""
    tune_allocator: bool = True
    """Keep glibc from returning memory after every step (page faults cost up to half of a CPU
    step), and huge pages where the kernel has them. Ignored off Linux."""

    def __post_init__(self) -> None:
        for key in ("nnodes", "nproc_per_node", "threads_per_process"):
            value = getattr(self, key)
            require(value is None or value > 0, f"launcher.{key}={value} must be positive.")
        require(
            self.max_restarts >= 0,
            f"launcher.max_restarts={self.max_restarts} must not be negative.",
        )


@dataclass(kw_only=True)
class LocalLauncherConfig(LauncherConfig):
    """This machine: one process, or several under torchrun's elastic agent."""

    name: str = "local"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.nnodes == 1,
            f"launcher.nnodes={self.nnodes}: launcher=local is this machine alone; use "
            "launcher=torchrun on every host, or launcher=slurm.",
        )


@dataclass(kw_only=True)
class TorchrunLauncherConfig(LauncherConfig):
    """Several hosts, each started by hand or by a scheduler with the same command line.

    Run directory and data cache lie on a file system that all hosts share.
    """

    name: str = "torchrun"
    rdzv_endpoint: str | None = None
    """HOST[:PORT] of the first host, where all meet; the port is 29500 where none is given."""
    rdzv_backend: str = "c10d"
    """c10d (hosts may be lost and come back, see max_restarts and min_nodes) | static (a fixed
    number of hosts, once)."""
    node_rank: int | None = None
    """This host's number from 0; the first composes and has the output. null: from the environment
    (LLMTRAIN_NODE_RANK, NODE_RANK, SLURM_NODEID, JOB_COMPLETION_INDEX, SKYPILOT_NODE_RANK), or the
    first is the machine that rdzv_endpoint names."""
    min_nodes: int | None = None
    """Hosts without which the run ends; null: all. With fewer than nnodes it goes on from the
    newest checkpoint when hosts are lost, as far as the strategy can be cut over those left."""
    connect_timeout_s: float = 20.0
    """How long a host tries to reach the first, seconds."""
    join_timeout_s: float = 600.0
    """How long hosts wait until all have come, seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.rdzv_endpoint is not None or self.nnodes == 1,
            f"launcher.nnodes={self.nnodes} hosts have to meet somewhere: "
            "launcher.rdzv_endpoint=FIRST_HOST:29500, the same on every host.",
        )
        if self.rdzv_endpoint is not None:
            split_endpoint(self.rdzv_endpoint)
        require_choice("launcher.rdzv_backend", self.rdzv_backend, ("c10d", "static"))
        require(
            self.node_rank is None or 0 <= self.node_rank < self.nnodes,
            f"launcher.node_rank={self.node_rank} must be from 0 to {self.nnodes - 1} "
            f"(launcher.nnodes={self.nnodes}).",
        )
        require(
            self.min_nodes is None or 1 <= self.min_nodes <= self.nnodes,
            f"launcher.min_nodes={self.min_nodes} must be from 1 to launcher.nnodes={self.nnodes}.",
        )
        is_static = self.rdzv_backend == "static"
        for key in ("max_restarts", "min_nodes"):
            require(
                not (is_static and getattr(self, key)),
                f"launcher.{key}={getattr(self, key)} needs launcher.rdzv_backend=c10d: a static "
                "rendezvous cannot be repeated.",
            )
        for key in ("connect_timeout_s", "join_timeout_s"):
            value = getattr(self, key)
            require(value > 0, f"launcher.{key}={value} must be positive.")


DEFAULT_PORT = 29500
"""torchrun's own."""


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return the host and port of `HOST[:PORT]`, `[IPv6]:PORT` too.

    Raises:
        ConfigError: when it is none.
    """
    host, colon, port = endpoint.rpartition(":")
    if not colon or endpoint.endswith("]"):
        host, port = endpoint, str(DEFAULT_PORT)
    fits = host and port.isdigit() and 0 < int(port) < 65536 and not set(host) & set(" /")
    require(
        bool(fits),
        f"launcher.rdzv_endpoint={endpoint} must be HOST:PORT, such as node01:{DEFAULT_PORT}.",
    )
    return host.strip("[]"), int(port)
