"""Members: who works, how far, and on which weights."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from llmtrain.sync.server.messages import Hello
from llmtrain.sync.server.rules import State
from llmtrain.sync.server.tensors import Tensors, clone

ROUNDING = 1e-9
"""Kept out of the floor: two thirds of the top speed of 3 steps are 2 steps."""

TENSORS = ("base", "answer")
"""The fields of a member that are tensors by name, or None."""


@dataclass(kw_only=True)
class Counts:
    """What a worker did, in all its incarnations."""

    pushes: int = 0
    """Those that counted."""
    tokens: int = 0
    """Of the pushes that counted."""
    wasted_tokens: int = 0
    """Of the others."""
    steps: int = 0
    """Local steps of all pushes: where its data goes on, whoever computes next."""
    duplicates: int = 0
    wait_s: float = 0.0
    staleness: dict[int, int] = field(default_factory=dict)
    """Versions behind -> pushes that were."""

    def count(self, tokens: int, behind: int) -> None:
        """Note a push that counts."""
        self.pushes += 1
        self.tokens += tokens
        self.staleness[behind] = self.staleness.get(behind, 0) + 1


@dataclass(kw_only=True)
class Member:
    """One worker, in its latest incarnation."""

    worker: int
    incarnation: int = -1
    live: bool = False
    clock: int = 0
    """Pushes that counted, or what a late joiner was credited with."""
    seq: int = 0
    """The last push seen."""
    ticket: int = 0
    """Its global number."""
    heard_s: float = 0.0
    granted_s: float | None = None
    """When the last permission to compute went out."""
    waiting_since_s: float | None = None
    """When a request came that is not answered yet."""
    rejection: str | None = None
    """Why its push did not count, until it is told."""
    speed: float | None = None
    """Local steps a second, from the last answer to the last push."""
    counts: Counts = field(default_factory=Counts)
    base: Tensors | None = field(default=None, repr=False)
    """The weights it was given last, where the gradient's compensation needs them."""
    answer: Tensors | None = field(default=None, repr=False)
    """What it goes on from, where that is not the weights."""

    def wait(self, now: float) -> None:
        """Note that it asks for permission to compute, which it may ask for twice."""
        if self.waiting_since_s is None:
            self.waiting_since_s = now

    def end_wait(self, now: float) -> None:
        """Note that it was answered."""
        if self.waiting_since_s is not None:
            self.counts.wait_s += now - self.waiting_since_s
        self.waiting_since_s, self.rejection, self.answer = None, None, None

    def measure(self, local_steps: int, now: float) -> None:
        """Note how fast it was since its last answer; waiting for the others is not its time."""
        if self.granted_s is not None and now > self.granted_s:
            self.speed = local_steps / (now - self.granted_s)


class Members:
    """Everyone who ever joined, by worker number."""

    def __init__(self) -> None:
        self._members: dict[int, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        """Yield all of them, the dead too, by worker number."""
        return iter([self._members[worker] for worker in sorted(self._members)])

    def live(self) -> list[Member]:
        """Return the living, by worker number."""
        return [member for member in self if member.live]

    def find(self, worker: int, incarnation: int) -> Member | None:
        """Return the member if it lives in just this incarnation."""
        member = self._members.get(worker)
        known = member is not None and member.live and member.incarnation == incarnation
        return member if known else None

    def slowest_clock(self) -> int:
        """Return the least clock of the living; of all, where nobody lives."""
        return min((member.clock for member in self.live() or self), default=0)

    def join(self, hello: Hello, now: float) -> Member | None:
        """Let a worker in at the slowest clock, so that it neither waits nor is waited for.

        Returns:
            The member, asking for its first weights; None where this incarnation is over, by death
            or by a later one.
        """
        member = self._members.get(hello.worker, Member(worker=hello.worker))
        ended = hello.incarnation == member.incarnation and not member.live
        if hello.incarnation < member.incarnation or ended:
            return None
        if hello.incarnation > member.incarnation:
            member.live = False
            member = Member(
                worker=hello.worker,
                incarnation=hello.incarnation,
                live=True,
                clock=self.slowest_clock(),
                counts=member.counts,
            )
            self._members[hello.worker] = member
        member.heard_s = now
        member.wait(now)
        return member

    def leave(self, member: Member) -> None:
        """Let nobody wait for it any more."""
        member.live = False
        member.waiting_since_s, member.rejection = None, None
        member.base, member.answer = None, None

    def expire(self, dead_after_s: float, now: float) -> None:
        """Count as dead whoever has been silent for longer than `dead_after_s`."""
        for member in self.live():
            if now - member.heard_s > dead_after_s:
                self.leave(member)

    def local_steps(self, member: Member, most: int) -> int:
        """Return max(1, floor(most * speed / top speed)) (DyLU, arXiv:2401.09135, section 5)."""
        speeds = [other.speed for other in self.live() if other.speed is not None]
        if member.speed is None:
            return most
        return max(1, math.floor(most * (member.speed / max(speeds)) + ROUNDING))

    def state_dict(self) -> State:
        """Return all there is about everyone."""
        return {"members": [_state_of(member) for member in self]}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self._members = {}
        for saved in state["members"]:
            values = {**saved, "counts": Counts(**saved["counts"])}
            values["counts"].staleness = dict(saved["counts"]["staleness"])
            for name in TENSORS:
                values[name] = None if saved[name] is None else clone(saved[name])
            self._members[saved["worker"]] = Member(**values)


def _state_of(member: Member) -> State:
    """Return a member as plain values; JSON has no integers for keys, so pairs stand for them."""
    state: State = {f.name: getattr(member, f.name) for f in fields(member)}
    pairs = [[behind, pushes] for behind, pushes in sorted(member.counts.staleness.items())]
    state["counts"] = {**vars(member.counts), "staleness": pairs}
    for name in TENSORS:
        state[name] = None if state[name] is None else clone(state[name])
    return state
