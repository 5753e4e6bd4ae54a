"""What every rank runs: `python -m llmtrain.worker RUN_DIR`.

RUN_DIR/config.yaml is all that it is told. Under a foreign torchrun only rank 0 knows RUN_DIR; the
others are started with `-` and learn it over the rendezvous store, or that rank 0 has refused, as
which it is started with `--refuse`. Other tasks come as `--task NAME --request JSON`.
"""

import argparse
import json
import logging
import os
import socket
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from llmtrain.config import paths
from llmtrain.config.store import ROOTS, from_dict, load_run_config
from llmtrain.console import answering
from llmtrain.errors import EXIT_BUG, EXIT_SIGINT, EXIT_USER, UserError
from llmtrain.launch.claim import hold
from llmtrain.launch.failure import before_training
from llmtrain.launch.foreign import settle
from llmtrain.launch.process import PROCESS_ENV
from llmtrain.lifeline import die_with_parent, is_launched
from llmtrain.log import log_path, setup_log
from llmtrain.panel import show_note, show_user_error
from llmtrain.secret import masked
from llmtrain.startup import uncollected
from llmtrain.train.stop import StopNow, StopRequest

log = logging.getLogger(__name__)

ECHOES = ("RefusedElsewhereError", "MainFailedError", "LostLineError")
"""Errors that only say that rank 0 has one."""

LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "timed out waiting",
    "Broken pipe",
)
"""What gloo and NCCL say when the fault is another rank's."""


def main() -> int:
    """Run the task that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="llmtrain.worker")
    parser.add_argument("run_dir", nargs="?")
    parser.add_argument(
        "--task", choices=("prepare", "evaluate", "generate", "replay", "verify", "convert")
    )
    parser.add_argument("--request", default="{}")
    parser.add_argument("--server", type=int, help="hold this part of the weights of the run")
    parser.add_argument("--refuse", action="store_true", help="tell other ranks of a refusal")
    args = parser.parse_args()
    die_with_parent()
    if args.refuse:
        from llmtrain.tasks.foreign import tell_refused

        tell_refused()
        return EXIT_USER
    if args.task is not None:
        return answering(lambda: run_task(args.task, json.loads(args.request)))
    stop = StopRequest()
    try:
        stop.install()
        code = train(args.run_dir, stop, server=args.server)
        if args.server is not None:
            # Its threads wait for lines that nobody will speak on: they cannot be joined.
            logging.shutdown()
            os._exit(code)
        return code
    except (StopNow, KeyboardInterrupt):
        # They may be raised anywhere: here, where `train` is on its way in or out.
        os._exit(stop.exit_code)


def run_task(task: str, request: dict[str, Any]) -> int:
    """Run a task of one process.

    Args:
        task: prepare | evaluate | generate | replay | verify.
        request: The command's configuration as plain values; for verify, the folder and what to do
            with it.
    """
    logging.captureWarnings(True)
    try:
        if task == "verify":
            from llmtrain.tasks.verify import run_verify

            return run_verify(**request)
        root = "checkpoint_command" if task == "convert" else task
        config: Any = from_dict(ROOTS[root], request, f"llmtrain {task}")
        if task == "prepare":
            from llmtrain.tasks.prepare import run_prepare

            return run_prepare(config)
        if task == "evaluate":
            from llmtrain.tasks.evaluate import run_evaluate

            return run_evaluate(config)
        if task == "convert":
            from llmtrain.tasks.convert import run_convert

            return run_convert(config)
        if task == "replay":
            from llmtrain.tasks.replay import run_replay

            return run_replay(config)
        from llmtrain.tasks.generate import run_generate

        return run_generate(config)
    except UserError as error:
        show_user_error(error)
        return EXIT_USER
    except KeyboardInterrupt:
        return EXIT_SIGINT


def train(run_dir_argument: str, stop: StopRequest, *, server: int | None = None) -> int:
    """Train, or serve; leave result.json and, after a failure, this rank's record of it."""
    rank = int(os.environ.get(PROCESS_ENV, os.environ.get("RANK", 0)))
    run_dir: Path | None = None if run_dir_argument == "-" else Path(run_dir_argument)
    t0 = time.monotonic()
    joined = False
    try:
        # Seconds in which a stop may be asked for: what has been set up by then is put right below.
        with uncollected():
            from llmtrain.distributed.env import open_store
            from llmtrain.tasks.foreign import learn_run_dir
            from llmtrain.tasks.train import run_replica, run_train, start_rank

        if run_dir is not None:
            hold(run_dir)
            setup_log(log_path(run_dir, rank), rank)
        store = open_store()
        if server is not None:
            from llmtrain.tasks.follow import run_follower
            from llmtrain.tasks.serve import run_server

            assert run_dir is not None
            serve = run_server if server == 0 else partial(run_follower, server=server)
            return serve(run_dir, store, stop)
        if run_dir is None:
            run_dir = _follow(learn_run_dir(store), rank)
        info = start_rank(run_dir, store)
        joined = True
        if info.replica is not None:
            return run_replica(run_dir, info, store, stop)
        return run_train(
            run_dir, info, store, stop, hung=partial(_record_failure, run_dir, rank, t0=t0)
        )
    except UserError as error:
        # Before it has joined the others an error is this rank's own, and where another launcher
        # has started it, nobody else tells it.
        alone = not joined and not is_launched()
        if (rank == 0 or alone) and type(error).__name__ not in ECHOES:
            show_user_error(error)
        _record_failure(run_dir, rank, error, t0=t0)
        return EXIT_USER
    except StopNow:
        stop.defer()  # a launcher may send a second signal while the first is being obeyed
        _record_stop(run_dir, rank, stop, t0)
        # Peers may be dead already: leaving the process group in good order could wait for them.
        os._exit(stop.exit_code)
    except KeyboardInterrupt:
        # The second Ctrl-C: no time for goodbyes, and none for other ranks' either.
        os._exit(EXIT_SIGINT)
    except Exception as error:
        log.exception("rank %d failed", rank)
        if stop.asked and _is_echo(error):
            # A peer that was asked too has left while this one waited for it.
            stop.leave_if_late()
            _record_stop(run_dir, rank, stop, t0)
            os._exit(stop.exit_code)
        _record_failure(run_dir, rank, error, t0=t0)
        return EXIT_BUG
    finally:
        _leave_process_group()


