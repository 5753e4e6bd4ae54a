"""GPT-2: learned positions, LayerNorm, GELU (Radford et al. 2019; pre-norm, tied head)."""

from torch import nn

from llmtrain.config.groups.model import GPTConfig
from llmtrain.models.attention import CausalSelfAttention
from llmtrain.models.layers import GELUFeedForward
from llmtrain.models.transformer import Block, Transformer


def make_gpt(config: GPTConfig, vocab_size: int) -> Transformer:
    """Return a GPT of `config` with `vocab_size` rows in its embedding."""

    def make_norm() -> nn.Module:
        return nn.LayerNorm(config.dim, eps=config.norm_eps, bias=config.bias)

    blocks = [
        Block(
            CausalSelfAttention(config.dim, config.n_heads, config.n_heads, bias=config.bias),
            GELUFeedForward(config.dim, config.ffn_width, bias=config.bias),
            make_norm,
            config.dropout,
        )
        for _ in range(config.n_layers)
    ]
    return Transformer(
        config, vocab_size, blocks=blocks, norm=make_norm(), n_kv_heads=config.n_heads,
        rope_theta=None,
    )  # fmt: skip
