"""Shards: what an optimizer must know of a DTensor to compute as if it were whole.

A parameter is a plain tensor, or a DTensor cut along some mesh axes. Elementwise rules work on the
local shard and need nothing from here but `to_local`. Rules with a sum inside (a norm, a row mean)
sum their shard and add over the axes that cut it; a matrix rule gathers and cuts again.

`_StridedShard` (the placement that FSDP2 gives to what tensor parallelism has cut already) is no
subclass of `Shard` and answers False to `is_shard()` in torch 2.13, so "sharded" is read here as
"neither Replicate nor Partial".
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate

Axes = tuple[dist.ProcessGroup, ...]
"""The mesh axes that cut a tensor, each as its process group."""


BLOCK = 1 << 16
"""Elements in a block of `sum_of_squares` on CPU."""


def to_local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of `tensor` (the tensor itself where it is whole), no copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_grad(parameter: Tensor) -> Tensor:
    """Return this rank's shard of `parameter.grad`, which is cut as the parameter is.

    Raises:
        ValueError: when there is no gradient, or it lies otherwise than its parameter (Partial,
            say): the shards would then not belong together.
    """
    grad = _grad_of(parameter)
    own = parameter.placements if isinstance(parameter, DTensor) else None
    found = grad.placements if isinstance(grad, DTensor) else None
    if own != found:
        raise ValueError(
            f"a parameter of shape {tuple(parameter.shape)} is placed {own}, its gradient {found}: "
            "reduce or redistribute the gradient before the optimizer sees it."
        )
    return to_local(grad)


@torch.no_grad()
def reduce_partial_grads(parameters: Iterable[Tensor]) -> None:
    """Turn gradients that are Partial sums over an axis into whole ones, in place of `.grad`.

    Collective over the axes concerned: one all-reduce an axis, however many parameters.
    `SequenceParallel` norms end their backward this way under tensor parallelism without FSDP
    (torch 2.13); the norm and the optimizers refuse such gradients. To be called after the last
    micro-batch, since accumulating is cheaper while they are Partial.

    Args:
        parameters: any; those with plain, missing or whole gradients are left alone.

    Raises:
        ValueError: when a gradient is Partial otherwise than as a sum.
    """
    chosen, axes = [], []
    for parameter in parameters:
        grad = parameter.grad
        if isinstance(grad, DTensor) and any(isinstance(p, Partial) for p in grad.placements):
            if any(isinstance(p, Partial) and not p.is_partial("sum") for p in grad.placements):
                raise ValueError(f"cannot add up a gradient placed {grad.placements}.")
            partial = [i for i, p in enumerate(grad.placements) if isinstance(p, Partial)]
            chosen.append(parameter)
            axes.append(tuple(grad.device_mesh.get_group(i) for i in partial))
    sums = sum_over_axes([to_local(_grad_of(p)) for p in chosen], axes)
    for parameter, total in zip(chosen, sums, strict=True):
        grad = _grad_of(parameter)
        assert isinstance(grad, DTensor)
        whole = [Replicate() if isinstance(p, Partial) else p for p in grad.placements]
        parameter.grad = _wrap(total, grad, whole, grad.shape)


@torch.no_grad()
def settle_grads(parameters: Iterable[Tensor]) -> None:
    """Lay every gradient out as its parameter is, in place of `.grad`.

    Collective as `reduce_partial_grads`, which comes first. What is left then is a gradient that
    every rank has whole, of a parameter that is cut (an embedding cut by rows: torch 2.13 computes
    its gradient so): each rank keeps its part, without communication.

    Args:
        parameters: any; those with plain or missing gradients are left alone.

    Raises:
        ValueError: when a gradient is Partial otherwise than as a sum.
    """
    parameters = list(parameters)
    reduce_partial_grads(parameters)
    for parameter in parameters:
        grad = parameter.grad
        if not isinstance(grad, DTensor) or not isinstance(parameter, DTensor):
            continue
        if grad.placements != parameter.placements:
            parameter.grad = grad.redistribute(placements=parameter.placements)


def sharded_axes(tensor: Tensor, dim: int | None = None) -> Axes:
    """Return the axes that cut `tensor` along `dim` (None: along any dimension).

    Axes that replicate it, and axes of size 1, are left out: a sum over the returned axes counts
    every element once.

    Raises:
        ValueError: when the tensor is Partial over an axis, so that its value is not known yet.
    """
    if not isinstance(tensor, DTensor):
        return ()
    axes = []
    for axis, placement in enumerate(tensor.placements):
        if isinstance(placement, Partial):
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} is Partial over mesh axis {axis} of "
                f"{tensor.device_mesh}: reduce it before the optimizer sees it."
            )
        if isinstance(placement, Replicate) or tensor.device_mesh.size(axis) == 1:
            continue
        if dim is None or _dim_of(placement) == dim % tensor.ndim:
            axes.append(tensor.device_mesh.get_group(axis))
    return tuple(axes)


def sum_over_axes(values: Sequence[Tensor], axes: Sequence[Axes]) -> list[Tensor]:
    """Sum each of `values` over its own `axes`; one all-reduce an axis, whatever the count.

    Collective over every axis named, in the order of first appearance: the ranks of an axis must
    pass the same parameters in the same order, which they do when they hold shards of one model.

    Args:
        values: tensors of any shape, on one device; one dtype an axis.
        axes: for each value, the axes to sum over; () leaves it as it is.

    Returns:
        The sums, in the order and the shapes of `values`.
    """
    sums = list(values)
    for group in dict.fromkeys(group for each in axes for group in each):
        chosen = [i for i, each in enumerate(axes) if group in each]
        flat = torch.cat([sums[i].reshape(-1) for i in chosen])
        dist.all_reduce(flat, group=group)
        parts = flat.split([sums[i].numel() for i in chosen])
        for i, part in zip(chosen, parts, strict=True):
            sums[i] = part.view(sums[i].shape)
    return sums


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of the squares of local tensors of one dtype and device, 0-D fp64.

    On CPU torch 2.13 adds up the squares of a tensor in one running sum (6e-4 off at 2^24 fp32
    elements), so they are read in blocks, the blocks' norms in the tensors' dtype (fp32 for fp16
    and bf16), and the norms' squares added in fp64. CUDA's foreach norm reduces blocks as a tree.
    """
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    blocks = list(tensors)
    if blocks[0].device.type == "cpu":
        blocks = []
        for tensor in tensors:
            small = tensor.numel() <= BLOCK  # views cost as much as the norm of a small tensor
            blocks += [tensor] if small else tensor.reshape(-1).split(BLOCK)
    return torch.stack(torch._foreach_norm(blocks, 2, dtype=dtype)).double().square().sum()


