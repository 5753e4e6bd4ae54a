"""Where prepared data is kept: its name from content and settings, its lock, its atomic birth."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import xxhash

from llmtrain.config.groups.data import DataConfig
from llmtrain.config.groups.tokenizer import PretrainedTokenizerConfig, TokenizerConfig
from llmtrain.data.library import library_versions
from llmtrain.data.manifest import VERSION
from llmtrain.data.source import hash_source
from llmtrain.durable import sync_folder
from llmtrain.errors import DataError
from llmtrain.tokenizer.pretrained import hash_pretrained

PREPARE_VERSION = 1
"""Raised whenever the same input and settings would give other shards."""

NOT_CONTENT = ("cache_dir", "samples", "path")
"""Settings of the group `data` that change nothing in the shards; `path` counts by its content."""


def cache_root(data: DataConfig) -> Path:
    """Return the folder of all prepared data, made if need be.

    `data.cache_dir`, else $LLMTRAIN_CACHE, else ~/.cache/llmtrain.

    Raises:
        DataError: it cannot be made or written to.
    """
    chosen = data.cache_dir or os.environ.get("LLMTRAIN_CACHE") or "~/.cache/llmtrain"
    root = Path(chosen).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"Prepared data cannot be kept in {root}: {error.strerror}. Set data.cache_dir (or "
            "$LLMTRAIN_CACHE) to a folder that can be written to."
        ) from error
    return root


def settings_hash(data: DataConfig, tokenizer: TokenizerConfig) -> str:
    """Return 32 hex digits for everything that decides what the shards hold.

    Raises:
        ConfigError: a path is not given.
        DataError: an input cannot be read.
    """
    unused = (*NOT_CONTENT, "near") if data.dedup != "near" else NOT_CONTENT
    settings = {
        "prepare_version": PREPARE_VERSION,
        "format_version": VERSION,
        "data": {k: v for k, v in asdict(data).items() if k not in unused},
        "libraries": library_versions(data),
        "source": hash_source(data),
        "tokenizer": {k: v for k, v in asdict(tokenizer).items() if k != "path"},
    }
    if isinstance(tokenizer, PretrainedTokenizerConfig):
        settings["tokenizer_files"] = hash_pretrained(tokenizer.path)
    return xxhash.xxh3_128_hexdigest(json.dumps(settings, sort_keys=True).encode())


@contextmanager
def only_one(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of `folder`, so that one process at a time prepares it.

    Args:
        folder: The prepared folder; the lock is the file `folder`.lock, which stays.
        waiting: Called once when another process holds the lock.

    Raises:
        DataError: the file system has no locks.
    """
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise DataError(
                f"{lock.name} cannot be locked: {error.strerror}. Set data.cache_dir to a folder "
                "whose file system has locks."
            ) from error
        yield


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes `folder` in one rename when the block ends well.

    Call it under `only_one`: what a killed process left behind is cleared first.
    """
    for left in folder.parent.glob(folder.name + ".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    scratch.mkdir()
    try:
        yield scratch
        sync_folder(scratch)
        scratch.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
