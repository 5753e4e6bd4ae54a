"""Who this process is, and the process group it belongs to.

Reads what torchrun and Slurm put into the environment. A run of one process gets a process group
of one, so that nothing above has to ask whether it is distributed.
"""

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from llmtrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """The identity of one process."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0


def rank_info(device: str = "auto") -> RankInfo:
    """Return this process's identity from the environment, with its device.

    Args:
        device: auto (cuda where there is one) | cpu | cuda.

    Raises:
        ConfigError: when cuda is asked for and there is none, or too few.
    """
    env = os.environ
    local_rank = int(env.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if local_rank >= count:
            raise ConfigError(
                f"train.device=cuda needs a GPU for local rank {local_rank}, but this machine has "
                f"{count}; lower launcher.nproc_per_node or set train.device=cpu."
            )
        torch.cuda.set_device(local_rank)
        chosen = torch.device("cuda", local_rank)
    else:
        chosen = torch.device("cpu")
    return RankInfo(
        rank=int(env.get("RANK", 0)),
        local_rank=local_rank,
        world_size=int(env.get("WORLD_SIZE", 1)),
        device=chosen,
    )


def open_store() -> dist.Store:
    """Return the rendezvous store of the environment; of a run of one process, one in memory.

    It carries what ranks must know before they can join a process group, and waits that may last
    hours: it has no collective's timeout.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return dist.HashStore()
    store, _, _ = next(dist.rendezvous("env://"))
    return store


def share_text(store: dist.Store, key: str, value: str | None) -> str:
    """Return rank 0's `value` on every rank, however long rank 0 takes.

    Args:
        store: The rendezvous store.
        key: Name of the exchange, used once in a run's life.
        value: What rank 0 gives; None on the others.
    """
    if value is not None:
        store.set(key, value)
        return value
    while True:
        try:
            # Short waits: a signal's handler runs only when one returns.
            store.wait([key], datetime.timedelta(seconds=1))
            return store.get(key).decode()
        except dist.DistStoreError:
            continue


def init_process_group(info: RankInfo, store: dist.Store, timeout_s: float = 1800.0) -> None:
    """Join the default process group: gloo; for cuda NCCL, with gloo beside it for CPU tensors.

    Collective over the world.
    """
    on_cuda = info.device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=dist.PrefixStore("process_group", store),
        rank=info.rank,
        world_size=info.world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
        device_id=info.device if on_cuda else None,
    )


def destroy_process_group() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()
