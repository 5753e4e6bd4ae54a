"""Exact duplicates, by the 128-bit hash of the cleaned text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

Digests = npt.NDArray[np.uint8]
"""Content hashes, shape (documents, 16)."""


def content_digest(text: bytes) -> bytes:
    """Return the 16-byte hash that stands for a document's cleaned UTF-8 text."""
    return xxhash.xxh3_128_digest(text)


@dataclass(frozen=True)
class ExactDuplicates:
    """Documents whose text stands before them."""

    kept: npt.NDArray[np.int64]
    """Places of the other documents, ascending."""
    dropped: npt.NDArray[np.int64]
    """Places of the duplicates, ascending."""
    first: npt.NDArray[np.int64]
    """For each of those, the place of the document that was kept; -1: it is in another source."""


def find_exact_duplicates(digests: Digests, earlier: Digests) -> ExactDuplicates:
    """Return which of the documents of `digests` to keep: the first of equal ones.

    Sorts hashes of 16 bytes; no text is read. Two different texts of one hash are not expected
    among fewer than 2^60 documents.

    Args:
        digests: Of the documents, in order.
        earlier: Of documents elsewhere, before all of these.
    """
    halves = np.concatenate([earlier, digests]).view(">u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal ones stay in order
    ordered = halves[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    first = np.maximum(first[len(earlier) :] - len(earlier), -1)
    places = np.arange(len(digests), dtype=np.int64)
    dropped = np.flatnonzero(first != places)
    return ExactDuplicates(np.flatnonzero(first == places), dropped, first[dropped])
