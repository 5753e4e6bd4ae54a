"""What is left of reducing gradients when the last micro-batch's backward has ended.

DDP and FSDP reduce inside the backward. Without them (tensor parallelism, or a pipeline whose
backwards no hook of theirs sees) it is done here, once a step.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.distributed.shards import local_grad

BUCKET_BYTES = 25 * 2**20
"""As in DDP: large enough for the wire's full speed, small enough to copy cheaply."""


@torch.no_grad()
def average_grads(parameters: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Average the gradients of `parameters` over `group`, in place, in buckets.

    Collective over `group`, whose ranks hold the same shards of the same parameters.
    """
    size = dist.get_world_size(group)
    if size == 1:
        return
    for bucket in _buckets([local_grad(p) for p in parameters if p.grad is not None]):
        flat = torch.cat([grad.reshape(-1) for grad in bucket])
        dist.all_reduce(flat, group=group)
        flat.div_(size)
        parts = flat.split([grad.numel() for grad in bucket])
        for grad, part in zip(bucket, parts, strict=True):
            grad.copy_(part.view_as(grad))


def _buckets(grads: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group gradients of one dtype, in order, into buckets of about BUCKET_BYTES."""
    buckets: list[list[Tensor]] = []
    room = 0
    for grad in grads:
        size = grad.numel() * grad.element_size()
        if not buckets or size > room or grad.dtype != buckets[-1][0].dtype:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(grad)
        room -= size
    return buckets
