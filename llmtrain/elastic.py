"""torchrun's elastic agent for the workers of one run, without its wall of tracebacks.

torch starts the workers, watches them, stops all when one dies, and starts all again where
`launcher.max_restarts` allows. Here stands what a person sees of it: where output goes, how a
signal is passed on, who is told to have failed, and whether another attempt has a chance.
"""

import logging
import math
import os
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

from llmtrain.config.paths import CONFIG, LOGS
from llmtrain.config.store import load_run_config
from llmtrain.distributed.loopback import HOST, LoopbackRendezvous
from llmtrain.errors import EXIT_BUG, EXIT_OK
from llmtrain.launch.attempts import Attempts
from llmtrain.launch.environment import worker_environment
from llmtrain.launch.failure import (
    Failure,
    before_training,
    complete_result,
    drop_empty_outputs,
    failure_path,
    output_path,
    put_by,
    read_failures,
    report_failure,
    stop_status,
)
from llmtrain.launch.kills import Kills
from llmtrain.launch.process import as_sent, is_ready
from llmtrain.panel import show_note

AFTER_GRACE_S = 10
"""How long after the end of checkpoint.grace_s workers that have not ended by then are killed."""

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

    def __init__(self, spec: WorkerSpec, run_dir: Path, grace_s: float) -> None:
        timeout_s = math.ceil(grace_s) + AFTER_GRACE_S
        super().__init__(spec, Logs(run_dir), shutdown_timeout=timeout_s)
        self._run_dir = run_dir
        self._attempts = Attempts(run_dir, spec.max_restarts)
        self.got: signal.Signals | None = None
        """The first signal."""
        self.since, self.before = time.time(), Kills.now()
        """When this attempt began, unix s, and what the kernel had killed by then."""

    def on_signal(self, signum: int, frame: types.FrameType | None) -> None:
        """Remember the first signal; later ones change nothing."""
        self.got = self.got or as_sent(signum)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self.got is not None:
            workers = [int(worker.id) for worker in worker_group.workers]
            sent = self.got if all(map(is_ready, workers)) else signal.SIGTERM
            # Caught by torch, which sends it to all workers and waits for them.
            raise SignalException(f"got {self.got.name}", sigval=sent)
        result = super()._monitor_workers(worker_group)
        if result.is_failed() and not self._attempts.again(self.failures(result)):
            self._remaining_restarts = 0
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self._stop_workers(worker_group)
        put_by(self._run_dir)
        self.since, self.before = time.time(), Kills.now()
        super()._restart_workers(worker_group)

    def failures(self, result: RunResult) -> list[Failure]:
        """Return what is known of the ranks that have failed."""
        ended = {rank: (f.exitcode, float(f.timestamp)) for rank, f in result.failures.items()}
        return read_failures(self._run_dir, ended)


def run_workers(run_dir: Path, processes: int, handle: Callable[[Callable[..., Any]], None]) -> int:
    """Run `processes` workers from `run_dir` to their end; return the exit code.

    Args:
        run_dir: A frozen run directory.
        processes: Workers.
        handle: Installs a signal handler.
    """
    _log_to_file(run_dir)
    run = load_run_config(run_dir / CONFIG)
    # A launcher has done so already; under Slurm there is none.
    os.environ.update(worker_environment(run.launcher, processes))
    put_by(run_dir)
    # The signals that matter are ours.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    spec = WorkerSpec(
        role="worker",
        local_world_size=processes,
        rdzv_handler=LoopbackRendezvous(),
        entrypoint=sys.executable,
        args=("-P", "-m", "llmtrain.worker", str(run_dir)),
        max_restarts=run.launcher.max_restarts,
        monitor_interval=MONITOR_INTERVAL_S,
        local_addr=HOST,
    )
    agent = Agent(spec, run_dir, run.checkpoint.grace_s)
    handle(agent.on_signal)
    try:
        result = agent.run()
    except SignalException:
        return _after_signal(run_dir, processes, agent)
    finally:
        drop_empty_outputs(run_dir)
    if not result.is_failed():
        return EXIT_OK
    return report_failure(run_dir, agent.failures(result), since=agent.since, before=agent.before)


def _after_signal(run_dir: Path, processes: int, agent: Agent) -> int:
    """Return the exit code of workers that a signal has ended."""
    # Only a clean end is the signal's: a rank that could not save its checkpoint has failed.
    ended = {
        rank: (EXIT_BUG, time.time())
        for rank in range(processes)
        if failure_path(run_dir, rank).is_file()
    }
    if ended:
        return report_failure(
            run_dir, read_failures(run_dir, ended), since=agent.since, before=agent.before
        )
    code = 128 + int(agent.got or signal.SIGTERM)
    if complete_result(run_dir, stop_status(code), None, since=agent.since):
        show_note(before_training(stop_status(code)))
    return code


def _log_to_file(run_dir: Path) -> None:
    """Move what torch's agent says of its workers from the terminal to logs/agent.log."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    logging.root.handlers = [logging.FileHandler(run_dir / LOGS / "agent.log", delay=True)]
