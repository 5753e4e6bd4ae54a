"""Files as streams of bytes: plain, gzip or zstd, unchanged since they were listed."""

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from llmtrain.data.locate import COMPRESSED, is_compressed
from llmtrain.data.part import Span
from llmtrain.errors import DataError

COMPRESSION_RATIO = 3
"""Bytes of text in a byte of a compressed file, about: for progress and balance alone."""

READ_BYTES = 1 << 20
"""How much is read at once of what is passed over."""


def whole_file(file: Path, *, first: int = 0) -> Span:
    """Return the span of all of `file`.

    Raises:
        DataError: it is not there, or may not be looked at.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    size = stat.st_size * (COMPRESSION_RATIO if is_compressed(file) else 1)
    return Span(str(file), size, 0, stat.st_size, first, (stat.st_size, stat.st_mtime_ns))


@contextlib.contextmanager
def open_file(span: Span) -> Iterator[BinaryIO]:
    """Open the file of `span` at its first byte, decompressed where its name says so.

    Raises:
        DataError: it cannot be read, is damaged, or is not what it was when it was listed.
    """
    file = Path(span.where)
    try:
        with file.open("rb") as raw:
            check_unchanged(span, os.fstat(raw.fileno()))
            with _decompressed(raw, file.suffix) as stream:
                yield stream
    except EOFError as error:
        raise _damaged(file, "it ends in the middle") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(file, str(error)) from error
    except OSError as error:
        if error.errno is None and is_compressed(file):  # what pyarrow says of zstd
            raise _damaged(file, str(error)) from error
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error


def check_unchanged(span: Span, stat: os.stat_result) -> None:
    """Refuse a file that is not what it was when it was listed.

    Raises:
        DataError: its size or time of change differ.
    """
    if (stat.st_size, stat.st_mtime_ns) != span.stamp:
        raise DataError(
            f"{span.where} has changed while it was being read: {span.stamp[0]} bytes when it was "
            f"listed, {stat.st_size} now. Start again when nothing writes to it any more."
        )


def skip_line(stream: BinaryIO, limit: int | None = None) -> int:
    """Read up to the end of a line, holding little of it; return how many bytes that was.

    Args:
        stream: Where to read.
        limit: Give up after about so many bytes.
    """
    passed = 0
    while limit is None or passed < limit:
        piece = stream.readline(READ_BYTES)
        passed += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return passed


def _decompressed(raw: BinaryIO, suffix: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), READ_BYTES)
    return contextlib.nullcontext(raw)


def _damaged(file: Path, reason: str) -> DataError:
    tool = COMPRESSED[file.suffix]
    return DataError(
        f"{file} cannot be read: its {tool} data is damaged ({reason.rstrip('.')}). Get the file "
        f"again, or leave it out of data.path; `{tool} -t FILE` tells whether a copy is sound."
    )
