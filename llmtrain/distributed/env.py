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

STORE_ENV = "LLMTRAIN_STORE"
"""Host and port of the store of a run whose replicas are worlds of their own."""
REPLICA_ENV = "LLMTRAIN_REPLICA"
RESTART_ENV = "LLMTRAIN_RESTART"
ROUND_ENV = "LLMTRAIN_ROUND"
"""Which meeting of several hosts this process belongs to; each has its own part of the store."""
BEGUN = "begun"
"""In that store once all replicas have joined."""
STOPPING = "stopping"
"""In that store once the server has been asked to stop."""


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """The identity of one process."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    replica: int | None = None
    """Where each replica is a world of its own: which it is."""
    restart: int = 0
    """How often this replica has been started again in this start of the run."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0 and not self.replica


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
        replica=int(env[REPLICA_ENV]) if REPLICA_ENV in env else None,
        restart=int(env.get(RESTART_ENV, 0)),
    )


MEETING_S = 600.0
"""How long ranks wait for each other to come to the rendezvous: rank 0 may compose first."""


def open_store(timeout_s: float = MEETING_S) -> dist.Store:
    """Return the rendezvous store of the environment; of a run of one process, one in memory.

    That of a run with a server is shared by all its replicas.

    It carries what ranks must know before they can join a process group, and waits that may last
    hours: it has no collective's timeout.

    Args:
        timeout_s: How long ranks that another launcher has started wait for each other.

    Raises:
        ConfigError: when those do not meet.
    """
    if STORE_ENV in os.environ:
        host, _, port = os.environ[STORE_ENV].rpartition(":")
        return dist.TCPStore(host, int(port), is_master=False)
    if ROUND_ENV in os.environ:
        address, number = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        met = dist.TCPStore(address, number, is_master=False)
        return dist.PrefixStore(f"round/{os.environ[ROUND_ENV]}", met)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return dist.HashStore()
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=timeout_s)))
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where = " ".join(f"{k}={os.environ.get(k)}" for k in ("MASTER_ADDR", "MASTER_PORT"))
        raise ConfigError(
            f"{where}: the ranks cannot meet there ({str(error).splitlines()[0]}). Start all of "
            "them, with both set to a free port of the host of rank 0."
        ) from None
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
    own = "" if info.replica is None else f"/{info.replica}/{info.restart}"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=dist.PrefixStore(f"process_group{own}", store),
        rank=info.rank,
        world_size=info.world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
        device_id=info.device if on_cuda else None,
    )


def destroy_process_group() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()
