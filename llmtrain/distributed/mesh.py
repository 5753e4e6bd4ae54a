"""The mesh: every process's place along the axes of parallelism.

Axes, outermost first: pp, dp_replicate, dp_shard, cp, tp. A *replica* of the model is everything
inside one dp_replicate coordinate. Neighbouring ranks share the innermost axis, which talks most.
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmtrain.config.plan import AXES, Plan


@dataclass(frozen=True)
class Team:
    """The processes whose gradients make an optimizer step: all of them, or those of a replica."""

    group: dist.ProcessGroup
    """Its members."""
    gradient_group: dist.ProcessGroup
    """Those of them over which this process's gradients are averaged."""

    @property
    def gradient_size(self) -> int:
        """How many processes gradients are averaged over."""
        return dist.get_world_size(self.gradient_group)


@dataclass(frozen=True)
class Mesh:
    """The device mesh with what is asked of it by name."""

    device_mesh: DeviceMesh
    """All axes, those of size 1 too."""
    everyone: Team
    """All processes; gradients are averaged over dp_replicate x dp_shard x cp."""
    replica: Team
    """This process's replica; gradients are averaged over dp_shard x cp."""
    token_group: dist.ProcessGroup
    """The processes that hold different parts of the loss: all but tp's, whose losses are equal."""
    counts_batch: bool
    """Whether this process counts its batch: one does of those that share it."""
    dp_rank: int
    """This process's part of the batch, 0 to dp_size - 1."""
    dp_size: int

    def team(self, *, together: bool) -> Team:
        """Return whose gradients make a step: everyone's `together`, else the replica's."""
        return self.everyone if together else self.replica

    def size(self, axis: str) -> int:
        """Return the number of processes along `axis`."""
        return self.device_mesh[axis].size()

    def rank(self, axis: str) -> int:
        """Return this process's place along `axis`."""
        return self.device_mesh.get_local_rank(axis)

    def group(self, axis: str) -> dist.ProcessGroup:
        """Return the process group of this process along `axis`."""
        return self.device_mesh.get_group(axis)


def build_mesh(plan: Plan, device_type: str) -> Mesh:
    """Build the mesh of `plan`. Collective over the world.

    Args:
        plan: The sizes of the axes; their product is the world size.
        device_type: cpu | cuda.
    """
    device_mesh = init_device_mesh(
        device_type, tuple(plan.axis(axis) for axis in AXES), mesh_dim_names=AXES
    )
    dp = device_mesh["dp_replicate", "dp_shard"]._flatten("dp")
    shard_cp = device_mesh["dp_shard", "cp"]._flatten("shard_cp").get_group()
    dp_cp = device_mesh["dp_replicate", "dp_shard", "cp"]._flatten("dp_cp").get_group()
    replica = device_mesh["pp", "dp_shard", "cp", "tp"]._flatten("replica").get_group()
    shared = ("pp", "cp", "tp")
    assert dist.group.WORLD is not None
    return Mesh(
        device_mesh=device_mesh,
        everyone=Team(dist.group.WORLD, dp_cp),
        replica=Team(replica, shard_cp),
        token_group=device_mesh["pp", "dp_replicate", "dp_shard", "cp"]
        ._flatten("token")
        .get_group(),
        counts_batch=all(device_mesh.get_local_rank(axis) == 0 for axis in shared),
        dp_rank=dp.get_local_rank(),
        dp_size=dp.size(),
    )
