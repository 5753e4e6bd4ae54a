"""Cluster: W workers and a ServerCore in one process, on a virtual clock.

A heap holds what happens next; ties go in the order in which they were put there. What a worker
computes is computed when it pushes, from the weights it was given: real gradients, no threads, and
the same bits in every run. Every message is logged, without its payload; a cluster that is given
the log computes the payloads again and arrives at the same weights.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.messages import (
    Bye,
    Heartbeat,
    Hello,
    Message,
    Push,
    Rejected,
    Reply,
    Stop,
    Weights,
)
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.virtual.durations import Durations

Compute = Callable[[int, int, int, Tensors], Tensors]
"""Worker, its first step, how many steps, the weights to start from -> the payload of a push."""


@dataclass(frozen=True)
class Event:
    """Something that happened to the server. `kill` did not: nobody told it."""

    now: float
    kind: str
    """join, push, leave, heartbeat or tick; a schedule may say kill too."""
    worker: int = -1
    ticket: int | None = None
    """Of a push: its global number; None in a schedule."""
    base_version: int | None = None
    """Of a push: the version it was computed from; None in a schedule."""


@dataclass(kw_only=True)
class VirtualWorker:
    """What a worker knows between two messages."""

    worker: int
    incarnation: int = -1
    seq: int = 0
    step: int = 0
    granted: Weights | None = None
    """The weights it computes from; None while it waits."""
    running: bool = False


class Cluster:
    """Virtual workers around one server."""

    def __init__(
        self,
        core: ServerCore,
        compute: Compute,
        durations: Durations | None = None,
        *,
        schedule: Iterable[Event] = (),
        tokens_per_step: int = 1,
        tick_s: float | None = None,
    ) -> None:
        """Prepare; nothing happens before `run` or `replay`.

        Args:
            core: The server.
            compute: What workers compute.
            durations: How long they take; only `run` asks.
            schedule: Who joins, leaves or is killed, and when.
            tokens_per_step: Tokens in a worker's step.
            tick_s: Seconds between heartbeats of the living, each followed by a tick of the
                server; None is neither.
        """
        self.core, self.log = core, list[Event]()
        self.now = 0.0
        self._compute, self._durations = compute, durations
        self._tokens_per_step, self._tick_s = tokens_per_step, tick_s
        self.workers: dict[int, VirtualWorker] = {}
        self._heap: list[tuple[float, int, str, int, int]] = []
        self._put = 0
        for event in schedule:
            self._later(event.now, event.kind, event.worker)
        if tick_s is not None:
            self._later(tick_s, "tick", -1)

    def run(self, *, pushes: float = math.inf, until_s: float = math.inf) -> float:
        """Go on until nothing is left to happen, or for so many pushes, or until `until_s`.

        Returns:
            The time on the virtual clock.
        """
        while self._heap and pushes > 0 and self._heap[0][0] <= until_s:
            now, _, kind, number, incarnation = heapq.heappop(self._heap)
            worker = self.workers.setdefault(number, VirtualWorker(worker=number))
            if kind == "push" and (incarnation != worker.incarnation or not worker.running):
                continue  # it was killed meanwhile
            if kind == "tick" and not any(w.running for w in self.workers.values()):
                continue
            self.now = now
            pushes -= kind == "push"
            if kind == "kill":
                worker.running, worker.granted = False, None
            elif kind == "tick":
                self._tick()
            else:
                self._do(Event(now, kind, number))
        return self.now

    def replay(self, log: Sequence[Event]) -> None:
        """Send again what `log` says was sent, with payloads computed anew.

        Raises:
            ValueError: when a push is not due, or answers other weights than in the log.
        """
        for event in log:
            self.now = event.now
            self._do(event)

    def payload(self, worker: int) -> Tensors:
        """Return what `worker` would push now, from the weights it was given."""
        one = self.workers[worker]
        if one.granted is None:
            raise ValueError(f"worker {worker} waits for the server, and has nothing to push.")
        return self._compute(worker, one.step, one.granted.local_steps, one.granted.weights)

    def _tick(self) -> None:
        """Let the living say so, the server look, and the next tick come."""
        assert self._tick_s is not None
        for worker in sorted(self.workers):
            if self.workers[worker].running:
                self._do(Event(self.now, "heartbeat", worker))
        self._do(Event(self.now, "tick"))
        self._later(self.now + self._tick_s, "tick", -1)

    def _do(self, event: Event) -> None:
        """Let one event reach the server and its replies the workers, and log it."""
        if event.kind == "tick":
            self.log.append(Event(event.now, "tick"))
            replies = self.core.tick(event.now)
        else:
            message = self._message(event)
            base = message.base_version if isinstance(message, Push) else None
            if event.base_version not in (None, base):
                raise ValueError(f"{event} was computed from version {base} this time.")
            replies = self.core.handle(message, event.now)
            ticket = self.core.ticket if base is not None else None
            self.log.append(Event(event.now, event.kind, event.worker, ticket, base))
        for number, reply in replies:
            self._receive(self.workers[number], reply)

    def _message(self, event: Event) -> Message:
        """Return what the worker says, and note that it said it."""
        number = event.worker
        worker = self.workers.setdefault(number, VirtualWorker(worker=number))
        if event.kind == "join":
            worker.incarnation, worker.seq = worker.incarnation + 1, 0
            worker.running, worker.granted = True, None
            return Hello(worker=number, incarnation=worker.incarnation)
        if event.kind == "heartbeat":
            return Heartbeat(worker=number, incarnation=worker.incarnation)
        if event.kind == "leave":
            worker.running = False
            return Bye(worker=number, incarnation=worker.incarnation)
        payload = self.payload(number)
        assert worker.granted is not None
        steps = worker.granted.local_steps
        push = Push(
            worker=number,
            incarnation=worker.incarnation,
            seq=worker.seq + 1,
            base_version=worker.granted.version,
            local_steps=steps,
            tokens=steps * self._tokens_per_step,
            payload=payload,
        )
        worker.seq, worker.step, worker.granted = push.seq, worker.step + steps, None
        return push

    def _receive(self, worker: VirtualWorker, reply: Reply) -> None:
        """Go on with the weights of a reply; stop; or join again where membership was lost."""
        if not worker.running:
            return
        if isinstance(reply, Stop):
            worker.running = False
        elif isinstance(reply, Rejected) and reply.fresh is None:
            worker.granted = None
            self._later(self.now, "join", worker.worker)
        elif isinstance(reply, Weights | Rejected):
            worker.granted = reply if isinstance(reply, Weights) else reply.fresh
            self._begin(worker)

    def _begin(self, worker: VirtualWorker) -> None:
        """Put the push at the end of what the worker computes now into the heap."""
        if self._durations is None:
            return  # a replay: the log says when
        assert worker.granted is not None
        steps = range(worker.step, worker.step + worker.granted.local_steps)
        took = sum(self._durations(worker.worker, step) for step in steps)
        self._later(self.now + took, "push", worker.worker)

    def _later(self, at: float, kind: str, worker: int) -> None:
        """Put something into the heap; it is for the incarnation that the worker is in now."""
        self._put += 1
        known = self.workers.get(worker)
        incarnation = known.incarnation if known else -1
        heapq.heappush(self._heap, (at, self._put, kind, worker, incarnation))


def joins(workers: int, at: float = 0.0) -> list[Event]:
    """Return a schedule on which `workers` workers join at once."""
    return [Event(at, "join", worker) for worker in range(workers)]
