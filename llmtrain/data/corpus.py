"""Cleaned documents on disk, between reading and tokenizing: memory stays small at any size."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from llmtrain.data.dedup import content_digest

ID_SIZE_BYTES = 4
"""Room for the size of an id, in front of it."""


class Corpus:
    """Documents in a scratch file; in memory, a place, a size and a hash each (32 bytes)."""

    def __init__(self, path: Path) -> None:
        """Start an empty corpus in the new file `path`."""
        self._file = path.open("w+b")
        self._end = 0
        self._starts = array("Q")
        self._sizes = array("Q")
        self._digests = bytearray()

    def add(self, text: bytes, digest: bytes | None = None, id: str = "") -> int:
        """Append a document of UTF-8 `text` that comes from `id` and return its number."""
        name = id.encode("utf-8", "replace")
        for part in (text, len(name).to_bytes(ID_SIZE_BYTES, "little"), name):
            self._file.write(part)
        self._starts.append(self._end)
        self._sizes.append(len(text))
        self._digests += digest or content_digest(text)
        self._end += len(text) + ID_SIZE_BYTES + len(name)
        return len(self) - 1

    def drop(self, numbers: Sequence[int]) -> None:
        """Forget the documents `numbers`; those behind them move up in number."""
        kept = np.ones(len(self), dtype=bool)
        kept[numbers] = False
        self._starts = array("Q", np.frombuffer(self._starts, dtype=np.uint64)[kept].tobytes())
        self._sizes = array("Q", np.frombuffer(self._sizes, dtype=np.uint64)[kept].tobytes())
        self._digests = bytearray(self.digests()[kept].tobytes())

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._starts)

    def text(self, number: int) -> str:
        """Return document `number`."""
        return self._read(self._starts[number], self._sizes[number]).decode("utf-8")

    def id(self, number: int) -> str:
        """Return where document `number` comes from."""
        end = self._starts[number] + self._sizes[number]
        size = int.from_bytes(self._read(end, ID_SIZE_BYTES), "little")
        return self._read(end + ID_SIZE_BYTES, size).decode("utf-8")

    def _read(self, start: int, size: int) -> bytearray:
        self._file.flush()
        raw = bytearray()
        while len(raw) < size:  # one read gives 2 GiB at most
            part = os.pread(self._file.fileno(), size - len(raw), start + len(raw))
            if not part:
                raise EOFError(f"{self._file.name} ends at byte {start + len(raw)}")
            raw += part
        return raw

    def texts(self, numbers: Iterable[int]) -> Iterator[str]:
        """Yield the documents `numbers`, in that order."""
        return (self.text(number) for number in numbers)

    def digest(self, number: int) -> bytes:
        """Return the 16-byte content hash of document `number`."""
        return bytes(self._digests[16 * number : 16 * number + 16])

    def digests(self) -> npt.NDArray[np.uint8]:
        """Return a copy of all content hashes, shape (documents, 16)."""
        return np.array(self._digests, dtype=np.uint8).reshape(-1, 16)

    def sizes(self) -> npt.NDArray[np.int64]:
        """Return the size of each document, shape (documents,), in bytes."""
        return np.array(self._sizes, dtype=np.int64)

    def close(self) -> None:
        """Close the scratch file."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the corpus itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the scratch file."""
        self.close()
