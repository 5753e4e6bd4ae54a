"""What the wrappers' reduction of gradients sends, by formula.

An all-reduce of N bytes over W ranks, in a ring, sends 2 (W-1)/W N from each, a reduce-scatter or
an all-gather (W-1)/W N (Patarasuk and Yuan 2009).
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from llmtrain.distributed.mesh import Mesh


def gradient_bytes(
    module: nn.Module, mesh: Mesh, *, zero: int, micro_batches: int, with_replicas: bool
) -> float:
    """Return the bytes that this rank sends in a step for gradients and sharded weights.

    Args:
        module: The model, parallel.
        mesh: The mesh.
        zero: strategy.zero.
        micro_batches: Micro-batches in a step.
        with_replicas: Whether gradients are reduced over dp_replicate too.
    """
    # This rank's part of tp and pp, unsharded.
    total = sum(_numel(p) * p.element_size() for p in module.parameters())
    cp, replicas = mesh.size("cp"), mesh.size("dp_replicate") if with_replicas else 1
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
    return inside + between


def _numel(parameter: torch.Tensor) -> float:
    """Return the elements that this rank's part over tp has, whatever FSDP shards of it."""
    tp = 1
    if isinstance(parameter, DTensor):
        names = parameter.device_mesh.mesh_dim_names or ()
        placed = dict(zip(names, parameter.placements, strict=False))
        if "tp" in placed and not placed["tp"].is_replicate():
            tp = parameter.device_mesh["tp"].size()
    return parameter.numel() / tp
