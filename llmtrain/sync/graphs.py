"""Which replicas send to which in a round of gossip: a function of the round alone.

    targets[i]    whom replica i sends to
    share_i       1 / (len(targets[i]) + 1): what of it i keeps, and what each of them gets
    x_j       <-  share_j x_j + sum over i that send to j of share_i x_i

So nothing gets lost or doubled: the columns of the mixing matrix add up to 1, whatever the graph.
Where peers hear each other (ring, exponential, random_pair, complete: replicas that are peers have
equally many) it is symmetric too, and its rows add up to 1.
"""

from collections.abc import Callable, Sequence

from llmtrain.config.groups.gossip import GossipConfig
from llmtrain.distributed.rng import derive_seed

Targets = list[list[int]]
"""For each replica those it sends to, ascending and without itself."""


def build_graph(config: GossipConfig, replicas: int) -> Callable[[int], Targets]:
    """Return the function from a round's number, from 0, to who sends to whom in it."""
    draw = _DRAWS[config.algorithm, config.graph]
    return lambda number: draw(replicas, number, config.seed)


def push(shares: Sequence[float], targets: Targets) -> list[float]:
    """Return what a round makes of one number a replica; their sum stays, but for rounding."""
    pushed = [0.0] * len(shares)
    for i, peers in enumerate(targets):
        for j in [i, *peers]:
            pushed[j] += shares[i] / (len(peers) + 1)
    return pushed


def _ring(replicas: int, number: int, seed: int) -> Targets:
    """Both neighbours, always the same: weights 1/3 (arXiv:1705.09056)."""
    return _circle(replicas, [1, -1])


def _complete(replicas: int, number: int, seed: int) -> Targets:
    """All others: a round makes all equal."""
    return _circle(replicas, range(1, replicas))


def _exponential(replicas: int, number: int, seed: int) -> Targets:
    """Those 1, 2, 4, ... places on, and back."""
    hops = _hops(replicas)
    return _circle(replicas, [*hops, *(-hop for hop in hops)])


def _exponential_in_turns(replicas: int, number: int, seed: int) -> Targets:
    """The one 1, 2, 4, ... places on, in turns (arXiv:1811.10792, section 4)."""
    hops = _hops(replicas)
    return _circle(replicas, [hops[number % len(hops)]] if hops else [])


def _random_pair(replicas: int, number: int, seed: int) -> Targets:
    """Pairs drawn anew; of an odd number one replica is left out."""
    order = sorted(range(replicas), key=lambda i: derive_seed("gossip", seed, number, i))
    targets: Targets = [[] for _ in range(replicas)]
    for i, j in zip(order[::2], order[1::2], strict=False):
        targets[i], targets[j] = [j], [i]
    return targets


def _random_peer(replicas: int, number: int, seed: int) -> Targets:
    """One peer each, drawn anew: some hear from several, some from none."""
    if replicas == 1:
        return [[]]
    ahead = [1 + derive_seed("gossip", seed, number, i) % (replicas - 1) for i in range(replicas)]
    return [[(i + hop) % replicas] for i, hop in enumerate(ahead)]


def _hops(replicas: int) -> list[int]:
    """Return the powers of 2 below the number of replicas."""
    return [1 << k for k in range((replicas - 1).bit_length())]


def _circle(replicas: int, hops: Sequence[int]) -> Targets:
    """Return a graph that looks the same from every replica, given how far its peers are."""
    return [sorted({(i + hop) % replicas for hop in hops} - {i}) for i in range(replicas)]


_DRAWS: dict[tuple[str, str], Callable[[int, int, int], Targets]] = {
    ("dpsgd", "ring"): _ring,
    ("dpsgd", "exponential"): _exponential,
    ("dpsgd", "random_pair"): _random_pair,
    ("dpsgd", "complete"): _complete,
    ("push_sum", "exponential"): _exponential_in_turns,
    ("push_sum", "random_peer"): _random_peer,
}
