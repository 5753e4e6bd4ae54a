"""From the group `sync` to its strategy."""

from torch import nn

from llmtrain.config.groups.sync import SyncConfig
from llmtrain.distributed.mesh import Mesh
from llmtrain.sync.allreduce import AllReduce
from llmtrain.sync.interface import SyncStrategy

MODES = {"allreduce": AllReduce}


def reduces_gradients(config: SyncConfig) -> bool:
    """Return whether the mode averages gradients in every step, before there is a model."""
    return MODES[config.name].reduces_gradients


def build_sync(
    config: SyncConfig, module: nn.Module, mesh: Mesh, *, zero: int, micro_batches: int
) -> SyncStrategy:
    """Return the strategy of `config` over `module` (already parallel)."""
    return MODES[config.name](config, module, mesh, zero, micro_batches)
