"""Whose fault it was: the rank that failed first, told in one panel and in result.json.

When one rank dies, all others fail within moments, because their connection to it breaks or because
the launcher stops them. Only the first failure explains anything.
"""

import json
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.paths import HANG_REPORT, LOGS, RESULT, place_path
from llmtrain.config.result import read_result
from llmtrain.errors import EXIT_BUG, EXIT_SIGINT, EXIT_SIGTERM, EXIT_USER
from llmtrain.launch.kills import Kills
from llmtrain.log import log_path
from llmtrain.panel import show_error

LOG_TAIL_LINES = 15

# Nobody but the kernel, or a person, sends these: they come before what they cause in other ranks.
_FATAL = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}

_SIGNAL_NOTES = {
    signal.SIGSEGV: "SIGSEGV: native code read memory that is not its own.",
    signal.SIGBUS: "SIGBUS usually means that /dev/shm or the disk is full: see llmtrain doctor.",
    signal.SIGABRT: "SIGABRT: native code gave up; its last words are in the log.",
}

_GPU_MEMORY_NOTE = (
    "The GPU's memory is full: lower train.micro_batch_size (the results stay the same) or "
    "model.seq_len, set train.activation_checkpointing=full, or shard with strategy.zero=3."
)
_MEMORY_NOTE = (
    "The machine's memory is full: lower train.micro_batch_size (the results stay the same) or "
    "model.seq_len, set train.activation_checkpointing=full, or use fewer processes a machine."
)

EXPLAINED = ("FloatingPointError", "NotFiniteError")
"""Errors that say all there is to know: no traceback makes them clearer."""

HANG_LINES = 24
"""Lines of logs/hang_report.txt that the panel shows."""


@dataclass(frozen=True)
class Failure:
    """How one rank ended."""

    rank: int
    exit_code: int
    """As Popen says it: minus the signal's number when one killed it."""
    seen: float
    """When the launcher noticed, unix s."""
    report: Mapping[str, Any] | None = None
    """What the rank itself wrote into logs/failure_rank_N.json."""

    @property
    def killed_by(self) -> signal.Signals | None:
        """The signal that killed it."""
        try:
            return signal.Signals(-self.exit_code) if self.exit_code < 0 else None
        except ValueError:
            return None

    @property
    def user_error(self) -> bool:
        """Whether it is the user's mistake, whose panel rank 0 has printed."""
        if self.report is not None:
            return bool(self.report.get("user_error"))
        return self.exit_code == EXIT_USER

    @property
    def stopped(self) -> bool:
        """Whether it was told to end, and did."""
        codes = (EXIT_SIGINT, EXIT_SIGTERM, -signal.SIGINT, -signal.SIGTERM)
        return self.report is None and self.exit_code in codes


def failure_path(run_dir: Path, rank: int) -> Path:
    """Return RUN_DIR/logs/failure_rank_N.json."""
    return run_dir / LOGS / f"failure_rank_{rank}.json"


def output_path(run_dir: Path, rank: int, kind: str) -> Path:
    """Return RUN_DIR/logs/rank_N.out or .err: what a rank other than 0 printed, last words too."""
    return run_dir / LOGS / f"rank_{rank}.{kind}"


def drop_empty_outputs(run_dir: Path) -> None:
    """Remove the rank_N.out and rank_N.err in which nothing stands."""
    for kind in ("out", "err"):
        for path in (run_dir / LOGS).glob(f"rank_*.{kind}"):
            if path.stat().st_size == 0:
                path.unlink(missing_ok=True)


def put_by(run_dir: Path) -> None:
    """Move what an earlier attempt printed, and told of its failure, to logs/attempt_N/."""
    drop_empty_outputs(run_dir)
    patterns = ("failure_rank_*.json", "rank_*.out", "rank_*.err")
    logs = run_dir / LOGS
    left = [path for pattern in patterns for path in logs.glob(pattern)]
    if not left:
        return
    number = 1
    while (logs / f"attempt_{number}").exists():
        number += 1
    folder = logs / f"attempt_{number}"
    folder.mkdir()
    for path in left:
        path.rename(folder / path.name)


