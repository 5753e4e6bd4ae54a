"""One split of a mixture: the same split of several sources, as one."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmtrain.config.groups.data import TRUNCATE
from llmtrain.data.dataset import Rows, TokenDataset
from llmtrain.data.mixed_sampler import MixedSampler, share_out
from llmtrain.data.mixture import PreparedSource
from llmtrain.data.sampler import Indices, Sampler
from llmtrain.tokenizer.base import Tokenizer


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
