"""One split of a prepared folder, be it one source or a mixture, and the order of its samples.

In an epoch of a mixture with weights every source has exactly its share of the samples, rounded to
whole ones. The epoch is as long as it takes until each source has been gone through at least once;
those that are smaller than their share come again, shuffled anew each time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, overload

import numpy as np
import numpy.typing as npt

from llmtrain.config.groups.data import TRUNCATE
from llmtrain.data.dataset import Rows, TokenDataset
from llmtrain.data.mixture import PreparedSource, prepared_sources
from llmtrain.data.sampler import Indices, Sampler
from llmtrain.tokenizer.base import Tokenizer


class Dataset(Protocol):
    """What loaders and builders need of a split."""

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size-1."""
        ...

    @property
    def tokenizer_hash(self) -> str:
        """Of the tokenizer it was made with."""
        ...

    @property
    def n_tokens(self) -> int:
        """Of all documents, separators counted."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer it was made with."""
        ...

    def n_samples(
        self, seq_len: int, samples: str = "windows", drop_last: bool | None = None
    ) -> int:
        """Return how many different samples there are."""
        ...

    def sampler(self, seq_len: int, samples: str, seed: int) -> Sampler:
        """Return the order in which a run sees them."""
        ...

    def describe(self, seq_len: int, samples: str) -> str:
        """Return in some words what there is to train on."""
        ...

    def describe_cuts(self, seq_len: int, samples: str) -> str:
        """Return in some words which documents are cut or left out, or "" where none is."""
        ...

    def fill(self, index: npt.ArrayLike, seq_len: int, samples: str = "windows") -> Rows:
        """Return samples `index`, shape (B,); one that is outside is a row that does not count."""
        ...


