"""Where the loop is: what it tells whoever watches it.

It also stands in a small file, which tells of a rank that can no longer speak. Written without
syncing: it costs microseconds a step, and is lost only together with the machine.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

START, STEP = "start", "step"
WIDTH = 48
"""Bytes of the file."""


@dataclass(frozen=True)
class Place:
    """A place in a run."""

    phase: str
    """start | step | evaluate | save | diagnose | rollback | end."""
    step: int
    """The step that is being done; outside of steps, how many are done."""

    def __str__(self) -> str:
        return f"step {self.step}" if self.phase == STEP else f"{self.phase} after step {self.step}"


class Whereabouts:
    """Where one rank's main thread is."""

    def __init__(self, path: Path | None = None) -> None:
        """Begin at the start.

        Args:
            path: The file that says so; None: there is none.
        """
        self._steps = 0
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if path else None
        self.now = (0, Place(START, 0), True)
        """How often it has moved; the place; whether it may take long there. Replaced as a whole,
        so that another thread never reads one half."""

    def enter(self, phase: str, step: int) -> None:
        """Say that the main thread has come to `phase`, or goes on in it."""
        self._steps += phase == STEP
        # The first step compiles, and fills pools and caches.
        takes_long = phase != STEP or self._steps == 1
        place = Place(phase, step)
        self.now = (self.now[0] + 1, place, takes_long)
        if self._file is not None:
            try:
                os.pwrite(self._file, str(place).encode().ljust(WIDTH - 1) + b"\n", 0)
            except OSError:  # a full disk, a lost mount: training does not end for this
                self._file = None
