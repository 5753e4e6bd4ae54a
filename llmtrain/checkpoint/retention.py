"""Which checkpoints have served their time."""

from collections.abc import Sequence
from pathlib import Path

from llmtrain.checkpoint.manifest import Manifest


def expired(checkpoints: Sequence[tuple[Path, Manifest]], *, keep_last: int) -> list[Path]:
    """Return the folders to delete: all but the newest `keep_last` and the best.

    Args:
        checkpoints: Finished ones, oldest first.
        keep_last: Newest ones to keep.
    """
    kept = {folder for folder, _ in checkpoints[-keep_last:]}
    best = best_of(checkpoints)
    if best is not None:
        kept.add(best[0])
    return [folder for folder, _ in checkpoints if folder not in kept]


def best_of(checkpoints: Sequence[tuple[Path, Manifest]]) -> tuple[Path, Manifest] | None:
    """Return the checkpoint of lowest validation loss, the earliest of equals, if any."""
    evaluated = [item for item in checkpoints if item[1].val_loss is not None]
    return min(evaluated, key=lambda item: (item[1].val_loss, item[1].step), default=None)
