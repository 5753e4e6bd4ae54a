"""What each of several runs at once has of this machine: GPUs of its own, a part of the cores."""

import os
from dataclasses import dataclass

from llmtrain.errors import require
from llmtrain.machine import CORES_ENV, gpu_count, usable_cores
from llmtrain.units import counted


@dataclass(frozen=True)
class Shares:
    """A machine divided among `parallel` runs."""

    parallel: int
    gpus: int
    """CUDA devices of the machine."""
    cores: int
    """CPU cores of the machine."""
    visible: tuple[str, ...]
    """The devices by the names that CUDA_VISIBLE_DEVICES has for them."""

    @property
    def gpus_each(self) -> int:
        """CUDA devices of one run."""
        return self.gpus // self.parallel

    def environment(self, slot: int) -> dict[str, str]:
        """Return what the environment of the run in `slot` (from 0) must say; alone: nothing."""
        if self.parallel == 1:
            return {}
        env = {CORES_ENV: str(max(1, self.cores // self.parallel))}
        if self.gpus:
            first = slot * self.gpus_each
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self.visible[first : first + self.gpus_each])
        return env

    def describe(self) -> str:
        """Return how the machine is divided, to be put behind a line; alone: ""."""
        if self.parallel == 1:
            return ""
        cores = counted(max(1, self.cores // self.parallel), "core")
        each = f"{counted(self.gpus_each, 'GPU')} and {cores}" if self.gpus else cores
        idle = self.gpus - self.parallel * self.gpus_each
        rest = f"; {counted(idle, 'GPU')} left over" if idle else ""
        return f", {self.parallel} at once with {each} each{rest}"

    def require_gpu(self) -> None:
        """Refuse where GPUs are wanted and there is not one for each run.

        Raises:
            ConfigError: names a number that works.
        """
        require(
            self.gpus == 0 or self.gpus_each > 0,
            f"sweep.parallel={self.parallel}: each job needs a GPU of its own, and this machine "
            f"has {self.gpus}; try sweep.parallel={self.gpus}, or train.device=cpu.",
        )


def share_machine(parallel: int) -> Shares:
    """Return this machine divided among `parallel` runs."""
    gpus = gpu_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(n) for n in range(gpus)] if given is None else given.split(",")
    return Shares(parallel, gpus, usable_cores(), tuple(name.strip() for name in names[:gpus]))
