"""Any split of any prepared folder, whatever it is of: what it offers, and who reads it."""

from pathlib import Path
from typing import Protocol

import numpy.typing as npt

from llmtrain.config.groups.data import TRUNCATE, DataConfig
from llmtrain.data.dataset import Rows, TokenDataset
from llmtrain.data.mixed import MixedDataset
from llmtrain.data.mixture import prepared_sources
from llmtrain.data.sampler import Sampler
from llmtrain.data.stream_dataset import StreamDataset
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


def open_training(folder: Path, data: DataConfig) -> Dataset:
    """Return what is trained on of `data`, which was prepared in `folder`.

    Raises:
        DataError: as `open_dataset`.
    """
    if data.mode == "streaming":
        return StreamDataset(folder, data)
    return open_dataset(folder, "train", truncate=data.truncate)
