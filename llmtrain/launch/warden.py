"""A thread beside an agent of several hosts, for when its main thread hears nothing.

torch's agent asks the first host's store at every look at its workers. When that host has gone
without a goodbye (a power cut, a cable) the answer is waited for inside C++, for a quarter of an
hour by TCP's rules, and no signal's handler runs meanwhile.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from llmtrain.launch.process import as_sent
from llmtrain.lifeline import STOP_SIGNALS

DEAF_S = 10.0
"""How long the main thread may take to hear a signal, before this thread acts on it."""
PROBE_S = 5.0
"""Seconds between two tries to reach the first host, and how long one may take."""
AFTER_LIMIT_S = 30.0
"""How long after the limit of a hang the first host is given up: workers tell of it first."""


class Warden(threading.Thread):
    """Hears every signal at once, and knows whether the first host can still be reached."""

    def __init__(
        self,
        endpoint: tuple[str, int] | None,
        limit_s: float,
        *,
        is_heard: Callable[[], bool],
        stop: Callable[[signal.Signals], NoReturn],
        lose: Callable[[], NoReturn],
    ) -> None:
        """Set up; to be called, as `start`, in the main thread.

        Args:
            endpoint: Where the first host listens; None: this is it.
            limit_s: How long it may be out of reach.
            is_heard: Whether the main thread has acted on a signal.
            stop: Ends the workers, and this process, as for a signal.
            lose: Ends them because the first host is gone.
        """
        super().__init__(name="warden", daemon=True)
        self._endpoint, self._limit_s = endpoint, limit_s
        self._is_heard, self._stop_all, self._lose = is_heard, stop, lose
        reads, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        self._reads = reads

    def run(self) -> None:
        """Watch until the process ends."""
        asked: tuple[signal.Signals, float] | None = None
        reached_s = time.monotonic()
        while True:
            ready, _, _ = select.select([self._reads], [], [], PROBE_S)
            if ready:
                got = [signum for signum in os.read(self._reads, 64) if signum in STOP_SIGNALS]
                asked = asked or ((as_sent(got[0]), time.monotonic()) if got else None)
            if asked and not self._is_heard() and time.monotonic() - asked[1] > DEAF_S:
                self._stop_all(asked[0])
            if self._endpoint is None or self._answers(self._endpoint):
                reached_s = time.monotonic()
            elif time.monotonic() - reached_s > self._limit_s:
                self._lose()

    def _answers(self, endpoint: tuple[str, int]) -> bool:
        try:
            with socket.create_connection(endpoint, timeout=PROBE_S):
                return True
        except OSError:
            return False


def end_children(pids: Sequence[int], signum: signal.Signals, grace_s: float) -> None:
    """Send `signum` to child processes, and kill those that live `grace_s` later."""
    for pid in pids:
        _send(pid, signum)
    until = time.monotonic() + grace_s
    left = [pid for pid in pids if not _is_over(pid)]
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left = [pid for pid in left if not _is_over(pid)]
    for pid in left:
        _send(pid, signal.SIGKILL)


def _send(pid: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def _is_over(pid: int) -> bool:
    """Whether a child has ended; it may have been waited for already."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
