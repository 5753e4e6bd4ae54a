"""The attempts of one start: each failure told in a line and kept, and whether to try again."""

import json
import time
from pathlib import Path

from llmtrain.checkpoint.newest import newest_step
from llmtrain.config.paths import LOGS, METRICS
from llmtrain.durable import replace_text
from llmtrain.launch.failure import Failure, describe, first_failure
from llmtrain.panel import show_note

NAME = "attempts.jsonl"

FUTILE = 2
"""Restarts in a row that may die where the attempt before died; then trying again is in vain."""


class Attempts:
    """Counts restarts, and judges whether one more has a chance."""

    def __init__(self, run_dir: Path, most: int, host: str | None = None) -> None:
        """Set up.

        Args:
            run_dir: The run directory.
            most: launcher.max_restarts.
            host: This host, where it is one of several; each keeps a file of its own.
        """
        self._run_dir, self._most = run_dir, most
        name = NAME if host is None else f"attempts_{host}.jsonl"
        self._path = run_dir / LOGS / name
        self._restarts = 0
        self._futile = 0
        self._died_at: tuple[int | None, int] | None = None

    def again(self, failures: list[Failure]) -> bool:
        """Take down that all ranks have ended, or will; return whether to start them again.

        The reports and outputs of this attempt are then put by; without another attempt they stay.
        """
        first = first_failure(failures)
        why = self._refusal(first, failures)
        if why is None:
            self._restarts += 1
        if self._most:
            self._tell(first, why)
        return why is None

    def _refusal(self, first: Failure, failures: list[Failure]) -> str | None:
        """Return why not to try again; None: do."""
        if any(failure.user_error for failure in failures):
            return "a mistake in the request is not mended by another try"
        if first.stopped:
            return "it was told to end"
        died_at = (newest_step(self._run_dir), last_step(self._run_dir))
        self._futile = self._futile + 1 if died_at == self._died_at else 0
        self._died_at = died_at
        if self._restarts >= self._most:
            return f"launcher.max_restarts={self._most}"
        if self._futile >= FUTILE:
            return f"{FUTILE} restarts in a row have died at the same step"
        return None

    def _tell(self, first: Failure, why: str | None) -> None:
        step = last_step(self._run_dir)
        goes_on = f"started again, {self._restarts} of {self._most} times"
        what = f"rank {first.rank} ended ({describe(first)}), the last step logged is {step}"
        outcome = goes_on if why is None else f"not started again: {why}"
        show_note(f"{what}: {outcome}")
        line = {
            "time": time.time(), "rank": first.rank, "step": step, "how": describe(first),
            "outcome": outcome,
        }  # fmt: skip
        before = self._path.read_text() if self._path.exists() else ""
        replace_text(self._path, before + json.dumps(line) + "\n")


def last_step(run_dir: Path, most_bytes: int = 65536) -> int:
    """Return the step of the last line of metrics; 0: there is none."""
    path = run_dir / METRICS
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - most_bytes))
            lines = stream.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # torn by the crash
    return 0
