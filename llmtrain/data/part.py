"""Parts of a source: what one process reads in one go, cut by the source alone.

The cut depends neither on how many processes read nor on which of them reads what, so a part's
number stands for its place in the source.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

PART_BYTES = 2 << 20
"""Raw input in one part, about: small enough that a few processes end together on 50 MB."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one file, or of rows, that is read in one go."""

    where: str
    """The file, or the name of the dataset."""
    bytes: int
    """Text in it, about."""
    start: int = 0
    """Where it begins, as the source counts: in bytes, row groups, rows or documents."""
    end: int = 0
    """Where it ends: nothing that begins there, or behind it, belongs to it."""
    first: int = 0
    """Number of the first line or row that begins in it."""
    stamp: tuple[int, int] = (0, 0)
    """Bytes and time of change, in ns, of the file when it was listed."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one process reads in one go. Plain values: it can be sent to another process."""

    number: int
    """Place in the source, from 0."""
    name: str
    """What it holds, for messages."""
    bytes: int
    """Text in it, about: for progress and balance."""
    spans: tuple[Span, ...]
    """What it is made of, in order."""

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """Return the part of which `facts` is what `dataclasses.asdict` gave, through JSON."""
        spans = (Span(**span | {"stamp": tuple(span["stamp"])}) for span in facts["spans"])
        return cls(**facts | {"spans": tuple(spans)})


def pack(spans: Iterable[Span]) -> Iterator[Part]:
    """Yield `spans`, in order, as parts of up to PART_BYTES; a larger span is a part of its own."""
    held: list[Span] = []
    size = number = 0
    for span in spans:
        if held and size + span.bytes > PART_BYTES:
            yield _make_part(number, held)
            held, size, number = [], 0, number + 1
        held.append(span)
        size += span.bytes
    if held:
        yield _make_part(number, held)


def cut_rows(sizes: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, bytes) of stretches of up to PART_BYTES, none without an item.

    Args:
        sizes: Bytes of each row, or row group.
    """
    start = end = held = 0
    for size in sizes:
        if end > start and held + size > PART_BYTES:
            yield start, end, held
            start, held = end, 0
        end += 1
        held += size
    if end > start:
        yield start, end, held


def _make_part(number: int, spans: list[Span]) -> Part:
    first, last = spans[0].where, spans[-1].where
    name = first if first == last else f"{first} to {last}"
    return Part(number, name, sum(span.bytes for span in spans), tuple(spans))
