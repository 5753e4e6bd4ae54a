"""What ends a process of a run: signals, and the end of its parent. Standard library only."""

import ctypes
import os
import signal
import sys

PARENT_ENV = "LLMTRAIN_PARENT_PID"
"""The process id of the launcher, for `die_with_parent` to notice that it died before the call."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What asks to save and stop. SIGUSR1 is what schedulers send ahead of time (Slurm's --signal)."""

_PR_SET_PDEATHSIG = 1


def is_launched() -> bool:
    """Whether a launcher of ours has started this process: not so the ranks of another's."""
    return PARENT_ENV in os.environ


def die_with_parent(signum: signal.Signals = signal.SIGKILL, parent: int | None = None) -> None:
    """Have the kernel send this process `signum` when its parent dies. Does nothing off Linux.

    To be called first of all, in the main thread. A parent that has died already is noticed by its
    process id, where the launcher has told it.

    Args:
        signum: The signal.
        parent: The parent's process id; None: what the environment says.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    known = parent or int(os.environ.get(PARENT_ENV) or 0)
    if known and os.getppid() != known:
        os._exit(1)
