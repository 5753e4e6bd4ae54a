"""Exact duplicates, by the 128-bit hash of the cleaned text."""

import xxhash

REMEMBERED_REPEATS = 5
"""Duplicates of which the report says where they come from: the first ones."""


def content_digest(text: bytes) -> bytes:
    """Return the 16-byte hash that stands for a document's cleaned UTF-8 text."""
    return xxhash.xxh3_128_digest(text)


class Deduplicator:
    """Remembers what it has seen: a hash a document, not the text."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: set[bytes] = set()
        self.duplicates = 0
        """Documents that had been seen before."""
        self.characters = 0
        """Characters of those."""
        self.repeats: list[tuple[bytes, str]] = []
        """Hash and origin of the first of those."""

    def is_new(self, digest: bytes, id: str = "", characters: int = 0) -> bool:
        """Say whether `digest` comes up for the first time, and remember it.

        Args:
            digest: The hash of a document.
            id: Where it comes from.
            characters: How long it is.
        """
        if digest in self._seen:
            self.duplicates += 1
            self.characters += characters
            if len(self.repeats) < REMEMBERED_REPEATS:
                self.repeats.append((digest, id))
            return False
        self._seen.add(digest)
        return True
