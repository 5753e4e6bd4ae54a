"""What rank 0 tells ranks that another launcher has started: the run directory, or its refusal."""

import os
import time
from pathlib import Path

from torch.distributed import Store

from llmtrain.distributed.env import open_store, share_text
from llmtrain.errors import ConfigError, RefusedElsewhereError

RUN_DIR = "run_dir"
REFUSED = ""
HEARD = "refused/heard"

PATIENCE_S = 20.0
"""How long rank 0 waits until all others have heard: some may never have started."""


def tell_run_dir(store: Store, run_dir: Path) -> None:
    """Tell those who ask what to train."""
    share_text(store, RUN_DIR, str(run_dir))


def learn_run_dir(store: Store) -> Path:
    """Return the run directory that rank 0 has made, however long that takes.

    Raises:
        RefusedElsewhereError: when rank 0 has refused, and told the user why.
    """
    told = share_text(store, RUN_DIR, None)
    if told == REFUSED:
        store.add(HEARD, 1)
        raise RefusedElsewhereError("rank 0 has refused")
    return Path(told)


def tell_refused() -> None:
    """Tell the other ranks, on rank 0, that it has refused; wait until they have heard."""
    try:
        store = open_store(PATIENCE_S)
    except ConfigError:
        return  # some never came, and need not hear it
    share_text(store, RUN_DIR, REFUSED)
    others = int(os.environ["WORLD_SIZE"]) - 1
    deadline = time.monotonic() + PATIENCE_S
    while store.add(HEARD, 0) < others and time.monotonic() < deadline:
        time.sleep(0.05)
