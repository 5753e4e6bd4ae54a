"""Elementwise: torch's own SGD, Adam and AdamW, run on the local shards of DTensors.

An elementwise rule is the same on a shard as on the whole, so nothing need go through DTensor's
dispatch. torch 2.13 does send it there, and the fused kernels then refuse a model of which only a
part is DTensors ("got mixed torch.Tensor and DTensor": tensor parallelism without FSDP). Handing
them local tensors ends that, and keeps `fused` a function of device and dtype alone, so that a
checkpoint's parameter groups load on any layout.

SGD is never fused: on CPU its fused kernel skips fp16 and bf16 parameters of 16 elements and more
without a word (pytorch#191763, torch 2.12 and 2.13).

The state stays what the checkpoint needs: DTensors beside DTensor parameters.
`_init_group(group, *lists)` is torch's private hook; the tests fail if a new torch changes it.
"""

from typing import Any

import torch
from torch import Tensor

from llmtrain.distributed.shards import local_grad, to_local


class ShardAdam(torch.optim.Adam):
    """Adam (Kingma and Ba, arXiv:1412.6980, algorithm 1) on local shards.

    Weight decay is L2: added to the gradient, as in the paper's time.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)
        _localize(lists)
        return has_complex


class ShardAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101, algorithm 2) on local shards."""

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)
        _localize(lists)
        return has_complex


class ShardSGD(torch.optim.SGD):
    """SGD, with momentum (Sutskever et al. 2013, equations 1 and 2) or without, on local shards.

    torch makes the momentum buffers inside its kernel and files them under the tensors it was
    given: here they are made beforehand, as zeros (the first step is then the same), and what was
    filed under local tensors is dropped after the step.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.register_step_post_hook(_drop_local_keys)

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        if group["momentum"] != 0:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
        has_sparse: bool = super()._init_group(group, *lists)
        _localize(lists)
        return has_sparse


def _localize(lists: tuple[list[Tensor], ...]) -> None:
    """Replace every tensor of `lists` (parameters, gradients, state...), in place, by its shard.

    Raises:
        ValueError: when a gradient lies otherwise than its parameter.
    """
    lists[1][:] = [local_grad(parameter) for parameter in lists[0]]
    for tensors in lists:
        tensors[:] = [to_local(tensor) for tensor in tensors]


def _drop_local_keys(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Remove from the state what was filed under local shards; the DTensors hold the buffers."""
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key in [key for key in optimizer.state if id(key) not in own]:
        del optimizer.state[key]
