"""What the ranks' traces say: the time each computed, communicated, idled; a pipeline's bubble.

Read from the Chrome traces that torch.profiler writes, so that they can be judged later too. On a
GPU what counts is what ran on it (kernels), on a CPU the operators.
"""

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.parallel.pipeline import SPAN

Interval = tuple[float, float]
"""Begin and end, in seconds since 1970."""

STEP = "step "
"""What the name of a training step begins with; its number follows."""

_ACTION = re.compile(rf"{SPAN}(\d+)([FBIW])(\d+)$")
_COMMUNICATES = re.compile(r"gloo:(?!send|recv)|nccl(?!.*SendRecv)|_c10d_functional::wait_tensor")
"""Collectives. Of a message between stages nobody knows how much of it is waiting: it is idle time
on the side that waits."""


@dataclass(frozen=True)
class Action:
    """A computation of a pipeline: `kind` is F, B, I or W, or L for the loss."""

    kind: str
    stage: int
    micro_batch: int
    at: Interval


@dataclass(frozen=True)
class StepTimeline:
    """One step of one rank."""

    rank: int
    step: int
    at: Interval
    compute: Sequence[Interval]
    communication: Sequence[Interval]
    """Only what no computation hides."""
    actions: Sequence[Action]

    def seconds(self) -> dict[str, float]:
        """Return wall_s and its parts: compute_s, communication_s and idle_s, the rest."""
        wall, compute = self.at[1] - self.at[0], _length(self.compute)
        communication = _length(self.communication)
        return {
            "wall_s": wall,
            "compute_s": compute,
            "communication_s": communication,
            "idle_s": wall - compute - communication,
        }


def read_trace(path: Path) -> list[StepTimeline]:
    """Return the steps in a rank's Chrome trace, `rank_N.json.gz`."""
    with gzip.open(path, "rt") as stream:
        trace = json.load(stream)
    rank = int(path.name.split(".")[0].removeprefix("rank_"))
    base = trace.get("baseTimeNanoseconds", 0) * 1e-9
    # Names of spans by a GPU's clock are told apart from those by the CPU's, and win.
    events = [e for e in trace["traceEvents"] if e.get("ph") == "X"]
    on_gpu = any(e["cat"] == "kernel" for e in events)
    spans = "gpu_user_annotation" if on_gpu else "user_annotation"
    compute = _joined(_at(e, base) for e in events if _computes(e, on_gpu))
    collectives = _joined(_at(e, base) for e in events if _communicates(e, on_gpu))
    if not on_gpu:  # an operator that waits inside for its input is not computing meanwhile
        waits = _joined(_at(e, base) for e in events if e["name"].endswith("::wait_tensor"))
        compute = _without(compute, waits)
    exposed = _without(collectives, compute)
    actions = [a for e in events if e["cat"] == spans for a in _action(e, base)]
    return [
        StepTimeline(
            rank, int(e["name"].removeprefix(STEP)), at,
            _within(compute, at), _within(exposed, at),
            [a for a in actions if at[0] <= a.at[0] < at[1]],
        )
        for e in events
        if e["cat"] == "user_annotation" and e["name"].startswith(STEP)
        for at in [_at(e, base)]
    ]  # fmt: skip


@dataclass(frozen=True)
class Bubble:
    """What a pipeline's ranks wait, as shares of the time from its first computation to its last.

    The optimizer and the loading of data are outside, as the textbooks have it.
    """

    waiting: float
    """Of the busiest rank, 0-1: what the schedule costs. Theory speaks of it."""
    imbalance: float
    """What the others wait beside that on the average, since their stages take less time."""


def measured_bubble(steps: Iterable[StepTimeline]) -> Bubble:
    """Return the bubble of one step, given of all ranks of one pipeline."""
    spans = [[action.at for action in step.actions] for step in steps]
    begin = min(a for own in spans for a, _ in own)
    end = max(b for own in spans for _, b in own)
    busy = [_length(_joined(own)) / (end - begin) for own in spans]
    return Bubble(1.0 - max(busy), max(busy) - sum(busy) / len(busy))


def _at(event: dict[str, Any], base: float) -> Interval:
    begin = base + event["ts"] * 1e-6
    return begin, begin + event["dur"] * 1e-6


def _computes(event: dict[str, Any], on_gpu: bool) -> bool:
    if on_gpu:
        return bool(event["cat"] == "kernel") and not event["name"].startswith("nccl")
    compiled = "CompiledFxGraph" in event["name"]
    return compiled or (event["cat"] == "cpu_op" and event["name"].startswith("aten::"))


def _communicates(event: dict[str, Any], on_gpu: bool) -> bool:
    # On a GPU a collective's span on the CPU is its launch, but for gloo's, which the CPU does.
    is_launch = on_gpu and event["cat"] != "kernel" and not event["name"].startswith("gloo:")
    return not is_launch and bool(_COMMUNICATES.match(event["name"]))


def _action(event: dict[str, Any], base: float) -> Iterable[Action]:
    """Yield the computation of a pipeline that a span is, if it is one."""
    if match := _ACTION.match(event["name"]):
        yield Action(match[2], int(match[1]), int(match[3]), _at(event, base))
    elif event["name"] == f"{SPAN}loss":
        yield Action("L", -1, -1, _at(event, base))


def _joined(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union, in order."""
    union: list[Interval] = []
    for begin, end in sorted(intervals):
        if union and begin <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((begin, end))
    return union


def _without(intervals: Sequence[Interval], holes: Sequence[Interval]) -> list[Interval]:
    """Return what of `intervals` no hole covers; both are unions."""
    left: list[Interval] = []
    first = 0
    for begin, end in intervals:
        while first < len(holes) and holes[first][1] <= begin:
            first += 1
        for hole in holes[first:]:
            if hole[0] >= end:
                break
            if hole[0] > begin:
                left.append((begin, hole[0]))
            begin = max(begin, hole[1])
        if begin < end:
            left.append((begin, end))
    return left


def _within(intervals: Iterable[Interval], at: Interval) -> list[Interval]:
    clipped = ((max(a, at[0]), min(b, at[1])) for a, b in intervals)
    return [(a, b) for a, b in clipped if a < b]


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)
