"""Rows of Parquet files and Hugging Face datasets; the libraries are imported when first used."""

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmtrain.config.groups.data import HuggingFaceDataConfig, ParquetDataConfig, RowDataConfig
from llmtrain.data.locate import is_local
from llmtrain.data.part import PART_BYTES, Span, cut_rows
from llmtrain.data.raw_file import check_unchanged, whole_file
from llmtrain.data.row import fields_read, missing_key
from llmtrain.errors import DataError, did_you_mean

ROWS_AT_ONCE = 1024
"""Rows that are decoded together at most."""

BATCH_BYTES = 4 << 20
"""Text that is decoded together, about."""

TEXT_TYPES = (
    "string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null",
)  # fmt: skip
"""Types of Arrow that hold text, or nothing but nulls."""


def parquet_spans(config: ParquetDataConfig, file: Path) -> Iterator[Span]:
    """Yield `file` in stretches of whole row groups.

    Raises:
        DataError: not Parquet, or no such column, or one without text.
    """
    whole = whole_file(file)
    with _open_parquet(file) as table:
        _check_columns(str(file), config, table.schema_arrow)
        keys = list(fields_read(config))
        groups = [table.metadata.row_group(i) for i in range(table.num_row_groups)]
        first = 0
        for start, end, size in cut_rows(_column_bytes(g, keys) for g in groups):
            yield replace(whole, start=start, end=end, first=first, bytes=size)
            first += sum(group.num_rows for group in groups[start:end])


def parquet_rows(config: ParquetDataConfig, span: Span) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each row of `span`, and its columns that `config` names.

    Raises:
        DataError: the file cannot be read, or is not what it was.
    """
    file, keys = Path(span.where), list(fields_read(config))
    number = span.first
    with _open_parquet(file) as table:
        check_unchanged(span, file.stat())
        groups = list(range(span.start, span.end))
        rows = sum(table.metadata.row_group(i).num_rows for i in groups)
        size = _rows_at_once(span.bytes, rows)
        labels = _Labels(config, table.schema_arrow)
        for batch in table.iter_batches(batch_size=size, row_groups=groups, columns=keys):
            for row in zip(*(batch.column(key).to_pylist() for key in keys), strict=True):
                yield number, labels.name(dict(zip(keys, row, strict=True)))
                number += 1


def huggingface_spans(config: HuggingFaceDataConfig) -> Iterator[Span]:
    """Yield a dataset in stretches of rows; one that is streamed is one stretch.

    Raises:
        DataError: the dataset cannot be had, or has no such split or column.
    """
    _load.cache_clear()  # it may have changed since another listing
    dataset = _load(_Wanted.of(config))
    where = f"data.path={config.path}"
    if _is_streamed(dataset):
        if dataset.features is not None:
            _check_columns(where, config, dataset.features.arrow_schema)
        yield Span(str(config.path), PART_BYTES)
        return
    _check_columns(where, config, dataset.features.arrow_schema)
    rows = len(dataset)
    each = max(1, dataset.data.nbytes // max(1, rows))
    step = max(1, PART_BYTES // each)
    for start in range(0, rows, step):
        end = min(start + step, rows)
        yield Span(str(config.path), (end - start) * each, start, end, start)


def huggingface_rows(
    config: HuggingFaceDataConfig, span: Span
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each row of `span`, and its columns that `config` names.

    Raises:
        DataError: the dataset cannot be had, or ends in the middle.
    """
    keys = list(fields_read(config))
    dataset = _load(_Wanted.of(config))
    if _is_streamed(dataset):
        yield from _streamed_rows(config, dataset)
        return
    if len(dataset) < span.end:
        raise DataError(
            f"data.path={config.path} has changed while it was being read: start again."
        )
    rows = dataset.select_columns(keys).select(range(span.start, span.end))
    labels = _Labels(config, dataset.features.arrow_schema)
    number = span.first
    for batch in rows.iter(batch_size=_rows_at_once(span.bytes, span.end - span.start)):
        for row in zip(*(batch[key] for key in keys), strict=True):
            yield number, labels.name(dict(zip(keys, row, strict=True)))
            number += 1


def _is_streamed(dataset: Any) -> bool:
    import datasets

    return isinstance(dataset, datasets.IterableDataset)


