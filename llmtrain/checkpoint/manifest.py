"""The manifest: written last, it makes a folder a checkpoint.

A folder without a manifest, or whose files do not have the sizes and hashes the manifest names, is
not a checkpoint and is never loaded. The manifest has a hash of itself too.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from llmtrain.durable import HASHES, hash_file, inside
from llmtrain.errors import CheckpointError

NAME = "manifest.json"
FORMAT_VERSION = 2
"""2: files may have sha256 in place of xxh3, and the manifest has a hash of itself."""
HASH = "hash"
"""Where that hash stands: xxh3-128 of the rest of the manifest."""

_STEP = re.compile(r"^step_\d{8,}$")


@dataclass(kw_only=True)
class Manifest:
    """What a checkpoint is of, and which files it has."""

    step: int
    """Optimizer steps done."""
    train_state: dict[str, Any]
    """`train.state.TrainState`."""
    val_loss: float | None
    """Validation loss of just these weights; null where they were not evaluated."""
    model: dict[str, Any]
    """The group `model`, with the vocabulary size it got."""
    optimizer: str
    """optimizer.name: whose state is saved."""
    tokenizer: str
    """tokenizer.name."""
    tokenizer_hash: str
    """Content hash of the tokenizer the model was trained with."""
    data: str
    """Name of the prepared data."""
    sync: dict[str, Any] = field(default_factory=lambda: {"name": "allreduce"})
    """What the synchronisation mode says of its part of the state; "replicas": how many have an
    optimizer state of their own."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File name -> {"bytes": size, "xxh3" or "sha256": hash}."""
    format_version: int = FORMAT_VERSION
    llmtrain_version: str = ""

    def to_json(self) -> str:
        """Return the manifest as JSON, sealed with a hash of itself."""
        values = dataclasses.asdict(self)
        # Nothing behind the last brace: a byte that is missing is always one that counts.
        return json.dumps(values | {HASH: _seal(values)}, indent=1)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(record["bytes"] for record in self.files.values())


def _seal(values: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def step_folders(checkpoints: Path) -> list[Path]:
    """Return the folders named step_N in `checkpoints`, oldest first; whole or not."""
    if not checkpoints.is_dir():
        return []
    folders = [p for p in checkpoints.iterdir() if _STEP.match(p.name) and p.is_dir()]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    """Return the step that the name of a checkpoint's folder says."""
    return int(folder.name.split("_")[1])


def file_record(path: Path, kind: str = "xxh3") -> dict[str, Any]:
    """Return {"bytes", kind} of `path`; `kind` is one of `durable.HASHES`."""
    return {"bytes": path.stat().st_size, kind: hash_file(path, kind)}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the checkpoint `folder`.

    Raises:
        CheckpointError: when there is none, or it is not one that this version reads.
    """
    path = folder / NAME
    try:
        values = json.loads(path.read_text())
        version = values["format_version"]
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} was written by a newer llmtrain (checkpoint format {version}, this one "
                f"reads {FORMAT_VERSION}); upgrade llmtrain."
            )
        sealed = values.pop(HASH, None)
        # Version 1 had no hash; who takes it away from another has changed the version too.
        if (sealed is not None or version != 1) and sealed != _seal(values):
            raise CheckpointError(f"{path} is damaged: its content does not match its own hash.")
        return Manifest(**values)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {NAME}: it was never finished.") from None
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from None


def verify(folder: Path) -> Manifest:
    """Read the manifest of `folder` and check every file against it.

    Raises:
        CheckpointError: names the first file that is missing, extra, short or changed.
    """
    try:
        return _verified(folder)
    except OSError as error:  # what cannot be read is as good as damaged
        raise CheckpointError(f"{folder} cannot be read: {error}.") from error


def _verified(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        try:
            path = inside(folder, name)
        except ValueError as error:
            raise CheckpointError(
                f"{folder}: the manifest names a file outside it: {error}."
            ) from None
        if not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing.")
        _check_file(folder, name, record)
    # Only shards: what a file system or a person leaves beside them is never read.
    extra = {p.name for p in folder.glob("*.safetensors")} - set(manifest.files)
    if extra:
        raise CheckpointError(f"{folder}: {sorted(extra)[0]} is not in the manifest.")
    return manifest


def _check_file(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Compare one file with its `record`; a size that differs saves the reading."""
    size, kind = (folder / name).stat().st_size, next((k for k in HASHES if k in record), None)
    if kind is None:
        raise CheckpointError(f"{folder}: the manifest has no hash of {name} that is known here.")
    if size != record.get("bytes"):
        raise CheckpointError(
            f"{folder}: {name} is damaged ({size} bytes of {record.get('bytes')})."
        )
    found = hash_file(folder / name, kind)
    if found != record[kind]:
        raise CheckpointError(
            f"{folder}: {name} is damaged ({kind} {found[:8]} instead of {record[kind][:8]})."
        )
