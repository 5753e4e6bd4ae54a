"""CSV and TSV: one document a row, under a row that names the columns."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llmtrain.config.groups.data import CsvDataConfig
from llmtrain.data.decode import decode_bytes
from llmtrain.data.document import Document
from llmtrain.data.part import Span
from llmtrain.data.raw_file import open_file
from llmtrain.data.row import document_of, fields_read, missing_key
from llmtrain.data.skip import RecordError
from llmtrain.errors import DataError

END = "\0end"
"""A line behind the last one: it is in the last row only where a quote was left open."""

DELIMITERS = ",;\t|"
"""What a message proposes where the columns seem to have another one."""


def delimiter_of(config: CsvDataConfig, file: Path) -> str:
    """Return what stands between the columns of `file`."""
    if config.delimiter is not None:
        return "\t" if config.delimiter == "tab" else config.delimiter
    return "\t" if ".tsv" in file.suffixes[-2:] else ","


def read_csv(config: CsvDataConfig, span: Span) -> Iterator[Document | RecordError]:
    """Yield the documents of a file.

    Raises:
        DataError: it cannot be read, has no row of names or no such column, or a row does not end.
    """
    file = span.where
    csv.field_size_limit(sys.maxsize)  # the library's own is for all readers; _Lines bounds ours
    with open_file(span) as stream:
        lines = _Lines(stream, file, config.max_document_bytes)
        delimiter = delimiter_of(config, Path(file))
        rows = csv.reader(lines, delimiter=delimiter)
        names = next(rows)
        columns = {
            name: _find_column(names, name, setting, file, delimiter)
            for name, setting in fields_read(config).items()
        }
        while True:
            lines.start_row()
            where = f"{file}:{lines.first}"
            try:
                row = next(rows)
                if row == [END]:
                    return
                _check_closed(row, where)
                if row:
                    yield _document(config, row, names, columns, where)
            except csv.Error as error:
                yield RecordError("not CSV", where, f"{where}: not CSV ({error}).")
            except RecordError as error:
                yield error


class _Lines:
    """The lines of a file as text, bytes that are no UTF-8 kept as lone surrogates; then END."""

    def __init__(self, stream: BinaryIO, file: str, limit: int) -> None:
        self.stream, self.file, self.limit = stream, file, limit
        self.number = 0
        self.first = 1
        """Number of the line that the row at hand began with."""
        self.held = 0
        """Bytes of the row at hand."""
        self.ended = False

    def start_row(self) -> None:
        self.first, self.held = self.number + 1, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self.stream.readline(self.limit - self.held + 1)
        self.number += 1
        self.held += len(raw)
        if self.held > self.limit:
            raise DataError(
                f"{self.file}:{self.first}: the row that begins here has more than "
                f"data.max_document_bytes={self.limit}. Perhaps a quote is never closed; mend it, "
                "or raise data.max_document_bytes."
            )
        if not raw:
            if self.ended:
                raise StopIteration
            self.ended = True
            return END
        if self.number == 1:
            return decode_bytes(raw, self.file, strict=False)[0]
        return raw.decode("utf-8", "surrogateescape")


def _find_column(names: list[str], key: str, setting: str, file: str, delimiter: str) -> int:
    if names == [END]:
        raise DataError(f"{file} is empty: its first line must name the columns.")
    _check_closed(names, f"{file}:1")
    if key in names:
        return names.index(key)
    message = missing_key(file, "column", key, names, setting)
    for other in DELIMITERS if len(names) == 1 else "":
        if other != delimiter and key in names[0].split(other):
            shown = "tab" if other == "\t" else f"'{other}'"
            message = f"{file} has one column, '{names[0].strip()}'. Set data.delimiter={shown}."
    raise DataError(message)


def _check_closed(row: list[str], where: str) -> None:
    if row and row[-1].endswith(END):
        raise DataError(
            f"{where}: a quote that is opened in this row is not closed before the end of the "
            "file. Close it, or leave the file out of data.path."
        )


def _document(
    config: CsvDataConfig, row: list[str], names: list[str], columns: dict[str, int], where: str
) -> Document:
    if len(row) != len(names):
        raise RecordError(
            "number of columns",
            where,
            f"{where} has {len(row)} columns, and the first line of the file {len(names)}.",
        )
    fields = {name: row[n].encode("utf-8", "surrogateescape") for name, n in columns.items()}
    return document_of(fields, where, config)
