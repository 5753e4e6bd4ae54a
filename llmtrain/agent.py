"""Several workers on one machine: `python -m llmtrain.agent RUN_DIR --nproc-per-node N`.

The process that the launcher starts; what it does stands in `llmtrain/elastic.py`, or, where
replicas live and die on their own around a server, in `llmtrain/fleet.py`. Their import of torch
takes a second or more, in which signals must be answered already.
"""

import argparse
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from llmtrain.errors import EXIT_SIGINT, EXIT_SIGTERM
from llmtrain.lifeline import PARENT_ENV, die_with_parent

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def _exit_at_once(signum: int, frame: types.FrameType | None) -> NoReturn:
    """A signal while torch is still being imported: no worker exists yet."""
    os._exit(EXIT_SIGINT if signum == signal.SIGINT else EXIT_SIGTERM)


def handle(handler: Callable[..., Any]) -> None:
    """Have `handler` called for every signal that ends a run."""
    for signum in SIGNALS:
        signal.signal(signum, handler)


def main(argv: list[str] | None = None) -> int:
    """Read the arguments and run the workers; return the exit code."""
    handle(_exit_at_once)
    # Its workers die with it: whoever starts the run again must meet none that still writes.
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m llmtrain.agent", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--nproc-per-node", type=int, required=True)
    parser.add_argument("--replicas", type=int, help="worlds of their own, around servers")
    options = parser.parse_args(argv)
    os.environ[PARENT_ENV] = str(os.getpid())
    if options.replicas is not None:
        from llmtrain.fleet import run_fleet

        return run_fleet(
            options.run_dir.absolute(), options.replicas, options.nproc_per_node, handle
        )  # fmt: skip
    from llmtrain.elastic import run_workers

    return run_workers(options.run_dir.absolute(), options.nproc_per_node, handle)


if __name__ == "__main__":
    sys.exit(main())
