"""Raw documents, one at a time, from any source; nothing is held but the document at hand."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from llmtrain.config.groups.data import (
    DataConfig,
    HuggingFaceDataConfig,
    JsonlDataConfig,
    ParquetDataConfig,
    SyntheticDataConfig,
)
from llmtrain.data.decode import decode_bytes
from llmtrain.data.locate import find_files
from llmtrain.data.row import text_at
from llmtrain.durable import hash_file
from llmtrain.errors import DataError, require_choice

READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Document:
    """One text as its source has it."""

    id: str
    """Where it comes from: a file, file:line, or dataset:row."""
    text: str
    """The text, valid Unicode."""
    replaced: int = 0
    """How many U+FFFD stand for bytes that were no UTF-8."""


def iter_documents(config: DataConfig) -> Iterator[Document]:
    """Yield the documents of a source, in its own order (files sorted by path).

    Raises:
        ConfigError: a setting is missing.
        DataError: a file, line, row or column cannot be used; the message says which and why.
    """
    readers: dict[str, Callable[[Any], Iterator[Document]]] = {
        "shakespeare": _text_documents,
        "text": _text_documents,
        "jsonl": _jsonl_documents,
        "parquet": _parquet_documents,
        "huggingface": _huggingface_documents,
        "synthetic": _synthetic_documents,
    }
    require_choice("data.name", config.name, readers)
    return readers[config.name](config)


def hash_source(config: DataConfig) -> str:
    """Return 32 hex digits that stand for the content a source would be read from.

    Files are hashed byte by byte. A dataset on the hub is known by name only: what changes behind
    the name does not change the hash.

    Raises:
        ConfigError: no path is given.
        DataError: a file is missing or cannot be read.
    """
    if isinstance(config, HuggingFaceDataConfig):
        folder = Path(str(config.path)).expanduser()
        if not folder.is_dir():
            return xxhash.xxh3_128_hexdigest(f"hub:{config.path}".encode())
        return _hash_files(sorted(f for f in folder.rglob("*") if f.is_file()))
    if isinstance(config, SyntheticDataConfig):
        return "synthetic"  # made from the settings alone
    return _hash_files(find_files(config))


def source_bytes(config: DataConfig) -> int | None:
    """Return about how many bytes of text a source has, or None where that takes reading."""
    if config.name not in ("shakespeare", "text", "jsonl"):
        return None
    files = find_files(config)
    return None if any(f.suffix == ".gz" for f in files) else sum(f.stat().st_size for f in files)


def _text_documents(config: DataConfig) -> Iterator[Document]:
    for file in find_files(config):
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}.") from error
        text, replaced = decode_bytes(raw, str(file), strict=_strict(config))
        yield Document(str(file), text, replaced)


def _jsonl_documents(config: JsonlDataConfig) -> Iterator[Document]:
    for file in find_files(config):
        try:
            yield from _jsonl_file(file, config.text_key, strict=_strict(config))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} cannot be read: {error}.") from error


def _jsonl_file(file: Path, key: str, *, strict: bool) -> Iterator[Document]:
    offset = 0
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{file}:{number}"
            line, replaced = decode_bytes(raw, where, strict=strict, offset=offset)
            offset += len(raw)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise DataError(
                    f"{where}: holds {type(row).__name__}; every line must be an object, such as "
                    f'{{"{key}": "..."}}.'
                )
            text, mended = text_at(row, key, where, strict=strict)
            yield Document(where, text, replaced + mended)


def _parquet_documents(config: ParquetDataConfig) -> Iterator[Document]:
    from llmtrain.data.columnar import parquet_rows

    for file in find_files(config):
        for number, row in enumerate(parquet_rows(file, config.text_key)):
            where = f"{file}:{number}"
            yield Document(where, *text_at(row, config.text_key, where, strict=_strict(config)))


def _huggingface_documents(config: HuggingFaceDataConfig) -> Iterator[Document]:
    from llmtrain.data.columnar import huggingface_rows

    for number, row in enumerate(huggingface_rows(config)):
        where = f"{config.path}:{number}"
        yield Document(where, *text_at(row, config.text_key, where, strict=_strict(config)))


def _synthetic_documents(config: SyntheticDataConfig) -> Iterator[Document]:
    from llmtrain.data.synthetic import synthetic_texts

    for number, text in enumerate(synthetic_texts(config)):
        yield Document(f"synthetic:{number}", text)


def _strict(config: DataConfig) -> bool:
    return config.encoding_errors == "strict"


def _hash_files(files: list[Path]) -> str:
    whole = xxhash.xxh3_128()
    for file in files:
        try:
            whole.update(bytes.fromhex(hash_file(file)))
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    return whole.hexdigest()
