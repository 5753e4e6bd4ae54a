"""Llama: rotary positions, RMSNorm, SwiGLU, grouped-query attention (arXiv:2302.13971)."""

from torch import nn

from llmtrain.config.groups.model import LlamaConfig
from llmtrain.models.attention import CausalSelfAttention
from llmtrain.models.layers import SwiGLUFeedForward
from llmtrain.models.transformer import Block, Transformer


def make_llama(config: LlamaConfig, vocab_size: int) -> Transformer:
    """Return a Llama of `config` with `vocab_size` rows in its embedding."""

    def make_norm() -> nn.Module:
        return nn.RMSNorm(config.dim, eps=config.norm_eps)

    n_kv_heads = config.n_kv_heads or config.n_heads
    blocks = [
        Block(
            CausalSelfAttention(config.dim, config.n_heads, n_kv_heads, bias=False),
            SwiGLUFeedForward(config.dim, config.ffn_width),
            make_norm,
            config.dropout,
        )
        for _ in range(config.n_layers)
    ]
    return Transformer(
        config, vocab_size, blocks=blocks, norm=make_norm(), n_kv_heads=n_kv_heads,
        rope_theta=config.rope_theta,
    )  # fmt: skip
