"""JSON lines: one document a line."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llmtrain.config.groups.data import JsonlDataConfig
from llmtrain.data.decode import decode_bytes
from llmtrain.data.document import Document
from llmtrain.data.locate import is_compressed
from llmtrain.data.part import PART_BYTES, Span
from llmtrain.data.raw_file import open_file, skip_line, whole_file
from llmtrain.data.row import document_of, fields_read, too_long
from llmtrain.data.skip import RecordError
from llmtrain.errors import DataError


def jsonl_spans(file: Path) -> Iterator[Span]:
    """Yield `file` in stretches of PART_BYTES; a compressed one is one stretch.

    The lines before each stretch are counted, so that documents are named by their line: the whole
    of a large file is read once, at the pace of the disk.

    Raises:
        DataError: it cannot be read.
    """
    whole = whole_file(file, first=1)
    if is_compressed(file) or whole.end <= PART_BYTES:
        yield whole
        return
    try:
        with file.open("rb") as stream:
            line = 1
            for start in range(0, whole.end, PART_BYTES):
                end = min(start + PART_BYTES, whole.end)
                yield replace(whole, start=start, end=end, first=line, bytes=end - start)
                # A newline in the last byte begins a line at `end`, which is not before it; the
                # first line begins without one.
                line += stream.read(PART_BYTES - (start == 0)).count(b"\n") + (start == 0)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error


def read_jsonl(config: JsonlDataConfig, span: Span) -> Iterator[Document | RecordError]:
    """Yield the documents of the lines that begin in `span`.

    Raises:
        DataError: the file cannot be read.
    """
    limit = config.max_document_bytes
    end = sys.maxsize if is_compressed(span.where) else span.end
    number, offset = span.first, span.start
    with open_file(span) as stream:
        if offset:
            stream.seek(offset - 1)
            offset += skip_line(stream, limit=end - offset + 1) - 1
        while offset < end and (raw := stream.readline(limit + 1)):
            where, size = f"{span.where}:{number}", len(raw)
            if size > limit and not raw.endswith(b"\n"):
                size += skip_line(stream)
                yield too_long(where, size, limit)
            else:
                try:
                    document = _parse(config, raw, where, offset)
                except RecordError as error:
                    yield error
                else:
                    if document is not None:
                        yield document
            offset += size
            number += 1


def _parse(config: JsonlDataConfig, raw: bytes, where: str, offset: int) -> Document | None:
    """Return the document of a line, or None where the line is blank.

    Raises:
        RecordError: it holds none.
    """
    strict = config.errors == "strict"
    line, replaced = decode_bytes(raw, where, strict=strict, offset=offset)
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError("not JSON", where, f"{where}: not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise RecordError(
            "not an object",
            where,
            f"{where}: holds {type(row).__name__}; every line must be an object, such as "
            f'{{"{next(iter(fields_read(config)))}": "..."}}.',
        )
    return document_of(row, where, config, replaced)
