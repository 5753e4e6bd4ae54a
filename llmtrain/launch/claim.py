"""One start at a time in a run directory: two would write over each other's checkpoints.

Two locks, which the kernel lets go of when their holders end, however they end:

    logs/launcher.pid    held by the launcher alone: another start is refused at once; it says
                         `PID HOST`, as a shared file system may hold locks for all its hosts
    logs/workers.lock    shared by all workers: a start waits for those whose launcher was killed

The kernel kills workers with their launcher (`lifeline.py`), but one that hangs in a disk's driver
dies only when that lets go of it.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmtrain.config.paths import LOGS
from llmtrain.errors import ConfigError

LAUNCHER = "launcher.pid"
WORKERS = "workers.lock"

ORPHANS_S = 15.0
"""How long a start waits for workers whose launcher is gone."""
LOOK_S = 0.1


@dataclass(frozen=True)
class Holder:
    """The process that trains in a run directory."""

    pid: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether it is one of this host."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        """Name it, for people."""
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def claimed(run_dir: Path, key: str = "run_dir") -> Iterator[None]:
    """Hold `run_dir` for this process; the kernel lets go of it when the process ends.

    Args:
        run_dir: The folder.
        key: The setting that names it, for the refusal.

    Raises:
        ConfigError: when another start holds it, or workers of one still live.
    """
    path = run_dir / LOGS / LAUNCHER
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    # Under torchrun this process becomes the worker by exec, and the claim must live on in it.
    # Children that are started get it not: subprocess closes what it does not name.
    os.set_inheritable(descriptor, True)
    try:
        if not _locks(descriptor, fcntl.LOCK_EX):
            raise ConfigError(
                f"{key}={run_dir} is in use: {_written(path) or 'a process'} trains in it. "
                "Stop that one, "
                f"or name another folder with {key}=DIR."
            )
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
        _wait_for_orphans(run_dir)
        yield
    finally:
        os.close(descriptor)


def holder(run_dir: Path) -> Holder | None:
    """Return the process that trains in `run_dir`; None: there is none, or it is just starting.

    It may be one of another host, where the file system holds locks for all of them.
    """
    path = run_dir / LOGS / LAUNCHER
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _locks(descriptor, fcntl.LOCK_SH) else _written(path)
    finally:
        os.close(descriptor)


def _written(path: Path) -> Holder | None:
    """Return who wrote the file; None: nobody yet."""
    try:
        pid, host = path.read_text().split()
        return Holder(int(pid), host)
    except ValueError:
        return None


def hold(run_dir: Path) -> None:
    """Have `run_dir` count as in use for as long as this process lives: a worker's first deed."""
    descriptor = os.open(run_dir / LOGS / WORKERS, os.O_RDWR | os.O_CREAT, 0o644)
    _locks(descriptor, fcntl.LOCK_SH)  # never closed


def _wait_for_orphans(run_dir: Path) -> None:
    """Wait until no worker of an earlier start lives.

    Raises:
        ConfigError: when one does not end.
    """
    descriptor = os.open(run_dir / LOGS / WORKERS, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + ORPHANS_S
        while not _locks(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise ConfigError(
                    f"run_dir={run_dir} is in use: workers of an earlier start, whose launcher is "
                    f"gone, still live (`fuser {run_dir / LOGS / WORKERS}` names them). End them, "
                    "or name another folder with run_dir=DIR."
                )
            time.sleep(LOOK_S)
    finally:
        os.close(descriptor)


def _locks(descriptor: int, kind: int) -> bool:
    """Lock at once; return whether it could be had, which a file system without locks says too."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
