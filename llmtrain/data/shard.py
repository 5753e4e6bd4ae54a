"""Shards: token files and their document offsets, written once, read by memory map.

NAME.bin   tokens, uint16 or uint32 little endian; every document ends with the separator
NAME.idx   uint64 little endian, documents + 1 entries: where each document starts, in tokens
NAME.tgt   uint32 little endian, an entry a document: how many of its first tokens are a prompt;
           only where the source has prompts
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from llmtrain.data.manifest import PROMPTS, FileCheck, Manifest, Shard, mend
from llmtrain.durable import hash_file
from llmtrain.errors import DataError


def write_shard(
    folder: Path,
    name: str,
    lengths: npt.NDArray[np.int64],
    blocks: Iterable[npt.NDArray[Any]],
    prompts: npt.NDArray[np.int64] | None = None,
) -> dict[str, FileCheck]:
    """Write the files of a shard into `folder`; they are on the disk when this returns.

    Args:
        folder: Exists.
        name: Of the shard.
        lengths: Tokens of each document, its separator counted, shape (documents,).
        blocks: The tokens of all documents end to end, in pieces, uint16 or uint32.
        prompts: Prompt tokens of each document, shape (documents,); None: there is no such file.

    Returns:
        What the files must be.

    Raises:
        OSError: the disk is full.
    """
    digest, size = xxhash.xxh3_128(), 0
    with (folder / f"{name}.bin").open("wb") as stream:
        for block in blocks:
            raw = np.ascontiguousarray(block).view(np.uint8).data
            stream.write(raw)
            digest.update(raw)
            size += len(raw)
        flush_to_disk(stream)
    index = np.concatenate([[0], np.cumsum(lengths)]).astype("<u8").tobytes()
    files = {
        f"{name}.bin": FileCheck(size, digest.hexdigest()),
        f"{name}.idx": write_file(folder / f"{name}.idx", index),
    }
    if prompts is not None:
        file = f"{name}{PROMPTS}"
        files[file] = write_file(folder / file, prompts.astype("<u4").tobytes())
    return files


class ShardReader:
    """The tokens and offsets of one shard, memory-mapped."""

    def __init__(self, folder: Path, shard: Shard, dtype: str, has_prompts: bool = False) -> None:
        """Map the files of `shard` in `folder`; their sizes have been verified."""
        item = np.dtype(dtype).newbyteorder("<")
        self.tokens: npt.NDArray[Any] = _map(folder / f"{shard.name}.bin", item)
        """Shape (tokens,)."""
        self.offsets: npt.NDArray[Any] = _map(folder / f"{shard.name}.idx", np.dtype("<u8"))
        """Shape (documents + 1,)."""
        self.prompts: npt.NDArray[Any] | None = None
        """Shape (documents,), in tokens; None: no document has a prompt."""
        if has_prompts:
            self.prompts = _map(folder / f"{shard.name}{PROMPTS}", np.dtype("<u4"))


def open_shards(folder: Path, manifest: Manifest, shards: Sequence[Shard]) -> list[ShardReader]:
    """Return readers of `shards` of the prepared `folder`, whose files have been verified.

    Raises:
        DataError: a file is not what the manifest says.
    """
    readers = [ShardReader(folder, s, manifest.dtype, manifest.has_prompts) for s in shards]
    for shard, reader in zip(shards, readers, strict=True):
        if len(reader.offsets) != shard.documents + 1 or reader.offsets[-1] != shard.tokens:
            raise DataError(
                f"{folder / shard.name}.idx is corrupt: it does not fit its tokens. {mend(folder)}"
            )
        if reader.prompts is not None and len(reader.prompts) != shard.documents:
            raise DataError(
                f"{folder / shard.name}{PROMPTS} is corrupt: it does not fit its documents. "
                f"{mend(folder)}"
            )
    return readers


def write_file(path: Path, content: bytes) -> FileCheck:
    """Write `content` to the file `path`, on disk when this returns."""
    with path.open("wb") as stream:
        stream.write(content)
        flush_to_disk(stream)
    return FileCheck(len(content), xxhash.xxh3_128_hexdigest(content))


def keep_file(path: Path) -> FileCheck:
    """Push the file `path`, which somebody has written, down to the disk; return what it is."""
    with path.open("rb+") as stream:
        flush_to_disk(stream)
    return FileCheck(path.stat().st_size, hash_file(path))


def flush_to_disk(stream: BinaryIO) -> None:
    """Push everything written to `stream` down to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def _map(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    # A plain array over the map: np.memmap costs more at every indexing.
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
