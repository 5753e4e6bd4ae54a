"""Which sample comes at which position: a shuffle without a list.

Position p of the endless stream of samples lies in epoch p // n. Within an epoch, a Feistel network
(Luby and Rackoff 1988) keyed by (seed, epoch) permutes a power of two at least as large as n, and
values of n and over walk on until they fall below it (Black and Rogaway 2002, section 3, "cycle
walking"). So the sample at p is a pure function of (seed, p) in O(1) memory: no list of indices is
kept, saved or sent, and resuming at step s needs s alone.
"""

from typing import overload

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

ROUNDS = 8
BLOCK = 4096
"""Positions permuted at once: numpy's cost of a call, times some 500 calls, is shared by them."""

MIN_HALF_BITS = 3
"""Smaller networks permute too few ways to look shuffled."""

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


class Sampler:
    """The order of `n_samples` samples, another one each epoch."""

    def __init__(self, n_samples: int, seed: int, shuffle: bool = True) -> None:
        """Order samples 0 to `n_samples`-1 by `seed`; without `shuffle`, in their own order.

        Raises:
            ValueError: there is no sample.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples} must be at least 1")
        self.n_samples = n_samples
        self.seed = seed
        self.shuffle = shuffle
        bits = (n_samples - 1).bit_length()
        self._half_bits = max(MIN_HALF_BITS, (bits + 1) // 2)
        self._block: tuple[int, Indices] = (0, np.empty(0, dtype=np.int64))

    def run(self, first: int, count: int) -> Indices:
        """Return the samples at positions [first, first + count), for readers that go forward."""
        start, block = self._block
        if first < start or first + count > start + len(block):
            start, block = first, self.sample(np.arange(first, first + max(count, BLOCK)))
            self._block = start, block  # whole at once: a reader in another thread sees a pair
        return block[first - start : first - start + count]

    @overload
    def sample(self, position: int) -> int: ...

    @overload
    def sample(self, position: Indices) -> Indices: ...

    def sample(self, position: int | Indices) -> int | Indices:
        """Return the sample at each `position` (>= 0), same shape."""
        positions = np.atleast_1d(np.asarray(position, dtype=np.int64))
        found = self._sample_at(positions.ravel()).reshape(positions.shape)
        return int(found[0]) if np.ndim(position) == 0 else found

    def _sample_at(self, positions: Indices) -> Indices:
        """Return the sample at each of `positions`, shape (n,)."""
        epochs, index = np.divmod(positions, self.n_samples)
        return self._permute(index, epochs) if self.shuffle and self.n_samples > 1 else index

    def _permute(self, index: Indices, epochs: Indices) -> Indices:
        seed = np.array([self.seed % 2**64], dtype=np.uint64)
        keys = _mix(_mix(seed) ^ epochs.astype(np.uint64))
        out = self._feistel(index.astype(np.uint64), keys)
        while (outside := out >= np.uint64(self.n_samples)).any():
            out[outside] = self._feistel(out[outside], keys[outside])
        return out.astype(np.int64)

    def _feistel(self, words: Words, keys: Words) -> Words:
        half = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = words >> half, words & mask
        for number in range(1, ROUNDS + 1):
            round_keys = keys + np.full(1, number, dtype=np.uint64) * GOLDEN
            left, right = right, left ^ (_mix(right ^ round_keys) & mask)
        return (left << half) | right


def _mix(words: Words) -> Words:
    """Return the finaliser of SplitMix64 (Steele et al. 2014) of each word; wraps at 2^64."""
    words = (words ^ (words >> np.uint64(30))) * MIX_1
    words = (words ^ (words >> np.uint64(27))) * MIX_2
    return words ^ (words >> np.uint64(31))
