"""Bounded staleness over random schedules, counted by the test and not by the server."""

import random

import pytest
import torch

from llmtrain.errors import ConfigError
from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.messages import Rejected, Weights
from llmtrain.sync.server.rules import OptimizerRule
from llmtrain.sync.server.settings import ServerSettings
from llmtrain.sync.server.tensors import Tensors
from llmtrain.sync.virtual.cluster import Cluster, Event, joins
from tests.unit.sync.toy import hello, make_core, push, sgd, weights_of


def nothing(worker: int, step: int, local_steps: int, weights: Tensors) -> Tensors:
    return {"x": torch.zeros(1)}


class Watched:
    """A cluster of idle workers that counts for itself."""

    def __init__(self, workers: int, bound: int | None) -> None:
        rule = OptimizerRule({"x": torch.zeros(1)}, sgd())
        settings = ServerSettings(max_staleness=bound, min_workers=workers)
        self.cluster = Cluster(ServerCore(rule, settings, lambda tokens: 0.1), nothing)
        self.pushed = [0] * workers
        self.given = [0] * workers
        self.waiting = set(range(workers))
        self.gap_at_start = self.gap_at_push = self.behind = 0
        self.cluster.replay(joins(workers))
        self._look()

    def ready(self) -> list[int]:
        return [worker for worker in range(len(self.pushed)) if worker not in self.waiting]

    def push(self, worker: int) -> None:
        behind = sum(self.pushed) - self.given[worker]
        self.behind = max(self.behind, behind)
        self.cluster.replay([Event(float(sum(self.pushed)), "push", worker)])
        self.pushed[worker] += 1
        self.waiting.add(worker)
        self.gap_at_push = max(self.gap_at_push, self.pushed[worker] - min(self.pushed))
        self._look()

    def _look(self) -> None:
        """Note who was given weights, and how far ahead of the slowest it starts."""
        for worker in sorted(self.waiting):
            if self.cluster.workers[worker].granted is not None:
                self.waiting.discard(worker)
                self.given[worker] = sum(self.pushed)
                gap = self.pushed[worker] - min(self.pushed)
                self.gap_at_start = max(self.gap_at_start, gap)


def test_the_bounds_hold_over_random_schedules() -> None:
    draw = random.Random(7)
    for _ in range(1000):
        workers, bound = draw.randint(2, 5), draw.randint(0, 4)
        watched = Watched(workers, bound)
        # Uneven odds, or nobody gets far ahead.
        odds = [draw.choice([0.05, 1.0, 5.0]) for _ in range(workers)]
        for _ in range(30):
            ready = watched.ready()
            assert ready, "everyone waits for someone who waits"
            watched.push(draw.choices(ready, [odds[worker] for worker in ready])[0])
        assert watched.gap_at_start <= bound
        assert watched.gap_at_push <= bound + 1
        assert watched.behind <= (workers - 1) * (2 * bound + 1)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("bound", [0, 1, 3])
def test_the_bounds_are_reached(workers: int, bound: int) -> None:
    """One runs ahead, takes weights, and sleeps while the others overtake it as far as they may."""
    watched = Watched(workers, bound)
    for _ in range(bound):
        watched.push(0)
    for _ in range(2 * bound + 1):
        for worker in range(1, workers):
            watched.push(worker)
    assert watched.ready() == [0]
    watched.push(0)
    assert watched.gap_at_start == bound
    assert watched.gap_at_push == bound + 1
    assert watched.behind == (workers - 1) * (2 * bound + 1)
    behind = watched.cluster.core.statistics()[0].staleness
    assert max(behind) == watched.behind  # what the server counts is what was


def test_no_bound_lets_one_run_away() -> None:
    watched = Watched(2, None)
    for _ in range(50):
        watched.push(0)
    assert watched.gap_at_start == 50


def test_a_push_too_far_behind_does_not_count_and_gets_fresh_weights() -> None:
    core = make_core(staleness_policy="reject", max_versions=2)
    hello(core, 0), hello(core, 1)
    for seq in (1, 2):
        push(core, 0, seq, seq - 1)
    push(core, 1, 1, 0, tokens=5)  # two behind: passes
    push(core, 0, 3, 3), push(core, 0, 4, 4)
    push(core, 0, 5, 5)
    before, tokens = weights_of(core), core.tokens
    ((worker, reply),) = push(core, 1, 2, 3, tokens=7)  # three behind
    assert worker == 1 and isinstance(reply, Rejected) and "3 versions behind" in reply.reason
    assert reply.fresh is not None and reply.fresh.version == core.version == 6
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(core).items())
    counts = core.statistics()[1]
    assert (counts.pushes, counts.tokens, counts.wasted_tokens) == (1, 5, 7)
    assert core.tokens == tokens
    ((_, reply),) = push(core, 1, 3, 6)
    assert isinstance(reply, Weights) and reply.clock == 2


def test_a_late_push_of_a_closed_round_counts_once_in_the_open_one_or_not_at_all() -> None:
    for settings, clocks in ({}, 1), ({"staleness_policy": "reject", "max_versions": 0}, 0):
        core = make_core(apply="per_clock", quorum=2, **settings)  # type: ignore[arg-type]
        for worker in range(3):
            hello(core, worker)
        push(core, 0, 1, 0), push(core, 1, 1, 0)
        assert core.version == 1
        replies = push(core, 2, 1, 0)  # late
        assert core.version == 1
        assert bool(replies) is (clocks == 0), "in the open round it waits for that one"
        assert core.statistics()[2].pushes == clocks
        push(core, 0, 2, 1)
        assert core.version == 1 + clocks
        push(core, 1, 2, 1)
        assert core.version == 2


def test_a_round_waits_out_its_grace_once_its_quorum_is_there() -> None:
    core = make_core(apply="per_clock", quorum=2, grace_s=5.0)
    for worker in range(4):
        hello(core, worker)
    push(core, 3, 1, 0, now=10.0)
    assert core.tick(100.0) == [] and core.version == 0, "one is no quorum, however long"
    push(core, 1, 1, 0, now=101.0)
    assert core.tick(105.9) == [] and core.version == 0
    push(core, 0, 1, 0, now=105.9)
    assert [worker for worker, _ in core.tick(106.0, [0, 1, 3])] == [0, 1, 3]
    assert core.version == 1
    # Nobody is left to wait for: no grace.
    for worker in (0, 1, 2):
        push(core, worker, 2 if worker < 2 else 1, 1, now=110.0)
    assert core.version == 1
    push(core, 3, 2, 1, now=110.0)
    assert core.version == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"apply": "per_clock", "max_staleness": 1},
        {"apply": "per_push", "quorum": 2},
        {"apply": "per_push", "grace_s": 1.0},
        {"apply": "per_clock", "quorum": 0},
        {"apply": "each"},
        {"max_staleness": -1},
        {"staleness_policy": "reject"},
        {"max_versions": 3},
        {"staleness_policy": "drop"},
        {"local_steps": 0},
        {"min_workers": 0},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=list(settings)[-1]):
        ServerSettings(**settings)  # type: ignore[arg-type]