class MixedDataset:
    """The same split of several sources. Sample numbers run through them, one after the other."""

    def __init__(
        self,
        sources: Sequence[PreparedSource],
        split: str,
        verify: bool | None = None,
        truncate: str = TRUNCATE[0],
    ) -> None:
        """Open `split` of all `sources`, as `TokenDataset` does.

        Raises:
            DataError: a folder is missing, corrupt or too new.
        """
        self.names = [source.name for source in sources]
        self.parts = [TokenDataset(source.folder, split, verify, truncate) for source in sources]
        """The split of each source."""
        self._weights = [source.weight for source in sources]
        self.vocab_size = self.parts[0].vocab_size
        self.tokenizer_hash = self.parts[0].tokenizer_hash
        self.n_tokens = sum(part.n_tokens for part in self.parts)
        self._known_starts: dict[tuple[int, str], Indices] = {}

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that all sources were made with.

        Raises:
            DataError: its file cannot be read.
        """
        return self.parts[0].tokenizer()

    def n_samples(
        self, seq_len: int, samples: str = "windows", drop_last: bool | None = None
    ) -> int:
        """Return how many different samples there are, as `TokenDataset.n_samples` of each.

        Raises:
            DataError: a source is too small for one sample.
        """
        return sum(part.n_samples(seq_len, samples, drop_last) for part in self.parts)

    def sampler(self, seq_len: int, samples: str, seed: int) -> Sampler:
        """Return the order in which a run sees the samples.

        Raises:
            DataError: a source is too small for one sample.
        """
        counts = [part.n_samples(seq_len, samples) for part in self.parts]
        shares = self._shares(seq_len, samples)
        return MixedSampler(counts, self._starts(seq_len, samples), shares, seed)

    def describe(self, seq_len: int, samples: str) -> str:
        """Return in some words what there is to train on."""
        counts = [part.n_samples(seq_len, samples) for part in self.parts]
        shares = self._shares(seq_len, samples)
        slots = share_out(counts, shares)
        sizes = [part.mean_labels(seq_len, samples) for part in self.parts]
        tokens = np.array(slots) * sizes
        told = []
        for name, share, slot, count in zip(
            self.names, tokens / tokens.sum(), slots, counts, strict=True
        ):
            told.append(f"{name} {share:.1%} ({slot / count:.3g} times an epoch)")
        words = f"{self.n_tokens:,} tokens: {', '.join(told)}"
        return words + self.describe_cuts(seq_len, samples)

    def describe_cuts(self, seq_len: int, samples: str) -> str:
        """Return in some words which documents are cut or left out, or "" where none is.

        Raises:
            DataError: a source has no sample left.
        """
        cuts = [part.describe_cuts(seq_len, samples) for part in self.parts]
        return "".join(f"; {n}{cut}" for n, cut in zip(self.names, cuts, strict=True) if cut)

    def fill(self, index: npt.ArrayLike, seq_len: int, samples: str = "windows") -> Rows:
        """Return samples `index`, shape (B,), as `TokenDataset.fill` of their sources."""
        rows = np.atleast_1d(np.asarray(index, dtype=np.int64))
        starts = self._starts(seq_len, samples)
        source = np.clip(np.searchsorted(starts, rows, side="right") - 1, 0, len(self.parts) - 1)
        found, places = [], []
        for number in np.unique(source):
            here = np.flatnonzero(source == number)
            found.append(self.parts[number].fill(rows[here] - starts[number], seq_len, samples))
            places.append(here)
        back = np.argsort(np.concatenate(places))
        within = [part.document_positions for part in found if part.document_positions is not None]
        return Rows(
            np.concatenate([part.input_ids for part in found])[back],
            np.concatenate([part.labels for part in found])[back],
            np.concatenate(within)[back] if within else None,
        )

    def place_of(self, sample: int, seq_len: int, samples: str) -> tuple[int, int]:
        """Return the number of the source that has `sample`, and the sample's number there."""
        starts = self._starts(seq_len, samples)
        number = int(np.searchsorted(starts, sample, side="right")) - 1
        return number, sample - int(starts[number])

    def _shares(self, seq_len: int, samples: str) -> list[float]:
        """Return how many samples of each source there are for one of another."""
        weights = [weight for weight in self._weights if weight is not None]
        if not weights:
            return [float(part.n_samples(seq_len, samples)) for part in self.parts]
        sizes = [part.mean_labels(seq_len, samples) for part in self.parts]
        return [weight / size for weight, size in zip(weights, sizes, strict=True)]

    def _starts(self, seq_len: int, samples: str) -> Indices:
        """Return the number of each source's first sample, and the end: last windows that are not
        full have a number too."""
        key = seq_len, samples
        if key not in self._known_starts:
            counts = [part.n_samples(seq_len, samples, drop_last=False) for part in self.parts]
            self._known_starts[key] = np.cumsum([0, *counts])
        return self._known_starts[key]


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

    @overload
    def sample(self, position: int) -> int: ...

    @overload
    def sample(self, position: Indices) -> Indices: ...

    def sample(self, position: int | Indices) -> int | Indices:
        """Return the sample at each `position` (>= 0), numbered through all sources."""
        positions = np.atleast_1d(np.asarray(position, dtype=np.int64))
        slots = super().sample(positions)
        sources = np.searchsorted(self._slot_starts, slots, side="right") - 1
        out = np.empty_like(positions)
        for number in np.unique(sources):
            here = sources == number
            epochs = positions[here] // self.n_samples
            draws = epochs * self.slots[number] + slots[here] - self._slot_starts[number]
            out[here] = self._sample_starts[number] + self._inner[number].sample(draws)
        return int(out[0]) if np.ndim(position) == 0 else out


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


def open_dataset(
    folder: Path, split: str, verify: bool | None = None, truncate: str = TRUNCATE[0]
) -> Dataset:
    """Return `split` of the prepared `folder`.

    Args:
        folder: What `prepare` returned.
        split: train | validation.
        verify: Hash every file; None: in folders up to 1 GiB.
        truncate: data.truncate.

    Raises:
        DataError: a folder is missing, corrupt or too new; names the file and the fix.
    """
    sources = prepared_sources(folder)
    if len(sources) == 1:
        return TokenDataset(sources[0].folder, split, verify, truncate)
    return MixedDataset(sources, split, verify, truncate)