def zeros_over(like: Tensor, dims: Sequence[int]) -> Tensor:
    """Return zeros with only the dimensions `dims` of `like`, cut along the axes that cut them.

    Args:
        like: a parameter, plain or DTensor.
        dims: increasing, from 0.

    Returns:
        Shape `[like.shape[d] for d in dims]`; a DTensor on the same mesh where `like` is one.
    """
    local = to_local(like)
    zeros = local.new_zeros([local.shape[d] for d in dims])
    if not isinstance(like, DTensor):
        return zeros
    placements = [_moved(placement, dims) for placement in like.placements]
    shape = torch.Size([like.shape[d] for d in dims])
    return _wrap(zeros, like, placements, shape)


def cut_like(local: Tensor, like: Tensor) -> Tensor:
    """Return `local`, this rank's shard of a tensor cut as `like` is, with its place in the whole.

    No communication and no copy.
    """
    if not isinstance(like, DTensor):
        return local
    return _wrap(local, like, like.placements, like.shape)


def gather(local: Tensor, like: Tensor) -> Tensor:
    """Return the whole of the tensor of which `local` is this rank's shard, cut as `like` is.

    Collective over the axes that cut `like`.
    """
    whole = cut_like(local, like)
    return whole.full_tensor() if isinstance(whole, DTensor) else whole


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of `whole`, cut as `like` is. No communication.

    Args:
        whole: the same values on every rank, the global shape of `like`.
        like: a plain tensor (then `whole` comes back) or a DTensor.
    """
    if not isinstance(like, DTensor):
        return whole
    everywhere = [Replicate()] * like.device_mesh.ndim
    replicated = DTensor.from_local(whole, like.device_mesh, everywhere, run_check=False)
    return replicated.redistribute(placements=like.placements).to_local()


def _grad_of(parameter: Tensor) -> Tensor:
    """Return `parameter.grad`; raise ValueError where there is none."""
    if parameter.grad is None:
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} has no gradient.")
    return parameter.grad


def _dim_of(placement: Placement) -> int:
    """Return the tensor dimension that a Shard or _StridedShard cuts."""
    dim: int = placement.dim  # type: ignore[attr-defined]
    return dim


def _moved(placement: Placement, dims: Sequence[int]) -> Placement:
    """Return the placement of a tensor that keeps only `dims`: Replicate where its own is gone."""
    if isinstance(placement, Replicate) or _dim_of(placement) not in dims:
        return Replicate()
    new = list(dims).index(_dim_of(placement))
    if hasattr(placement, "split_factor"):
        return type(placement)(new, split_factor=placement.split_factor)  # type: ignore[call-arg]
    return type(placement)(new)  # type: ignore[call-arg]


def _wrap(
    local: Tensor, like: DTensor, placements: Sequence[Placement], shape: torch.Size
) -> DTensor:
    """Return a DTensor of global `shape` over `local`; rows need not divide by the axis."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, like.device_mesh, placements, run_check=False, shape=shape, stride=stride
    )