def _follow(run_dir: Path, rank: int) -> Path:
    """Return `run_dir`, which rank 0 has told, held and with a log as one known from the start."""
    settle(run_dir, load_run_config(run_dir / paths.CONFIG).launcher)
    hold(run_dir)
    setup_log(log_path(run_dir, rank), rank)
    return run_dir


def _is_echo(error: Exception) -> bool:
    """Whether `error` only says that another rank has failed, or is gone."""
    told = type(error).__name__ in ECHOES or any(sign in str(error) for sign in LOST_PEER)
    return told or not getattr(error, "speaks", True)


def _leave_process_group() -> None:
    """Leave the process group if this rank has come so far as to join one."""
    env = sys.modules.get("llmtrain.distributed.env")
    if env is not None:
        env.destroy_process_group()


def _record_stop(run_dir: Path | None, rank: int, stop: StopRequest, t0: float) -> None:
    """Say in result.json that the run was stopped before it trained."""
    if run_dir is None or rank != 0:
        return
    from llmtrain.tasks.result import RunResult, load_result

    result = load_result(run_dir) or RunResult(status=stop.status)
    result.status, result.error = stop.status, None
    result.wall_s = time.monotonic() - t0
    result.save(run_dir)
    show_note(before_training(stop.status))


def _record_failure(run_dir: Path | None, rank: int, error: Exception, *, t0: float) -> None:
    """Write logs/failure_rank_N.json for the launcher, and on rank 0 result.json.

    After a hang result.json is written by the rank that speaks for all.
    """
    if run_dir is None:
        return
    speaks = bool(getattr(error, "speaks", rank == 0))
    from llmtrain.tasks.result import RunResult, load_result

    is_user_error = isinstance(error, UserError)
    text = str(error)
    record = {
        "rank": rank,
        "time": time.time(),
        "type": type(error).__name__,
        "message": text,
        "exit_code": EXIT_USER if is_user_error else EXIT_BUG,
        "user_error": is_user_error,
        "node": socket.gethostname(),
        "lost_peer": _is_echo(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    path = run_dir / paths.LOGS / f"failure_rank_{rank}.json"
    path.write_text(masked(json.dumps(record, indent=1)))
    if speaks:
        before = load_result(run_dir) or RunResult(status="failed")
        before.status, before.error = "failed", f"{type(error).__name__}: {text}"
        before.wall_s = time.monotonic() - t0
        before.save(run_dir)


if __name__ == "__main__":
    sys.exit(main())
