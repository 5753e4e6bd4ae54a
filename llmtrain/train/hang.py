"""A run that hangs: what its ranks know of themselves, whose fault it is, the report.

A rank waits in a collective for those of the group that have not joined it. Followed from rank to
rank, the waiting ends at one that waits for nobody: it is in no collective, or says nothing at all.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.distributed.pending import Traffic
from llmtrain.train.whereabouts import Place

MOST_NAMED = 3
"""Ranks at fault that the cause names; the report has them all."""


class HangError(Exception):
    """Nothing has moved for too long."""

    def __init__(self, cause: str, *, speaks: bool) -> None:
        """Set up the error.

        Args:
            cause: What happened, in one line.
            speaks: Whether this rank tells it for all.
        """
        super().__init__(cause)
        self.speaks = speaks


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a rank says of itself."""

    node: str
    pid: int
    looks: int
    """How often it has looked: a rank that is stopped, or dead, looks no more."""
    place: Place
    idle_s: float
    """For how long its main thread has not moved."""
    is_stuck: bool = False
    """Whether that is too long. Only then it says what follows."""
    has_left: bool = False
    """Whether it has nothing more to do with the others."""
    stack: tuple[str, ...] = ()
    """The calls of its main thread, innermost last."""
    waits_in: str = ""
    """What it waits in for others."""
    traffic: Traffic = field(default_factory=Traffic)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Standing":
        """Return what `to_json` gave, after its way through JSON."""
        return cls(
            **{
                **plain,
                "place": Place(**plain["place"]),
                "stack": tuple(plain["stack"]),
                "traffic": Traffic.from_json(plain["traffic"]),
            }
        )


@dataclass(frozen=True)
class Silence:
    """What is known of a rank that says nothing any more."""

    last: Standing | None
    """What it said last; None: it never said anything."""
    state: str = "no answer: it is stopped or dead, or its node is gone"
    """What the system says of its process, where that can be seen."""
    place: str = ""
    """Where its main thread was last."""
    stack: tuple[str, ...] = ()
    """Its calls, where they could be had all the same."""


@dataclass(frozen=True)
class Hang:
    """A run in which nothing moves."""

    standing: Mapping[int, Standing]
    """Of each rank that answers and has not left."""
    silent: Mapping[int, Silence]
    """Of each that does not."""
    limit: str
    """The limit that was passed, such as `train.hang_timeout_s=600`."""

    def at_fault(self) -> list[int]:
        """Return the ranks that the others wait for; none where all wait for each other."""
        if self.silent:
            return sorted(self.silent)
        free = [rank for rank, one in sorted(self.standing.items()) if not one.waits_in]
        if free:
            return [rank for rank in free if self._is_missed(rank)] or free
        # Those behind are the likelier cause: others wait for them at a later step.
        steps = {rank: one.place.step for rank, one in sorted(self.standing.items())}
        behind = [rank for rank, step in steps.items() if step == min(steps.values())]
        return behind if len(behind) < len(steps) else []

    def _is_missed(self, rank: int) -> bool:
        """Whether someone waits in a collective that `rank` belongs to and has not joined."""
        asked = self.standing[rank].traffic.asked
        waited = [p for one in self.standing.values() if one.waits_in for p in one.traffic.pending]
        return any(rank in p.ranks and asked.get(p.group, 0) < p.number for p in waited)

    def cause(self) -> str:
        """Return what happened, in one line."""
        guilty = self.at_fault()
        told = [self._fault(rank) for rank in guilty[:MOST_NAMED]]
        if len(guilty) > MOST_NAMED:
            told.append(f"{len(guilty) - MOST_NAMED} more ranks with them")
        if not guilty:
            told.append("no rank goes on, each waits for another")
        waits: dict[str, list[int]] = {}
        for rank in sorted(self.standing.keys() - guilty):
            one = self.standing[rank]
            waits.setdefault(one.waits_in or _innermost(one.stack), []).append(rank)
        told += [f"{_named(ranks)} in {where}" for where, ranks in waits.items()]
        return "; ".join(told)

    def _fault(self, rank: int) -> str:
        if rank in self.silent:
            last = self.silent[rank].last
            place = self.silent[rank].place or (last.place if last else "an unknown place")
            node = f" on {last.node}" if last else ""
            return f"rank {rank} hangs, last seen in {place}{node} ({self.silent[rank].state})"
        one = self.standing[rank]
        return f"rank {rank} hangs in {one.place}, in {one.waits_in or _innermost(one.stack)}"

    def report(self, run_dir: Path) -> str:
        """Return the report: the cause in its first line, those at fault, then all others."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        guilty = self.at_fault()
        lines = [
            self.cause(),
            "",
            f"{now}, {run_dir}: nothing moved for {self.limit}.",
            "Started again with the same run_dir, it goes on from its newest checkpoint.",
        ]
        for rank in guilty:
            lines += ["", *self._about(rank)]
        alike: dict[tuple[str, ...], list[int]] = {}
        for rank in sorted(self.standing.keys() - guilty):
            alike.setdefault((str(self.standing[rank].place), *self._doing(rank)), []).append(rank)
        for (place, *doing), ranks in alike.items():
            nodes = sorted({self.standing[rank].node for rank in ranks})
            lines += ["", f"{_named(ranks)}: {place}, on {', '.join(nodes)}", *doing]
        return "\n".join(lines) + "\n"

    def _about(self, rank: int) -> list[str]:
        silence = self.silent.get(rank)
        one = silence.last if silence else self.standing[rank]
        if one is None:
            return [f"rank {rank}: never seen"]
        on = f"on {one.node}, process {one.pid}"
        if silence:
            head = f"rank {rank}: last seen in {silence.place or one.place}, {on}"
            return [head, f"  {silence.state}", *_indented(silence.stack)]
        return [f"rank {rank}: {one.place}, {on}, for {one.idle_s:.1f} s", *self._doing(rank)]

    def _doing(self, rank: int) -> list[str]:
        one = self.standing[rank]
        waits = f"waits in {one.waits_in}" if one.waits_in else "is in no collective"
        return [f"  {waits}; its calls, innermost last:", *_indented(one.stack)]


def _named(ranks: Iterable[int]) -> str:
    """Return "rank 3" or "ranks 0-2, 5"."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank {text}" if text.isdigit() else f"ranks {text}"


def _innermost(stack: Sequence[str]) -> str:
    """Return the place of the innermost call, and of ours that led there, in one line."""
    places = [call.splitlines()[0] for call in stack]
    ours = next((place for place in reversed(places) if place.startswith("llmtrain/")), "")
    if not places:
        return "an unknown place"
    return places[-1] if ours in ("", places[-1]) else f"{places[-1]}, called by {ours}"


def _indented(stack: Sequence[str]) -> list[str]:
    return [f"    {line}" for call in stack for line in call.splitlines()]
