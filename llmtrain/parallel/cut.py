"""Where a pipeline is cut: which blocks each stage holds. Integers and costs only.

A layer more or less decides a stage's time, and the slowest stage decides the pipeline's. `uniform`
gives every stage as many blocks as the next, the last ones one fewer where it does not come out
even. `balanced` minimises the largest cost of a stage, the embedding and the head counted.
"""

import itertools
from collections.abc import Sequence

from llmtrain.errors import require

CUTS = ("uniform", "balanced")


def uniform_cut(n_layers: int, n_stages: int) -> list[range]:
    """Return the blocks of each stage, as equal in number as can be.

    Raises:
        ConfigError: there are more stages than blocks.
    """
    _check(n_layers, n_stages)
    base, extra = divmod(n_layers, n_stages)
    starts = [stage * base + min(stage, extra) for stage in range(n_stages + 1)]
    return [range(a, b) for a, b in itertools.pairwise(starts)]


def balanced_cut(
    costs: Sequence[float], n_stages: int, *, first: float = 0.0, last: float = 0.0
) -> list[range]:
    """Return the blocks of each stage so that the largest cost of a stage is least.

    Dynamic programming over (blocks placed, stages used): exact, O(L^2 S). Of equal cuts, the one
    whose later stages are fuller is taken.

    Args:
        costs: Of each block, in any unit.
        n_stages: How many stages; each gets a block at least.
        first: What the first stage does beside its blocks (the embedding), in the same unit.
        last: What the last does (norm, head and loss).

    Raises:
        ConfigError: there are more stages than blocks.
    """
    n_layers = len(costs)
    _check(n_layers, n_stages)
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    # best[k] = (largest cost, cuts) with the first k blocks on the stages so far.
    extra = first + (last if n_stages == 1 else 0.0)
    best = {k: (extra + total[k], [range(k)]) for k in range(1, n_layers + 1)}
    for stage in range(1, n_stages):
        extra = last if stage == n_stages - 1 else 0.0
        best = _extend(best, total, stage, extra)
    return best[n_layers][1]


def _extend(
    best: dict[int, tuple[float, list[range]]],
    total: Sequence[float],
    stage: int,
    extra: float,
) -> dict[int, tuple[float, list[range]]]:
    """Return `best` with one stage more."""
    longer = {}
    for end in range(stage + 1, len(total)):
        largest, start = min(
            (max(best[start][0], total[end] - total[start] + extra), start)
            for start in range(stage, end)
        )
        longer[end] = (largest, [*best[start][1], range(start, end)])
    return longer


def _check(n_layers: int, n_stages: int) -> None:
    require(
        n_stages <= n_layers,
        f"a pipeline of {n_stages} stages (strategy.pp times the stages of a rank) needs as many "
        f"blocks, and model.n_layers={n_layers}; lower strategy.pp or strategy.stages_per_rank.",
    )
