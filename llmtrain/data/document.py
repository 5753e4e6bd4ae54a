"""One text, as its source has it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text as its source has it."""

    id: str
    """Where it comes from: a file, file:line, file:offset (of a long file) or source:row."""
    text: str
    """The text, valid Unicode."""
    replaced: int = 0
    """How many U+FFFD stand for bytes that were no UTF-8."""
