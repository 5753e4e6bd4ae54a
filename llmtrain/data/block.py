"""A source read on and on in blocks of documents: cleaned, deduplicated, split, tokenized.

Where a block ends depends on the source and the settings alone, and so does what it holds: a
reader may go on from the block before, or start at any place that was noted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from llmtrain.config.groups.data import DataConfig
from llmtrain.data.clean import Cleaner
from llmtrain.data.dedup import Digests, content_digest
from llmtrain.data.manifest import dtype_for
from llmtrain.data.part import Part
from llmtrain.data.skip import SkipCount
from llmtrain.data.source import read_part
from llmtrain.tokenizer.base import Tokenizer

BLOCK_TOKENS = 1 << 20
"""Tokens of a block in source order, about."""

BATCH_DOCUMENTS = 64
"""Documents that are given to the tokenizer at once. A block ends between two batches."""

BATCH_CHARACTERS = 1 << 20
"""After so many a batch takes no further document."""

REMEMBERED = 1 << 20
"""Kept documents whose hashes `data.dedup=exact` compares with: 150 MB. A duplicate that stands
further behind is not found."""


@dataclass(frozen=True)
class Place:
    """Between two documents of a source."""

    part: int = 0
    """Number of the part."""
    read: int = 0
    """Documents of it that stand before."""


@dataclass(frozen=True)
class StreamedDocument:
    """A cleaned document and the place behind it."""

    text: str
    digest: bytes
    end: Place


@dataclass(frozen=True)
class Block:
    """Some documents in source order."""

    documents: list[npt.NDArray[Any]]
    """The tokens of each, its separator behind them."""
    digests: Digests
    """Their content hashes."""
    end: Place
    is_last: bool
    """Whether the source ends here."""

    @property
    def n_tokens(self) -> int:
        """How many tokens they have."""
        return sum(len(document) for document in self.documents)


class BlockReader:
    """Reads the training documents of a source."""

    def __init__(self, data: DataConfig, parts: Sequence[Part], tokenizer: Tokenizer) -> None:
        """Read the `parts` of the source `data`."""
        self._data = data
        self._parts = parts
        self._tokenizer = tokenizer
        self._end: Place | None = None
        self._documents: Iterator[StreamedDocument] = iter(())

    def read(self, start: Place, earlier: Callable[[], Digests]) -> Block:
        """Return the block that begins at `start`.

        Args:
            start: The end of another block, or the start of the source.
            earlier: Returns the hashes of the last `REMEMBERED` documents before it; asked where
                the reader was elsewhere.

        Raises:
            DataError: the source cannot be read, or has changed.
        """
        if start != self._end:
            kept = training_documents(self._data, self._parts, start)
            self._documents = without_duplicates(self._data, kept, earlier)
        dtype = dtype_for(self._tokenizer.vocab_size)
        separator = np.array([self._tokenizer.separator_id], dtype=dtype)
        documents: list[npt.NDArray[Any]] = []
        digests = bytearray()
        end, tokens, is_last = start, 0, False
        while not is_last and not self._is_full(len(documents), tokens):
            wanted = self._data.shuffle_documents - len(documents)
            batch = self._batch(wanted if wanted > 0 else BATCH_DOCUMENTS)
            is_last = not batch
            encoded = self._tokenizer.encode_batch([document.text for document in batch])
            for document, ids in zip(batch, encoded, strict=True):
                documents.append(np.concatenate([ids.astype(dtype), separator]))
                digests += document.digest
                tokens += len(ids) + 1
                end = document.end
        self._end = None if is_last else end
        array = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)
        return Block(documents, array, end, is_last)

    def _batch(self, wanted: int) -> list[StreamedDocument]:
        """Return up to `wanted` documents, fewer where they are long; none: the source ends."""
        batch: list[StreamedDocument] = []
        characters = 0
        for document in islice(self._documents, min(wanted, BATCH_DOCUMENTS)):
            batch.append(document)
            characters += len(document.text)
            if characters >= BATCH_CHARACTERS:
                break
        return batch

    def _is_full(self, documents: int, tokens: int) -> bool:
        if self._data.shuffle_documents:
            return documents >= self._data.shuffle_documents
        return tokens >= BLOCK_TOKENS


def training_documents(
    data: DataConfig, parts: Sequence[Part], start: Place
) -> Iterator[StreamedDocument]:
    """Yield the cleaned documents from `start` on that are not held out."""
    for document in clean_documents(data, parts, start):
        if not is_held_out(document.digest, data):
            yield document


def clean_documents(
    data: DataConfig, parts: Sequence[Part], start: Place, skipped: SkipCount | None = None
) -> Iterator[StreamedDocument]:
    """Yield the cleaned documents from `start` on.

    Raises:
        DataError: the source cannot be read, or has changed since it was listed.
    """
    cleaner = Cleaner(data.clean)
    skipped = SkipCount() if skipped is None else skipped
    for part in parts[start.part :]:
        passed = start.read if part.number == start.part else 0
        for number, document in enumerate(read_part(data, part, skipped), start=1):
            if number <= passed:
                continue
            text = cleaner.clean(document.text, document.id)
            if text is not None:
                digest = content_digest(text.encode("utf-8"))
                yield StreamedDocument(text, digest, Place(part.number, number))


def is_held_out(digest: bytes, data: DataConfig) -> bool:
    """Say whether a document is of the validation split: its hash under `data.seed` decides."""
    return xxhash.xxh3_64_intdigest(digest, data.seed) < data.val_ratio * 2**64


def without_duplicates(
    data: DataConfig,
    documents: Iterator[StreamedDocument],
    earlier: Callable[[], Digests] = lambda: np.zeros((0, 16), dtype=np.uint8),
) -> Iterator[StreamedDocument]:
    """Yield `documents` without those that stand among the last `REMEMBERED` that were kept.

    Args:
        data: Its `dedup` says whether duplicates go at all.
        documents: In order.
        earlier: Returns the hashes of those that were kept before them, in order.
    """
    if data.dedup == "none":
        yield from documents
        return
    known = dict.fromkeys(row.tobytes() for row in earlier()[-REMEMBERED:])
    for document in documents:
        if document.digest in known:
            continue
        known[document.digest] = None
        if len(known) > REMEMBERED:
            del known[next(iter(known))]
        yield document
