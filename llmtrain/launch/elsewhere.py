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
from llmtrain.errors import EXIT_BUG, EXIT_USER
from llmtrain.launch.failure import (
    Failure,
    complete_result,
    describe,
    failure_path,
    first_failure,
    report_failure,
)
from llmtrain.launch.kills import Kills
from llmtrain.panel import show_error, show_note

WORD_S = 3.0
"""How long a host whose ranks only lost a peer waits for another's word of why."""


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
    before: Kills | None = None,
    lost: str | None = None,
) -> int:
    """Tell why this host's part of a run has ended; return the exit code.

    Args:
        run_dir: The run directory.
        failures: Those of this host's ranks; none: it ended because of another host.
        since: When this attempt began, unix s.
        before: The kernel's counters when it began.
        lost: Where the first host was to be reached, which it may be no longer.
    """
    own = first_failure(failures) if failures else None
    is_echo = own is None or bool(own.report and own.report.get("lost_peer"))
    other = _await_other(run_dir, {f.rank for f in failures}) if is_echo else None
    if other is None and failures:
        return report_failure(run_dir, failures, since=since, before=before)
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


def _await_other(run_dir: Path, own: set[int]) -> Failure | None:
    """Return the failure of a rank of another host that explains this host's."""
    until = time.monotonic() + WORD_S
    while True:
        found = [f for f in _reports(run_dir, own) if not (f.report or {}).get("lost_peer")]
        if found:
            return first_failure(found)
        if time.monotonic() > until:
            return None
        time.sleep(0.1)


def _reports(run_dir: Path, own: set[int]) -> list[Failure]:
    """Return what other ranks have told; reports of earlier attempts were put by."""
    found = []
    for path in (run_dir / LOGS).glob("failure_rank_*.json"):
        try:
            report = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if report["rank"] not in own:
            found.append(Failure(report["rank"], report["exit_code"], report["time"], report))
    return found
