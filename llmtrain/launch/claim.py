"""One start at a time in a run directory: two would write over each other's checkpoints."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from llmtrain.config.paths import LOGS
from llmtrain.errors import ConfigError


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process; the kernel lets go of it when the process ends.

    Raises:
        ConfigError: when another start holds it.
    """
    path = run_dir / LOGS / "launcher.pid"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    # Under torchrun this process becomes the worker by exec, and the claim must live on in it.
    # Children that are started get it not: subprocess closes what it does not name.
    os.set_inheritable(descriptor, True)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text().strip() or "unknown"
            raise ConfigError(
                f"run_dir={run_dir} is in use: process {holder} is training in it. Stop that one, "
                "or name another folder with run_dir=DIR."
            ) from None
        except OSError:
            pass  # a file system without locks
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
