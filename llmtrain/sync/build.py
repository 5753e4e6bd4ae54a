"""From the group `sync` to its strategy."""

from typing import Any

from llmtrain.config.groups.sync import SyncConfig
from llmtrain.sync.allreduce import AllReduce
from llmtrain.sync.diloco import DiLoCo
from llmtrain.sync.gossip import Gossip
from llmtrain.sync.interface import Setting, SyncStrategy
from llmtrain.sync.local_sgd import LocalSGD
from llmtrain.sync.served import Served

MODES: dict[str, Any] = {
    "allreduce": AllReduce,
    "local_sgd": LocalSGD,
    "hierarchical": LocalSGD,
    "diloco": DiLoCo,
    "gossip": Gossip,
}


def reduces_gradients(config: SyncConfig) -> bool:
    """Return whether wrappers average gradients in every step, before there is a model."""
    return bool(MODES.get(config.name, Served).reduces_gradients)


def build_sync(config: SyncConfig, setting: Setting) -> SyncStrategy:
    """Return the strategy of `config`. Collective over the world."""
    strategy: SyncStrategy = MODES[config.name](config, setting)
    return strategy
