"""Where a pipeline is cut: which blocks each stage holds. Integers and costs only.

A layer more or less decides a stage's time, and the slowest stage decides the pipeline's.
`uniform_cut` gives every stage as many blocks as the next, the last ones one fewer where it does
not come out even. The others minimise the largest cost of a stage: `equal_blocks_cut` of blocks
that are all alike, with room for some in every process, `balanced_cut` of parts that are not.
"""

import itertools
from collections.abc import Callable, Sequence

from llmtrain.errors import require


def uniform_cut(n_layers: int, n_stages: int) -> list[range]:
    """Return the blocks of each stage, as equal in number as can be.

    Raises:
        ConfigError: there are more stages than blocks.
    """
    _check(n_layers, n_stages)
    base, extra = divmod(n_layers, n_stages)
    starts = [stage * base + min(stage, extra) for stage in range(n_stages + 1)]
    return [range(a, b) for a, b in itertools.pairwise(starts)]


def fill(
    n_blocks: int,
    least: Sequence[int],
    cost: Callable[[int, int], float],
    *,
    group: Sequence[int],
    room: Sequence[int],
) -> list[int] | None:
    """Return how many equal blocks go to each place, so that the largest cost is least.

    One block after the other goes where the cost is then least, of equal places to the last. That
    is optimal: what can be chosen within the groups' room is a partition matroid.

    Args:
        n_blocks: How many.
        least: How many each place gets first.
        cost: Of a place with a number of blocks; grows with the number.
        group: The group that each place belongs to.
        room: How many blocks the places of each group may hold together.

    Returns:
        The numbers; None where there is no room for all.
    """
    counts, left = list(least), list(room)
    for place, number in enumerate(counts):
        left[group[place]] -= number
    for _ in range(n_blocks - sum(counts)):
        places = [place for place in range(len(counts)) if left[group[place]] > 0]
        if not places:
            return None
        place = min(places, key=lambda place: (cost(place, counts[place] + 1), -place))
        counts[place] += 1
        left[group[place]] -= 1
    return counts if min(left) >= 0 else None


def equal_blocks_cut(
    n_layers: int, *, block: float, last: float, process_of: Sequence[int], room: Sequence[int]
) -> list[range] | None:
    """Return the blocks of each stage so that the largest cost of a stage is least.

    Args:
        n_layers: How many blocks, all alike.
        block: The cost of one, in any unit.
        last: What the last stage does beside its blocks (norm, head and loss), in the same unit.
        process_of: The process that holds each stage.
        room: How many blocks fit into each process.

    Returns:
        The cut; None where the blocks do not fit.

    Raises:
        ConfigError: there are more stages than blocks.
    """
    n_stages = len(process_of)
    _check(n_layers, n_stages)
    extra = [0.0] * (n_stages - 1) + [last]
    counts = fill(
        n_layers, [1] * n_stages, lambda stage, n: n * block + extra[stage],
        group=process_of, room=room,
    )  # fmt: skip
    if counts is None:
        return None
    ends = itertools.accumulate(counts)
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


def balanced_cut(costs: Sequence[float], n_stages: int) -> list[range]:
    """Return the parts of each stage so that the largest cost of a stage is least.

    Dynamic programming over (parts placed, stages used): exact, O(L^2 S). Of equal cuts, the one
    whose later stages are fuller is taken.

    Args:
        costs: Of each part, embedding and head among them, in any unit.
        n_stages: How many stages; each gets a part at least.

    Raises:
        ConfigError: there are more stages than blocks.
    """
    n_layers = len(costs)
    _check(n_layers, n_stages)
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    # best[k] = (largest cost, cuts) with the first k parts on the stages so far.
    best = {k: (total[k], [range(k)]) for k in range(1, n_layers + 1)}
    for stage in range(1, n_stages):
        best = _extend(best, total, stage)
    return best[n_layers][1]


def _extend(
    best: dict[int, tuple[float, list[range]]],
    total: Sequence[float],
    stage: int,
) -> dict[int, tuple[float, list[range]]]:
    """Return `best` with one stage more."""
    longer = {}
    for end in range(stage + 1, len(total)):
        largest, start = min(
            (max(best[start][0], total[end] - total[start]), start) for start in range(stage, end)
        )
        longer[end] = (largest, [*best[start][1], range(start, end)])
    return longer


def _check(n_layers: int, n_stages: int) -> None:
    require(
        n_stages <= n_layers,
        f"a pipeline of {n_stages} stages (strategy.pp times the stages of a rank) needs as many "
        f"blocks, and model.n_layers={n_layers}; lower strategy.pp or strategy.stages_per_rank.",
    )
