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
import threading
import time
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler
from torch.distributed.elastic.rendezvous.api import RendezvousError

from llmtrain.config.paths import CONFIG, LOGS
from llmtrain.config.store import load_run_config
from llmtrain.distributed.env import ROUND_ENV
from llmtrain.distributed.hosts import LEAVE_S, Meeting
from llmtrain.distributed.loopback import HOST, LoopbackRendezvous
from llmtrain.distributed.node import Node, interface_towards
from llmtrain.distributed.waiting import told
from llmtrain.errors import EXIT_BUG, EXIT_OK
from llmtrain.launch.attempts import Attempts
from llmtrain.launch.elsewhere import leave_word, report_host, report_incomplete
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
from llmtrain.launch.warden import AFTER_LIMIT_S, Warden, end_children
from llmtrain.panel import show_note

log = logging.getLogger(__name__)

AFTER_GRACE_S = 10
"""How long after the end of checkpoint.grace_s workers that have not ended by then are killed."""

MONITOR_INTERVAL_S = 0.1

HANG_S = 600.0
"""How long the first host may be out of reach where train.hang_timeout_s sets no limit."""


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
        ranks = {local: int(env["RANK"]) for local, env in envs.items()}

        def files(kind: str) -> dict[int, str]:
            paths = {local: output_path(self.run_dir, rank, kind) for local, rank in ranks.items()}
            return {local: str(path) if ranks[local] else "" for local, path in paths.items()}

        # Ours stand in logs/failure_rank_N.json; torch only asks whether these exist.
        reports = {n: f"{failure_path(self.run_dir, rank)}.torch" for n, rank in ranks.items()}
        return LogsDest(files("out"), files("err"), error_files=reports)


