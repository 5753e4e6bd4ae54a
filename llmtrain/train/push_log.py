"""PushLog: what a server was told, in its order, without tensors: RUN_DIR/pushes.jsonl.

A server that is told the same at the same times goes through the same weights, so the log is what
a run with a server did not take from its seed.
"""

import json
from pathlib import Path
from typing import Any

from llmtrain.errors import ConfigError

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


def read_pushes(path: Path, workers: int) -> list[dict[str, Any]]:
    """Return the lines of the log of a run with `workers` replicas of which none died.

    Raises:
        ConfigError: when it is not that; names the fix.
    """
    key = f"sync.simulate.log={path}"
    if path.is_dir():
        raise ConfigError(f"{key} is a folder; try {path / NAME}.")
    if not path.is_file():
        raise ConfigError(f"{key} is no file; it is the {NAME} of a run's directory.")
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        pushes = [i for i, line in enumerate(lines) if line["kind"] == "push"]
        found = {lines[i]["worker"] for i in pushes if {"now", "base_version"} <= lines[i].keys()}
        # In a real run all of them leave, too: when it is over.
        left = {ln["worker"] for ln in lines[: pushes[-1]] if ln["kind"] == "leave"}
    except (ValueError, KeyError, TypeError, IndexError, OSError):
        raise ConfigError(f"{key} is no log of pushes; it is the {NAME} of a run.") from None
    if found != set(range(workers)):
        raise ConfigError(
            f"{key} is of {len(found)} replicas, and sync.simulate.workers={workers}; set it to "
            f"{len(found)}."
        )
    if left:
        raise ConfigError(
            f"{key}: replicas {sorted(left)} died in that run, and virtual ones do not; take the "
            "log of a run in which none did."
        )
    return lines


def _now(line: str) -> float:
    """Return the time of a line; infinite for one that a crash tore."""
    try:
        return float(json.loads(line)["now"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
