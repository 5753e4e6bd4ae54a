"""The processes of a run with a server: replicas that live and die on their own.

    agent (this file): holds the rendezvous store, watches
      |-- server, or several          when one dies, all end
      |-- replica 0: its processes    when one dies, the replica is ended and started again;
      |-- replica 1: ...              the others go on

torchrun's agent ends all workers when one dies, so it is not used here. The store lives in this
process: neither a replica's death nor the server's takes it away.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.checkpoint.newest import goes_on
from llmtrain.config.groups.served import ServedConfig
from llmtrain.config.paths import CONFIG, LOGS
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import load_run_config
from llmtrain.distributed.env import BEGUN, REPLICA_ENV, RESTART_ENV, STORE_ENV
from llmtrain.distributed.loopback import HOST, serve_store
from llmtrain.errors import EXIT_BUG, EXIT_OK, EXIT_SIGINT, EXIT_SIGTERM, EXIT_USER
from llmtrain.launch.attempts import Attempts
from llmtrain.launch.environment import worker_environment
from llmtrain.launch.failure import (
    Failure,
    before_training,
    complete_result,
    describe,
    drop_empty_outputs,
    failure_path,
    first_failure,
    log_tail,
    output_path,
    put_by,
    read_failures,
    report_failure,
    stop_status,
)
from llmtrain.launch.kills import Kills
from llmtrain.launch.process import PROCESS_ENV, as_sent, is_ready
from llmtrain.panel import show_error, show_note

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""Seconds between two looks at the processes."""
AFTER_GRACE_S = 10.0
"""Seconds after the end of checkpoint.grace_s at which a server that has not ended is killed."""
END_S = 20.0
"""Seconds that replicas may take to end after the server has."""


@dataclass
class Team:
    """The processes of one replica."""

    replica: int
    restarts: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    given_up: bool = False

    @property
    def codes(self) -> list[int | None]:
        """How its processes have ended; None: not yet."""
        return [process.poll() for process in self.processes]

    @property
    def is_over(self) -> bool:
        """Whether it has ended and will not be started again."""
        return self.given_up or all(code == EXIT_OK for code in self.codes)


