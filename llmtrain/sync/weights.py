"""The weights that a replica has on this rank, by name, as plain local tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmtrain.distributed.shards import cut_like, to_local

Named = dict[str, Tensor]


class Weights:
    """A view of a parallel model's parameters; tied ones under their first name alone."""

    def __init__(self, module: nn.Module) -> None:
        """Look at `module`, which is parallel already."""
        self._parameters = dict(module.named_parameters())

    @property
    def names(self) -> list[str]:
        """The parameters' names, in the order of the model: equal on the peers of dp_replicate."""
        return list(self._parameters)

    @torch.no_grad()
    def local(self) -> Named:
        """Return this rank's shard of each, no copies: writing into them changes the model."""
        return {name: to_local(parameter) for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def clones(self) -> Named:
        """Return copies. Always clones: `.to(device)` of what is there already is no copy."""
        return {name: tensor.clone() for name, tensor in self.local().items()}

    def gradients(self) -> Named:
        """Return this rank's shard of each gradient there is, no copies."""
        return {
            name: to_local(parameter.grad)
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }

    @torch.no_grad()
    def take(self, values: Mapping[str, Tensor]) -> None:
        """Write `values` into the model."""
        local = self.local()
        for name, value in values.items():
            local[name].copy_(value)

    @torch.no_grad()
    def swap(self, others: Mapping[str, Tensor]) -> None:
        """Exchange the model's weights with `others`, one at a time: no second copy of all."""
        for name, tensor in self.local().items():
            kept = tensor.clone()
            tensor.copy_(others[name])
            others[name].copy_(kept)

    def laid_out(self, values: Mapping[str, Tensor]) -> Named:
        """Return local `values` as a checkpoint wants them: with their place in the whole."""
        return {name: cut_like(value, self._parameters[name]) for name, value in values.items()}
