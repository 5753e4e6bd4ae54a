"""Reductions over a group that cost nothing where the group has one member."""

import torch
import torch.distributed as dist


def all_sum(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return `tensor` summed over `group`, in place. Collective over `group`."""
    if dist.get_world_size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def any_rank(flag: bool, group: dist.ProcessGroup | None = None) -> bool:
    """Return whether `flag` is set on any rank of `group`. Collective over it; None: the world.

    It travels on the CPU: no device waits for it.
    """
    if dist.get_world_size(group) == 1:
        return flag
    flags = torch.tensor([int(flag)])
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=group)
    return bool(flags.item())
