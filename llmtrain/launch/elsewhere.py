"""Whose fault it was, where hosts each see only how their own ranks ended.

A rank that fails writes logs/failure_rank_N.json itself; for one that was killed its host's agent
does, so that the others, whose ranks only lost a peer, can name it.
"""

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from llmtrain.config.paths import LOGS
from llmtrain.config.result import EXIT_CODES, read_result
from llmtrain.errors import EXIT_BUG, EXIT_USER
from llmtrain.launch.failure import (
    Failure,
    complete_result,
    describe,
    failure_path,
    first_failure,
    report_failure,
    stop_status,
)
from llmtrain.launch.kills import Kills
from llmtrain.panel import show_error, show_note

WORD_S = 3.0
"""How long a host whose ranks only lost a peer waits for another's word of why."""

SKEW_S = 5.0
"""How far apart the clocks of two hosts may be."""


def leave_word(run_dir: Path, failures: Sequence[Failure]) -> None:
    """Write down, for the other hosts, how those of this host's ranks ended that told nothing."""
    for failure in failures:
        if failure.report is None and not failure.stopped:
            word = {
                "rank": failure.rank, "time": failure.seen, "type": "ended",
                "message": describe(failure), "exit_code": failure.exit_code, "user_error": False,
                "node": socket.gethostname(), "lost_peer": False, "silent": True,
            }  # fmt: skip
            failure_path(run_dir, failure.rank).write_text(json.dumps(word))


def report_host(
    run_dir: Path,
    failures: list[Failure],
    *,
    since: float,
    began: float,
    before: Kills | None = None,
    lost: str | None = None,
) -> int:
    """Tell why this host's part of a run has ended; return the exit code.

    Args:
        run_dir: The run directory.
        failures: Those of this host's ranks; none: it ended because of another host.
        since: When this attempt began, unix s.
        began: When the first attempt of this start did, unix s.
        before: The kernel's counters when it began.
        lost: Where the first host was to be reached, which it may be no longer.
    """
    own = first_failure(failures) if failures else None
    is_echo = own is None or bool(own.report and own.report.get("lost_peer"))
    other = _await_other(run_dir, {f.rank for f in failures}, since) if is_echo else None
    if other is None and failures:
        return report_failure(run_dir, failures, since=since, before=before)
    if other is None and (code := _stopped(run_dir, began - SKEW_S)):
        show_note(f"{stop_status(code)} on another host")
        return code
    if other is None:
        show_error(
            "launch failed",
            f"The first host, {lost}, is gone or has ended the run. The same command on all hosts "
            "goes on from the newest checkpoint.",
            footer=str(run_dir),
        )
        return EXIT_BUG
    report = other.report or {}
    what = f"rank {other.rank} on {report.get('node')} ended: {report.get('message')}"
    complete_result(run_dir, "failed", what, since=since)
    show_note(f"{what}; that host tells more")
    return EXIT_USER if other.user_error else EXIT_BUG


def report_incomplete(run_dir: Path, message: str, *, since: float) -> int:
    """Tell that not all hosts have come; return the exit code."""
    complete_result(run_dir, "failed", message, since=since)
    show_error("hosts are missing", message, footer=str(run_dir))
    return EXIT_BUG


def _stopped(run_dir: Path, since: float) -> int | None:
    """Return the exit code of a run that another host has just ended by a signal; None: it has not.

    A stop while workers start leaves the others without a peer: there is nothing to agree about.
    """
    status = read_result(run_dir, since=since).get("status")
    return EXIT_CODES[status] if status in ("stopped", "preempted") else None


def _await_other(run_dir: Path, own: set[int], since: float) -> Failure | None:
    """Return the failure of a rank of another host that explains this host's."""
    until = time.monotonic() + WORD_S
    while True:
        found = [
            f
            for f in _reports(run_dir, own, since - SKEW_S)
            if not (f.report or {}).get("lost_peer")
        ]
        if found:
            return first_failure(found)
        if time.monotonic() > until:
            return None
        time.sleep(0.1)


def _reports(run_dir: Path, own: set[int], since: float) -> list[Failure]:
    """Return what other ranks have told in this attempt."""
    found = []
    for path in (run_dir / LOGS).glob("failure_rank_*.json"):
        try:
            report = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if report["rank"] not in own and report["time"] >= since:
            found.append(Failure(report["rank"], report["exit_code"], report["time"], report))
    return found
