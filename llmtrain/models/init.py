"""Initial weights as a function of (seed, parameter name), whatever the layout.

Normal with standard deviation `init_std`, divided by sqrt(2 n_layers) for the projections into the
residual stream (GPT-2, Radford et al. 2019, section 2.3); norms 1, biases 0. Always drawn in fp32
on the CPU, so that precision and device do not change the draw.
"""

import fnmatch
import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from llmtrain.config.groups.model import ModelConfig
from llmtrain.distributed.rng import derive_seed
from llmtrain.models.layers import Dropout


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether the parameter `name` matches one of the fnmatch `patterns`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@torch.no_grad()
def init_weights(
    module: nn.Module,
    config: ModelConfig,
    *,
    prefix: str,
    residual: tuple[str, ...],
    seed: int,
) -> None:
    """Draw the weights of `module`, in place.

    Args:
        module: The model or a part of it, on a real device.
        config: The group `model`.
        prefix: Name of `module` in the model, ending in a dot; "" for the model itself.
        residual: Patterns of the names that are scaled down, the model's RESIDUAL.
        seed: train.seed.
    """
    for local_name, parameter in module.named_parameters():
        name = prefix + local_name
        if "norm" in name and name.endswith(".weight"):
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            scale = math.sqrt(2 * config.n_layers) if matches(name, residual) else 1.0
            generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
            draw = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            draw.normal_(0.0, config.init_std / scale, generator=generator)
            parameter.copy_(_laid_out(draw, parameter))


def _laid_out(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return `whole`, equal on every rank, cut as `parameter` is. No communication."""
    if not isinstance(parameter, DTensor):
        return whole
    whole = whole.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def seed_dropout(model: nn.Module, seed: int) -> None:
    """Give every `Dropout` of the whole `model` its key, a function of the seed and its name."""
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            module.key = derive_seed(seed, "dropout", name)
