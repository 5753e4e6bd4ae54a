"""Shard: one of several servers that hold the weights together. It does what the lead decides.

    replica's line   part of a push --> kept until the lead's entry names it --> core
                     "give 7"       --> what entry 7 answered to this replica  <-- core

A replica brings its parts to all shards before it speaks to the lead, so a push that the lead has
counted is whole: none dies with its replica half applied.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.entry import Entry, message_of
from llmtrain.sync.server.messages import Rejected, Replies, Reply, Weights
from llmtrain.sync.server.packing import pack
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.hub import Answers

PART, TAKEN, GIVE, GIVEN, GONE = "part", "taken", "give", "given", "gone"

Open = Callable[[Frame], ServerCore]
"""Builds the core from this shard's part of what the first replica gave."""


class ShardError(Exception):
    """A shard is not where the lead is: its weights can no longer be trusted."""


@dataclass(frozen=True)
class Shown:
    """What an entry left to be fetched, once."""

    stamp: int
    version: int
    tensors: Tensors
    plain: Any = None
    """The state without tensors, where it is a state."""

    def frame(self) -> Frame:
        """Return it as an answer."""
        return Frame(GIVEN, {"version": self.version, "core": self.plain}, self.tensors)


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
        """By replica: what it was answered last, until it is fetched."""
        self._shown: Shown | None = None
        """What was last shown to whoever comes, likewise."""

    def handle(self, worker: int, frame: Frame) -> Answers:
        """Keep a part, or give what an entry has left, as soon as it is there."""
        if frame.kind == PART:
            self._parts[worker] = frame
            return [(worker, Frame(TAKEN))]
        self._asked[worker] = frame.fields["stamp"]
        return self._due()

    def lost(self, worker: int) -> Answers:
        """Forget what a replica waited for. Its part stays: the lead may have counted it, and says
        when the replica has left."""
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
        if entry["kind"] == "bye":
            self._parts.pop(entry["said"]["worker"], None)
            self._answers.pop(entry["said"]["worker"], None)
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
        due = [worker for worker, stamp in self._asked.items() if stamp <= self._stamp]
        return [(worker, self._fetch(worker, self._asked.pop(worker))) for worker in due]

    def _fetch(self, worker: int, stamp: int) -> Frame:
        """Return what an entry has left for a replica, and keep it no longer: it may be large."""
        answer, shown = self._answers.get(worker), self._shown
        if answer is not None and answer.stamp == stamp:
            return self._answers.pop(worker).frame()
        if shown is not None and shown.stamp == stamp:
            self._shown = None
            return shown.frame()
        return Frame(GONE)  # it stood still, and the others have gone on without it


def _weights(reply: Reply) -> Weights | None:
    """Return the weights in a reply, if there are any."""
    if isinstance(reply, Rejected):
        return reply.fresh
    return reply if isinstance(reply, Weights) else None
