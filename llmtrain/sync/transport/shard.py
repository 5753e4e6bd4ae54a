"""Shard: one of several servers that hold the weights together. It does what the lead decides.

    replica's line   part of a push --> kept until the lead's entry names it --> core
                     "give 7"       --> what entry 7 answered to this replica  <-- core

A replica brings its parts to all shards before it speaks to the lead, so a push that the lead has
counted is whole: none dies with its replica half applied.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.entry import Entry, message_of
from llmtrain.sync.server.messages import Rejected, Replies, Reply, Weights
from llmtrain.sync.server.packing import pack
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.hub import Answers

PART, TAKEN, GIVE, GIVEN = "part", "taken", "give", "given"

Open = Callable[[Frame], ServerCore]
"""Builds the core from this shard's part of what the first replica gave."""


class ShardError(Exception):
    """A shard is not where the lead is: its weights can no longer be trusted."""


@dataclass(frozen=True)
class Shown:
    """What an entry left to be fetched."""

    stamp: int
    version: int
    tensors: Tensors
    plain: Any = None
    """The state without tensors, where it is a state."""


class Shard:
    """The desk of one shard."""

    def __init__(self, opening: Open) -> None:
        """Wait for the first entry."""
        self._opening = opening
        self._core: ServerCore | None = None
        self._stamp = 0
        self._parts: dict[int, Frame] = {}
        """By replica: what it brought last."""
        self._asked: dict[int, int] = {}
        """Replicas that wait for what an entry leaves them, and its stamp."""
        self._answers: dict[int, Shown] = {}
        """By replica: what it was answered last."""
        self._shown: Shown | None = None
        """What was last shown to whoever comes."""

    def handle(self, worker: int, frame: Frame) -> Answers:
        """Keep a part, or give what an entry has left, as soon as it is there."""
        if frame.kind == PART:
            self._parts[worker] = frame
            return [(worker, Frame(TAKEN))]
        self._asked[worker] = frame.fields["stamp"]
        return self._due()

    def lost(self, worker: int) -> Answers:
        """Forget what a replica waited for. Its part stays: the lead may have counted it."""
        self._asked.pop(worker, None)
        return []

    def follow(self, entry: Entry) -> Answers:
        """Do what the lead did.

        Raises:
            ShardError: when that leads elsewhere.
        """
        if entry["stamp"] != self._stamp + 1:
            raise ShardError(f"entry {entry['stamp']} came after entry {self._stamp}")
        self._stamp = entry["stamp"]
        if entry["kind"] == "open":
            self._core = self._opening(self._parts.pop(0))
        if self._core is None:
            raise ShardError(f"{entry} came before the weights")
        replies = self._replies(self._core, entry)
        reached = [self._core.version, self._core.ticket]
        if reached != entry["after"]:
            raise ShardError(f"this shard is at version and ticket {reached} after {entry}")
        for worker, reply in replies:
            if weights := _weights(reply):
                shown = Shown(self._stamp, weights.version, weights.weights)
                self._answers[worker] = shown
        return self._due()

    def _replies(self, core: ServerCore, entry: Entry) -> Replies:
        kind = entry["kind"]
        if kind == "tick":
            return core.tick(entry["now"], entry["alive"])
        if kind == "rest":
            core.plan_rest(entry["at_tokens"], stopping=entry["stopping"])
        elif kind == "show":
            plain, tensors = pack(core.show_state()) if entry["state"] else (None, {})
            tensors = tensors if entry["state"] else core.show_weights()
            self._shown = Shown(self._stamp, core.version, tensors, plain)
        elif kind != "open":
            message = message_of(entry, self._payload(entry) if kind == "push" else {})
            return core.handle(message, entry["now"])
        return []

    def _payload(self, entry: Entry) -> Tensors:
        """Return the tensors of a push."""
        said = entry["said"]
        part = self._parts.pop(said["worker"], None)
        if part is None or any(part.fields[k] != said[k] for k in ("incarnation", "seq")):
            raise ShardError(f"this shard has no part of {entry}")
        return part.tensors

    def _due(self) -> Answers:
        """Return the answers to all who wait for what is there."""
        found = {worker: self._find(worker, stamp) for worker, stamp in self._asked.items()}
        given = {worker: shown for worker, shown in found.items() if shown is not None}
        for worker in given:
            del self._asked[worker]
        return [
            (worker, Frame(GIVEN, {"version": s.version, "core": s.plain}, s.tensors))
            for worker, s in given.items()
        ]

    def _find(self, worker: int, stamp: int) -> Shown | None:
        candidates: Collection[Shown | None] = (self._answers.get(worker), self._shown)
        return next((s for s in candidates if s is not None and s.stamp == stamp), None)


def _weights(reply: Reply) -> Weights | None:
    """Return the weights in a reply, if there are any."""
    if isinstance(reply, Rejected):
        return reply.fresh
    return reply if isinstance(reply, Weights) else None