def _streamed_rows(
    config: HuggingFaceDataConfig, dataset: Any
) -> Iterator[tuple[int, dict[str, Any]]]:
    keys = fields_read(config)
    known = None if dataset.features is None else dataset.features.arrow_schema
    labels = _Labels(config, known)
    rows = enumerate(dataset)
    while True:
        try:
            number, row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # a network, a file of the dataset, and the library's own
            raise DataError(
                f"data.path={config.path} cannot be read further ({_first_line(error)}). Set "
                "data.streaming=false to have it downloaded first."
            ) from error
        if keys.keys() <= row.keys():  # else the message is to tell what there is
            row = labels.name({key: row[key] for key in keys})
        yield number, row


def _rows_at_once(size: int, rows: int) -> int:
    return max(1, min(ROWS_AT_ONCE, BATCH_BYTES * rows // max(1, size)))


@contextlib.contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file that can be read ({error}).") from error


def _column_bytes(group: Any, keys: Sequence[str]) -> int:
    """Return the bytes of some columns of a row group, decompressed."""
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema in keys)


def _check_columns(where: str, config: RowDataConfig, schema: Any) -> None:
    """Refuse a table without the columns that `config` names, and one where they hold no text."""
    holds = _holds_text if config.target is None else _holds_value
    for key, setting in fields_read(config).items():
        if key not in schema.names:
            raise DataError(missing_key(where, "column", key, schema.names, setting))
        if not holds(schema.field(key).type):
            texts = [field.name for field in schema if holds(field.type)]
            hint = f" Set {setting}; columns of text: {', '.join(texts)}." if texts else ""
            kind = schema.field(key).type
            raise DataError(f"{where}: column '{key}' holds {kind}, not text.{hint}")


def _holds_text(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in TEXT_TYPES


def _holds_value(kind: Any) -> bool:
    """Say whether a column holds what a template takes: text, numbers or truth values."""
    from pyarrow import types

    others = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return _holds_text(kind) or any(is_kind(kind) for is_kind in others)


class _Labels:
    """Names of class labels, which a table of the library `datasets` keeps beside their numbers."""

    def __init__(self, config: RowDataConfig, schema: Any) -> None:
        raw = (schema.metadata or {}).get(b"huggingface") if schema is not None else None
        features = json.loads(raw).get("info", {}).get("features", {}) if raw else {}
        self._names: dict[str, list[str]] = {
            key: features[key]["names"]
            for key in fields_read(config)
            if config.target is not None
            and config.label_names is None
            and features.get(key, {}).get("_type") == "ClassLabel"
        }

    def name(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return `row` with names for numbers; a number that has none, such as -1, is no label."""
        for key, names in self._names.items():
            number = row[key]
            known = isinstance(number, int) and 0 <= number < len(names)
            row[key] = names[number] if known else None
        return row


@dataclass(frozen=True)
class _Wanted:
    """What is asked of the library `datasets`."""

    path: str
    subset: str | None
    split: str
    revision: str | None
    streaming: bool

    @classmethod
    def of(cls, config: HuggingFaceDataConfig) -> "_Wanted":
        return cls(str(config.path), config.subset, config.split, config.revision, config.streaming)


@functools.lru_cache(maxsize=1)  # parts of one dataset; to find it takes seconds on the hub
def _load(wanted: _Wanted) -> Any:
    import datasets

    path = wanted.path
    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file():
            return _pick_split(datasets.load_from_disk(str(folder)), wanted)
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        name = str(folder) if is_local(path) else path
        return datasets.load_dataset(
            name,
            name=wanted.subset,
            split=wanted.split,
            revision=wanted.revision,
            streaming=wanted.streaming,
        )
    except DataError:
        raise
    except Exception as error:  # the library lets many kinds through, its own and others'
        hint = (
            " Check the name, data.subset, data.split and data.revision, and that this machine "
            "reaches huggingface.co; without a network, save the dataset elsewhere with "
            "save_to_disk and give the folder as data.path."
        )
        raise DataError(
            f"data.path={path} cannot be loaded: {_first_line(error)}."
            f"{'' if is_local(path) else hint}"
        ) from error


def _pick_split(splits: Any, wanted: _Wanted) -> Any:
    if wanted.split not in splits:
        known = list(splits)
        raise DataError(
            f"data.path={wanted.path} has no split data.split={wanted.split}."
            f"{did_you_mean(wanted.split, known)} It has: {', '.join(known)}."
        )
    return splits[wanted.split]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
