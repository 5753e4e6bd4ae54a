"""The decoder that both families are: embed, blocks, norm, head.

A family is a table of choices (`gpt.py`, `llama.py`); the flow is written once here.
"""

from collections.abc import Callable

import torch
from torch import nn

from llmtrain.config.groups.model import ModelConfig
from llmtrain.models.attention import CausalSelfAttention, LayerCache, rotary_table
from llmtrain.models.layers import Dropout


class Block(nn.Module):
    """One pre-norm transformer block: x + attention(norm x), then x + ffn(norm x)."""

    def __init__(
        self,
        attention: CausalSelfAttention,
        ffn: nn.Module,
        make_norm: Callable[[], nn.Module],
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = make_norm()
        self.attention = attention
        self.attention_dropout = Dropout(dropout)
        self.ffn_norm = make_norm()
        self.ffn = ffn
        self.ffn_dropout = Dropout(dropout)

    def forward(
        self,
        x_BTD: torch.Tensor,
        positions_T: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
        sample_ids_B: torch.Tensor | None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Return (B, T, D)."""
        h_BTD = self.attention(self.attention_norm(x_BTD), rotary, cache)
        x_BTD = x_BTD + self.attention_dropout(h_BTD, sample_ids_B, positions_T)
        h_BTD = self.ffn(self.ffn_norm(x_BTD))
        return x_BTD + self.ffn_dropout(h_BTD, sample_ids_B, positions_T)


class Transformer(nn.Module):
    """A decoder-only language model.

    What it declares, as plain strings that the floors above interpret:
    NO_DECAY, HIDDEN and RESIDUAL are patterns of parameter names (fnmatch): never decayed; hidden
    matrices (Muon's); projections into the residual stream (scaled at the start).
    """

    NO_DECAY = ("*norm*", "*.bias")
    HIDDEN = ("blocks.*.w?.weight",)
    RESIDUAL = ("blocks.*.attention.wo.weight", "blocks.*.ffn.w2.weight")

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        *,
        blocks: list[Block],
        norm: nn.Module,
        n_kv_heads: int,
        rope_theta: float | None,
    ) -> None:
        """Assemble the model.

        Args:
            config: The group `model`.
            vocab_size: Rows of the embedding, V.
            blocks: In order.
            norm: Before the head.
            n_kv_heads: Key and value heads of each block.
            rope_theta: Base of the rotary wavelengths; None: positions are learned instead.
        """
        super().__init__()
        self.seq_len = config.seq_len
        self.head_dim = config.dim // config.n_heads
        self.n_kv_heads = n_kv_heads
        self.rope_theta = rope_theta
        self.tie_embeddings = config.tie_embeddings
        self.embed = nn.Embedding(vocab_size, config.dim)
        self.positions = nn.Embedding(config.seq_len, config.dim) if rope_theta is None else None
        self.embed_dropout = Dropout(config.dropout)
        # Named by number and not by place, so that a pipeline stage keeps the names it holds.
        self.blocks = nn.ModuleDict({str(i): block for i, block in enumerate(blocks)})
        self.norm = norm
        self.head = nn.Linear(config.dim, vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        """Let the head use the embedding's weight, if the model is so made."""
        if self.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        sample_ids_B: torch.Tensor | None = None,
        cache: list[LayerCache] | None = None,
    ) -> torch.Tensor:
        """Return logits (B, T, V).

        Args:
            input_ids_BT: Token ids; T at most seq_len, the cached positions counted.
            sample_ids_B: The number of each sample in the run, for dropout; None without dropout.
            cache: One `LayerCache` a block, extended in place; None in training.
        """
        start = cache[0].length if cache else 0
        positions_T = torch.arange(start, start + input_ids_BT.shape[1], device=input_ids_BT.device)
        x_BTD = self.embed(input_ids_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions_T)
        x_BTD = self.embed_dropout(x_BTD, sample_ids_B, positions_T)
        rotary = None
        if self.rope_theta is not None:
            rotary = rotary_table(positions_T, self.head_dim, self.rope_theta)
        for i, block in enumerate(self.blocks.values()):
            x_BTD = block(x_BTD, positions_T, rotary, sample_ids_B, cache[i] if cache else None)
        return self.head(self.norm(x_BTD))

    def make_cache(self, batch_size: int) -> list[LayerCache]:
        """Return an empty key/value cache for `batch_size` sequences of up to seq_len."""
        weight = self.embed.weight
        shape = (batch_size, self.n_kv_heads, self.seq_len, self.head_dim)
        return [
            LayerCache(
                torch.empty(shape, device=weight.device, dtype=weight.dtype),
                torch.empty(shape, device=weight.device, dtype=weight.dtype),
            )
            for _ in self.blocks
        ]