class Agent(LocalElasticAgent):
    """torch's agent, which passes on a signal between two looks at its workers.

    torch's own handler raises wherever the signal finds the program, which may be inside code that
    swallows exceptions.
    """

    def __init__(
        self, spec: WorkerSpec, run_dir: Path, grace_s: float, meeting: Meeting | None = None
    ) -> None:
        timeout_s = math.ceil(grace_s) + AFTER_GRACE_S
        super().__init__(spec, Logs(run_dir), shutdown_timeout=timeout_s)
        self._run_dir, self._meeting = run_dir, meeting
        self._is_meeting = False
        self.is_ending = False
        """Whether a signal is being acted on."""
        self._attempts = Attempts(
            run_dir, spec.max_restarts, host=None if meeting is None else meeting.host
        )
        self.got: signal.Signals | None = None
        """The first signal."""
        self.since, self.before = time.time(), Kills.now()
        """When this attempt began, unix s, and what the kernel had killed by then."""
        self.began = self.since

    def on_signal(self, signum: int, frame: types.FrameType | None) -> None:
        """Remember the first signal; later ones change nothing."""
        self.got = self.got or as_sent(signum)
        if self._is_meeting:
            # Other hosts may be waited for, for minutes, and no worker has begun.
            self.is_ending = True
            raise SignalException(f"got {self.got.name}", sigval=self.got)

    @property
    def hosts(self) -> int:
        """How many hosts take part; 1 before they have met."""
        return self._worker_group.group_world_size or 1

    @property
    def has_met(self) -> bool:
        """Whether all hosts have come together once."""
        return self._worker_group.store is not None

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        if self._meeting is None:
            super()._rendezvous(worker_group)
            return
        self._is_meeting = True
        try:
            with told(self._meeting.waiting):
                super()._rendezvous(worker_group)
        finally:
            self._is_meeting = False
        os.environ[ROUND_ENV] = str(self._meeting.met())
        ranks = [worker.global_rank for worker in worker_group.workers]
        show_note(
            f"{self.hosts} of {self._meeting.nnodes} hosts, {worker_group.workers[0].world_size} "
            f"processes; {are_here(ranks)}"
            + ("" if 0 in ranks else ", and rank 0's host shows the output")
        )

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self.got is not None:
            workers = [int(worker.id) for worker in worker_group.workers]
            sent = self.got if all(map(is_ready, workers)) else signal.SIGTERM
            self.is_ending = True
            # Caught by torch, which sends it to all workers and waits for them.
            raise SignalException(f"got {self.got.name}", sigval=sent)
        result = super()._monitor_workers(worker_group)
        if result.is_failed() and self._is_asked_to_meet(result):
            self._restart_workers(worker_group)  # not counted
            return RunResult(state=WorkerState.HEALTHY)
        if result.is_failed() and not self._attempts.again(self.failures(result)):
            self._remaining_restarts = 0
        return result

    def _is_asked_to_meet(self, result: RunResult) -> bool:
        """Whether workers ended for hosts that come in: another agent saw them first.

        It had its ranks stop, and all ranks stop together.
        """
        if self._meeting is None or not all(f.stopped for f in self.failures(result)):
            return False
        return self._meeting.is_called()

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if self._meeting is None:
            self._stop_workers(worker_group)
        else:
            # Hosts that come to a whole world save first; where ranks have died nothing can be
            # saved, and what waits for them would not hear a SIGTERM.
            is_whole = worker_group.state == WorkerState.HEALTHY
            grows = is_whole and self.hosts < self._meeting.nnodes
            self._shutdown(signal.SIGTERM if grows else signal.SIGKILL, self._shutdown_timeout)
        if self._meeting is None or self._meeting.leads:
            put_by(self._run_dir)
        self.since, self.before = time.time(), Kills.now()
        super()._restart_workers(worker_group)

    def failures(self, result: RunResult) -> list[Failure]:
        """Return what is known of the ranks that have failed."""
        ended = {rank: (f.exitcode, float(f.timestamp)) for rank, f in result.failures.items()}
        return read_failures(self._run_dir, ended, since=self.since)

    @property
    def pids(self) -> list[int]:
        """The workers' processes."""
        return [int(worker.id) for worker in self._worker_group.workers if worker.id is not None]

    def stop_at_once(self, signum: signal.Signals) -> NoReturn:
        """End as a signal asks, in the warden's thread: the main thread hears nothing."""
        end_children(self.pids, signum, self._shutdown_timeout)
        code = 128 + int(signum)
        complete_result(self._run_dir, stop_status(code), None, since=self.since)
        os._exit(code)

    def lose_first_host(self) -> NoReturn:
        """End because the first host is gone, in the warden's thread."""
        end_children(self.pids, signal.SIGKILL, 0.0)
        assert self._meeting is not None
        lost = self._meeting.node.endpoint
        os._exit(report_host(self._run_dir, [], since=self.since, began=self.began, lost=lost))


def are_here(ranks: Sequence[int]) -> str:
    """Return the words for the ranks of this host."""
    if len(ranks) == 1:
        return f"here is rank {ranks[0]}"
    return f"here are ranks {ranks[0]} to {ranks[-1]}"


def run_workers(run_dir: Path, processes: int, handle: Callable[[Callable[..., Any]], None]) -> int:
    """Run `processes` workers from `run_dir` to their end; return the exit code.

    Args:
        run_dir: A frozen run directory.
        processes: Workers.
        handle: Installs a signal handler.
    """
    _log_to_file(run_dir, "agent.log")
    run = load_run_config(run_dir / CONFIG)
    # A launcher has done both already; an agent that a batch script starts has none.
    os.environ.update(worker_environment(run.launcher, processes))
    put_by(run_dir)
    spec = _spec(run_dir, processes, LoopbackRendezvous(), run.launcher.max_restarts, HOST)
    agent = Agent(spec, run_dir, run.checkpoint.grace_s)
    handle(agent.on_signal)
    try:
        result = agent.run()
    except SignalException:
        return _after_signal(run_dir, range(processes), agent)
    finally:
        drop_empty_outputs(run_dir)
    if not result.is_failed():
        return EXIT_OK
    return report_failure(run_dir, agent.failures(result), since=agent.since, before=agent.before)


