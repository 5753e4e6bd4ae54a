"""PushLog: what a server was told, in its order, without tensors: RUN_DIR/pushes.jsonl.

A server that is told the same at the same times goes through the same weights, so the log is what
a run with a server did not take from its seed.
"""

import json
from pathlib import Path
from typing import Any

NAME = "pushes.jsonl"


class PushLog:
    """The log of one run, over all its starts."""

    def __init__(self, run_dir: Path) -> None:
        """Set up the log; touches nothing yet."""
        self._path = run_dir / NAME

    def begin(self, until_s: float) -> None:
        """Open the log, dropping what a run that goes on from a checkpoint does again.

        Args:
            until_s: The server's time at the checkpoint; negative: nothing is kept.
        """
        kept = []
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _now(line) <= until_s]
        staging = self._path.with_suffix(".tmp")
        staging.write_text("".join(line + "\n" for line in kept))
        staging.replace(self._path)
        self._stream = self._path.open("a")

    def add(self, line: dict[str, Any]) -> None:
        """Append a line, flushed at once so that a crash loses none."""
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _now(line: str) -> float:
    """Return the time of a line; infinite for one that a crash tore."""
    try:
        return float(json.loads(line)["now"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
