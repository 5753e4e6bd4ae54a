"""The launcher `slurm`: what is asked of the scheduler, and what the batch script does."""

import re
from dataclasses import dataclass, field

from llmtrain.config.groups.launcher import LauncherConfig
from llmtrain.errors import require

TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
"""Minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""

MEMORY = re.compile(r"\d+[KMGT]?")

WORD = re.compile(r"""[^\s"'\\#`$]+""")
"""What a #SBATCH line takes as it stands: its value ends at a blank, and quotes vanish."""

WORDS = ("gpu_type", "partition", "account", "qos", "constraint")

LINES = ("modules", "setup", "sbatch_options", "srun_options", "command_prefix", "container_mounts")


def seconds(time: str) -> int:
    """Return a time as Slurm writes it in seconds."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # D-H, D-H:M, D-H:M:S
        hours, minutes, last = (*parts, 0, 0)[:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + last
    if len(parts) == 3:
        return parts[0] * 3600 + parts[1] * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


@dataclass(kw_only=True)
class SlurmLauncherConfig(LauncherConfig):
    """A batch job of `nnodes` nodes with an agent on each.

    What is null is left to the cluster's own defaults. The run directory, the data cache and
    Python lie on a file system that all nodes share.
    """

    name: str = "slurm"
    cpus_per_node: int | None = None
    """Cores of each node."""
    gpus_per_node: int | None = None
    """GPUs of each node."""
    gpu_type: str | None = None
    """Their type, as `sinfo -o %G` calls it."""
    mem: str | None = None
    """Memory of each node, such as 64G; 0: all of it."""
    time: str | None = None
    """Time limit, such as 30 (minutes), 4:00:00 or 2-12:00:00; a run that takes longer is queued
    again and goes on."""
    partition: str | None = None
    """Partition, or several with commas between them."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, such as a100."""
    sbatch_options: list[str] = field(default_factory=list)
    """More options of sbatch, one each, such as [--exclude=node7,--reservation=maintenance]."""
    srun_options: list[str] = field(default_factory=list)
    """More options of srun, one each, such as [--cpu-bind=none]."""
    modules: list[str] = field(default_factory=list)
    """Environment modules to load, in this order."""
    setup: list[str] = field(default_factory=list)
    """Lines of bash before anything is started, as they stand: exports, `source ...`."""
    container_image: str | None = None
    """Image or file that the Pyxis plugin of srun starts the agents in."""
    container_mounts: list[str] = field(default_factory=list)
    """Folders of the host that Pyxis mounts into it, such as [/data:/data]."""
    command_prefix: list[str] = field(default_factory=list)
    """Words before the agent's command, such as [apptainer,exec,--nv,image.sif]."""
    python: str | None = None
    """Python on the nodes, or in the container; null: the one that submits."""
    grace_s: int = 120
    """How long before the time limit the run saves, stops, and is queued again, seconds;
    checkpoint.grace_s is held below it."""
    max_requeues: int = 100
    """How often the job is queued again before it counts as failed; preemptions count too."""
    port: int | None = None
    """Port of the first node where all meet; null: one that the job's id gives."""
    array_parallel: int | None = None
    """Jobs of a sweep that run at the same time; null: as many as Slurm lets."""
    wait: bool = False
    """Wait for the job's end, and exit as the run did; Ctrl-C leaves the job alone."""
    poll_s: float = 5.0
    """How often waiting asks for the job's state, seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("cpus_per_node", "gpus_per_node", "grace_s", "array_parallel", "poll_s"):
            value = getattr(self, key)
            require(value is None or value > 0, f"launcher.{key}={value} must be positive.")
        require(
            self.max_requeues >= 0,
            f"launcher.max_requeues={self.max_requeues} must not be negative.",
        )
        require(
            self.port is None or 1024 <= self.port <= 65535,
            f"launcher.port={self.port} must be from 1024 to 65535.",
        )
        require(
            self.time is None or TIME.fullmatch(self.time) is not None,
            f"launcher.time={self.time} is not a time: write minutes (30), hours:minutes:seconds "
            "(4:00:00) or days-hours:minutes:seconds (2-12:00:00).",
        )
        require(
            self.time is None or seconds(self.time) > self.grace_s,
            f"launcher.grace_s={self.grace_s} leaves nothing of launcher.time={self.time}: the run "
            "would be told to save as it starts. Lower the one or raise the other.",
        )
        require(
            self.mem is None or MEMORY.fullmatch(self.mem) is not None,
            f"launcher.mem={self.mem} is not a size: write launcher.mem=64G.",
        )
        require(
            self.gpu_type is None or self.gpus_per_node is not None,
            f"launcher.gpu_type={self.gpu_type}: say how many too, launcher.gpus_per_node=8.",
        )
        for key in WORDS:
            value = getattr(self, key)
            require(
                value is None or WORD.fullmatch(value) is not None,
                f"launcher.{key}={value!r} cannot stand in a batch script: one word without "
                "blanks, quotes, # or $.",
            )
        self._check_lists()

    def _check_lists(self) -> None:
        for key in LINES:
            for line in getattr(self, key):
                require(
                    line.strip() != "" and not set(line) & {"\n", "\r", "\0"},
                    f"launcher.{key} holds {line!r}: each entry is one line; write several as "
                    f"launcher.{key}=[first,second].",
                )
        for key in ("sbatch_options", "srun_options"):
            for option in getattr(self, key):
                require(
                    option.startswith("-"),
                    f"launcher.{key} holds {option!r}, which is no option: launcher.{key}="
                    f"[--{option.lstrip('-')}]",
                )
