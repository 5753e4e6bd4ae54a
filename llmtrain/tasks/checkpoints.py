"""What a run has saved: listed, verified and deleted. No torch."""

import datetime
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from llmtrain.checkpoint.collection import BEST, LATEST, CheckpointCollection
from llmtrain.checkpoint.manifest import (
    NAME,
    Manifest,
    read_manifest,
    step_folders,
    step_of,
    verify,
)
from llmtrain.config import paths
from llmtrain.config.groups.checkpoint_command import CheckpointCommandConfig
from llmtrain.console import make_console
from llmtrain.errors import EXIT_BUG, EXIT_OK, CheckpointError
from llmtrain.units import format_bytes


def run_on_checkpoints(config: CheckpointCommandConfig) -> int:
    """List, verify or delete checkpoints; return the exit code: 1 where one is damaged.

    Raises:
        CheckpointError: there is none such, or all would be gone.
    """
    run_dir = Path(str(config.run)).expanduser()
    collection = CheckpointCollection(run_dir / paths.CHECKPOINTS, warn=lambda _: None)
    folders = _chosen(collection, config.step)
    if config.action == "delete":
        return _delete(collection, folders, as_json=config.json)
    rows = [_describe(folder, whole=config.action == "verify") for folder in folders]
    _name(rows, collection)
    if config.json:
        print(json.dumps({"run": str(run_dir), "checkpoints": rows}, indent=1))
    else:
        _show(rows, run_dir, verified=config.action == "verify")
    return EXIT_OK if all(row["error"] is None for row in rows) else EXIT_BUG


def _chosen(collection: CheckpointCollection, step: str | None) -> list[Path]:
    """Return the folders that `step` names, whole or not, oldest first.

    Raises:
        CheckpointError: there is none such.
    """
    folders = step_folders(collection.folder)
    if not folders:
        raise CheckpointError(f"{collection.folder} has no checkpoint; train the run first.")
    if step is None:
        return folders
    if step == LATEST:
        return folders[-1:]  # damaged or not
    if step == BEST:
        return [collection.named().get(BEST, folders[-1])]
    wanted = {collection.step_folder(int(word)) for word in step.split(",")}
    if missing := sorted(wanted - set(folders)):
        steps = ", ".join(str(step_of(folder)) for folder in folders)
        raise CheckpointError(
            f"{collection.folder} has no checkpoint {missing[0].name}; it has steps {steps}."
        )
    return [folder for folder in folders if folder in wanted]


def _describe(folder: Path, *, whole: bool) -> dict[str, Any]:
    """Return what there is to tell of the checkpoint `folder`.

    Args:
        folder: The checkpoint.
        whole: Read its files too.
    """
    row: dict[str, Any] = {
        "folder": str(folder), "step": step_of(folder), "names": [], "error": None,
    }  # fmt: skip
    try:
        manifest = verify(folder) if whole else read_manifest(folder)
    except CheckpointError as error:
        return row | {"error": str(error)}
    return row | _told(folder, manifest)


def _told(folder: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "step": manifest.step,
        "tokens": manifest.train_state.get("tokens"),
        "val_loss": manifest.val_loss,
        "bytes": manifest.bytes,
        "files": len(manifest.files),
        "saved": (folder / NAME).stat().st_mtime,
        "model": manifest.model.get("name"),
        "optimizer": manifest.optimizer,
        "sync": manifest.sync.get("name"),
        "llmtrain_version": manifest.llmtrain_version,
    }


def _name(rows: list[dict[str, Any]], collection: CheckpointCollection) -> None:
    """Say which rows are the latest and the best of all that the run has."""
    named = collection.named()
    for row in rows:
        row["names"] = [name for name, at in named.items() if str(at) == row["folder"]]


def _show(rows: list[dict[str, Any]], run_dir: Path, *, verified: bool) -> None:
    console = make_console()
    table = Table(
        "step", "tokens", "val loss", "size", "saved", "sync", "", title=f"checkpoints of {run_dir}"
    )
    for row in rows:
        if row["error"] is not None:
            table.add_row(str(row["step"]), *[""] * 5, "[red]damaged[/]")
            continue
        loss = row["val_loss"]
        saved = datetime.datetime.fromtimestamp(row["saved"]).strftime("%Y-%m-%d %H:%M:%S")
        words = [*row["names"], *(["whole"] if verified else [])]
        table.add_row(
            f"{row['step']:,}", f"{row['tokens'] or 0:,}", "" if loss is None else f"{loss:.4f}",
            format_bytes(row["bytes"]), saved, row["sync"], ", ".join(words),
        )  # fmt: skip
    console.print(table)
    for row in rows:
        if row["error"] is not None:
            console.print(row["error"], markup=False, highlight=False, soft_wrap=True)


def _delete(collection: CheckpointCollection, folders: list[Path], *, as_json: bool) -> int:
    """Delete `folders`, but not the last whole checkpoint.

    Raises:
        CheckpointError: none that is whole would be left.
    """
    left = [folder for folder, _ in collection.finished() if folder not in folders]
    if not any(_is_whole(folder) for folder in left):
        raise CheckpointError(
            f"step={','.join(str(step_of(f)) for f in folders)} would leave "
            f"{collection.folder} without a whole checkpoint; to give up the run, delete its "
            "folder."
        )
    for folder in folders:
        collection.remove(folder)
    collection.link()
    if as_json:
        print(json.dumps({"deleted": [str(folder) for folder in folders]}))
    else:
        for folder in folders:
            make_console().print(f"deleted {folder}", highlight=False, soft_wrap=True)
    return EXIT_OK


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True
