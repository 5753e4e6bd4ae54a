"""`sync=allreduce`: gradients are averaged over all replicas in every step.

DDP and FSDP2 reduce while the backward still runs, so the hooks here have nothing left to do but
to account for it.
"""

import contextlib

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from llmtrain.config.groups.sync import SyncConfig
from llmtrain.distributed.mesh import Mesh
from llmtrain.sync.interface import SyncReport


def _numel(parameter: torch.Tensor) -> float:
    """Return the elements that this rank's part over tp has, whatever FSDP shards of it."""
    tp = 1
    if isinstance(parameter, DTensor):
        names = parameter.device_mesh.mesh_dim_names or ()
        placed = dict(zip(names, parameter.placements, strict=False))
        if "tp" in placed and not placed["tp"].is_replicate():
            tp = parameter.device_mesh["tp"].size()
    return parameter.numel() / tp


class AllReduce:
    """Synchronous training: what one process would compute."""

    reduces_gradients = True

    def __init__(
        self, config: SyncConfig, module: nn.Module, mesh: Mesh, zero: int, micro_batches: int
    ) -> None:
        """Count what a step sends.

        By the ring formulas: an all-reduce of N bytes over W ranks sends 2 (W-1)/W N from each, a
        reduce-scatter or an all-gather (W-1)/W N (Patarasuk and Yuan 2009).

        Args:
            config: The group `sync`.
            module: The model.
            mesh: The mesh.
            zero: strategy.zero.
            micro_batches: Micro-batches in a step.
        """
        # This rank's part of tp and pp, unsharded.
        total = sum(_numel(p) * p.element_size() for p in module.parameters())
        cp, replicas = mesh.size("cp"), mesh.size("dp_replicate")
        # Ranks of cp hold the same weights: FSDP shards over them, DDP reduces over them.
        shard = mesh.size("dp_shard") * cp if zero else 1
        replicate = replicas if zero else replicas * cp
        gathers = {0: 0, 1: 1, 2: 1, 3: 2 * micro_batches}[zero]
        scatters = {0: 0, 1: 1, 2: micro_batches, 3: micro_batches}[zero]
        if mesh.size("pp") > 1:
            # torch's stages reduce a step's gradients at once, after its last backward, and gather
            # again in the forwards alone: backwards leave the weights gathered until then.
            gathers, scatters = micro_batches + 1 if zero == 3 else gathers, min(scatters, 1)
        inside = (gathers + scatters) * (shard - 1) / shard * total
        between = 2 * (replicate - 1) / replicate * total / shard
        self._report = SyncReport(comm_bytes=inside + between)

    def before_step(self, step: int) -> None:
        """Nothing precedes a step."""

    def reduce_grads(self, step: int) -> None:
        """The wrappers have reduced the gradients in the backward."""

    def after_step(self, step: int) -> SyncReport:
        """Return what the gradients' way cost."""
        return self._report

    def finish(self) -> None:
        """Nothing is left: replicas are equal after every step."""

    def eval_context(self) -> contextlib.AbstractContextManager[object]:
        """The weights are the ones to evaluate."""
        return contextlib.nullcontext()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """There is no state."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """There is no state."""
