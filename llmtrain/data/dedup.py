"""Exact duplicates, by the 128-bit hash of the cleaned text."""

import xxhash


def content_digest(text: bytes) -> bytes:
    """Return the 16-byte hash that stands for a document's cleaned UTF-8 text."""
    return xxhash.xxh3_128_digest(text)


class Deduplicator:
    """Remembers what it has seen: 16 bytes a document, not the text."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: set[bytes] = set()
        self.duplicates = 0
        """Documents that had been seen before."""

    def is_new(self, digest: bytes) -> bool:
        """Say whether `digest` comes up for the first time, and remember it."""
        if digest in self._seen:
            self.duplicates += 1
            return False
        self._seen.add(digest)
        return True
