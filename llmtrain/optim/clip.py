"""Clip: the norm of the whole gradient, however its parameters are cut, and the clipping by it.

`torch.nn.utils.clip_grad_norm_` (2.13) falls short in two ways. It raises where only a part of the
model is DTensors, or where their meshes differ: tensor parallelism of some modules, with or without
FSDP. And on CPU it adds up a large fp32 tensor in one running sum (measured: 6e-4 off at 2^24
elements), so that the norm depends on how the tensor is cut. Here a gradient is read in blocks,
each block's norm in the gradient's dtype, and the squares of the norms are added in fp64: 2e-7 off
at 2^24 elements.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.distributed.shards import (
    Axes,
    local_grad,
    sharded_axes,
    sum_of_squares,
    sum_over_axes,
)

EPSILON = 1e-6
"""Added to the norm before dividing by it, as in torch."""


@torch.no_grad()
def grad_norm(
    parameters: Iterable[Tensor], *, extra_axes: Sequence[dist.ProcessGroup] = ()
) -> Tensor:
    """Return the 2-norm of the gradients of `parameters`, each counted whole and once.

    Collective over every mesh axis that cuts a parameter, and over `extra_axes`: one all-reduce of
    a few scalars an axis. Axes that replicate a parameter are not summed over.

    Args:
        parameters: plain tensors or DTensors of any mesh, mixed; those without `.grad` count 0.
            Tied parameters must be named once.
        extra_axes: process groups whose ranks hold different parameters (pipeline stages). A
            parameter held by two of them (a tied embedding) must be passed by one only.

    Returns:
        0-D fp64, on the device of the gradients; the same on every rank. Not finite where a
        gradient is not.

    Raises:
        ValueError: when a gradient is Partial, or lies otherwise than its parameter.
    """
    parameters = list(parameters)
    buckets: dict[tuple[Axes, torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            axes = sharded_axes(parameter.grad)
            grad = local_grad(parameter)
            buckets.setdefault((axes, grad.dtype, grad.device), []).append(grad)
    device = parameters[0].device if parameters else torch.device("cpu")
    squares = [sum_of_squares(grads).to(device) for grads in buckets.values()]
    squares = sum_over_axes(squares, [axes for axes, _, _ in buckets])
    total = torch.stack(squares).sum() if squares else _zero(device)
    for group in extra_axes:
        dist.all_reduce(total, group=group)
    return total.sqrt()


@torch.no_grad()
def clip_grads(
    parameters: Iterable[Tensor],
    max_norm: float,
    *,
    extra_axes: Sequence[dist.ProcessGroup] = (),
    copies: Sequence[Tensor] = (),
) -> Tensor:
    """Scale the gradients of `parameters` in place by min(1, max_norm / (norm + 1e-6)).

    Collective over every mesh axis that cuts a parameter, and over `extra_axes`. The device is
    not waited for.

    Args:
        parameters: as in `grad_norm`.
        max_norm: largest norm let through; 0 only measures.
        extra_axes: as in `grad_norm`.
        copies: those of `parameters` that another rank of `extra_axes` holds and counts too (a tied
            embedding of a pipeline): scaled here, and not counted.

    Returns:
        The norm before clipping, as `grad_norm` returns it. Where it is not finite the gradients
        are left as they are (torch would turn them all to NaN or 0), for the caller to judge.

    Raises:
        ValueError: as `grad_norm`.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    copied = {id(parameter) for parameter in copies}
    counted = [parameter for parameter in parameters if id(parameter) not in copied]
    norm = grad_norm(counted, extra_axes=extra_axes)
    if max_norm > 0 and parameters:
        factor = (max_norm / (norm + EPSILON)).clamp(max=1.0)
        factor = torch.where(norm.isfinite(), factor, torch.ones_like(factor))
        by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for parameter in parameters:
            grad = local_grad(parameter)
            by_kind.setdefault((grad.dtype, grad.device), []).append(grad)
        for (dtype, device), grads in by_kind.items():
            exact = torch.promote_types(dtype, torch.float32)  # bf16 would round the factor
            torch._foreach_mul_(grads, factor.to(device, exact))
    return norm


def _zero(device: torch.device) -> Tensor:
    """Return a 0-D fp64 zero."""
    return torch.zeros((), dtype=torch.float64, device=device)
