"""The manifest: written last, it makes a folder a checkpoint.

A folder without a manifest, or whose files do not have the sizes and hashes the manifest names, is
not a checkpoint and is never loaded.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.durable import hash_file, inside
from llmtrain.errors import CheckpointError

NAME = "manifest.json"
FORMAT_VERSION = 1

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
    """File name -> {"bytes": size, "xxh3": hash}."""
    format_version: int = FORMAT_VERSION
    llmtrain_version: str = ""

    def to_json(self) -> str:
        """Return the manifest as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def step_folders(checkpoints: Path) -> list[Path]:
    """Return the folders named step_N in `checkpoints`, oldest first; whole or not."""
    if not checkpoints.is_dir():
        return []
    folders = [p for p in checkpoints.iterdir() if _STEP.match(p.name) and p.is_dir()]
    return sorted(folders, key=lambda p: int(p.name.split("_")[1]))


def file_record(path: Path) -> dict[str, Any]:
    """Return {"bytes", "xxh3"} of `path`."""
    return {"bytes": path.stat().st_size, "xxh3": hash_file(path)}


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
        found = file_record(path)
        if found != record:
            raise CheckpointError(
                f"{folder}: {name} is damaged ({found['bytes']} bytes of {record['bytes']}, "
                f"hash {found['xxh3'][:8]} instead of {str(record['xxh3'])[:8]})."
            )
    # Only shards: what a file system or a person leaves beside them is never read.
    extra = {p.name for p in folder.glob("*.safetensors")} - set(manifest.files)
    if extra:
        raise CheckpointError(f"{folder}: {sorted(extra)[0]} is not in the manifest.")
    return manifest
