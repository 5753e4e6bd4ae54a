"""The launchers `kubernetes` and `skypilot`: what is asked of machines that are not there yet."""

import re
from dataclasses import dataclass, field

from llmtrain.config.groups.launcher import LauncherConfig
from llmtrain.errors import require, require_choice

LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
"""A DNS label (RFC 1035): what names pods and hosts."""

NODE_JOB = "node"
"""The name of the one job of a JobSet; its pods are the hosts."""

MOST_NAME = 63
"""Characters of a DNS label at most."""

QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([kMGTPE]|[KMGTPE]i)?")
"""A quantity of Kubernetes: 64Gi, 500M."""

AT_LEAST = re.compile(r"[0-9]+(\.[0-9]+)?\+?")
"""A quantity of SkyPilot: 16, or 16+ for that and more."""

OPERATORS = ("Equal", "Exists")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
TOLERATION = ("key", "operator", "value", "effect", "tolerationSeconds")


@dataclass(kw_only=True)
class CloudLauncherConfig(LauncherConfig):
    """A launcher that renders a file and starts nothing: `llmtrain train ... --dry-run` prints it.

    The hosts run `llmtrain train launcher=torchrun` with the same overrides.
    """

    job_name: str | None = None
    """Lower-case letters, digits and -; null: <experiment_name>-<date>-<time>-<short id>."""
    gpus_per_node: int = 0
    """GPUs of each host."""
    mount_path: str = "/shared"
    """Where the hosts have the storage that they share; run directory and data cache lie in it."""
    max_requeues: int = 20
    """How often all hosts are started anew: after a crash, and where a host of several is gone
    without time to save. What launcher.max_restarts allows happens before, on the hosts as they
    are."""
    port: int = 29500
    """Port of the first host where all meet."""
    join_timeout_s: float = 21600.0
    """How long hosts wait until all have come, seconds: images are pulled at different speeds, and
    after a preemption the cluster may be full for hours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.job_name is None or LABEL.fullmatch(self.job_name) is not None,
            f"launcher.job_name={self.job_name} must be lower-case letters, digits and -, a letter "
            "first, such as launcher.job_name=books-2.",
        )
        for key in ("gpus_per_node", "max_requeues"):
            value = getattr(self, key)
            require(value >= 0, f"launcher.{key}={value} must not be negative.")
        require(
            self.mount_path.startswith("/") and len(self.mount_path.strip("/")) > 0,
            f"launcher.mount_path={self.mount_path} must be an absolute folder, such as /shared.",
        )
        require(
            1024 <= self.port <= 65535, f"launcher.port={self.port} must be from 1024 to 65535."
        )
        require(
            self.join_timeout_s > 0,
            f"launcher.join_timeout_s={self.join_timeout_s} must be positive.",
        )


@dataclass(kw_only=True)
class KubernetesLauncherConfig(CloudLauncherConfig):
    """A JobSet of `nnodes` pods, one a host. The cluster needs the JobSet controller."""

    name: str = "kubernetes"
    image: str | None = None
    """The container image, such as one built from the Dockerfile. Has to be given."""
    claim: str | None = None
    """The PersistentVolumeClaim mounted at mount_path; with several hosts it must be
    ReadWriteMany. Has to be given: what a pod writes elsewhere is lost with it."""
    namespace: str | None = None
    """Null: the one that kubectl uses."""
    cpus_per_node: int | None = None
    """Cores of each pod, asked for and limited to; null: not said."""
    mem: str | None = None
    """Memory of each pod, asked for and limited to, such as 64Gi; null: not said."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    shm: str | None = None
    """Size of /dev/shm, such as 8Gi, which counts as memory of the pod; null: no limit of its
    own. Without such a volume it would be 64 MiB."""
    user_id: int = 1000
    """User and group of the processes, not 0; the files of the volume are made theirs."""
    env_secret: str | None = None
    """A Secret whose keys become environment variables, such as HF_TOKEN and WANDB_API_KEY."""
    image_pull_secret: str | None = None
    """A Secret with which the image is pulled."""
    priority_class: str | None = None
    """The PriorityClass of the pods; null: the cluster's default."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of the JobSet, such as {kueue.x-k8s.io/queue-name: research}."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels that nodes must have."""
    tolerations: list[dict[str, str]] = field(default_factory=list)
    """Taints of nodes that are no hindrance, each as Kubernetes writes it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.cpus_per_node is None or self.cpus_per_node > 0,
            f"launcher.cpus_per_node={self.cpus_per_node} must be positive.",
        )
        for key in ("mem", "shm"):
            value = getattr(self, key)
            require(
                value is None or QUANTITY.fullmatch(value) is not None,
                f"launcher.{key}={value} is not a size: write launcher.{key}=64Gi.",
            )
        require(self.user_id > 0, f"launcher.user_id={self.user_id}: root is not needed; try 1000.")
        for toleration in self.tolerations:
            unknown = sorted(set(toleration) - set(TOLERATION))
            require(
                not unknown,
                f"launcher.tolerations has {', '.join(unknown)}; what there is: "
                f"{', '.join(TOLERATION)}.",
            )
            _check_toleration(toleration)
        most = MOST_NAME - len(f"-{NODE_JOB}-0-{self.nnodes - 1}-abcde")
        require(
            self.job_name is None or len(self.job_name) <= most,
            f"launcher.job_name={self.job_name} is longer than {most} characters, which would make "
            f"the names of its pods longer than {MOST_NAME}.",
        )


def _check_toleration(toleration: dict[str, str]) -> None:
    """Refuse what the cluster would refuse only when it makes the pods: JobSet does not look."""
    key = "launcher.tolerations"
    effect = toleration.get("effect")
    require_choice(f"{key}: operator", toleration.get("operator", "Equal"), OPERATORS)
    if effect is not None:
        require_choice(f"{key}: effect", effect, EFFECTS)
    seconds = toleration.get("tolerationSeconds")
    require(
        seconds is None or seconds.isdigit(),
        f"{key}: tolerationSeconds={seconds} must be a whole number.",
    )
    require(
        seconds is None or effect == "NoExecute",
        f"{key}: tolerationSeconds={seconds} needs effect: NoExecute.",
    )


@dataclass(kw_only=True)
class SkyPilotLauncherConfig(CloudLauncherConfig):
    """A task of SkyPilot: it finds the machines, on any of the clouds that you have."""

    name: str = "skypilot"
    infra: str | None = None
    """Where, such as aws, gcp/us-central1 or k8s; null: where it is cheapest."""
    gpu_type: str | None = None
    """GPUs of each host, as `sky show-gpus` calls them, such as H100."""
    cpus_per_node: str | None = None
    """Cores of each host; 16+ is 16 or more."""
    mem: str | None = None
    """Memory of each host, GB; 64+ is 64 or more."""
    disk_gb: int | None = None
    """Disk of each host, GB."""
    use_spot: bool = False
    """Machines that may be taken away: cheaper. Managed jobs (`sky jobs launch`) begin again."""
    volume: str | None = None
    """A volume of SkyPilot (`sky volumes ls`), which hosts share; give this or bucket."""
    bucket: str | None = None
    """A bucket, made where there is none, written through a cache on the host's disk. One host
    only: hosts would not see at once what others write."""
    setup: list[str] = field(
        default_factory=lambda: [
            "uv venv --allow-existing --python 3.12 ~/.llmtrain",
            "uv pip install --python ~/.llmtrain/bin/python --constraint constraints.txt .",
        ]
    )
    """Lines of bash that install llmtrain into ~/.llmtrain, in the current folder as uploaded:
    a checkout of llmtrain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("cpus_per_node", "mem"):
            value = getattr(self, key)
            require(
                value is None or AT_LEAST.fullmatch(value) is not None,
                f"launcher.{key}={value} must be a number, or a number and +: launcher.{key}=16+",
            )
        require(
            self.disk_gb is None or self.disk_gb > 0,
            f"launcher.disk_gb={self.disk_gb} must be positive.",
        )
        require(
            (self.gpu_type is None) == (self.gpus_per_node == 0),
            f"launcher.gpu_type={self.gpu_type} and launcher.gpus_per_node={self.gpus_per_node} "
            "belong together: launcher.gpu_type=H100 launcher.gpus_per_node=8.",
        )
        require(
            self.volume is None or self.bucket is None,
            f"launcher.volume={self.volume} and launcher.bucket={self.bucket}: give one of them.",
        )
        require(
            self.bucket is None or self.nnodes == 1,
            f"launcher.bucket={self.bucket} is for one host, and launcher.nnodes={self.nnodes}: "
            "a file system that all share is needed, launcher.volume=NAME.",
        )
