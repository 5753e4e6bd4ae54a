"""From a checkpoint into a model, its optimizers and its sync mode, whatever mode saved it.

    model.*                     the weights to evaluate: what all replicas have in common
    optimizer.*                 of replicas that are equal;  replicaR.optimizer.*  of replicas apart
    sync.*                      what the mode has besides;   sync.replicaR.*       of each replica

A mode that finds its own kind and as many replicas goes on exactly. Any other goes on from the mean
of the replicas' weights and optimizer states: nothing that a replica has learned since the last
exchange is lost.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmtrain.checkpoint.manager import load_tensors
from llmtrain.checkpoint.manifest import Manifest
from llmtrain.checkpoint.tensors import (
    model_tensors,
    optimizer_tensors,
    restore_optimizers,
    sync_tensors,
)
from llmtrain.sync.interface import SavedSync


def load_training(
    folder: Path,
    manifest: Manifest,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    sync: SavedSync,
) -> None:
    """Load the checkpoint `folder`. Collective over the world.

    Raises:
        CheckpointError: when a tensor is not in the checkpoint, or has another shape.
    """
    load_tensors(folder, model_tensors(module))
    state = sync.blank(manifest.sync)
    if state:
        load_tensors(folder, sync_tensors(state))
    replicas = manifest.sync.get("replicas")
    if replicas == _replicas(sync):
        owner = _owner(manifest.sync, sync.replica)
        own = optimizer_tensors(module, optimizers, owner)
        load_tensors(folder, own)
        restore_optimizers(module, optimizers, own, owner)
    else:
        _load_mean(folder, module, optimizers, _owners(manifest.sync))
    sync.load_state_dict(state, manifest.step)
    if manifest.sync.get("apart") and mode_change(manifest.sync, sync.describe()):
        _load_mean_weights(folder, module, manifest.sync["replicas"])


def mode_change(saved: dict[str, Any], own: dict[str, Any]) -> str | None:
    """Return what to tell a person whose run goes on in another mode; None: in the same."""
    kinds = [(sync["name"], sync.get("replicas")) for sync in (saved, own)]
    if kinds[0] == kinds[1]:
        return None
    spoken = [f"sync={name}" + (f" of {n} replicas" if n else "") for name, n in kinds]
    text = f"the checkpoint is of {spoken[0]}, this run is {spoken[1]}"
    if kinds[0][1] is None:
        return f"{text}: replicas start from the same weights and optimizer state."
    return f"{text}: it goes on from the mean of their weights and optimizer states."


def _owners(saved: dict[str, Any]) -> list[int | None]:
    """Return the replicas whose optimizer states a checkpoint has; [None]: one that all had."""
    if saved.get("replicas") is None:
        return [None]
    return list(saved.get("saved_replicas", range(saved["replicas"])))


def _owner(saved: dict[str, Any], replica: int | None) -> int | None:
    """Return whose state `replica` takes: its own, or the first's where it was not there."""
    owners = _owners(saved)
    return replica if replica in owners else owners[0]


def _replicas(sync: SavedSync) -> int | None:
    replicas: int | None = sync.describe().get("replicas")
    return replicas


@torch.no_grad()
def _load_mean_weights(folder: Path, module: nn.Module, replicas: int) -> None:
    """Give the model the mean of what `replicas` had each of its own."""
    weights = model_tensors(module)
    sums = {name: torch.zeros_like(value) for name, value in weights.items()}
    for replica in range(replicas):
        own = {_own_name(name, replica): torch.empty_like(v) for name, v in weights.items()}
        load_tensors(folder, own)
        for name, total in sums.items():
            total += own[_own_name(name, replica)]
    for name, value in weights.items():
        value.copy_(sums[name] / replicas)


def _own_name(name: str, replica: int) -> str:
    """Return what replica's own weight `model.name` is called in a checkpoint."""
    return f"sync.replica{replica}.weights.{name.removeprefix('model.')}"


def _load_mean(
    folder: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    owners: Sequence[int | None],
) -> None:
    """Give the optimizers the mean of the states of the replicas `owners`; None: what all had."""
    sums: dict[str, torch.Tensor] = {}
    for owner in owners:
        tensors = optimizer_tensors(module, optimizers, owner)
        load_tensors(folder, tensors)
        for name, value in tensors.items():
            key = name[name.index("optimizer.") :]
            sums[key] = sums[key] + value if key in sums else value.clone()
    mean = {key: value / len(owners) for key, value in sums.items()} if len(owners) > 1 else sums
    restore_optimizers(module, optimizers, mean, None)
