"""The group `sync`: when replicas talk to each other, and what they say."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class SyncConfig:
    """What every mode has."""

    name: str
    """allreduce."""


@dataclass(kw_only=True)
class AllReduceConfig(SyncConfig):
    """Gradients are averaged over all replicas in every step: what one process would compute."""

    name: str = "allreduce"
