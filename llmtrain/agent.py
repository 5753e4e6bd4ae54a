"""The workers of one host: `python -m llmtrain.agent RUN_DIR --nproc-per-node N`.

Of several hosts each has one, with `--nnodes M --rdzv-endpoint HOST:PORT` and what `--help` says
besides. RUN_DIR may be `-` where the first host is to tell it.

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

from llmtrain.config.groups.launcher import split_endpoint
from llmtrain.distributed.node import Node, node_rank
from llmtrain.errors import EXIT_SIGINT, EXIT_SIGTERM, EXIT_USER, UserError
from llmtrain.lifeline import PARENT_ENV, STOP_SIGNALS, die_with_parent
from llmtrain.panel import show_user_error
from llmtrain.startup import uncollected


def _exit_at_once(signum: int, frame: types.FrameType | None) -> NoReturn:
    """A signal while torch is still being imported: no worker exists yet."""
    os._exit(EXIT_SIGINT if signum == signal.SIGINT else EXIT_SIGTERM)


def handle(handler: Callable[..., Any]) -> None:
    """Have `handler` called for every signal that ends a run."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, handler)


def main(argv: list[str] | None = None) -> int:
    """Read the arguments and run the workers; return the exit code."""
    handle(_exit_at_once)
    # Its workers die with it: whoever starts the run again must meet none that still writes.
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m llmtrain.agent", description=__doc__)
    parser.add_argument("run_dir", help="a frozen run directory; -: the first host's")
    parser.add_argument("--nproc-per-node", type=int, required=True)
    parser.add_argument("--replicas", type=int, help="worlds of their own, around servers")
    parser.add_argument("--nnodes", type=int, default=1, help="hosts, at most")
    parser.add_argument("--min-nodes", type=int, help="hosts, at least; all, where not given")
    parser.add_argument("--node-rank", type=int, help="this host's number; the environment's")
    parser.add_argument("--rdzv-endpoint", help="HOST:PORT of the first host")
    parser.add_argument("--rdzv-backend", choices=("c10d", "static"), default="c10d")
    parser.add_argument("--connect-timeout-s", type=float, default=60.0)
    parser.add_argument("--join-timeout-s", type=float, default=600.0)
    parser.add_argument("--leads", action="store_true", help="this is the first host")
    parser.add_argument("--digest", default="", help="of the configuration, to be equal on all")
    options = parser.parse_args(argv)
    os.environ[PARENT_ENV] = str(os.getpid())
    run_dir = None if options.run_dir == "-" else Path(options.run_dir).absolute()
    if options.replicas is not None:
        with uncollected():
            from llmtrain.fleet import run_fleet

        assert run_dir is not None
        return run_fleet(run_dir, options.replicas, options.nproc_per_node, handle)
    if options.rdzv_endpoint is None:
        with uncollected():
            from llmtrain.elastic import run_workers

        assert run_dir is not None
        return run_workers(run_dir, options.nproc_per_node, handle)
    with uncollected():
        from llmtrain.elastic import run_hosts

    try:
        return run_hosts(run_dir, options.nproc_per_node, handle, _node(options), options.digest)
    except UserError as error:
        show_user_error(error)
        return EXIT_USER


def _node(options: argparse.Namespace) -> Node:
    """Return this host, as the arguments and the environment say.

    Raises:
        ConfigError: when the endpoint is none.
    """
    host, port = split_endpoint(options.rdzv_endpoint)
    rank = options.node_rank if options.node_rank is not None else node_rank(os.environ)[0]
    return Node(
        host, port, options.nnodes, options.min_nodes or options.nnodes, rank,
        leads=options.leads or rank == 0, is_static=options.rdzv_backend == "static",
        connect_timeout_s=options.connect_timeout_s, join_timeout_s=options.join_timeout_s,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
