"""Text files: one document a file; a file that is too long for one is cut at ends of lines."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from llmtrain.config.groups.data import DataConfig
from llmtrain.data.decode import decode_bytes
from llmtrain.data.document import Document
from llmtrain.data.locate import is_compressed
from llmtrain.data.part import Span
from llmtrain.data.raw_file import open_file, whole_file
from llmtrain.data.skip import RecordError

SEARCH_BYTES = 1 << 20
"""How far the end of a line is looked for; where there is none, a cut goes between characters."""


def text_spans(config: DataConfig, file: Path) -> Iterator[Span]:
    """Yield `file` in stretches of `config.max_document_bytes`; a compressed one is one stretch.

    Raises:
        DataError: it cannot be read.
    """
    whole = whole_file(file)
    limit = config.max_document_bytes
    if is_compressed(file) or whole.end <= limit:
        yield whole
        return
    for start in range(0, whole.end, limit):
        end = min(start + limit, whole.end)
        yield replace(whole, start=start, end=end, bytes=end - start)


def read_text(config: DataConfig, span: Span) -> Iterator[Document | RecordError]:
    """Yield the documents of `span`: one, and several from a long file that is compressed.

    A document of a long file holds the lines that begin in one stretch of the file.

    Raises:
        DataError: the file cannot be read.
    """
    strict = config.errors == "strict"
    with open_file(span) as stream:
        if is_compressed(span.where):
            pieces = _cut_stream(stream, config.max_document_bytes)
        else:
            pieces = _cut_span(stream, span, config.max_document_bytes)
        for offset, raw, is_whole in pieces:
            where = span.where if is_whole else f"{span.where}:{offset}"
            try:
                yield Document(where, *decode_bytes(raw, where, strict=strict, offset=offset))
            except RecordError as error:
                yield error


def _cut_span(stream: BinaryIO, span: Span, limit: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (offset, bytes, whether that is the whole file) of the one document of `span`."""
    size, _ = span.stamp
    if size <= limit:
        yield 0, stream.read(size), True
        return
    start, end = span.start, span.end
    if start:
        stream.seek(start - 1)
        start += _next_cut(stream.read(1 + _search_bytes(limit)))
    if end < size:
        stream.seek(end - 1)
        end += _next_cut(stream.read(1 + _search_bytes(limit)))
    stream.seek(start)
    if start < end:
        yield start, stream.read(end - start), False


def _cut_stream(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield what `_cut_span` yields for all of the same bytes, from a stream that cannot seek."""
    offset, target, held = 0, limit, b""
    while True:
        held += stream.read(target + _search_bytes(limit) - offset - len(held))
        if offset + len(held) <= target:
            break
        cut = target - offset + _next_cut(held[target - offset - 1 :])
        yield offset, held[:cut], False
        offset, target, held = offset + cut, target + limit, held[cut:]
    if held or not offset:
        yield offset, held, not offset


def _search_bytes(limit: int) -> int:
    """Return how far to look for the end of a line: not as far as the next cut."""
    return min(SEARCH_BYTES, limit - 1)


def _next_cut(window: bytes) -> int:
    """Return how far behind a wanted place to cut.

    Args:
        window: The file from one byte before the wanted place.
    """
    end = window.find(b"\n")
    if end >= 0:
        return end
    # Between characters: the bytes 10xxxxxx are inside one, three at most.
    ahead = window[1:5]
    inside = next((i for i, byte in enumerate(ahead) if byte & 0xC0 != 0x80), len(ahead))
    return inside if inside < 4 else 0
