"""The order is a bijection in every epoch, differs between epochs, and needs no memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.sampler import Sampler

AWKWARD = [1, 2, 3, 17, 63, 64, 65, 1000, 65537]


@pytest.mark.parametrize("n", AWKWARD)
def test_every_epoch_has_every_sample_once(n: int) -> None:
    sampler = Sampler(n, seed=7)
    for epoch in (0, 1, 12345):
        order = sampler.sample(np.arange(epoch * n, (epoch + 1) * n))
        assert np.array_equal(np.sort(order), np.arange(n))


@given(n=st.integers(1, 5000), seed=st.integers(-(2**63), 2**64), epoch=st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_bijection_for_any_size_seed_and_epoch(n: int, seed: int, epoch: int) -> None:
    sampler = Sampler(n, seed)
    order = sampler.sample(np.arange(epoch * n, (epoch + 1) * n))
    assert np.array_equal(np.sort(order), np.arange(n))


@given(n=st.integers(1, 10**12), position=st.integers(0, 2**62))
@settings(max_examples=100, deadline=None)
def test_one_position_is_many_positions(n: int, position: int) -> None:
    sampler = Sampler(n, seed=3)
    alone = sampler.sample(position)
    assert isinstance(alone, int)
    assert 0 <= alone < n
    pair = sampler.sample(np.array([[position, position + 1]]))
    assert pair.shape == (1, 2)
    assert pair[0, 0] == alone


@pytest.mark.parametrize("n", [17, 1000, 65537])
def test_epochs_and_seeds_differ(n: int) -> None:
    positions = np.arange(n)
    orders = [Sampler(n, seed).sample(positions + epoch * n) for seed in (0, 1) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        for other in [*orders[:i], positions]:
            # Two random orders agree at one place on average.
            assert np.count_nonzero(one == other) < 10


@pytest.mark.parametrize("n", [2, 3, 5, 17, 60])
def test_every_sample_is_as_likely_to_come_first(n: int) -> None:
    draws = 4000
    firsts = Sampler(n, seed=1).sample(np.arange(draws) * n)
    counts = np.bincount(firsts, minlength=n)
    expected = draws / n
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    # Mean n-1, standard deviation sqrt(2(n-1)): six of them is one in a billion.
    assert chi2 < (n - 1) + 6 * np.sqrt(2 * (n - 1)) + 6


def test_neighbours_are_scattered() -> None:
    n = 10_000
    order = Sampler(n, seed=0).sample(np.arange(n)).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.05


def test_without_shuffle() -> None:
    assert Sampler(5, 0, shuffle=False).sample(np.arange(7)).tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_memory_does_not_grow_with_the_samples() -> None:
    tracemalloc.start()
    Sampler(10**15, seed=0).sample(np.arange(1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_order_is_the_one_that_runs_have_seen() -> None:
    # A change here breaks the resuming of every run: it would see other samples.
    near = Sampler(10, seed=1234).sample(np.arange(20))
    assert " ".join(map(str, near)) == "8 1 6 2 0 7 5 4 9 3 3 4 2 6 8 5 9 1 0 7"
    far = Sampler(10**9, seed=1234).sample(np.arange(3) * 10**9)
    assert " ".join(map(str, far)) == "469439672 510993017 95991949"


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="n_samples=0"):
        Sampler(0, seed=0)


@pytest.mark.parametrize(("first", "count", "stride"), [(0, 12, 12), (5, 3, 48), (4090, 9, 7)])
def test_reading_ahead_gives_the_same_samples(first: int, count: int, stride: int) -> None:
    ahead, direct = Sampler(1000, seed=3), Sampler(1000, seed=3)
    for place in [*range(first, first + 6000, stride), first, first + 100]:
        expected = direct.sample(np.arange(place, place + count))
        np.testing.assert_array_equal(ahead.run(place, count), expected)


def test_reading_ahead_takes_any_count() -> None:
    sampler = Sampler(10_000, seed=3)
    np.testing.assert_array_equal(sampler.run(7, 9000), sampler.sample(np.arange(7, 9007)))
