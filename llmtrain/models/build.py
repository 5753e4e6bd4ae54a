"""From a model's configuration to the model, and what can be said of it by counting."""

from typing import Any

import torch

from llmtrain.config.groups.model import ModelConfig
from llmtrain.models.gpt import make_gpt
from llmtrain.models.llama import make_llama
from llmtrain.models.transformer import Transformer

FAMILIES: dict[str, Any] = {"gpt": make_gpt, "llama": make_llama}


def build_model(config: ModelConfig, vocab_size: int, device: str = "meta") -> Transformer:
    """Return the model of `config` on `device`, its weights not yet drawn.

    Args:
        config: The group `model`.
        vocab_size: Rows of the embedding, V.
        device: meta: shapes only, memory comes when `models.init` draws the weights.
    """
    with torch.device(device):
        return FAMILIES[config.name](config, vocab_size)


def count_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: Transformer) -> float:
    """Return the floating-point operations of one token's forward and backward.

    6 a weight that multiplies (look-ups do not, the head does), and 12 L D T for attention scores
    and values (PaLM, arXiv:2204.02311, appendix B; causal masking is not discounted).
    """
    block_weights = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.startswith("blocks.") and p.dim() == 2
    )
    q_width = sum(
        p.shape[0] for name, p in model.named_parameters() if name.endswith("attention.wq.weight")
    )
    return 6.0 * (block_weights + model.head.weight.numel()) + 12.0 * q_width * model.seq_len
