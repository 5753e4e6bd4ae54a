"""Where prepared data is kept, and its name there: from content and settings."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from llmtrain.config.groups.data import DataConfig
from llmtrain.config.groups.tokenizer import PretrainedTokenizerConfig, TokenizerConfig
from llmtrain.data.digests import DIGESTS
from llmtrain.data.library import library_versions
from llmtrain.data.manifest import VERSION
from llmtrain.data.source import hash_source
from llmtrain.errors import DataError
from llmtrain.tokenizer.pretrained import hash_pretrained

PREPARE_VERSION = 2
"""Raised whenever the same input and settings would give other shards."""

NOT_CONTENT = (
    "cache_dir", "samples", "path", "pattern", "processes", "truncate",
    "mode", "shuffle_documents",
)  # fmt: skip
"""Settings of the group `data` that change nothing in the shards; files count by their content."""


ONLY_IF_SET = ("target", "prompt", "label_names")
"""Settings that folders made before there were any do not know of."""


def cache_path(cache_dir: str | None = None) -> Path:
    """Return where prepared data is kept: `cache_dir`, $LLMTRAIN_CACHE, else ~/.cache/llmtrain."""
    chosen = cache_dir or os.environ.get("LLMTRAIN_CACHE") or "~/.cache/llmtrain"
    return Path(chosen).expanduser().absolute()


def cache_root(data: DataConfig) -> Path:
    """Return the folder of all prepared data, made if need be.

    `data.cache_dir`, else $LLMTRAIN_CACHE, else ~/.cache/llmtrain.

    Raises:
        DataError: it cannot be made or written to.
    """
    root = cache_path(data.cache_dir)
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


def source_settings(data: DataConfig) -> dict[str, Any]:
    """Return everything that decides which documents a source has, and how they are written.

    Raises:
        ConfigError: a path is not given.
        DataError: an input cannot be read.
    """
    known = cache_root(data) / DIGESTS
    unused = (*NOT_CONTENT, "near") if data.dedup != "near" else NOT_CONTENT
    unused = (*unused, *(key for key in ONLY_IF_SET if getattr(data, key, None) is None))
    return {
        "prepare_version": PREPARE_VERSION,
        "format_version": VERSION,
        "data": {k: v for k, v in asdict(data).items() if k not in unused},
        "libraries": library_versions(data),
        "source": hash_source(data, known),
    }


def tokenizer_settings(tokenizer: TokenizerConfig) -> dict[str, Any]:
    """Return everything that decides on a tokenizer, but for the text it learns from.

    Raises:
        ConfigError: a path is not given.
        DataError: an input cannot be read.
    """
    settings = {k: v for k, v in asdict(tokenizer).items() if k != "path"}
    if isinstance(tokenizer, PretrainedTokenizerConfig):
        settings["files"] = hash_pretrained(tokenizer.path)
    return settings


def settings_hash(settings: dict[str, Any]) -> str:
    """Return 32 hex digits for `settings`."""
    return xxhash.xxh3_128_hexdigest(json.dumps(settings, sort_keys=True).encode())
