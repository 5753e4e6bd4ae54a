"""Replicas that train apart, at their own speeds, stop at one step whoever is asked and when."""

import random
import threading
import time
from typing import Any

import pytest
import torch.distributed as dist

from llmtrain.train.vote import StopVote

TOTAL = 60


class Ring:
    """An exchange that replicas leave when both neighbours have come to it, and nobody else."""

    def __init__(self, replicas: int) -> None:
        self._come = [0] * replicas
        self._news = threading.Condition()

    def wait(self, number: int, step: int) -> None:
        """Have replica `number` come to the exchange after `step` steps."""
        neighbours = [(number + 1) % len(self._come), number - 1]
        with self._news:
            self._come[number] = step
            self._news.notify_all()
            assert self._news.wait_for(lambda: all(self._come[n] >= step for n in neighbours), 20)


class ReplicaThread(threading.Thread):
    """A replica that takes random times, meets the others every few steps, and may be asked."""

    def __init__(
        self, store: dist.Store, number: int, barrier: threading.Barrier, *, every: int,
        asked_at: int | None, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self._vote = StopVote(store, replica=number, replicas=barrier.parties, speaks=True)
        self._barrier = barrier
        self._every = every
        self._asked_at = asked_at
        self._random = random.Random(1000 * seed + number)
        self.stopped_at = 0

    def run(self) -> None:
        slow = self._random.choice([0.0, 0.0, 0.002])
        for step in range(1, TOTAL + 1):
            asked = (self._asked_at is not None and step >= self._asked_at) or self._vote.heard()
            time.sleep(slow * self._random.random())
            if step % self._every == 0:
                self._vote.enter(step, all_meet=True)
                self._barrier.wait(20)
            self.stopped_at = step
            exchange = (step // self._every + 1) * self._every
            if asked and exchange <= TOTAL and self._vote.stops(step, exchange):
                return


class RingThread(ReplicaThread):
    """A replica that exchanges with neighbours in every step, and meets all at the very end."""

    def __init__(self, store: dist.Store, number: int, ring: Ring, **settings: Any) -> None:
        super().__init__(store, number, **settings)
        self._number, self._ring = number, ring

    def run(self) -> None:
        slow = self._random.choice([0.0, 0.0, 0.002])
        for step in range(1, TOTAL + 1):
            asked = (self._asked_at is not None and step >= self._asked_at) or self._vote.heard()
            time.sleep(slow * self._random.random())
            if step % self._every == 0:
                self._vote.enter(step, all_meet=step == TOTAL)
                self._ring.wait(self._number, step)
            self.stopped_at = step
            exchange = (step // self._every + 1) * self._every
            if asked and exchange <= TOTAL and self._vote.stops(step, exchange):
                return


@pytest.mark.parametrize("seed", range(20))
def test_all_stop_at_the_same_step_where_only_neighbours_wait(seed: int) -> None:
    draw = random.Random(seed)
    replicas, every = draw.choice([3, 4, 7]), draw.choice([1, 3])
    barrier, ring, store = threading.Barrier(replicas), Ring(replicas), dist.HashStore()
    first = draw.randrange(1, 20)
    asked = [first, *draw.choices([None, first, first + 3], k=replicas - 1)]
    threads = [
        RingThread(store, n, ring, barrier=barrier, every=every, asked_at=asked[n], seed=seed)
        for n in range(replicas)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    stopped = {thread.stopped_at for thread in threads}
    assert len(stopped) == 1
    # Those farthest apart may have drifted apart by a round a neighbour between them.
    assert first <= min(stopped) <= (first // every + 2 + replicas // 2) * every


@pytest.mark.parametrize("seed", range(40))
def test_all_stop_at_the_same_step(seed: int) -> None:
    draw = random.Random(seed)
    replicas, every = draw.choice([2, 3, 5]), draw.choice([1, 4, 20])
    barrier, store = threading.Barrier(replicas), dist.HashStore()
    first = draw.randrange(1, 30)
    asked = [first, *draw.choices([None, first, first + 3], k=replicas - 1)]
    threads = [
        ReplicaThread(store, n, barrier, every=every, asked_at=asked[n], seed=seed)
        for n in range(replicas)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    stopped = {thread.stopped_at for thread in threads}
    assert len(stopped) == 1
    # Soon: before the second meeting from when it was first asked.
    assert first <= min(stopped) <= (first // every + 2) * every


def test_one_replica_stops_at_once_and_asks_nobody() -> None:
    vote = StopVote(dist.HashStore(), replica=0, replicas=1, speaks=True)
    assert not vote.heard()
    assert vote.stops(7, 10)
