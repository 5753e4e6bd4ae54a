"""AuditLog: logs/bad_steps.jsonl, a line for every bad step and what was done about it.

With the configuration it determines a run: which steps were left out, and where training went back
and on with which samples.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from llmtrain.durable import replace_text
from llmtrain.train.metrics import finite

log = logging.getLogger(__name__)

STOPPED, SKIPPED, ROLLED_BACK, LOWERED = "stopped", "skipped", "rolled back", "lowered the rate"
"""What an event says was done."""


class AuditLog:
    """The log of one run."""

    def __init__(self, path: Path) -> None:
        """Set up the log; touches nothing yet."""
        self.path = path

    def add(self, event: dict[str, Any]) -> None:
        """Append `event`; a number that is not finite is null, and its "what" says which it was."""
        line = json.dumps(finite(event), allow_nan=False)
        try:
            with self.path.open("ab+") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
                torn = stream.read(1) not in (b"", b"\n")  # by a full disk or a crash
                stream.write((b"\n" if torn else b"") + f"{line}\n".encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:  # of one rank alone: the others would wait for it
            log.warning("%s cannot be written (%s): %s", self.path, error, line)

    def resume(self, count: int) -> None:
        """Drop the events that a resumed run will meet again.

        Args:
            count: How many bad steps the run remembers. Stops are kept: nobody remembers those.
        """
        if not self.path.exists():
            return
        kept, seen = [], 0
        for event in read_events(self.path):
            seen += event["action"] != STOPPED
            if event["action"] == STOPPED or seen <= count:
                kept.append(event)
        replace_text(self.path, "".join(json.dumps(event) + "\n" for event in kept))


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events in `path`, oldest first; none where there is no such file."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text().splitlines():
        try:
            event = json.loads(line)
            if {"step", "action"} <= event.keys():
                events.append(event)
        except (ValueError, AttributeError):  # a crash tore it
            continue
    return events


def lasting(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of steps that still are part of the run.

    Those of a stretch that a later rollback abandoned are not, and neither are stops.
    """
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["action"] == ROLLED_BACK:
            to = event["to_step"]
            kept = [e for e in kept if e.get("to_step", e["step"]) <= to]
            kept = [e for e in kept if e.get("to_step") != to]
        if event["action"] != STOPPED:
            kept.append(event)
    return kept