def read_failures(
    run_dir: Path, ended: Mapping[int, tuple[int, float]], *, since: float = 0.0
) -> list[Failure]:
    """Return the failures of the ranks in `ended` (rank -> exit code, unix s).

    What was reported before `since`, unix s, is of an earlier attempt.
    """
    failures = []
    for rank, (exit_code, seen) in ended.items():
        report = read_report(run_dir, rank)
        if report is not None and (report.get("silent") or report.get("time", since) < since):
            report = None  # its agent's words, or an earlier attempt's
        failures.append(Failure(rank, exit_code, seen, report))
    return failures


def read_report(run_dir: Path, rank: int) -> dict[str, Any] | None:
    """Return what logs/failure_rank_N.json says; None where there is none."""
    try:
        return dict(json.loads(failure_path(run_dir, rank).read_text()))
    except (OSError, ValueError):
        return None


def first_failure(failures: list[Failure]) -> Failure:
    """Return the failure that caused the others.

    A rank that a signal killed leaves no report, so its moment is known only as the launcher's; one
    that the launcher killed itself, after a vain SIGTERM, comes seconds after the first.
    """
    start = min(failure.seen for failure in failures)

    def order(failure: Failure) -> tuple[int, float]:
        if failure.stopped:
            return 5, failure.seen
        if failure.report is not None:
            when = float(failure.report.get("time", failure.seen))
            return (4 if failure.report.get("lost_peer") else 1), when
        if failure.killed_by in _FATAL and failure.seen <= start + 2:
            return 0, failure.seen
        # An abort is often the echo of another rank's error: C++ gives up on a broken connection.
        return (2 if failure.killed_by else 3), failure.seen

    return min(failures, key=order)


def report_failure(
    run_dir: Path,
    failures: list[Failure],
    *,
    since: float,
    shown: bool = True,
    before: Kills | None = None,
) -> int:
    """Tell the first of `failures`, complete result.json, and return the launcher's exit code.

    Args:
        run_dir: The run directory.
        failures: Every rank that did not end well.
        since: When this start began, unix s.
        shown: Whether to print it too; its record is made in any case.
        before: The kernel's counters when it began.
    """
    hang = read_hang(run_dir, since=since)
    if hang:
        complete_result(run_dir, "failed", hang[0], since=since)
        if shown:
            path = run_dir / LOGS / HANG_REPORT
            more = ["...", f"Everything is in {path}"] if len(hang) > HANG_LINES else []
            head = "\n".join([*hang[:HANG_LINES], *more])
            show_error("the run hung", head, footer=str(run_dir))
        return EXIT_BUG
    first = first_failure(failures)
    if first.stopped:
        code = abs(first.exit_code)
        code = code if code > 128 else 128 + code
        complete_result(run_dir, stop_status(code), None, since=since)
        return code
    summary = describe(first)
    complete_result(run_dir, "failed", f"rank {first.rank}: {summary}", since=since)
    if first.user_error:
        if shown and not any(failure.rank == 0 and failure.user_error for failure in failures):
            show_error("error", str((first.report or {}).get("message", summary)))
        return EXIT_USER
    if not shown:
        return EXIT_BUG
    log = log_path(run_dir, first.rank)
    others = len(failures) - 1
    node = (first.report or {}).get("node") or socket.gethostname()
    place = read_place(run_dir, first.rank, since=since)
    body = [summary, *explain(first, before), f"It was on {node}{place and f', in {place}'}."]
    if others:
        body.append(f"{others} other {'rank' if others == 1 else 'ranks'} ended because of it.")
    explained = (first.report or {}).get("type") in EXPLAINED
    tail = [] if explained else log_tail(run_dir, first.rank)
    if tail:
        body += ["", f"Last lines of {log}:", *tail]
    body += ["", f"Everything is in {log}"]
    show_error(f"rank {first.rank} failed", "\n".join(body), footer=str(run_dir))
    return EXIT_BUG


