"""Rows of Parquet files and Hugging Face datasets; the libraries are imported when first used."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtrain.config.groups.data import HuggingFaceDataConfig
from llmtrain.data.locate import is_local
from llmtrain.data.row import missing_key
from llmtrain.errors import DataError, did_you_mean

ROWS_AT_ONCE = 1024


def parquet_rows(file: Path, key: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of `file` with the one column `key`.

    Raises:
        DataError: not Parquet, or no such column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if key not in names:
                raise DataError(missing_key(str(file), "column", key, names))
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=[key]):
                for value in batch.column(0).to_pylist():
                    yield {key: value}
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file that can be read ({error}).") from error


def huggingface_rows(config: HuggingFaceDataConfig) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset with the one column `config.text_key`.

    Raises:
        DataError: the dataset cannot be had, or has no such split or column.
    """
    dataset = _load(config)
    names = list(dataset.column_names)
    if config.text_key not in names:
        raise DataError(missing_key(f"data.path={config.path}", "column", config.text_key, names))
    for batch in dataset.select_columns([config.text_key]).iter(batch_size=ROWS_AT_ONCE):
        for value in batch[config.text_key]:
            yield {config.text_key: value}


def _load(config: HuggingFaceDataConfig) -> Any:
    import datasets

    path = str(config.path)
    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file():
            return _pick_split(datasets.load_from_disk(str(folder)), config)
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        name = str(folder) if is_local(path) else path
        return datasets.load_dataset(name, name=config.subset, split=config.split)
    except DataError:
        raise
    except Exception as error:  # the library lets many kinds through, its own and others'
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = (
            ""
            if is_local(path)
            else " Check the name, data.subset and data.split, and that this machine reaches "
            "huggingface.co; without a network, save the dataset elsewhere with save_to_disk and "
            "give the folder as data.path."
        )
        raise DataError(f"data.path={path} cannot be loaded: {first}.{hint}") from error


def _pick_split(splits: Any, config: HuggingFaceDataConfig) -> Any:
    if config.split not in splits:
        known = list(splits)
        raise DataError(
            f"data.path={config.path} has no split data.split={config.split}."
            f"{did_you_mean(config.split, known)} It has: {', '.join(known)}."
        )
    return splits[config.split]
