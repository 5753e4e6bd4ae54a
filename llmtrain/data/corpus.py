"""Cleaned documents on disk, between reading and tokenizing: memory stays small at any size."""

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from llmtrain.data.dedup import content_digest


class Corpus:
    """Documents in a scratch file; in memory, a place and a hash each (24 bytes)."""

    def __init__(self, path: Path) -> None:
        """Start an empty corpus in the new file `path`."""
        self._file = path.open("w+b")
        self._starts = array("Q", [0])
        self._digests = bytearray()

    def add(self, text: bytes, digest: bytes | None = None) -> int:
        """Append a document of UTF-8 `text` and return its number."""
        self._file.write(text)
        self._starts.append(self._starts[-1] + len(text))
        self._digests += digest or content_digest(text)
        return len(self) - 1

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._starts) - 1

    def text(self, number: int) -> str:
        """Return document `number`."""
        start, end = self._starts[number], self._starts[number + 1]
        self._file.flush()
        raw = bytearray()
        while len(raw) < end - start:  # one read gives 2 GiB at most
            part = os.pread(self._file.fileno(), end - start - len(raw), start + len(raw))
            if not part:
                raise EOFError(f"{self._file.name} ended before document {number} did")
            raw += part
        return raw.decode("utf-8")

    def texts(self, numbers: Iterable[int]) -> Iterator[str]:
        """Yield the documents `numbers`, in that order."""
        return (self.text(number) for number in numbers)

    def digest(self, number: int) -> bytes:
        """Return the 16-byte content hash of document `number`."""
        return bytes(self._digests[16 * number : 16 * number + 16])

    def sizes(self) -> npt.NDArray[np.int64]:
        """Return the size of each document, shape (documents,), in bytes."""
        starts = np.array(self._starts, dtype=np.int64)
        return starts[1:] - starts[:-1]

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
