"""torchrun's elastic agent for the workers of one run, without its wall of tracebacks.

torch starts the workers, gives them a rendezvous store on a free port of 127.0.0.1 (so two runs
never collide), watches them and stops all when one dies. Here stand what a person sees of it: where
output goes, how a signal is passed on, and who is told to have failed.
"""

import logging
import os
import secrets
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from llmtrain.config.paths import LOGS
from llmtrain.errors import EXIT_BUG, EXIT_OK
from llmtrain.launch.failure import (
    before_training,
    complete_result,
    drop_empty_outputs,
    failure_path,
    output_path,
    read_failures,
    report_failure,
    stop_status,
)
from llmtrain.launch.kills import Kills
from llmtrain.launch.process import is_ready
from llmtrain.panel import show_note

SHUTDOWN_TIMEOUT_S = 600
"""How long workers may take for their last checkpoint after a signal, before they are killed."""

MONITOR_INTERVAL_S = 0.1


class Logs(LogsSpecs):
    """Rank 0 has the terminal, the others print into logs/rank_N.out and .err."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir

    @property
    def root_log_dir(self) -> str:
        """The folder of the logs."""
        return str(self.run_dir / LOGS)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Return where the output of each local rank goes; "": where the agent's goes."""
        out = {rank: str(output_path(self.run_dir, rank, "out")) if rank else "" for rank in envs}
        err = {rank: str(output_path(self.run_dir, rank, "err")) if rank else "" for rank in envs}
        # Ours stand in logs/failure_rank_N.json; torch only asks whether these exist.
        reports = {rank: f"{failure_path(self.run_dir, rank)}.torch" for rank in envs}
        return LogsDest(out, err, error_files=reports)


class Agent(LocalElasticAgent):
    """torch's agent, which passes on a signal between two looks at its workers.

    torch's own handler raises wherever the signal finds the program, which may be inside code that
    swallows exceptions.
    """

    def __init__(self, spec: WorkerSpec, logs: LogsSpecs) -> None:
        super().__init__(spec, logs, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
        self.got: signal.Signals | None = None
        """The first signal."""

    def on_signal(self, signum: int, frame: types.FrameType | None) -> None:
        """Remember the first signal; later ones change nothing."""
        sent = signal.SIGTERM if signum == signal.SIGHUP else signal.Signals(signum)
        self.got = self.got or sent

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self.got is not None:
            workers = [int(worker.id) for worker in worker_group.workers]
            sent = self.got if all(map(is_ready, workers)) else signal.SIGTERM
            # Caught by torch, which sends it to all workers and waits for them.
            raise SignalException(f"got {self.got.name}", sigval=sent)
        return super()._monitor_workers(worker_group)


def run_workers(run_dir: Path, processes: int, handle: Callable[[Callable[..., Any]], None]) -> int:
    """Run `processes` workers from `run_dir` to their end; return the exit code.

    Args:
        run_dir: A frozen run directory.
        processes: Workers.
        handle: Installs a signal handler.
    """
    since, before = time.time(), Kills.now()
    _log_to_file(run_dir)
    # The signals that matter are ours.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    rendezvous = get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint="127.0.0.1:0",
            run_id=secrets.token_hex(8),
            min_nodes=1,
            max_nodes=1,
            local_addr="127.0.0.1",
            is_host=True,
        )
    )
    spec = WorkerSpec(
        role="worker",
        local_world_size=processes,
        rdzv_handler=rendezvous,
        entrypoint=sys.executable,
        args=("-P", "-m", "llmtrain.worker", str(run_dir)),
        max_restarts=0,
        monitor_interval=MONITOR_INTERVAL_S,
        local_addr="127.0.0.1",
    )
    agent = Agent(spec, Logs(run_dir))
    handle(agent.on_signal)
    try:
        result = agent.run()
    except SignalException:
        # Only a clean end is the signal's: a rank that could not save its checkpoint has failed.
        ended = {
            rank: (EXIT_BUG, time.time())
            for rank in range(processes)
            if failure_path(run_dir, rank).is_file()
        }
        if ended:
            return report_failure(
                run_dir, read_failures(run_dir, ended), since=since, before=before
            )
        code = 128 + int(agent.got or signal.SIGTERM)
        if complete_result(run_dir, stop_status(code), None, since=since):
            show_note(before_training(stop_status(code)))
        return code
    finally:
        rendezvous.shutdown()
        drop_empty_outputs(run_dir)
    if not result.is_failed():
        return EXIT_OK
    ended = {rank: (f.exitcode, float(f.timestamp)) for rank, f in result.failures.items()}
    return report_failure(run_dir, read_failures(run_dir, ended), since=since, before=before)


def _log_to_file(run_dir: Path) -> None:
    """Move what torch's agent says of its workers from the terminal to logs/agent.log."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    logging.root.handlers = [logging.FileHandler(run_dir / LOGS / "agent.log", delay=True)]
