"""Rest: what is done while every replica has pushed and none computes.

    all at rest -> the lead evaluates, if due -> all write their parts, if due -> the lead commits
                -> all go on, or are told that training is over

Only then is there one moment of the whole run to save: nothing is in flight. The lead is the living
replica with the lowest number; when one dies meanwhile, the others do without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.transport.frame import Frame
from llmtrain.sync.transport.hub import Answers

EVALUATE, WRITE, COMMIT = "evaluate", "write", "commit"


@dataclass
class Rest:
    """One rest."""

    step: int
    """Steps' worth of tokens in the weights."""
    evaluates: bool
    saves: bool
    """Whether a checkpoint is due whatever an evaluation says."""
    weights: Callable[[], tuple[Tensors, dict[str, Any]]]
    """The weights, by place and parameter, and what to say with them."""
    state: Callable[[], tuple[Tensors, dict[str, Any]]]
    """The server's state, packed: its tensors, and what to say with them."""
    evaluated: Callable[[dict[str, Any]], bool]
    """Takes note of an evaluation; returns whether these weights are to be saved for it."""
    description: Callable[[], dict[str, Any]]
    """What the manifest is to say."""
    present: set[int]
    """Replicas at rest."""
    phase: str = ""
    """evaluate | write | commit; "": over."""
    _orders: dict[int, Frame] = field(default_factory=dict)
    """What each replica is to do in this phase."""
    _free: set[int] = field(default_factory=set)
    """Replicas that wait for an order."""
    _number: int = 0
    """Of the phase; what is reported of an earlier one is out of date."""

    def begin(self) -> Answers:
        """Give the first orders."""
        self._free = set(self.present)
        if self.evaluates:
            return self._enter(EVALUATE)
        return self._enter(WRITE if self.saves else "")

    def done(self, worker: int, report: dict[str, Any]) -> Answers:
        """Take note that a replica has done as it was told."""
        self._free.add(worker)
        if report["number"] != self._number:
            return self._hand_out()
        self._orders.pop(worker, None)
        if self.phase == EVALUATE:
            self.saves |= self.evaluated(report)
        return self._advance()

    def lost(self, worker: int) -> Answers:
        """Do without a replica: what was the lead's task is its successor's."""
        was_lead = worker == min(self.present, default=-1)
        self.present.discard(worker)
        self._free.discard(worker)
        self._orders.pop(worker, None)
        if not self.present:
            self.phase = ""
            return []
        if was_lead and self.phase:
            return self._enter(EVALUATE if self.phase == EVALUATE else WRITE)
        return self._advance()

    def _advance(self) -> Answers:
        if self._orders or not self.phase:
            return []
        after = {EVALUATE: WRITE if self.saves else "", WRITE: COMMIT, COMMIT: ""}
        return self._enter(after[self.phase])

    def _enter(self, phase: str) -> Answers:
        self.phase, self._number = phase, self._number + 1
        lead = min(self.present)
        fields: dict[str, Any] = {"what": phase, "number": self._number, "step": self.step}
        if phase == EVALUATE:
            tensors, said = self.weights()
            self._orders = {lead: Frame("order", {**fields, **said}, tensors)}
        elif phase == WRITE:
            tensors, said = self.state()
            own = {**fields, "lead": True, **said}
            self._orders = {w: Frame("order", {**fields, "lead": False}) for w in self.present}
            self._orders[lead] = Frame("order", own, tensors)
        elif phase == COMMIT:
            said = {**fields, "parts": sorted(self.present), **self.description()}
            self._orders = {lead: Frame("order", said)}
        else:
            self._orders = {}
        return self._hand_out()

    def _hand_out(self) -> Sequence[tuple[int, Frame]]:
        """Give orders to those who wait for one."""
        given = [
            (worker, self._orders[worker]) for worker in sorted(self._free & set(self._orders))
        ]
        self._free -= {worker for worker, _ in given}
        return given
