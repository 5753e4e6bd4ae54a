"""Which sample of a mixture comes at which position: each source with its share of every epoch.

In an epoch every source has exactly its share of the samples, rounded to whole ones. The epoch is
as long as it takes until each source has been gone through at least once; those that are smaller
than their share come again, shuffled anew each time.
"""

from collections.abc import Sequence

import numpy as np

from llmtrain.data.sampler import Indices, Sampler


class MixedSampler(Sampler):
    """The order of the samples of several sources, each with its share of every epoch.

    Position p lies in epoch p // n, and there in a slot of its own, by the permutation of
    `Sampler`. The slots are dealt to the sources in proportion; the k-th slot of a source in epoch
    e is draw e * (slots of the source) + k from its own endless shuffle. So the sample at p is a
    pure function of (seed, p), as without a mixture.
    """

    def __init__(
        self, counts: Sequence[int], starts: Indices, shares: Sequence[float], seed: int
    ) -> None:
        """Order the samples of sources.

        Args:
            counts: Samples of each source.
            starts: Number of the first one of each.
            shares: Samples of each in an epoch, relative to the others.
            seed: Decides the order.
        """
        self.slots = share_out(counts, shares)
        """Samples of each source in an epoch."""
        super().__init__(sum(self.slots), seed)
        self._slot_starts = np.cumsum([0, *self.slots])
        self._sample_starts = starts
        # Seeds of their own: equal sizes would otherwise be shuffled alike.
        self._inner = [Sampler(n, seed + 1 + number) for number, n in enumerate(counts)]

    def _sample_at(self, positions: Indices) -> Indices:
        """Return the sample at each of `positions`, shape (n,), numbered through all sources."""
        slots = super()._sample_at(positions)
        sources = np.searchsorted(self._slot_starts, slots, side="right") - 1
        out = np.empty_like(positions)
        for number in np.unique(sources):
            here = sources == number
            epochs = positions[here] // self.n_samples
            draws = epochs * self.slots[number] + slots[here] - self._slot_starts[number]
            out[here] = self._sample_starts[number] + self._inner[number].sample(draws)
        return out


def share_out(counts: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Return how many samples of each source make an epoch: whole numbers, by largest remainder.

    Args:
        counts: Samples of each source; an epoch has at least so many.
        shares: Relative to each other.
    """
    total = sum(shares)
    size = max(-(-count * total // share) for count, share in zip(counts, shares, strict=True))
    exact = [size * share / total for share in shares]
    slots = [int(each) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: slots[n] - exact[n])
    for number in by_remainder[: round(size) - sum(slots)]:
        slots[number] += 1
    return [max(1, each) for each in slots]
