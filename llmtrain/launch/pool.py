"""Several children at once, each in a session of its own; each gets every signal once.

    terminal: Ctrl-C -> the parent (this file) -> one SIGINT to each child -> its workers

A child that was told to stop already, because its run is given up, is not told twice: a second
signal kills. The kernel kills the children when the parent dies (`lifeline.py`): they are started
in the main thread, whose end is the parent's.
"""

import os
import signal
import subprocess
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llmtrain.launch.process import as_sent, handling, is_ready
from llmtrain.lifeline import PARENT_ENV


@dataclass
class Child:
    """One process of the pool."""

    process: subprocess.Popen[bytes]
    slot: int
    told: bool = False
    """Whether it was told to stop."""


class Pool:
    """Up to `size` children. A context, to be entered in the main thread; it waits for all."""

    def __init__(self, size: int) -> None:
        self.children: dict[int, Child] = {}
        """Those that run, by the number they were started under."""
        self.stopped_by: signal.Signals | None = None
        """The first signal that came."""
        self._free = list(range(size))
        self._came: list[signal.Signals] = []
        self._interrupts = 0

    def __enter__(self) -> Self:
        self._handling = handling(self._on_signal)
        self._handling.__enter__()
        return self

    def __exit__(self, kind: type | None, error: object, trace: types.TracebackType | None) -> None:
        for number in self.children:  # none, but after an error here
            self.stop(number)
        for child in self.children.values():
            child.process.wait()
        self._handling.__exit__(None, None, None)

    def _on_signal(self, signum: int, frame: types.FrameType | None) -> None:
        self._came.append(as_sent(signum))

    @property
    def slot(self) -> int | None:
        """The lowest slot that is free; null: none, or no child may be started any more."""
        self._pass_on()
        return min(self._free) if self._free and self.stopped_by is None else None

    def start(
        self, number: int, slot: int, command: Sequence[str], env: Mapping[str, str],
        output: Path | None = None,
    ) -> None:  # fmt: skip
        """Start a child.

        Args:
            number: What to call it.
            slot: A free one.
            command: What to start.
            env: Its whole environment.
            output: Takes what it prints, behind what is there; null: it has the terminal.

        Raises:
            OSError: when it cannot be started.
        """
        stream = None if output is None else output.open("ab")
        try:
            process = subprocess.Popen(
                command, env={**env, PARENT_ENV: str(os.getpid())}, start_new_session=True,
                stdin=None if stream is None else subprocess.DEVNULL, stdout=stream, stderr=stream,
            )  # fmt: skip
        finally:
            if stream is not None:
                stream.close()
        self._free.remove(slot)
        self.children[number] = Child(process, slot)
        if self.stopped_by is not None:
            self.stop(number, self.stopped_by)  # it came in between

    def ended(self) -> dict[int, int]:
        """Return the children that have ended since the last look, with their codes (as Popen
        says them); pass on what signals came."""
        self._pass_on()
        codes = {number: child.process.poll() for number, child in self.children.items()}
        done = {number: code for number, code in codes.items() if code is not None}
        for number in done:
            self._free.append(self.children.pop(number).slot)
        return done

    def stop(self, number: int, signum: signal.Signals = signal.SIGTERM) -> None:
        """Tell a child to save and stop, unless it has been told."""
        child = self.children[number]
        if not child.told:
            child.told = True
            # One that does not handle signals yet has nothing to lose, and SIGTERM ends it quietly.
            ready = is_ready(child.process.pid)
            child.process.send_signal(signum if ready else signal.SIGTERM)

    def _pass_on(self) -> None:
        while self._came:
            signum = self._came.pop(0)
            self._interrupts += signum == signal.SIGINT
            first = self.stopped_by is None
            self.stopped_by = self.stopped_by or signum
            for number, child in self.children.items():
                if first:
                    self.stop(number, signum)
                elif signum == signal.SIGINT and self._interrupts <= 2:
                    child.process.send_signal(signum)  # it kills its workers, and says so
                elif signum == signal.SIGINT:
                    child.process.kill()
