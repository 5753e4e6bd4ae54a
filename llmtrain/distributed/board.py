"""A notice board of the ranks on the rendezvous store: what each says of itself, seen by all.

It has a thread and a connection of its own. A store whose machine has gone without a word answers
nothing at all, and who asked it would wait forever: here that is only this thread.
"""

import datetime
import json
import logging
import signal
import threading
from typing import Any

from torch.distributed import Store

log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""How long a wait for one answer may take."""


class Board:
    """One rank's side of the board."""

    def __init__(self, store: Store, *, rank: int, world_size: int, every_s: float) -> None:
        """Connect, and start the thread.

        Args:
            store: The rendezvous store.
            rank: This rank.
            world_size: How many there are.
            every_s: Seconds between two looks.
        """
        self._store: Store = store.clone()  # type: ignore[attr-defined]
        self._store.set_timeout(datetime.timedelta(seconds=ANSWER_S))
        self._rank, self._others = rank, [r for r in range(world_size) if r != rank]
        self._every_s = every_s
        self._own: dict[str, Any] | None = None
        self._seen: set[int] = set()
        self._wake = threading.Event()
        self._answered, self._spoken = threading.Event(), threading.Event()
        self._is_closed = self._wants_word = False
        self.has_word = False
        """Whether this rank is the one that speaks for all."""
        self.reads = False
        """Whether to look at what the others say; set by who needs it."""
        self.others: dict[int, dict[str, Any]] = {}
        """Rank -> what it said last."""
        self.is_over = False
        """Whether some rank has taken the word."""
        self.verdict: str | None = None
        """What that rank said."""
        self.answers = 0
        """How often the store has answered."""
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)
        self._thread.start()

    def say(self, notice: dict[str, Any]) -> None:
        """Put up `notice` in place of this rank's earlier one."""
        self._own = notice

    def take_word(self) -> bool:
        """Return whether this rank is the first to ask to speak for all; true if nobody answers."""
        self._wants_word = True
        self._wake.set()
        return self.has_word if self._answered.wait(ANSWER_S) else True

    def speak(self, verdict: str) -> None:
        """Give all others the verdict; in vain where the store is gone."""
        self.verdict = verdict
        self._wake.set()
        self._spoken.wait(ANSWER_S)

    def close(self) -> None:
        """Put up the last notice, and end the thread if the store answers."""
        self._is_closed = True
        self._wake.set()
        self._thread.join(ANSWER_S)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main's
        while True:
            closing = self._is_closed
            self._wake.clear()
            try:
                self._exchange()
            except RuntimeError as error:
                log.debug("the store: %s", error)
            if closing:
                return
            self._wake.wait(self._every_s)

    def _exchange(self) -> None:
        if self._own is not None:
            self._store.set(f"board/{self._rank}", json.dumps(self._own))
        if self._wants_word and not self._answered.is_set():
            won = self._store.compare_set("board/word", "", str(self._rank)).decode()
            self.has_word = won == str(self._rank)
            self._answered.set()
        if self.has_word and self.verdict is not None:
            self._store.set("board/verdict", self.verdict)
            self._spoken.set()
        self.is_over = self._store.check(["board/word"])
        if self.is_over and not self.has_word and self._store.check(["board/verdict"]):
            self.verdict = self._store.get("board/verdict").decode()
        if self.reads:
            # A key that nobody has set yet would be waited for.
            new = (r for r in self._others if r not in self._seen)
            self._seen |= {r for r in new if self._store.check([f"board/{r}"])}
            ranks = sorted(self._seen)
            if ranks:
                values = self._store.multi_get([f"board/{r}" for r in ranks])
                self.others = {r: json.loads(value) for r, value in zip(ranks, values, strict=True)}
        self.answers += 1
