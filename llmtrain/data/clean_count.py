"""What a cleaning rule has done: counts, and a few of the documents that it dropped."""

from dataclasses import dataclass, field
from typing import Any, Self

import xxhash

EXAMPLES_KEPT = 3
"""Dropped documents that a rule shows."""

EXAMPLE_CHARACTERS = 80
"""Characters of each that are shown."""


@dataclass(frozen=True, order=True)
class Example:
    """A document that a rule dropped."""

    key: int
    """Hash of id and text. Examples are those of the smallest keys, so that they depend neither
    on the order of the documents nor on how many processes read them."""
    id: str
    text: str
    """Its first characters."""


@dataclass
class RuleCount:
    """What one rule has done."""

    documents: int = 0
    """Documents it changed or dropped."""
    dropped: int = 0
    """Documents it dropped."""
    lines: int = 0
    """Lines it dropped from documents that stayed."""
    masked: int = 0
    """Places it masked."""
    characters: int = 0
    """Characters it took away, net; a mask may be longer than what it hides."""
    examples: list[Example] = field(default_factory=list)
    """Some of the documents it dropped."""

    def add_change(self, characters: int, *, lines: int = 0, masked: int = 0) -> None:
        """Count one document that was changed."""
        self.documents += 1
        self.characters += characters
        self.lines += lines
        self.masked += masked

    def add_drop(self, name: str, text: str) -> None:
        """Count one document that was dropped.

        Args:
            name: Where the document comes from.
            text: The document as the rule met it.
        """
        self.documents += 1
        self.dropped += 1
        self.characters += len(text)
        key = xxhash.xxh3_64_intdigest(f"{name}\0{text}".encode())
        self._keep([Example(key, name, text[:EXAMPLE_CHARACTERS])])

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """Return the counts of which `facts` is what `dataclasses.asdict` gave."""
        return cls(**facts | {"examples": [Example(**e) for e in facts["examples"]]})

    def merge(self, other: "RuleCount") -> None:
        """Add what the same rule did elsewhere."""
        for name in ("documents", "dropped", "lines", "masked", "characters"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._keep(other.examples)

    def to_json(self) -> dict[str, Any]:
        """Return the counts, and the examples where there are any."""
        counts: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("documents", "dropped", "lines", "masked", "characters")
        }
        if self.examples:
            counts["examples"] = [{"id": e.id, "text": e.text} for e in self.examples]
        return counts

    def _keep(self, examples: list[Example]) -> None:
        self.examples = sorted([*self.examples, *examples])[:EXAMPLES_KEPT]
