"""The group `launcher`: how processes start."""

from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(kw_only=True)
class LauncherConfig:
    """What every launcher has."""

    name: str
    """local."""
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
