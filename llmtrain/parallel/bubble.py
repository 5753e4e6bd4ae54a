"""How much of a pipeline's time must be idle: what a schedule's own order of actions gives.

With p processes, v stages on each and m micro-batches, GPipe, 1F1B and Interleaved1F1B leave
(p-1) / (v m + p-1) of it (arXiv:2104.04473, section 2.2). Replaying the order of Interleaved1F1B
gives the same; for zero-bubble schedules, which have no such formula, it is the only way.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

COSTS = {"F": 1.0, "I": 1.0, "W": 1.0, "B": 2.0}
"""Time of a stage's forward, of its backward for the input, for the weights, and for both: a matrix
product each, as the sources above reckon."""


def textbook_bubble(pp: int, stages_per_rank: int, micro_batches: int) -> float:
    """Return (p-1) / (v m + p-1), the idle share of GPipe, 1F1B and Interleaved1F1B, 0-1."""
    return (pp - 1) / (stages_per_rank * micro_batches + pp - 1)


def replayed_bubble(order: Mapping[int, Sequence[Any]], n_stages: int) -> float:
    """Return the idle share of all processes' time, 0-1, with equal stages and free messages.

    Every process does its actions in its own order, each as soon as what it needs is there.

    Args:
        order: By rank of pp, torch's `_Action`s; None (an idle slot) is passed over.
        n_stages: Stages of the whole pipeline.

    Raises:
        ValueError: when some action's input is never made.
    """
    queues = {rank: list(_computations(actions)) for rank, actions in order.items()}
    clock = dict.fromkeys(queues, 0.0)
    busy = sum(COSTS[kind] for queue in queues.values() for kind, _, _ in queue)
    done: dict[tuple[str, int, int], float] = {}
    while left := sum(map(len, queues.values())):
        for rank, queue in queues.items():
            while queue and (ready := _ready(done, *queue[0], n_stages)) is not None:
                kind, stage, micro_batch = queue.pop(0)
                clock[rank] = max(clock[rank], ready) + COSTS[kind]
                done["I" if kind == "B" else kind, stage, micro_batch] = clock[rank]
        if left == sum(map(len, queues.values())):
            raise ValueError(f"no action of {queues} can ever run")
    return 1.0 - busy / (len(clock) * max(clock.values()))


def _computations(actions: Iterable[Any]) -> Iterator[tuple[str, int, int]]:
    """Yield (kind, stage, micro-batch) of what computes."""
    for action in actions:
        if action is None:
            continue
        for part in action.sub_actions or (action,):
            if part.computation_type.value in COSTS:
                yield part.computation_type.value, part.stage_index, part.microbatch_index


def _ready(
    done: Mapping[tuple[str, int, int], float], kind: str, stage: int, micro_batch: int, n: int
) -> float | None:
    """Return when an action's input is there; None: nothing has made it yet."""
    if kind == "F":
        return 0.0 if stage == 0 else done.get(("F", stage - 1, micro_batch))
    if kind == "W":
        return done.get(("I", stage, micro_batch))
    needs = ("F", stage, micro_batch) if stage == n - 1 else ("I", stage + 1, micro_batch)
    return done.get(needs)
