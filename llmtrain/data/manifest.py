"""`manifest.json`: what a prepared folder holds, and whether it still holds it.

A folder with prompts has version 2, so that an llmtrain which would train on them does not open it.

{"format": "llmtrain-tokens", "version": 1, "dtype": "uint16", "settings_hash": "...",
 "tokenizer": {"name": "byte", "hash": "...", "vocab_size": 257, "separator_id": 256},
 "splits": {"train": {"tokens": 9, "documents": 2, "shards": [
     {"name": "train-00000", "tokens": 9, "documents": 2}]}, "validation": {...}},
 "files": {"train-00000.bin": {"bytes": 18, "xxh3_128": "..."}, ...}}
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from llmtrain.durable import hash_file, inside
from llmtrain.errors import DataError

FORMAT = "llmtrain-tokens"
VERSION = 1
PROMPTS_VERSION = 2
"""Of folders with files `PROMPTS`, and the newest that is read."""

PROMPTS = ".tgt"
"""Ending of the file of a shard that says where targets start."""

MANIFEST = "manifest.json"

HASH_LIMIT_BYTES = 1 << 30
"""Folders over this size are checked by file size only, unless hashes are asked for."""

READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Shard:
    """The files `name`.bin and `name`.idx and, where there are prompts, `name`.tgt."""

    name: str
    tokens: int
    documents: int


@dataclass(frozen=True)
class FileCheck:
    """What a file must be."""

    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """Everything that is known about a prepared folder without opening a shard."""

    dtype: str
    """uint16 | uint32, little endian."""
    settings_hash: str
    """Hash of the inputs and settings the folder was made from."""
    tokenizer_name: str
    tokenizer_hash: str
    vocab_size: int
    separator_id: int
    splits: dict[str, list[Shard]]
    files: dict[str, FileCheck]

    @property
    def has_prompts(self) -> bool:
        """Whether every shard has a file `PROMPTS`."""
        return any(name.endswith(PROMPTS) for name in self.files)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `manifest.json`."""
        return {
            "format": FORMAT,
            "version": PROMPTS_VERSION if self.has_prompts else VERSION,
            "dtype": self.dtype,
            "settings_hash": self.settings_hash,
            "tokenizer": {
                "name": self.tokenizer_name,
                "hash": self.tokenizer_hash,
                "vocab_size": self.vocab_size,
                "separator_id": self.separator_id,
            },
            "splits": {
                split: {
                    "tokens": sum(s.tokens for s in shards),
                    "documents": sum(s.documents for s in shards),
                    "shards": [vars(s) for s in shards],
                }
                for split, shards in self.splits.items()
            },
            "files": {name: vars(check) for name, check in sorted(self.files.items())},
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return the manifest that `to_json` described.

        Raises:
            KeyError, TypeError: something is missing.
        """
        tokenizer = content["tokenizer"]
        return cls(
            dtype=content["dtype"],
            settings_hash=content["settings_hash"],
            tokenizer_name=tokenizer["name"],
            tokenizer_hash=tokenizer["hash"],
            vocab_size=tokenizer["vocab_size"],
            separator_id=tokenizer["separator_id"],
            splits={k: [Shard(**s) for s in v["shards"]] for k, v in content["splits"].items()},
            files={name: FileCheck(**check) for name, check in content["files"].items()},
        )


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest token type for `vocab_size` ids, little endian.

    Raises:
        DataError: more ids than 32 bits can name.
    """
    if vocab_size <= 1 << 16:
        return np.dtype("<u2")
    if vocab_size <= 1 << 32:
        return np.dtype("<u4")
    raise DataError(f"A vocabulary of {vocab_size} ids does not fit into 32 bits.")


def mend(folder: Path) -> str:
    """Return what to do about a prepared folder that is broken."""
    return f"Delete the folder {folder} and the data is prepared again."


def load_manifest(folder: Path) -> Manifest:
    """Return the manifest of a prepared folder of one source.

    Raises:
        DataError: there is none, it is broken, or a newer llmtrain wrote it.
    """
    path = folder / MANIFEST
    content = read_manifest(folder, (FORMAT,))
    try:
        manifest = Manifest.from_json(content)
        for shards in manifest.splits.values():
            for shard in shards:
                inside(folder, f"{shard.name}.bin")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error!r}). {mend(folder)}") from error
    _check_dtype(path, manifest)
    return manifest


def read_manifest(folder: Path, formats: Sequence[str]) -> dict[str, Any]:
    """Return the content of the manifest in `folder`, one of `formats`.

    Raises:
        DataError: there is none, it is broken, or a newer llmtrain wrote it.
    """
    path = folder / MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] not in formats:
            raise ValueError(f"its format is {content['format']}")
        version = int(content["version"])
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no {MANIFEST}: this is not a folder of prepared data. {mend(folder)}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}). {mend(folder)}") from error
    if version > PROMPTS_VERSION:
        raise DataError(
            f"{path} has format version {version}, this llmtrain reads up to {PROMPTS_VERSION}: "
            f"upgrade llmtrain. Or: {mend(folder)}"
        )
    return content


def verify_files(folder: Path, files: dict[str, FileCheck], hashes: bool | None = None) -> None:
    """Check every file of a prepared folder: sizes always, content where it is cheap.

    Args:
        folder: The prepared folder.
        files: What its manifest says of them.
        hashes: Read and hash every file; None: only in folders up to `HASH_LIMIT_BYTES`.

    Raises:
        DataError: a file is missing, or is not what was written; names the file and the fix.
    """
    if hashes is None:
        hashes = sum(check.bytes for check in files.values()) <= HASH_LIMIT_BYTES
    for name, check in files.items():
        try:
            path = inside(folder, name)
        except ValueError as error:
            raise DataError(f"{folder}: its manifest cannot be used: {error}.") from None
        if not path.is_file():
            raise DataError(f"{path} is missing. {mend(folder)}")
        size = path.stat().st_size
        if size != check.bytes:
            raise DataError(
                f"{path} is corrupt: {size} bytes, but {check.bytes} were written. {mend(folder)}"
            )
        if hashes and hash_file(path) != check.xxh3_128:
            raise DataError(
                f"{path} is corrupt: its content is not what was written (its xxh3-128 hash "
                f"differs from the manifest's). {mend(folder)}"
            )


def _check_dtype(path: Path, manifest: Manifest) -> None:
    names = {"uint16": 1 << 16, "uint32": 1 << 32}
    if manifest.vocab_size > names.get(manifest.dtype, 0):
        raise DataError(
            f"{path}: a vocabulary of {manifest.vocab_size} ids does not fit into dtype "
            f"{manifest.dtype}. {mend(path.parent)}"
        )
