"""How a running worker is asked to stop: signals set a flag, the loop reads it between steps."""

import signal
from types import FrameType

from llmtrain.errors import EXIT_SIGINT, EXIT_SIGTERM


class StopNow(BaseException):
    """Asked to stop while there is nothing to save yet."""


class StopRequest:
    """Remembers the first SIGINT or SIGTERM; a second SIGINT quits at once.

    Until training starts there is nothing to save, and preparing data may take hours: there the
    first signal already ends the process, by `StopNow`.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._deferred = False

    def install(self) -> None:
        """Take over SIGINT and SIGTERM."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum
        if not self._deferred:
            raise StopNow

    def defer(self) -> None:
        """From now on only take note: the loop reads `asked` between steps."""
        self._deferred = True

    @property
    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM (or another rank's)."""
        return EXIT_SIGINT if self.signum == signal.SIGINT else EXIT_SIGTERM

    @property
    def status(self) -> str:
        """`stopped` by a person at the keyboard, `preempted` by a scheduler."""
        return "stopped" if self.signum == signal.SIGINT else "preempted"
