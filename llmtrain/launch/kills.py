"""Whether the kernel has killed processes for want of memory: its own counters, before and after.

A cgroup counts the kills of its processes, `/proc/vmstat` those of the whole machine. Both only
grow, so that two looks tell what happened between them; who may read no log of the kernel may read
these. They are Linux's; elsewhere nothing is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmtrain.units import format_bytes

ROOT = Path("/")
UNLIMITED = 1 << 60
"""From here on a limit of cgroup v1 means that there is none."""


@dataclass(frozen=True)
class Kills:
    """What the counters say."""

    own: int | None
    """Kills in the cgroup that a run's processes are in; None: not known."""
    machine: int | None
    """Kills on the machine, or in the container; None: not known."""
    limit_bytes: int | None = None
    """Memory that the cgroup may use; None: not known, or as much as there is."""

    @classmethod
    def now(cls, root: Path = ROOT) -> "Kills":
        """Read the counters.

        Args:
            root: Where /proc and /sys are.
        """
        machine = _count(root / "proc/vmstat", "oom_kill")
        for folder, events, limit in _folders(root):
            own = _count(folder / events, "oom_kill")
            if own is not None:
                return cls(own, machine, _number(folder / limit))
        return cls(None, machine)

    def since(self, before: "Kills") -> "Kills":
        """Return what has been counted since `before`."""

        def grown(of: Callable[[Kills], int | None]) -> int | None:
            new, old = of(self), of(before)
            return None if new is None or old is None else new - old

        return Kills(grown(lambda k: k.own), grown(lambda k: k.machine), self.limit_bytes)

    def verdict(self) -> str:
        """Return what kills since the start say of a process that died by SIGKILL."""
        fix = "Lower train.micro_batch_size or model.seq_len, or give the run more memory."
        if self.own:
            limit = f", which may use {format_bytes(self.limit_bytes)}" if self.limit_bytes else ""
            return (
                f"The kernel's out-of-memory killer ended it: {self.own} of this run's control "
                f"group{limit}, since the start. {fix}"
            )
        if self.machine:
            return (
                f"The kernel's out-of-memory killer has ended {self.machine} of this machine's "
                f"processes since the start, most probably this one. {fix}"
            )
        if self.own is None and self.machine is None:
            return (
                "A guess, since the kernel's counters cannot be read here: SIGKILL usually comes "
                f"from its out-of-memory killer (see `dmesg`). {fix}"
            )
        return (
            "The kernel counts no out-of-memory kill since the start: SIGKILL came from a person, "
            "a scheduler that keeps a limit of its own, or the end of a container."
        )


def _folders(root: Path) -> list[tuple[Path, str, str]]:
    """Return the memory cgroups of this process: folder, its file of events, its limit's.

    In a container the path that /proc says is often that of the host, and the folder the mount's.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            for inside in (path, "/"):
                folder = root / "sys/fs/cgroup/memory" / inside.strip("/")
                found.append((folder, "memory.oom_control", "memory.limit_in_bytes"))
        elif controllers == "":
            for inside in (path, "/"):
                folder = root / "sys/fs/cgroup" / inside.strip("/")
                found.append((folder, "memory.events", "memory.max"))
    return found


def _count(path: Path, key: str) -> int | None:
    try:
        pairs = dict(line.split() for line in path.read_text().splitlines())
        return int(pairs[key])
    except (OSError, ValueError, KeyError):
        return None


def _number(path: Path) -> int | None:
    try:
        number = int(path.read_text())
    except (OSError, ValueError):  # "max"
        return None
    return number if number < UNLIMITED else None
