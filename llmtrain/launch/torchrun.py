"""Under an existing torchrun the ranks come first: each becomes its worker.

    torchrun --nproc-per-node N -m llmtrain train ...

Every rank composes, so that what cannot work ends all of them at once; rank 0 freezes the run
directory, and the others learn its path from rank 0's worker over the rendezvous store.
"""

import os
import sys
import time
from typing import NoReturn

from llmtrain.config.groups.launcher import LauncherConfig
from llmtrain.launch.environment import worker_environment
from llmtrain.launch.local import PYTHON

SILENCE_S = 20.0
"""How long a refused rank leaves the word to rank 0; after that the fault is its own machine's."""


def rank() -> int | None:
    """Return this process' rank where a torchrun started it, else null."""
    names = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")
    return int(os.environ["RANK"]) if all(name in os.environ for name in names) else None


def let_rank_0_speak() -> None:
    """On another rank than 0, wait to be ended; return when rank 0 seems to have no error.

    What is refused is refused on every rank, and is told by rank 0 alone. torchrun ends the others
    as soon as one rank has ended, so a rank that ended before rank 0 would take away its words.
    """
    if rank():
        time.sleep(SILENCE_S)


def world_size() -> int:
    """Return how many processes that torchrun started."""
    return int(os.environ["WORLD_SIZE"])


def become_worker(run_dir: str, launcher: LauncherConfig) -> NoReturn:
    """Replace this process by its worker.

    Args:
        run_dir: The run directory; "-": rank 0's worker will tell it.
        launcher: Threads and allocator.
    """
    base = dict(os.environ)
    processes = int(base.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1 and base.get("OMP_NUM_THREADS") == "1":
        # torchrun's own default, which leaves most cores idle.
        del base["OMP_NUM_THREADS"]
    env = worker_environment(launcher, processes, base)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [*PYTHON, "llmtrain.worker", run_dir], env)
