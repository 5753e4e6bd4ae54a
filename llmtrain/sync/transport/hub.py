"""Hub: the server's end of all lines. It puts a replica's words together and hands out answers.

    places of a replica --\\                                     /--> places of a replica
                           >-- frames --> desk --> frames --<
    places of others   ---/         (one lock)                  \\--> places of others

A replica of several processes speaks when all of them have: each pushes its own shards, so what the
desk sees is one push of the whole, and all of them are answered from one version of the weights.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmtrain.sync.server.packing import joined, place_of
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.transport.frame import Frame, FrameError
from llmtrain.sync.transport.session import LostLineError, Session

log = logging.getLogger(__name__)

STATES = {"server", "rule"}
"""Fields that hold a state of which each place knows its parameters' part."""

Answers = Sequence[tuple[int, Frame]]
"""Replica and what it is told."""


class Desk(Protocol):
    """Who decides what replicas are told. Called by one thread at a time."""

    def handle(self, worker: int, frame: Frame) -> Answers:
        """Take in what a replica says; its tensors are named "place/name"."""

    def lost(self, worker: int) -> Answers:
        """Take note that a replica's line has broken."""


@dataclass
class _Line:
    """A session and what waits to be sent on it."""

    session: Session
    restart: int
    box: "queue.Queue[Frame | None]"


class Hub:
    """All lines of one server."""

    def __init__(self, desk: Desk, places: int) -> None:
        """Set up the hub.

        Args:
            desk: Who answers.
            places: Processes of a replica.
        """
        self._desk, self._places = desk, places
        self._lock = threading.Lock()
        self._lines: dict[tuple[int, int], _Line] = {}
        """By replica and place."""
        self._spoken: dict[int, dict[int, Frame]] = {}
        """By replica and place: what waits for the other places' words."""
        self._asking: set[int] = set()
        """Replicas that have asked and are not answered yet."""
        self.error: BaseException | None = None
        """What went wrong at the desk, which ends the server."""

    def serve(self, worker: int, place: int, restart: int, session: Session) -> None:
        """Answer a line until it ends. Its thread's function."""
        line = self._admit(worker, place, restart, session)
        if line is None:
            return
        try:
            while True:
                self._take(worker, place, line, session.receive())
                answer = line.box.get()
                if answer is None:
                    return
                session.send(answer)
                if answer.kind == "stop":
                    break
        except (LostLineError, FrameError) as error:
            log.info("replica %d, place %d: %s", worker, place, error)
        except BaseException as error:
            log.exception("the server failed")
            self.error = error
        with self._lock:
            self._drop(worker, line)

    def act(self, action: Callable[[], Answers]) -> None:
        """Have the desk do what no replica has asked for; `action` is not to wait."""
        with self._lock:
            self._deliver(action())

    @property
    def lines(self) -> int:
        """How many lines are open."""
        with self._lock:
            return len(self._lines)

    def _admit(self, worker: int, place: int, restart: int, session: Session) -> _Line | None:
        """Take a line in; those of earlier lives of the replica end."""
        line = _Line(session, restart, queue.Queue())
        with self._lock:
            for (other, _), old in list(self._lines.items()):
                if other == worker and old.restart < restart:
                    self._drop(worker, old)
            if any(w == worker and old.restart > restart for (w, _), old in self._lines.items()):
                return None
            self._lines[worker, place] = line
        return line

    def _take(self, worker: int, place: int, line: _Line, frame: Frame) -> None:
        """Take what one place says; when all have spoken, ask the desk."""
        with self._lock:
            if self._lines.get((worker, place)) is not line:
                line.box.put(None)
                return
            spoken = self._spoken.setdefault(worker, {})
            spoken[place] = frame
            if len(spoken) < self._places:
                return
            del self._spoken[worker]
            kinds = {one.kind for one in spoken.values()}
            if len(kinds) > 1:
                raise FrameError(f"places of replica {worker} say different things: {kinds}")
            self._asking.add(worker)
            self._deliver(self._desk.handle(worker, _joined(spoken)))

    def _deliver(self, answers: Answers) -> None:
        """Put answers into the boxes of those who asked."""
        for worker, frame in answers:
            if worker not in self._asking:
                continue
            self._asking.discard(worker)
            parts = _parted(frame, self._places)
            for place, part in enumerate(parts):
                line = self._lines.get((worker, place))
                if line is not None:
                    line.box.put(part)

    def _drop(self, worker: int, line: _Line) -> None:
        """End all lines of a replica of which one has broken."""
        mine = [key for key in self._lines if key[0] == worker]
        if not any(self._lines[key] is line for key in mine):
            return
        for key in mine:
            self._lines.pop(key).box.put(None)
        self._spoken.pop(worker, None)
        self._asking.discard(worker)
        self._deliver(self._desk.lost(worker))


def _joined(spoken: dict[int, Frame]) -> Frame:
    """Return the words of all places as one frame: place 0's, with everyone's part of a state and
    everyone's tensors."""
    tensors: Tensors = {}
    for place in sorted(spoken):
        tensors |= spoken[place].tensors
    fields = dict(spoken[0].fields)
    for key in STATES & fields.keys():
        fields[key] = joined([spoken[place].fields[key] for place in sorted(spoken)])
    return Frame(spoken[0].kind, fields, tensors)


def _parted(frame: Frame, places: int) -> list[Frame]:
    """Return what each place is sent of `frame`."""
    parts: list[Tensors] = [{} for _ in range(places)]
    for name, tensor in frame.tensors.items():
        parts[place_of(name)][name] = tensor
    return [Frame(frame.kind, frame.fields, part) for part in parts]
