"""Session: a line between one process of a replica and the server, over gloo.

Each is a process group of two with a rendezvous of its own. gloo closes all pairs of a group when
one fails or times out, so a group of all processes could not lose one and live; here a line that
breaks leaves the others alone. A new incarnation of a replica opens new lines; none is used again.

gloo's send waits for the receiver, and its receive cannot be polled: an end waits in a thread.
torch.distributed.rpc is in maintenance and unpickles what it is sent, so it is not used.
"""

import dataclasses
import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from llmtrain.sync.transport.frame import HEADER, Frame, decode, encode, sizes

LONGEST_SILENCE = datetime.timedelta(days=7)
"""A line may be silent while others prepare data, evaluate, or are waited for. A dead end is told
by its socket, a stuck one by its missing signs of life, none of them by a timeout."""
CONNECT = datetime.timedelta(minutes=5)
"""How long an end waits for the other to come: that one may have died since it knocked."""
GLANCE = datetime.timedelta(seconds=0.2)
"""How long the door is watched at a time."""


@dataclass(frozen=True)
class Caller:
    """Who is at the other end."""

    worker: int
    """Replica."""
    place: int
    """Rank inside it."""
    restart: int
    """How often the replica has been started again in this start of the run."""


class LostLineError(Exception):
    """The other end is gone."""


class Session:
    """One end of a line."""

    def __init__(self, store: dist.Store, name: str, *, answers: bool) -> None:
        """Connect; returns when both ends have.

        Args:
            store: The rendezvous store; who else waits on this connection to it waits meanwhile.
            name: Of the line, the same at both ends and never used before.
            answers: Whether this is the server's end.

        Raises:
            LostLineError: when the other end does not come within `CONNECT`.
        """
        self.sent_bytes = 0
        """Bytes sent so far."""
        self.received_bytes = 0
        """Bytes received so far."""
        self._told = 0
        self._peer = 1 if answers else 0
        try:
            self._group: Any = dist.ProcessGroupGloo(
                dist.PrefixStore(name, store), 1 - self._peer, 2, CONNECT
            )
        except RuntimeError as error:
            raise LostLineError(str(error)) from error

    def ask(self, frame: Frame) -> Frame:
        """Say `frame` and return the answer, however long it takes.

        Raises:
            LostLineError: when the other end is gone.
            FrameError: when it does not speak this protocol.
        """
        self.send(frame)
        return self.receive()

    def traffic(self) -> int:
        """Return the bytes that went both ways since it was last asked."""
        now = self.sent_bytes + self.received_bytes
        since, self._told = now - self._told, now
        return since

    def send(self, frame: Frame) -> None:
        """Send `frame`; returns when the other end has taken it.

        Raises:
            LostLineError: when the other end is gone.
        """
        try:
            for part in encode(frame):
                if part.numel():
                    self._group.send([part], self._peer, 0).wait(LONGEST_SILENCE)
                    self.sent_bytes += part.numel() * part.element_size()
        except RuntimeError as error:
            raise LostLineError(str(error)) from error

    def receive(self) -> Frame:
        """Wait for a frame.

        Raises:
            LostLineError: when the other end is gone.
            FrameError: when it does not speak this protocol.
        """
        header = torch.empty(HEADER, dtype=torch.int64)
        try:
            self._group.recv([header], self._peer, 0).wait(LONGEST_SILENCE)
            parts = [torch.empty(size, dtype=torch.uint8) for size in sizes(header)]
            for part in parts:
                if part.numel():
                    self._group.recv([part], self._peer, 0).wait(LONGEST_SILENCE)
            self.received_bytes += sum(p.numel() * p.element_size() for p in (header, *parts))
        except RuntimeError as error:
            raise LostLineError(str(error)) from error
        return decode(*parts)


def call(store: dist.Store, caller: Caller, server: int = 0) -> Session:
    """Knock at a server's door and return the line to it."""
    number = store.add(f"door/{server}/knocks", 1)
    store.set(f"door/{server}/{number}", json.dumps(dataclasses.asdict(caller)))
    return Session(store, f"line/{server}/{number}", answers=False)


def knocks(store: dist.Store, server: int = 0) -> Iterator[tuple[Caller, str] | None]:
    """Yield who knocks at a server's door with the name of the line to be; None now and then while
    nobody does."""
    number = 1
    while True:
        try:
            store.wait([f"door/{server}/{number}"], GLANCE)
        except dist.DistStoreError:
            yield None
            continue
        caller = Caller(**json.loads(store.get(f"door/{server}/{number}")))
        yield caller, f"line/{server}/{number}"
        number += 1