class Fleet:
    """All processes of one run."""

    def __init__(
        self, run_dir: Path, replicas: int, processes: int, run: RunConfig, attempts: Attempts
    ) -> None:
        """Start them all.

        Args:
            run_dir: A frozen run directory.
            replicas: Replicas.
            processes: Processes of all replicas.
            run: How many servers, how often a replica is started again, how few may be left.
            attempts: Whether to start all of them again when a server has died.
        """
        sync = run.sync
        assert isinstance(sync, ServedConfig)
        self._patience_s = run.checkpoint.grace_s + AFTER_GRACE_S
        self._attempts = attempts
        self.again = False
        """Whether all are to be started again."""
        self._run_dir, self._size, self._sync = run_dir, processes // replicas, sync
        self._store = serve_store()
        self.got: signal.Signals | None = None
        """The first signal."""
        self._since, self._before = time.time(), Kills.now()
        self.servers = [
            self._start(["--server", str(i)], processes + i, shown=i == 0)
            for i in range(sync.servers)
        ]
        self.teams = [Team(replica) for replica in range(replicas)]
        for team in self.teams:
            self._start_team(team)

    def on_signal(self, signum: int, frame: types.FrameType | None) -> None:
        """Remember the first signal; later ones change nothing."""
        self.got = self.got or as_sent(signum)

    def watch(self) -> int:
        """See the run to its end; return the exit code."""
        told_s: float | None = None
        lead = self.servers[0]
        while lead.poll() is None:
            time.sleep(LOOK_S)
            if self.got is not None and told_s is None:
                told_s = time.monotonic()
                self._tell_lead(self.got)
            if told_s is not None and time.monotonic() - told_s > self._patience_s:
                lead.kill()
            # One that is no longer needed ends well before its lead does.
            dead = next((i for i, one in enumerate(self.servers[1:], 1) if one.poll()), None)
            if dead is not None:
                return self._after_server(self.servers[dead].returncode, dead)
            for team in self.teams:
                code = self._look_at(team)
                if code is not None:
                    return code
        return self._after_server(lead.returncode)

    def close(self) -> None:
        """End whoever is left."""
        self._end([*self.servers, *(p for team in self.teams for p in team.processes)])

    # -- starting --------------------------------------------------------------------------------

    def _start_team(self, team: Team) -> None:
        for rank in range(self._size):
            failure_path(self._run_dir, self._number(team, rank)).unlink(missing_ok=True)
        team.processes = [
            self._start(
                [], self._number(team, rank),
                {
                    "RANK": str(rank), "WORLD_SIZE": str(self._size),
                    "LOCAL_RANK": str(self._number(team, rank)),
                    REPLICA_ENV: str(team.replica), RESTART_ENV: str(team.restarts),
                },
                shown=self._number(team, rank) == 0,
            )
            for rank in range(self._size)
        ]  # fmt: skip

    def _number(self, team: Team, rank: int) -> int:
        return team.replica * self._size + rank

    def _start(
        self,
        words: Sequence[str],
        number: int,
        env: dict[str, str] | None = None,
        *,
        shown: bool,
    ) -> "subprocess.Popen[bytes]":
        """Start one process; replica 0's first and the first server have the terminal."""
        command = [sys.executable, "-P", "-m", "llmtrain.worker", str(self._run_dir), *words]
        whole = {**os.environ, STORE_ENV: f"{HOST}:{self._store.port}", **(env or {})}
        whole[PROCESS_ENV] = str(number)
        with contextlib.ExitStack() as files:
            streams: list[Any] = [None, None]
            if not shown:
                streams = [
                    files.enter_context(output_path(self._run_dir, number, kind).open("ab"))
                    for kind in ("out", "err")
                ]
            return subprocess.Popen(command, env=whole, stdout=streams[0], stderr=streams[1])

    # -- watching --------------------------------------------------------------------------------

    def _look_at(self, team: Team) -> int | None:
        """Start a replica again if it has died; return the exit code where that ends the run."""
        codes = team.codes
        ended = {i: code for i, code in enumerate(codes) if code not in (None, EXIT_OK)}
        if not ended or team.given_up:
            return None
        now = time.time()
        self._end(team.processes)
        failures = read_failures(
            self._run_dir, {self._number(team, i): (code or 0, now) for i, code in ended.items()}
        )
        first = first_failure(failures)
        if first.user_error:
            return self._fail(failures)
        how = f"replica {team.replica} ended ({describe(first)})"
        most = self._sync.max_restarts
        if team.restarts < most:
            team.restarts += 1
            self._say(f"{how}: started again, {team.restarts} of {most} times")
            self._start_team(team)
            return None
        team.given_up = True
        left = sum(not other.given_up for other in self.teams)
        needed, why = len(self.teams), "all begin together"
        if self._store.check([BEGUN]):
            needed, why = self._sync.min_replicas, "sync.min_replicas"
        if left >= needed:
            self._say(f"{how}: the others go on without it (sync.max_restarts={most})")
            return None
        self._say(
            f"{how}: {left} of {len(self.teams)} replicas are left, and {needed} are needed "
            f"({why}; sync.max_restarts={most}). {goes_on(self._run_dir)}"
        )
        return self._fail(failures)

    def _fail(self, failures: list[Failure]) -> int:
        """Return the exit code of a run that replicas have ended; see whether to try again."""
        self.again = self.got is None and self._attempts.again(failures)
        if self.again:
            return EXIT_BUG
        return report_failure(self._run_dir, failures, since=self._since, before=self._before)

    def _after_server(self, code: int, server: int = 0) -> int:
        """Return the run's exit code, a server of it having ended with `code`."""
        until = time.monotonic() + (END_S if server == 0 else 0.0)
        while time.monotonic() < until and any(None in team.codes for team in self.teams):
            time.sleep(LOOK_S)
        if code == EXIT_OK:
            return EXIT_OK
        if code in (EXIT_SIGINT, EXIT_SIGTERM) or (self.got is not None and code == -self.got):
            stopped = code if code > 0 else 128 - code
            if complete_result(self._run_dir, stop_status(stopped), None, since=self._since):
                show_note(before_training(stop_status(stopped)))
            return stopped
        if code == EXIT_USER:
            return EXIT_USER
        number = self._size * len(self.teams) + server
        name = "the server" if len(self.servers) == 1 else f"server {server}"
        failure = read_failures(self._run_dir, {number: (code, time.time())})[0]
        self.again = self.got is None and self._attempts.again([failure])
        if self.again:
            return EXIT_BUG
        complete_result(self._run_dir, "failed", f"{name}: {describe(failure)}", since=self._since)
        tail = log_tail(self._run_dir, number)
        body = [
            f"{describe(failure)}. All replicas ended with it.",
            goes_on(self._run_dir),
        ]
        show_error(f"{name} failed", "\n".join([*body, "", *tail]), footer=str(self._run_dir))
        return EXIT_BUG

    def _tell_lead(self, signum: signal.Signals) -> None:
        """Pass a signal on: the first server has all replicas save and end."""
        ready = is_ready(self.servers[0].pid)
        self.servers[0].send_signal(signum if ready else signal.SIGTERM)

    def _end(self, processes: Sequence["subprocess.Popen[bytes]"]) -> None:
        """Kill whoever of `processes` lives: what they know is saved or lost by now."""
        for process in processes:
            if process.poll() is None:
                process.kill()
        for process in processes:
            process.wait()

    def _say(self, text: str) -> None:
        log.warning(text)
        show_note(text)


def run_fleet(
    run_dir: Path,
    replicas: int,
    processes: int,
    handle: Callable[[Callable[..., Any]], None],
) -> int:
    """Run the servers and replicas of a run from `run_dir` to their end; return the exit code.

    Args:
        run_dir: A frozen run directory.
        replicas: Replicas.
        processes: Processes of all replicas.
        handle: Installs a signal handler.
    """
    logging.root.handlers = [logging.FileHandler(run_dir / LOGS / "agent.log", delay=True)]
    run = load_run_config(run_dir / CONFIG)
    # A launcher has done both already; an agent that a batch script starts has none.
    os.environ.update(worker_environment(run.launcher, processes))
    put_by(run_dir)
    attempts = Attempts(run_dir, run.launcher.max_restarts)
    before: Fleet | None = None
    while True:
        fleet = Fleet(run_dir, replicas, processes, run, attempts)
        handle(fleet.on_signal)
        if before is not None:
            fleet.got = fleet.got or before.got  # which went on hearing until this one did
        try:
            code = fleet.watch()
        finally:
            fleet.close()
            drop_empty_outputs(run_dir)
        if not fleet.again:
            return code
        put_by(run_dir)
        before = fleet
