"""THE order in which a model is built up from shapes into a parallel one.

    shapes (meta) -> for each block, then for the rest:  memory and weights -> FSDP
                  -> the whole:  DDP

Blocks get their memory one at a time and are sharded at once, so no rank ever holds more than one
whole block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from llmtrain.config.schema import RunConfig
from llmtrain.distributed.mesh import Mesh
from llmtrain.models.init import init_weights, seed_dropout
from llmtrain.models.transformer import Transformer
from llmtrain.parallel.data import (
    Microbatch,
    apply_ddp,
    apply_fsdp,
    fsdp_microbatch,
    no_microbatch_context,
    reshard,
    shard_mesh,
)
from llmtrain.parallel.precision import Precision


@dataclass(frozen=True)
class ParallelModel:
    """A model spread over the mesh."""

    module: Transformer
    """The model itself: its names, its parameters (local shards where sharded)."""
    forward: nn.Module
    """What to call in training: `module`, under DDP where there is one."""
    microbatch: Microbatch
    """The context of one micro-batch's forward and backward."""
    after_forward_only: Callable[[], None]
    """To be called after forwards without a backward, such as an evaluation's."""


def apply_parallel(
    model: Transformer,
    run: RunConfig,
    mesh: Mesh,
    device: torch.device,
    *,
    reduces_gradients: bool,
) -> ParallelModel:
    """Give a model of shapes its weights and spread it over `mesh`. Collective over the world.

    Args:
        model: On the meta device.
        run: The configuration.
        mesh: The mesh of the plan.
        device: Where the weights go.
        reduces_gradients: Whether gradients are averaged over dp_replicate in every step, which the
            sync mode decides; sharding always stays inside a replica.
    """
    zero = run.strategy.zero
    precision = Precision(run.train.precision)
    seed_dropout(model, run.train.seed)
    model.to(precision.parameter_dtype)
    sharded = shard_mesh(mesh) if reduces_gradients else mesh.device_mesh["dp_shard"]
    shards = zero > 0 and mesh.dp_size > 1

    def materialise(module: nn.Module, prefix: str) -> None:
        module.to_empty(device=device)
        init_weights(module, run.model, prefix=prefix, residual=model.RESIDUAL, seed=run.train.seed)

    for name, block in model.blocks.items():
        materialise(block, f"blocks.{name}.")
        if shards:
            apply_fsdp(block, sharded, zero)
    for name, part in model.named_children():
        # A tied head gets no weights of its own: `tie` gives it the embedding's.
        if part is not model.blocks and not (part is model.head and model.tie_embeddings):
            materialise(part, f"{name}.")
    model.tie()
    if shards:
        apply_fsdp(model, sharded, zero)
        return ParallelModel(model, model, fsdp_microbatch(model, zero), partial(reshard, model))
    if reduces_gradients and mesh.size("dp_replicate") > 1:
        forward, microbatch = apply_ddp(model, mesh)
        return ParallelModel(model, forward, microbatch, _nothing)
    return ParallelModel(model, model, no_microbatch_context, _nothing)


def _nothing() -> None:
    pass
