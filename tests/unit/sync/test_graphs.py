"""Who sends to whom in a round of gossip: nothing is lost, and everything reaches everyone."""

import numpy as np
import pytest

from llmtrain.config.groups.gossip import GRAPHS, GossipConfig
from llmtrain.sync.graphs import build_graph, push

KINDS = [(algorithm, graph) for algorithm, graphs in GRAPHS.items() for graph in graphs]
REPLICAS = range(1, 18)
ROUNDS = 12

EXACT = 1e-15
"""Fractions of a few peers, added up in fp64."""


def matrix(kind: tuple[str, str], replicas: int, number: int, seed: int = 0) -> np.ndarray:
    """Return a round's mixing matrix, (replicas, replicas): what it makes of each unit vector."""
    targets = build_graph(GossipConfig(algorithm=kind[0], graph=kind[1], seed=seed), replicas)
    return np.array([push(unit, targets(number)) for unit in np.eye(replicas)]).T


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_round_hands_out_what_a_replica_has_and_no_more(kind: tuple[str, str]) -> None:
    for replicas in REPLICAS:
        for number in range(ROUNDS):
            mixing = matrix(kind, replicas, number)
            assert np.abs(mixing.sum(axis=0) - 1).max() <= EXACT
            assert (mixing.diagonal() > 0).all()
            if kind[0] == "dpsgd":
                assert (mixing == mixing.T).all()


def test_exponential_pushes_never_make_sizes_differ_and_random_ones_do() -> None:
    for replicas in REPLICAS:
        for number in range(ROUNDS):
            rows = matrix(("push_sum", "exponential"), replicas, number).sum(axis=1)
            assert np.abs(rows - 1).max() <= EXACT
    uneven = [matrix(("push_sum", "random_peer"), 5, number).sum(axis=1) for number in range(9)]
    assert np.abs(np.array(uneven) - 1).max() >= 0.5


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_everything_reaches_everyone(kind: tuple[str, str]) -> None:
    for replicas in (1, 2, 3, 5, 8, 12):
        reached = np.eye(replicas)
        for number in range(8 * replicas):
            reached = matrix(kind, replicas, number) @ reached
        assert (reached > 0).all(), replicas


def test_weights_are_those_of_the_papers() -> None:
    third = 1 / 3
    assert np.allclose(
        matrix(("dpsgd", "ring"), 5, 0)[0], [third, third, 0, 0, third], atol=EXACT
    )  # fmt: skip
    # Replica 0 of 8 hears from the one 1, 2 and 4 before it, in turns.
    heard = [matrix(("push_sum", "exponential"), 8, number)[0].nonzero()[0] for number in range(4)]
    assert [list(each) for each in heard] == [[0, 7], [0, 6], [0, 4], [0, 7]]
    # One period over a power of 2 is the mean (arXiv:2110.13363).
    period = [matrix(("push_sum", "exponential"), 8, number) for number in range(3)]
    assert np.allclose(np.linalg.multi_dot(period), 1 / 8, atol=EXACT)
    # Of static graphs the ring mixes most slowly.
    speeds = {graph: second_eigenvalue(matrix(("dpsgd", graph), 16, 0)) for graph in
              ("ring", "exponential", "complete")}  # fmt: skip
    assert speeds["ring"] > 0.9 > 0.6 > speeds["exponential"] > speeds["complete"] + 0.1


def second_eigenvalue(mixing: np.ndarray) -> float:
    """Return the second largest absolute eigenvalue of a symmetric matrix."""
    return float(np.sort(np.abs(np.linalg.eigvalsh(mixing)))[-2])


def test_random_graphs_are_functions_of_seed_and_round() -> None:
    for kind in (("dpsgd", "random_pair"), ("push_sum", "random_peer")):
        same, other = [matrix(kind, 9, 3, seed) for seed in (0, 0)], matrix(kind, 9, 3, 1)
        assert (same[0] == same[1]).all()
        assert (same[0] != other).any()
        assert (same[0] != matrix(kind, 9, 4)).any()


def test_of_an_odd_number_one_sits_out_and_not_always_the_same() -> None:
    alone = set()
    for number in range(40):
        mixing = matrix(("dpsgd", "random_pair"), 5, number)
        lonely = np.flatnonzero(mixing.diagonal() == 1)
        assert len(lonely) == 1
        alone |= set(lonely)
    assert alone == set(range(5))
