"""Activation checkpointing: keep less in the forward, compute it again in the backward.

Full (Chen et al., arXiv:1604.06174): only a block's input is kept. Selective (arXiv:2205.05198,
section 5): what is cheap to compute again is dropped, matrix products and attention are kept.
Dropout masks are functions of their place, so what is computed again is the same bit for bit and no
generator's state need be kept.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from llmtrain.models.transformer import Block

aten = torch.ops.aten

KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops._c10d_functional.all_reduce.default,
    torch.ops._c10d_functional.all_gather_into_tensor.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.all_to_all_single.default,
}
"""What `selective` keeps: all that costs more to compute, or to send, again than to hold."""


def apply_checkpointing(block: nn.Module, kind: str) -> None:
    """Let `block` drop activations, in place.

    Args:
        block: A transformer block.
        kind: none | selective | full.
    """
    if kind == "none":
        return
    assert isinstance(block, Block)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if kind == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    forward = block.forward

    def recomputed(*args: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(*args)
        result: torch.Tensor = checkpoint(forward, *args, **options)
        return result

    block.forward = recomputed  # type: ignore[method-assign,assignment]


def _policy(context: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
