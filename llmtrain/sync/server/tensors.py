"""Tensors by name: the weights, and what workers send about them."""

from collections.abc import Sequence

from torch import Tensor

Tensors = dict[str, Tensor]
"""Parameter name -> tensor. Names are those of the model; one shard holds some of them."""


def clone(tensors: Tensors) -> Tensors:
    """Return copies that share no memory and no graph with `tensors`."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def scaled(tensors: Tensors, factor: float) -> Tensors:
    """Return `factor` times `tensors`; themselves where the factor is 1."""
    if factor == 1.0:
        return tensors
    return {name: factor * tensor for name, tensor in tensors.items()}


def mean(several: Sequence[Tensors]) -> Tensors:
    """Return the mean, summed in the order given: floating point knows the difference."""
    total = clone(several[0])
    for tensors in several[1:]:
        for name, tensor in total.items():
            tensor.add_(tensors[name])
    for tensor in total.values():
        tensor.div_(len(several))
    return total


def copy_into(target: Tensors, source: Tensors) -> None:
    """Write `source` into the memory of `target`, whose tensors others hold too."""
    for name, tensor in target.items():
        tensor.copy_(source[name])


def misfit(tensors: Tensors, like: Tensors) -> str | None:
    """Return what of `tensors` is not as in `like` (names, shapes, dtypes), None where all fits."""
    if tensors.keys() != like.keys():
        return f"names differ: {sorted(tensors.keys() ^ like.keys())}"
    for name, tensor in tensors.items():
        if tensor.shape != like[name].shape or tensor.dtype != like[name].dtype:
            found, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, like[name]))
            return f"{name} is {found}, not {wanted}"
    return None
