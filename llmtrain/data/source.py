"""Raw documents from any source, part by part; nothing is held but the document at hand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from llmtrain.config.groups.data import (
    CsvDataConfig,
    DataConfig,
    HuggingFaceDataConfig,
    ParquetDataConfig,
    RowDataConfig,
    SyntheticDataConfig,
)
from llmtrain.data.digests import hash_files
from llmtrain.data.document import Document
from llmtrain.data.locate import find_files, is_compressed
from llmtrain.data.part import Part, Span, cut_rows, pack
from llmtrain.data.raw_file import whole_file
from llmtrain.data.row import document_of
from llmtrain.data.skip import RecordError, SkipCount
from llmtrain.data.source_csv import delimiter_of, read_csv
from llmtrain.data.source_jsonl import jsonl_spans, read_jsonl
from llmtrain.data.source_text import read_text, text_spans
from llmtrain.errors import DataError, require_choice

Reader = Callable[[Any, Span], Iterator[Document | RecordError]]
"""Yields the documents of a span, and in their places those that cannot be used."""

BYTES_A_WORD = 6
"""Of made-up text, about."""


def list_parts(config: DataConfig) -> list[Part]:
    """Return the parts of a source, in its own order (files sorted by path).

    They depend on the source alone. Large files of JSON lines are read, to count their lines; of
    Parquet files the footers are.

    Raises:
        ConfigError: a setting is missing.
        DataError: a file is missing or cannot be read, or has no such column.
    """
    spans: dict[str, Callable[[Any], Iterator[Span]]] = {
        "shakespeare": _text_spans,
        "text": _text_spans,
        "jsonl": lambda c: (span for file in find_files(c) for span in jsonl_spans(file)),
        "csv": lambda c: map(whole_file, find_files(c)),
        "parquet": _parquet_spans,
        "huggingface": _huggingface_spans,
        "synthetic": _synthetic_spans,
    }
    require_choice("data.name", config.name, spans)
    return list(pack(spans[config.name](config)))


def read_part(config: DataConfig, part: Part, skipped: SkipCount) -> Iterator[Document]:
    """Yield the documents of one part, in order.

    All parts in order are the whole source. What can be read of a part does not depend on the
    others, so that any process may read it.

    Args:
        config: The source that the part is of.
        part: One of `list_parts`.
        skipped: Counts the documents that cannot be used, where `data.errors=skip`.

    Raises:
        DataError: a file cannot be read or has changed; a document cannot be used, where
            `data.errors=strict`. The message says which and why.
    """
    readers: dict[str, Reader] = {
        "shakespeare": read_text,
        "text": read_text,
        "jsonl": read_jsonl,
        "csv": read_csv,
        "parquet": _read_parquet,
        "huggingface": _read_huggingface,
        "synthetic": _read_synthetic,
    }
    reader = readers[config.name]
    for span in part.spans:
        for item in reader(config, span):
            if isinstance(item, Document):
                yield item
            elif config.errors == "strict":
                raise item
            else:
                skipped.add(item)


def iter_documents(config: DataConfig, skipped: SkipCount | None = None) -> Iterator[Document]:
    """Yield the documents of a source, in its own order.

    Raises:
        ConfigError: a setting is missing.
        DataError: as `read_part`; or there are documents, and none can be used.
    """
    skipped = SkipCount() if skipped is None else skipped
    count = 0
    for part in list_parts(config):
        for document in read_part(config, part, skipped):
            yield document
            count += 1
    if not count and skipped.documents:
        raise DataError(skipped.nothing_left())


def hash_source(config: DataConfig, known: Path | None = None) -> str:
    """Return a name of the content a source would be read from: equal where that is equal.

    Files count by their bytes and their order, not by their names, but for suffixes that say how
    they are read. A dataset on the hub is known by name only: what changes behind the name does
    not change the hash.

    Args:
        config: The source.
        known: A file of hashes of files (see `data/digests.py`); None: every file is read.

    Raises:
        ConfigError: no path is given.
        DataError: a file is missing or cannot be read.
    """
    if isinstance(config, HuggingFaceDataConfig):
        folder = Path(str(config.path)).expanduser()
        if not folder.is_dir():
            return xxhash.xxh3_128_hexdigest(f"hub:{config.path}".encode())
        found = sorted(f for f in folder.rglob("*") if f.is_file())
        # The library tells splits and formats by names.
        names = "\n".join(str(file.relative_to(folder)) for file in found)
        named = xxhash.xxh3_128_hexdigest(names.encode("utf-8", "replace"))
        return hash_files(found, known) + named
    if isinstance(config, SyntheticDataConfig):
        return "synthetic"  # made from the settings alone
    files = find_files(config)
    digest = hash_files(files, known)
    # The name of a file may say how the same bytes are to be read.
    digest += "".join(file.suffix for file in files if is_compressed(file))
    if isinstance(config, CsvDataConfig):
        digest += "".join(delimiter_of(config, file) for file in files)
    return digest


def _text_spans(config: DataConfig) -> Iterator[Span]:
    for file in find_files(config):
        yield from text_spans(config, file)


def _parquet_spans(config: ParquetDataConfig) -> Iterator[Span]:
    from llmtrain.data.columnar import parquet_spans

    for file in find_files(config):
        yield from parquet_spans(config, file)


def _read_parquet(config: ParquetDataConfig, span: Span) -> Iterator[Document | RecordError]:
    from llmtrain.data.columnar import parquet_rows

    yield from _documents_of_rows(config, span, parquet_rows(config, span))


def _huggingface_spans(config: HuggingFaceDataConfig) -> Iterator[Span]:
    from llmtrain.data.columnar import huggingface_spans

    yield from huggingface_spans(config)


def _read_huggingface(
    config: HuggingFaceDataConfig, span: Span
) -> Iterator[Document | RecordError]:
    from llmtrain.data.columnar import huggingface_rows

    yield from _documents_of_rows(config, span, huggingface_rows(config, span))


def _documents_of_rows(
    config: RowDataConfig, span: Span, rows: Iterator[tuple[int, dict[str, Any]]]
) -> Iterator[Document | RecordError]:
    for number, row in rows:
        try:
            yield document_of(row, f"{span.where}:{number}", config)
        except RecordError as error:
            yield error


def _synthetic_spans(config: SyntheticDataConfig) -> Iterator[Span]:
    size = BYTES_A_WORD * config.words_per_document
    for start, end, held in cut_rows(size for _ in range(config.documents)):
        yield Span("synthetic", held, start, end, start)


def _read_synthetic(config: SyntheticDataConfig, span: Span) -> Iterator[Document]:
    from llmtrain.data.synthetic import synthetic_texts

    for number, text in enumerate(synthetic_texts(config, span.start, span.end), span.first):
        yield Document(f"{span.where}:{number}", text)
