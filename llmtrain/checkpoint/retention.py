"""Retention: which checkpoints have served their time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain.checkpoint.manifest import Manifest

Checkpoints = Sequence[tuple[Path, Manifest]]
"""Finished checkpoints, oldest first."""


@dataclass(frozen=True)
class Retention:
    """What is kept; all else goes once a newer checkpoint is whole."""

    keep_last: int = 2
    """Newest ones, at least 1."""
    keep_best: int = 1
    """Those of lowest validation loss."""
    keep_every_steps: int | None = None
    """Those of steps that this divides, for good; None: no such rule."""

    def expired(self, checkpoints: Checkpoints) -> list[Path]:
        """Return the folders to delete."""
        kept = {folder for folder, _ in checkpoints[-self.keep_last :]}
        kept |= {folder for folder, _ in ranked(checkpoints)[: self.keep_best]}
        every = self.keep_every_steps
        if every is not None:
            kept |= {folder for folder, manifest in checkpoints if manifest.step % every == 0}
        return [folder for folder, _ in checkpoints if folder not in kept]


def ranked(checkpoints: Checkpoints) -> Checkpoints:
    """Return those that were evaluated, the lowest validation loss first, the earliest of equals
    first."""
    evaluated = [item for item in checkpoints if math.isfinite(_loss(item[1]))]
    return sorted(evaluated, key=lambda item: (_loss(item[1]), item[1].step))


def _loss(manifest: Manifest) -> float:
    return math.inf if manifest.val_loss is None else manifest.val_loss