def run_hosts(
    run_dir: Path | None,
    processes: int,
    handle: Callable[[Callable[..., Any]], None],
    node: Node,
    digest: str,
) -> int:
    """Run this host's `processes` workers of a run over several hosts; return the exit code.

    Args:
        run_dir: A frozen run directory; None: the first host tells it.
        processes: Workers of this host.
        handle: Installs a signal handler.
        node: This host.
        digest: Of the configuration; "": not compared.

    Raises:
        ConfigError: when the hosts cannot meet, or do not share the run directory.
    """
    meeting = Meeting(node)
    if meeting.leads and run_dir is not None:
        put_by(run_dir)  # before the others begin
    run_dir = meeting.agree(run_dir, digest)
    _log_to_file(run_dir, f"agent_{meeting.host}.log")
    run = load_run_config(run_dir / CONFIG)
    interface = interface_towards(node.host, node.port)
    os.environ.update(
        worker_environment(run.launcher, processes, hosts=node.nnodes, interface=interface)
    )
    spec = _spec(run_dir, processes, meeting.handler, run.launcher.max_restarts, meeting.host)
    agent = Agent(spec, run_dir, run.checkpoint.grace_s, meeting)
    handle(agent.on_signal)
    Warden(
        None if meeting.leads else (node.host, node.port),
        (run.train.hang_timeout_s or HANG_S) + AFTER_LIMIT_S,
        is_heard=lambda: agent.is_ending, stop=agent.stop_at_once, lose=agent.lose_first_host,
    ).start()  # fmt: skip
    code = _run(agent, meeting, run_dir)
    if meeting.leads:
        drop_empty_outputs(run_dir)
    # In a thread: a first host that is gone answers nothing, and would be waited for.
    leaving = threading.Thread(target=meeting.leave, args=(agent.hosts,), daemon=True)
    leaving.start()
    leaving.join(LEAVE_S + AFTER_GRACE_S)
    if leaving.is_alive():
        os._exit(code)
    return code


def _run(agent: Agent, meeting: Meeting, run_dir: Path) -> int:
    """Run the agent of one of several hosts to its end, and tell it; return the exit code."""
    result: RunResult | None = None
    try:
        result = agent.run()
        if result is not None and not result.is_failed():
            return EXIT_OK
        failures = agent.failures(result) if result is not None else []
        leave_word(run_dir, failures)
        return report_host(
            run_dir, failures, since=agent.since, began=agent.began, before=agent.before
        )
    except SignalException:
        ranks = [worker.global_rank for worker in agent.get_worker_group().workers]
        return _after_signal(run_dir, ranks, agent, tells=0 in ranks or meeting.leads)
    except (RendezvousError, DistError) as error:
        log.warning("the meeting broke up", exc_info=error)
        if not agent.has_met:
            return report_incomplete(run_dir, meeting.incomplete(), since=agent.since)
        return report_host(
            run_dir, [], since=agent.since, began=agent.began, lost=meeting.node.endpoint
        )


def _spec(
    run_dir: Path, processes: int, handler: RendezvousHandler, max_restarts: int, host: str
) -> WorkerSpec:
    # The signals that matter are ours.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    return WorkerSpec(
        role="worker",
        local_world_size=processes,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=("-P", "-m", "llmtrain.worker", str(run_dir)),
        max_restarts=max_restarts,
        monitor_interval=MONITOR_INTERVAL_S,
        local_addr=host,
    )


def _after_signal(run_dir: Path, ranks: Iterable[int], agent: Agent, *, tells: bool = True) -> int:
    """Return the exit code of workers that a signal has ended; of several hosts one `tells`."""
    # Only a clean end is the signal's: a rank that could not save its checkpoint has failed.
    ended = {
        rank: (EXIT_BUG, time.time()) for rank in ranks if failure_path(run_dir, rank).is_file()
    }
    if ended:
        return report_failure(
            run_dir, read_failures(run_dir, ended, since=agent.since), since=agent.since,
            before=agent.before,
        )  # fmt: skip
    code = 128 + int(agent.got or signal.SIGTERM)
    if tells and complete_result(run_dir, stop_status(code), None, since=agent.since):
        show_note(before_training(stop_status(code)))
    return code


def _log_to_file(run_dir: Path, name: str) -> None:
    """Move what torch's agent says of its workers from the terminal to logs/NAME."""
    for logger_name, logger in list(logging.root.manager.loggerDict.items()):
        if logger_name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    logging.root.handlers = [logging.FileHandler(run_dir / LOGS / name, delay=True)]
