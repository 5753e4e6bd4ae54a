"""Cleaned documents on disk, between reading and tokenizing: memory stays small at any size."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmtrain.config.groups.dedup import NearConfig
from llmtrain.data.dedup import content_digest
from llmtrain.data.dedup_sketch import sketch_texts
from llmtrain.data.record import Arrays, Record, RecordReader, Shelf

SKETCHED_BYTES = 1 << 20
"""Text that is sketched at once."""

Numbers = npt.NDArray[np.int64]


class CorpusWriter:
    """Collects the documents of one unit."""

    def __init__(self, near: NearConfig | None = None) -> None:
        """Start without documents.

        Args:
            near: Sketch them, for near-duplicates to be found; None: do not.
        """
        self._near = near
        self._texts = bytearray()
        self._ids = bytearray()
        self._digests = bytearray()
        self._sizes: list[int] = []
        self._characters: list[int] = []
        self._id_sizes: list[int] = []
        self._prompts: list[int] = []

    def add(self, text: str, id: str = "", prompt: str = "") -> None:
        """Append the document that is `prompt` and behind it `text`, and comes from `id`."""
        head, name = prompt.encode("utf-8"), id.encode("utf-8", "replace")
        raw = head + text.encode("utf-8")
        self._prompts.append(len(head))
        self._texts += raw
        self._ids += name
        self._digests += content_digest(raw)
        self._sizes.append(len(raw))
        self._characters.append(len(prompt) + len(text))
        self._id_sizes.append(len(name))

    def record(self, facts: dict[str, Any] | None = None) -> Record:
        """Return all documents, and `facts`, as a record that `Corpus` reads."""
        arrays: Arrays = {
            "texts": np.frombuffer(self._texts, dtype=np.uint8),
            "ids": np.frombuffer(self._ids, dtype=np.uint8),
            "digests": np.frombuffer(self._digests, dtype=np.uint8).reshape(-1, 16),
            "sizes": np.array(self._sizes, dtype=np.int64),
            "characters": np.array(self._characters, dtype=np.int64),
            "id_sizes": np.array(self._id_sizes, dtype=np.int64),
        }
        if self._near is not None:
            arrays |= self._sketched(self._near)
        if any(self._prompts):
            arrays["prompts"] = np.array(self._prompts, dtype=np.int64)
        return Record(facts or {}, arrays)

    def _sketched(self, near: NearConfig) -> Arrays:
        sketches = [np.zeros((0, near.permutations), dtype=np.uint32)]
        empty = [np.zeros(0, dtype=bool)]
        ends = np.cumsum(self._sizes, dtype=np.int64)
        starts = _starts(np.array(self._sizes, dtype=np.int64))
        for batch in cut_batches(np.array(self._sizes), range(len(ends)), SKETCHED_BYTES):
            texts = [self._texts[starts[n] : ends[n]].decode("utf-8") for n in batch]
            found = sketch_texts(texts, near)
            sketches.append(found[0])
            empty.append(found[1])
        return {"sketches": np.concatenate(sketches), "no_ngrams": np.concatenate(empty)}


class Corpus:
    """Documents of several records, numbered through; in memory 68 bytes each."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take the documents of the records `paths`, in order."""
        self._shelf = Shelf(paths)
        counts: list[int] = []
        columns: list[list[Numbers]] = [[np.zeros(0, dtype=np.int64)] for _ in range(6)]
        digests = [np.zeros((0, 16), dtype=np.uint8)]
        for path in paths:
            reader = RecordReader(path)
            sizes, id_sizes = reader.array("sizes"), reader.array("id_sizes")
            counts.append(len(sizes))
            digests.append(reader.array("digests"))
            found = (
                sizes, _starts(sizes), reader.array("characters"), id_sizes, _starts(id_sizes),
                np.arange(len(sizes)),
            )  # fmt: skip
            for column, part in zip(columns, found, strict=True):
                column.append(part)
        self._record = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        whole = map(np.concatenate, columns)
        self._sizes, self._starts, self._characters, self._id_sizes, self._id_starts, own = whole
        self._places: Numbers = own
        self._digests = np.concatenate(digests)
        self.numbers: Numbers = np.arange(len(self._sizes), dtype=np.int64)
        """What each document was numbered before any `select`, shape (documents,)."""

    def select(self, places: Numbers) -> "Corpus":
        """Return the corpus of the documents at `places` alone, numbered anew."""
        part = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):  # one entry a document
                setattr(part, name, value[places])
        return part

    def followed_by(self, other: "Corpus") -> "Corpus":
        """Return the documents of this corpus and, behind them, those of `other`."""
        whole = copy(self)
        whole._shelf = Shelf([*self._shelf.paths, *other._shelf.paths])
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(whole, name, np.concatenate([value, getattr(other, name)]))
        whole._record[len(self) :] += len(self._shelf)
        return whole

    def bounds(self) -> Numbers:
        """Return where the documents of each record begin, and the end; of an unselected corpus."""
        return np.searchsorted(self._record, np.arange(len(self._shelf) + 1)).astype(np.int64)

    def prompts(self) -> Numbers | None:
        """Return the size of each document's prompt, shape (documents,), in bytes; of an unselected
        corpus. None: no document has one."""
        found = [self._shelf[n].array_or_none("prompts") for n in range(len(self._shelf))]
        if all(sizes is None for sizes in found):
            return None
        counts = np.diff(self.bounds())
        parts = zip(found, counts, strict=True)
        return np.concatenate([np.zeros(n, np.int64) if p is None else p for p, n in parts])

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._sizes)

    def text(self, number: int) -> str:
        """Return document `number`."""
        return self._read(number, "texts", self._starts, self._sizes)

    def id(self, number: int) -> str:
        """Return where document `number` comes from."""
        return self._read(number, "ids", self._id_starts, self._id_sizes)

    def texts(self, numbers: Iterable[int]) -> Iterator[str]:
        """Yield the documents `numbers`, in that order."""
        return (self.text(int(number)) for number in numbers)

    def digest(self, number: int) -> bytes:
        """Return the 16-byte content hash of document `number`."""
        return self._digests[number].tobytes()

    def digests(self) -> npt.NDArray[np.uint8]:
        """Return all content hashes, shape (documents, 16)."""
        return self._digests

    def sizes(self) -> Numbers:
        """Return the size of each document, shape (documents,), in bytes."""
        return self._sizes

    def characters(self) -> Numbers:
        """Return the length of each document, shape (documents,), in characters."""
        return self._characters

    def sketches(self) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]]:
        """Yield what `sketch_texts` made of all documents, in order, some at a time."""
        cuts = np.flatnonzero(np.diff(self._record)) + 1
        for numbers in np.split(np.arange(len(self)), cuts):
            if len(numbers):
                reader = self._shelf[int(self._record[numbers[0]])]
                places = self._places[numbers]
                yield reader.array("sketches")[places], reader.array("no_ngrams")[places]

    def _read(self, number: int, name: str, starts: Numbers, sizes: Numbers) -> str:
        start, record = int(starts[number]), self._shelf[int(self._record[number])]
        return record.part(name, start, start + int(sizes[number])).tobytes().decode("utf-8")


def cut_batches(
    sizes: npt.NDArray[Any], order: Iterable[int], most_bytes: int, most: int = 4096
) -> Iterator[list[int]]:
    """Yield `order` in runs of about `most_bytes` of text, and of `most` documents at most."""
    numbers: list[int] = []
    held = 0
    for number in map(int, order):
        numbers.append(number)
        held += int(sizes[number])
        if held >= most_bytes or len(numbers) == most:
            yield numbers
            numbers, held = [], 0
    if numbers:
        yield numbers


def _starts(sizes: Numbers) -> Numbers:
    return np.cumsum(sizes) - sizes
