"""Texts in bearable amounts: the sample a tokenizer learns from, long texts in pieces."""

import re
from collections.abc import Iterable, Iterator

CHUNK_CHARS = 1 << 20
"""Longer texts are cut into pieces of about this many characters: less memory, more threads."""

# One line end between two characters that are no whitespace: every pattern of `byte_level.PATTERNS`
# cuts there too, so encoding the two sides one by one gives the same ids.
SAFE_CUT = re.compile(r"(?<=\S)\n(?=\S)")


def sample_texts(documents: Iterable[str], limit: int, total: int | None) -> Iterator[str]:
    """Yield about `limit` bytes of `documents`, long ones in pieces.

    Args:
        documents: Texts; read once.
        limit: UTF-8 bytes.
        total: UTF-8 size of all documents. Known, the same share is taken of each (its head);
            unknown, documents are taken whole until the limit is used up.
    """
    share = min(1.0, limit / total) if total else 1.0
    left = limit
    for text in documents:
        if left <= 0:
            return
        part = text if share == 1.0 else text[: max(1, round(len(text) * share))]
        left -= len(part.encode("utf-8"))
        yield from cut_text(part)


def cut_text(text: str) -> Iterator[str]:
    """Yield a long `text` in pieces of about `CHUNK_CHARS`, cut where the patterns cut too."""
    start = 0
    while len(text) - start > CHUNK_CHARS:
        cut = SAFE_CUT.search(text, start + CHUNK_CHARS // 2)
        if cut is None:
            break
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]
