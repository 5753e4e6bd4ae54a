"""Tensors mixed with those of a few peers, point to point, every byte counted.

    bucket -> to each target, from each source (all under way at once) -> sum of share_i x_i

Buckets follow each other: a replica with many peers holds one bucket of each, not all of theirs.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.sync.bucket import Bucket, make_buckets
from llmtrain.sync.graphs import Targets


class Mixer:
    """Rounds of gossip in one process group."""

    sent_bytes: int
    """Bytes this rank has sent so far."""

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, *, bucket_bytes: int = 32 * 2**20
    ) -> None:
        """Mix within `group`. Collective over it.

        Args:
            group: The replicas.
            device: Where the tensors are.
            bucket_bytes: Bytes of tensors that share a message.
        """
        self.group = group
        self.rank = dist.get_rank(group)
        self.bucket_bytes = bucket_bytes
        self.sent_bytes = 0
        # NCCL wants the first operation of a group to be one of all its ranks, and in a round of
        # gossip some may have nothing to say.
        dist.all_reduce(torch.zeros(1, device=device), group=group)

    @torch.no_grad()
    def mix_(self, tensors: Mapping[str, Tensor], targets: Targets) -> None:
        """Replace every tensor by the sum of shares that this rank keeps and is sent.

        Waits for the ranks that this one sends to or hears from, and for no others. Ranks call it
        with the same `targets` and tensors of equal names, shapes and dtypes in equal order.

        Args:
            tensors: Local floating-point tensors by name, of any shape and strides.
            targets: Whom each rank of the group sends to.
        """
        sources = [i for i, peers in enumerate(targets) if self.rank in peers]
        if not sources and not targets[self.rank]:
            return
        for bucket in make_buckets(tensors, self.bucket_bytes):
            self._mix_bucket(bucket, targets, sources)

    def _mix_bucket(self, bucket: Bucket, targets: Targets, sources: list[int]) -> None:
        own = torch.cat([tensor.reshape(-1) for tensor in bucket.values()])
        if not own.numel():
            return
        arrived = {i: torch.empty_like(own) for i in sources}
        operations = [
            dist.P2POp(dist.isend, own, group=self.group, group_peer=j) for j in targets[self.rank]
        ] + [
            dist.P2POp(dist.irecv, values, group=self.group, group_peer=i)
            for i, values in arrived.items()
        ]
        # All are posted before the first is waited for: no order of ranks can block.
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        self.sent_bytes += len(targets[self.rank]) * own.nbytes
        arrived[self.rank] = own
        mixed = torch.zeros_like(own)
        # In the order of ranks: replicas that hear the same get the same bits.
        for i in sorted(arrived):
            mixed.add_(arrived[i], alpha=1.0 / (len(targets[i]) + 1))
        parts = mixed.split([tensor.numel() for tensor in bucket.values()])
        for tensor, part in zip(bucket.values(), parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
