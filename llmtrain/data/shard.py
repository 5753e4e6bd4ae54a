"""Shards: token files and their document offsets, written once, read by memory map.

NAME.bin   tokens, uint16 or uint32 little endian; every document ends with the separator
NAME.idx   uint64 little endian, documents + 1 entries: where each document starts, in tokens
"""

import os
from array import array
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from llmtrain.data.manifest import FileCheck, Shard, dtype_for
from llmtrain.errors import DataError
from llmtrain.tokenizer.base import TokenIds


class ShardWriter:
    """Writes the documents of one split, a new pair of files whenever one is full."""

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        vocab_size: int,
        separator_id: int,
        shard_tokens: int | None,
    ) -> None:
        """Write into `folder`.

        Args:
            folder: Exists.
            split: Start of every file name.
            vocab_size: Decides the type of a token.
            separator_id: Put behind every document.
            shard_tokens: A shard that has so many is full; None: only `next_shard` starts one.

        Raises:
            DataError: the vocabulary fits no type.
        """
        self._folder = folder
        self._split = split
        self._dtype = dtype_for(vocab_size)
        self._vocab_size = vocab_size
        self._separator = np.array([separator_id], dtype=self._dtype).tobytes()
        self._shard_tokens = shard_tokens
        self.shards: list[Shard] = []
        """Shards that are finished."""
        self.files: dict[str, FileCheck] = {}
        """Files that are finished."""
        self._open()

    def add(self, ids: TokenIds) -> None:
        """Append one document, `ids` of shape (tokens,), and the separator.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self._vocab_size:
            raise DataError(
                f"The tokenizer gave id {int(ids.max())}, but its vocabulary has "
                f"{self._vocab_size} ids: its files do not fit together."
            )
        if self._shard_tokens is not None and self._offsets[-1] >= self._shard_tokens:
            self.next_shard()
        self._write(ids.astype(self._dtype).tobytes() + self._separator)
        self._offsets.append(self._offsets[-1] + ids.size + 1)

    def next_shard(self) -> None:
        """Finish the shard at hand, empty or not, and start the next."""
        self._finish()
        self._open()

    def close(self) -> None:
        """Finish the last shard. Everything is on disk when this returns."""
        self._finish()

    def abort(self) -> None:
        """Close the open file; what is written is to be thrown away."""
        self._stream.close()

    def _open(self) -> None:
        self._name = f"{self._split}-{len(self.shards):05d}"
        self._stream: BinaryIO = (self._folder / f"{self._name}.bin").open("wb")
        self._digest = xxhash.xxh3_128()
        self._offsets = array("Q", [0])

    def _write(self, raw: bytes) -> None:
        self._stream.write(raw)
        self._digest.update(raw)

    def _finish(self) -> None:
        tokens, documents = self._offsets[-1], len(self._offsets) - 1
        flush_to_disk(self._stream)
        self._stream.close()
        size = tokens * self._dtype.itemsize
        self.files[f"{self._name}.bin"] = FileCheck(size, self._digest.hexdigest())
        index = np.array(self._offsets, dtype="<u8").tobytes()
        self.files[f"{self._name}.idx"] = write_file(self._folder / f"{self._name}.idx", index)
        self.shards.append(Shard(self._name, tokens, documents))


class ShardReader:
    """The tokens and offsets of one shard, memory-mapped."""

    def __init__(self, folder: Path, shard: Shard, dtype: str) -> None:
        """Map the files of `shard` in `folder`; their sizes have been verified."""
        item = np.dtype(dtype).newbyteorder("<")
        self.tokens: npt.NDArray[Any] = _map(folder / f"{shard.name}.bin", item)
        """Shape (tokens,)."""
        self.offsets: npt.NDArray[Any] = _map(folder / f"{shard.name}.idx", np.dtype("<u8"))
        """Shape (documents + 1,)."""


def write_file(path: Path, content: bytes) -> FileCheck:
    """Write `content` to the file `path`, on disk when this returns."""
    with path.open("wb") as stream:
        stream.write(content)
        flush_to_disk(stream)
    return FileCheck(len(content), xxhash.xxh3_128_hexdigest(content))


def flush_to_disk(stream: BinaryIO) -> None:
    """Push everything written to `stream` down to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def _map(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    # A plain array over the map: np.memmap costs more at every indexing.
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
