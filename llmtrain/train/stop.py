"""How a running worker is asked to stop: signals set a flag, the loop reads it between steps.

The flag is set by Python's handler, which waits while the main thread is inside a collective or a
write. So a thread watches as well: it hears every signal at once (`signal.set_wakeup_fd`), and ends
the process at a second Ctrl-C, and when the time to save in is over.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from llmtrain.errors import EXIT_SIGINT, EXIT_SIGTERM
from llmtrain.lifeline import STOP_SIGNALS

LAST_WORDS_S = 5.0
"""How long telling that the time is over may take, on a disk that may be what hangs."""


NAG_S = 0.5
"""How soon a process that has nothing to save, and has not ended, is asked again."""

SKEW_S = 5.0
"""How far apart the ends of two ranks' times may be: each counts from when it heard."""


class StopNow(BaseException):
    """Asked to stop while there is nothing to save yet."""


class StopRequest:
    """Remembers the first signal; a second SIGINT quits at once, whatever the process is doing.

    Until training starts there is nothing to save, and preparing data may take hours: there the
    first signal already ends the process, by `StopNow`.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        """The first signal that the main thread has taken note of."""
        self._heard: int | None = None
        """The first that the watching thread has heard."""
        self._told = False
        """Whether another rank has been asked."""
        self._deferred = False
        self._asked_s: float | None = None
        """When this process was asked or told, by the monotonic clock."""
        self._grace_s: float | None = None
        self._give_up: Callable[[], None] | None = None
        self._wake: int | None = None
        """Where a byte wakes the watching thread."""

    def install(self) -> None:
        """Take over the signals. To be called in the main thread."""
        for signum in STOP_SIGNALS:
            # nohup stays in force.
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, self._handle)
        reads, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reads,), name="stop", daemon=True).start()

    def limit(self, grace_s: float, give_up: Callable[[], None]) -> None:
        """End the process `grace_s` after it was asked to stop, if it has not ended by then.

        Args:
            grace_s: checkpoint.grace_s.
            give_up: Says so; called in a thread, before the process exits with `exit_code`.
        """
        self._grace_s, self._give_up = grace_s, give_up
        self._rouse()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum
        if not self._deferred:
            raise StopNow

    def _watch(self, reads: int) -> None:
        """Hear signals, one byte each; other bytes only wake."""
        while True:
            left = self._left_s()
            if left == 0.0:
                break
            nags = self._heard is not None and not self._deferred
            waits = min(left or NAG_S, NAG_S) if nags else left
            ready, _, _ = select.select([reads], [], [], waits)
            if not ready:
                if nags and not self._deferred:
                    self._ask_again()
                continue
            for signum in os.read(reads, 64):
                if signum == signal.SIGINT and self._heard is not None:
                    os._exit(EXIT_SIGINT)
                if signum in STOP_SIGNALS:
                    self._heard = self._heard or signum
                    self._asked_s = self._asked_s or time.monotonic()
        self._leave()

    def _ask_again(self) -> None:
        """Have the handler raise once more: what it raised was swallowed.

        Python ignores what is raised in a destructor or in a callback of native code.
        """
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def leave_if_late(self) -> None:
        """End the process as at the end of the time to save in, if that is here.

        For one that has lost a peer, whose time may have ended a moment before its own.
        """
        left = self._left_s()
        if left is not None and left < SKEW_S:
            self._leave()

    def _leave(self) -> NoReturn:
        if self._give_up is not None:
            words = threading.Thread(target=self._give_up, daemon=True)
            words.start()
            words.join(LAST_WORDS_S)
        os._exit(self.exit_code)

    def _left_s(self) -> float | None:
        if self._asked_s is None or self._grace_s is None:
            return None
        return max(0.0, self._asked_s + self._grace_s - time.monotonic())

    def _rouse(self) -> None:
        if self._wake is not None:
            os.write(self._wake, b"\0")

    def defer(self) -> None:
        """From now on only take note: the loop reads `asked` between steps."""
        self._deferred = True

    def hear(self) -> None:
        """Take note that another rank has been asked to stop; its signal may still come here."""
        if not self._told:
            self._told = True
            self._asked_s = self._asked_s or time.monotonic()
            self._rouse()

    @property
    def deferred(self) -> bool:
        """Whether there is something to save: the loop decides when to stop."""
        return self._deferred

    @property
    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._told or self.signum is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after the others (or another rank's)."""
        return EXIT_SIGINT if self._first == signal.SIGINT else EXIT_SIGTERM

    @property
    def status(self) -> str:
        """`stopped` by a person at the keyboard, `preempted` by a scheduler."""
        return "stopped" if self._first == signal.SIGINT else "preempted"

    @property
    def _first(self) -> int | None:
        return self.signum or self._heard
