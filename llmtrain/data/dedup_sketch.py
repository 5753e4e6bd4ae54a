"""MinHash sketches of documents in scratch files, and the buckets in which alike ones meet.

A sketch is `permutations` numbers; two documents have equal numbers at about as many places as
they share n-grams. Cut into bands of `rows` numbers, documents whose whole band is equal fall into
one bucket of that band, and only those are ever compared: locality-sensitive hashing, Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.

Scratch for N documents of the default settings: 512 N bytes of sketches, 144 N of buckets, at most
108 N of who was kept in each. Memory, one band at a time: 51 N bytes.
"""

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmtrain.config.groups.dedup import NearConfig
from llmtrain.data.dedup_shingle import MULTIPLIER, Shingler, mix

FOUND_RATIO = 0.98
"""How likely two documents of just `similarity` must be to share a bucket."""

MOST_IN_A_BUCKET = 256
"""Documents of a bucket that others are compared with: the first ones kept. A bound on the time
that many documents of one pattern take; what is beyond it is counted."""


def choose_bands(similarity: float, permutations: int) -> tuple[int, int]:
    """Return (bands, rows) of the most selective buckets that still find near-duplicates.

    Two documents of similarity s share one of b buckets of r rows with probability
    1 - (1 - s^r)^b. Every pair found is compared n-gram by n-gram later, so too many cost only
    time: the largest r is taken at which `FOUND_RATIO` of the pairs at the threshold are found.
    """
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1 - (1 - similarity**rows) ** bands >= FOUND_RATIO:
            return bands, rows
    return permutations, 1


class Sketches:
    """The sketch of every document, and who meets whom."""

    def __init__(self, config: NearConfig, documents: int, folder: Path) -> None:
        """Reserve room for `documents` in nameless files of `folder`, gone with the process.

        Raises:
            OSError: the disk is full.
        """
        self._config = config
        self.bands, self._rows = choose_bands(config.similarity, config.permutations)
        self._folder = folder
        self._filled = 0
        self.values = scratch_array(folder, (documents, config.permutations), np.uint32)
        """The sketches, shape (documents, permutations)."""
        self.buckets = scratch_array(folder, (self.bands, documents), np.uint64)
        """Hashes of the bands; after `meet`, where in `members` a document's bucket starts, plus
        one; 0: it is alone there. Shape (bands, documents)."""
        self.members = np.zeros(0, dtype=np.uint32)
        """Of each bucket, how many are in it, and then as many numbers. Shape (sum of rooms,)."""
        self._empty = np.zeros(documents, dtype=bool)

    def add(self, sketches: npt.NDArray[np.uint32], empty: npt.NDArray[np.bool_]) -> None:
        """Take in what `sketch_texts` made of the next documents."""
        at = slice(self._filled, self._filled + len(sketches))
        self.values[at] = sketches
        self._empty[at] = empty
        for band in range(self.bands):
            part = sketches[:, band * self._rows : (band + 1) * self._rows].astype(np.uint64)
            key = np.zeros(len(sketches), dtype=np.uint64)
            for column in part.T:
                key = mix(key * np.uint64(MULTIPLIER) + column)
            self.buckets[band, at] = key
        self._filled += len(sketches)

    def meet(self) -> npt.NDArray[np.bool_]:
        """Find the buckets of two documents and more, and make room in `members` for each.

        Returns:
            Whether a document meets any other, shape (documents,).

        Raises:
            OSError: the disk is full.
        """
        meets = np.zeros(self._filled, dtype=bool)
        room = 0
        for band in range(self.bands):
            found, room = _number_buckets(self.buckets[band], self._empty, room)
            self.buckets[band] = found
            meets |= found > 0
        self.members = scratch_array(self._folder, (room,), np.uint32)
        return meets

    def kept_in(self, buckets: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
        """Return what `keep` has put into any of `buckets`, sorted, once each."""
        members = self.members
        parts = [members[start : start + members[start - 1]] for start in buckets.tolist() if start]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.uint32)

    def keep(self, number: int, buckets: npt.NDArray[np.uint64]) -> bool:
        """Put `number` into `buckets`; return whether all of them had room."""
        members, fits = self.members, True
        for start in buckets.tolist():
            if not start:
                continue
            held = int(members[start - 1])
            if held == MOST_IN_A_BUCKET:
                fits = False
                continue
            members[start + held] = number
            members[start - 1] = held + 1
        return fits


def sketch_texts(
    texts: Sequence[str], config: NearConfig
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Return the sketch of each text, shape (documents, permutations), and which have no n-gram."""
    hashes, starts = Shingler(config).hashes(texts)
    sketches = make_sketches(hashes, starts, config.permutations, config.seed)
    return sketches, starts[1:] == starts[:-1]


def make_sketches(
    hashes: npt.NDArray[np.uint64], starts: npt.NDArray[np.int64], permutations: int, seed: int
) -> npt.NDArray[np.uint32]:
    """Return the sketch of each set of `hashes`, shape (documents, permutations).

    R-MinHash of the library `rensa`, after Dahlgaard, Knudsen, Thorup, Fast Similarity Sketching
    (FOCS 2017): about one step an n-gram where plain MinHash takes one a permutation.
    """
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, starts.astype(np.uint64), permutations, seed
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(starts) - 1, permutations)


def scratch_array(folder: Path, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Return an array of zeros in a file of `folder` that has no name and is gone when unused.

    Raises:
        OSError: the disk is full. Found out now: a full disk under a memory map kills a process.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype=dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), size)
        # A plain view: slices of the class memmap are slow to make.
        return np.asarray(np.memmap(file, dtype=dtype, mode="w+", shape=shape))


def _reserve(file: int, size: int) -> None:
    """Take `size` bytes of disk for `file`, where the system and its file system can.

    Raises:
        OSError: the disk is full.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _number_buckets(
    keys: npt.NDArray[np.uint64], empty: npt.NDArray[np.bool_], room: int
) -> tuple[npt.NDArray[np.uint64], int]:
    """Return the place of each document's bucket plus one, 0 for one that is alone in it.

    Args:
        keys: Hash of a band, shape (documents,).
        empty: Documents without n-grams, which meet nobody, shape (documents,).
        room: Where the first bucket is to be.

    Returns:
        The places, shape (documents,), and where the bucket after the last would be.
    """
    places = np.zeros(len(keys), dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    order = order[~empty[order]]
    ordered = keys[order]
    firsts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    sizes = np.diff(np.append(firsts, len(ordered)))
    shared = sizes > 1
    rooms = 1 + np.minimum(sizes[shared], MOST_IN_A_BUCKET)
    ends = room + np.cumsum(rooms)
    places[order[np.repeat(shared, sizes)]] = np.repeat(1 + ends - rooms, sizes[shared])
    return places, int(ends[-1]) if len(ends) else room
