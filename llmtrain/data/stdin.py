"""The standard input as a source: kept as a file before anything starts.

The file is named by its content, so that the frozen configuration of a run names what it was
trained on, and the run can be resumed.
"""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import xxhash

from llmtrain.config.groups.data import DataConfig, FileDataConfig
from llmtrain.data.locate import STDIN
from llmtrain.durable import sync_folder
from llmtrain.errors import ConfigError, DataError

READ_BYTES = 1 << 20

SUFFIXES = {"text": ".txt", "jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet"}


def keep_stdin(data: DataConfig) -> DataConfig:
    """Return `data` with a file in the cache folder where it named the standard input.

    Raises:
        ConfigError: the standard input is a terminal.
        DataError: it holds nothing, or cannot be kept.
    """
    if not isinstance(data, FileDataConfig) or data.path != STDIN:
        return data
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            f"data.path=- reads the standard input, which is a terminal: send text into it, as in "
            f"`cat FILES | llmtrain prepare data={data.name} data.path=-`."
        )
    from llmtrain.data.cache import cache_root  # slow to import, for one in a thousand commands

    folder = cache_root(data) / "stdin"
    try:
        folder.mkdir(exist_ok=True)
        file = _keep(folder, SUFFIXES[data.name])
    except OSError as error:
        raise DataError(
            f"The standard input cannot be kept in {folder}: {error.strerror}. Free some space "
            "there, or set data.cache_dir to another folder."
        ) from error
    return replace(data, path=str(file))


def _keep(folder: Path, suffix: str) -> Path:
    """Write the standard input into `folder`; return the file, named by what is in it."""
    digest = xxhash.xxh3_128()
    handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
    scratch = Path(name)
    try:
        with open(handle, "wb") as stream:
            while piece := sys.stdin.buffer.read(READ_BYTES):
                digest.update(piece)
                stream.write(piece)
            if not stream.tell():
                raise DataError("data.path=- has nothing to read: the standard input is empty.")
            stream.flush()
            os.fsync(handle)
        file = folder / f"{digest.hexdigest()}{suffix}"
        scratch.replace(file)
        sync_folder(folder)
        return file
    finally:
        scratch.unlink(missing_ok=True)
