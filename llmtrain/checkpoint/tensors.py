"""A run's state as tensors by name, independent of the layout.

Names are those of the unwrapped model; sharded tensors are DTensors, which know their place in the
whole. So what one layout has saved any other loads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_MODEL, _OPTIMIZER, _SYNC = "model.", "optimizer.", "sync."


def model_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights as `model.<name>`, tied ones under their first name alone."""
    names = {name for name, _ in module.named_parameters()}
    state: dict[str, Any] = get_model_state_dict(module)
    return {_MODEL + name: value for name, value in state.items() if name in names}


def optimizer_tensors(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], replica: int | None
) -> dict[str, torch.Tensor]:
    """Return the state of the optimizers. Collective over the world.

    An optimizer that has no state yet is given one (of zeros) first, so that there is something to
    load into. Hyperparameters are left out: the configuration has them.

    Args:
        module: The model.
        optimizers: Its optimizers.
        replica: Whose state it is, where each replica has its own; None: all have the same.
    """
    state: dict[str, Any] = get_optimizer_state_dict(module, tuple(optimizers), options=_FLAT)
    prefix = _owned(_OPTIMIZER, replica)
    return {prefix + n: value for n, value in state.items() if isinstance(value, torch.Tensor)}


def _owned(kind: str, replica: int | None) -> str:
    return kind if replica is None else f"replica{replica}.{kind}"


def restore_optimizers(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    tensors: dict[str, torch.Tensor],
    replica: int | None,
) -> None:
    """Give the optimizers the state in `tensors`, as `optimizer_tensors` named it."""
    state: dict[str, Any] = get_optimizer_state_dict(module, tuple(optimizers), options=_FLAT)
    prefix = _owned(_OPTIMIZER, replica)
    for name in state:
        if prefix + name in tensors:
            state[name] = tensors[prefix + name]
    set_optimizer_state_dict(module, tuple(optimizers), state, options=_FLAT)


def sync_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the sync mode's `state` as it is named in a checkpoint."""
    return {_SYNC + name: value for name, value in state.items()}
