"""What one unit of work leaves behind: arrays and facts in one file, hashed, written by a rename.

The file is safetensors; the facts are JSON in its metadata. It is not forced to the disk: after a
power cut a record may be torn, and `is_whole` finds that out.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

Arrays = dict[str, npt.NDArray[Any]]

OPEN_FILES = 256
"""Records that are held open at once."""


@dataclass
class Record:
    """The result of a unit, in memory."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Anything JSON can say."""
    arrays: Arrays = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file `path`, whole or not at all.

        Raises:
            OSError: the disk is full.
        """
        scratch = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        try:
            arrays = {k: np.ascontiguousarray(v) for k, v in self.arrays.items()}
            facts = json.dumps(self.facts)
            # Not its own `save_file`, whose error does not say that the disk is full.
            scratch.write_bytes(save(arrays, {"facts": facts, "hash": _hash(arrays, facts)}))
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


class RecordReader:
    """A record's file, of which only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        """Open the file `path`."""
        self._file = safe_open(path, framework="numpy")
        self.facts: dict[str, Any] = json.loads(self._file.metadata()["facts"])

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return the array `name`."""
        return self._file.get_tensor(name)

    def array_or_none(self, name: str) -> npt.NDArray[Any] | None:
        """Return the array `name`, or None where the record has none of that name."""
        return self.array(name) if name in self._file.keys() else None  # noqa: SIM118

    def part(self, name: str, start: int, end: int) -> npt.NDArray[Any]:
        """Return entries [start, end) of the array `name`."""
        if start == end:  # the library takes no empty slice at the end
            return self._file.get_tensor(name)[:0]
        return self._file.get_slice(name)[start:end]


class Shelf:
    """Many records, those used last held open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Hold the files `paths`."""
        self.paths = list(paths)
        self._open: OrderedDict[int, RecordReader] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.paths)

    def __getitem__(self, number: int) -> RecordReader:
        """Return record `number`."""
        if number not in self._open:
            self._open[number] = RecordReader(self.paths[number])
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


def is_whole(path: Path) -> bool:
    """Say whether the file `path` holds what was written."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
            return bool(metadata["hash"] == _hash(arrays, metadata["facts"]))
    except (SafetensorError, OSError, KeyError, TypeError):
        return False


def _hash(arrays: Arrays, facts: str) -> str:
    digest = xxhash.xxh3_128(facts.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        if array.size:
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
