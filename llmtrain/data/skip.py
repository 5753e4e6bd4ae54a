"""Records that cannot be used, and the count of those that were left out."""

from dataclasses import dataclass, field
from typing import Any, Self

import xxhash

from llmtrain.data.clean_count import EXAMPLES_KEPT, Example
from llmtrain.errors import DataError


class RecordError(DataError):
    """One document that cannot be used, in a source whose others can."""

    def __init__(self, reason: str, where: str, message: str) -> None:
        """Make the error.

        Args:
            reason: What is wrong, in a word or two: what is counted together.
            where: The document's id.
            message: What is wrong, where, and what to do.
        """
        super().__init__(message)
        self.reason = reason
        self.where = where


@dataclass
class SkipCount:
    """What was left out of a source, under `data.errors=skip`."""

    reasons: dict[str, int] = field(default_factory=dict)
    """Documents left out, by what was wrong with them."""
    examples: list[Example] = field(default_factory=list)
    """Some of them, those of the smallest hashes: `id` says where, `text` what is wrong."""

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """Return the count of which `facts` is what `dataclasses.asdict` gave."""
        return cls(dict(facts["reasons"]), [Example(**e) for e in facts["examples"]])

    @property
    def documents(self) -> int:
        """How many were left out."""
        return sum(self.reasons.values())

    def add(self, error: RecordError) -> None:
        """Count one that is left out."""
        self.reasons[error.reason] = self.reasons.get(error.reason, 0) + 1
        message = str(error)
        key = xxhash.xxh3_64_intdigest(f"{error.where}\0{message}".encode(errors="replace"))
        self._keep([Example(key, error.where, message)])

    def merge(self, other: "SkipCount") -> None:
        """Add what was left out elsewhere."""
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self._keep(other.examples)

    def to_json(self) -> dict[str, Any]:
        """Return the counts, and the examples where there are any."""
        counts: dict[str, Any] = {
            "documents": self.documents,
            "reasons": dict(sorted(self.reasons.items())),
        }
        if self.examples:
            counts["examples"] = [{"id": e.id, "text": e.text} for e in self.examples]
        return counts

    def nothing_left(self) -> str:
        """Return the message for a source of which every document was left out."""
        if self.documents == 1:
            return self.examples[0].text
        return (
            f"None of {self.documents} documents can be used. One of them: {self.examples[0].text}"
        )

    def _keep(self, examples: list[Example]) -> None:
        self.examples = sorted([*self.examples, *examples])[:EXAMPLES_KEPT]