def read_hang(run_dir: Path, *, since: float) -> list[str]:
    """Return the lines of this start's report of a hang, the cause first; none where none hung."""
    path = run_dir / LOGS / HANG_REPORT
    try:
        return path.read_text().splitlines() if path.stat().st_mtime >= since else []
    except OSError:
        return []


def read_place(run_dir: Path, rank: int, *, since: float) -> str:
    """Return where in this start a rank was last, such as "step 12"; "" where it is not known."""
    path = place_path(run_dir, rank)
    try:
        return path.read_text().strip() if path.stat().st_mtime >= since else ""
    except OSError:
        return ""


def explain(failure: Failure, before: Kills | None) -> list[str]:
    """Return what is to be said of such an end, and how to mend it; [] where nothing is.

    Args:
        failure: How the rank ended.
        before: The kernel's counters when the run began.
    """
    if failure.killed_by == signal.SIGKILL:
        unknown = Kills(None, None)
        return [(Kills.now().since(before) if before else unknown).verdict()]
    if failure.killed_by in _SIGNAL_NOTES:
        return [_SIGNAL_NOTES[failure.killed_by]]
    kind, message = ((failure.report or {}).get(key, "") for key in ("type", "message"))
    if kind == "OutOfMemoryError":
        return [_GPU_MEMORY_NOTE]
    if kind == "MemoryError" or "DefaultCPUAllocator: can't allocate memory" in message:
        return [_MEMORY_NOTE]
    return []


def describe(failure: Failure) -> str:
    """Return one line: how the rank ended, and its error where it told one."""
    if failure.killed_by is not None:
        ending = f"killed by {failure.killed_by.name}"
    else:
        ending = f"exit code {failure.exit_code}"
    if failure.report is not None:
        kind, message = failure.report.get("type", "error"), failure.report.get("message", "")
        return f"{kind}: {message} ({ending})"
    return ending


def log_tail(run_dir: Path, rank: int, lines: int = LOG_TAIL_LINES) -> list[str]:
    """Return the last lines of what the rank logged, and of what it printed where that is kept."""
    tail: list[str] = []
    for path in (output_path(run_dir, rank, "err"), log_path(run_dir, rank)):
        with_room = lines - len(tail)
        tail = [*_last_lines(path, with_room), *tail]
    return tail


def _last_lines(path: Path, lines: int, most_bytes: int = 65536) -> list[str]:
    if lines <= 0:
        return []
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def stop_status(exit_code: int) -> str:
    """Return the status of a run that a signal ended: 130 a person's, 143 a scheduler's."""
    return "stopped" if exit_code == EXIT_SIGINT else "preempted"


def before_training(status: str) -> str:
    """Return the line for a run that a signal ended while its workers were starting."""
    return f"{status} before training began: there was nothing to save"


def complete_result(run_dir: Path, status: str, error: str | None, *, since: float) -> bool:
    """Write result.json where the worker could not: it died, or was stopped before it began.

    Args:
        run_dir: The run directory.
        status: What the launcher saw.
        error: The first failure, if any.
        since: When this start began, unix s; what was written before belongs to an earlier one.

    Returns:
        Whether it was written: nobody has told how the run ended.
    """
    path = run_dir / RESULT
    written, fresh = read_result(run_dir), bool(read_result(run_dir, since=since))
    # Rank 0 writes "failed" with its own error, which may only be that another rank is gone; or
    # "preempted", which may only be the agent's SIGTERM, since another rank is gone.
    if fresh and (status != "failed" or written.get("status") not in ("failed", "preempted")):
        return False
    # Hosts may write at the same time.
    partial = path.with_suffix(f".{socket.gethostname()}.{os.getpid()}.tmp")
    partial.write_text(json.dumps({**written, "status": status, "error": error}, indent=2) + "\n")
    partial.replace(path)
    return True
