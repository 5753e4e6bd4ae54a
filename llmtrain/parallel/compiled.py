"""torch.compile, block by block: equal blocks share what is compiled, and FSDP's hooks stay out."""

import torch
from torch import nn

from llmtrain.models.layers import Dropout


def compile_block(block: nn.Module) -> None:
    """Compile `block`, in place; dropout masks, where it draws any, stay out of it.

    inductor's C++ does not wrap int32 as the masks' hash needs (other masks, measured with torch
    2.13), and each layer's own key would compile its block anew.

    Args:
        block: A transformer block.
    """
    for module in block.modules():
        if isinstance(module, Dropout) and module.p > 0.0:
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    block.compile()
