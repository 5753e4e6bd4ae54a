"""The decoder that both families are: embed, blocks, norm, head.

A family is a table of choices (`gpt.py`, `llama.py`); the flow is written once here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from llmtrain.config.groups.model import ModelConfig
from llmtrain.models.attention import (
    CausalSelfAttention,
    LayerCache,
    document_mask,
    rotary_table,
)
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
        mask_B1TT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, T, D)."""
        h_BTD = self.attention(
            self.attention_norm(x_BTD), rotary=rotary, cache=cache, mask_B1TT=mask_B1TT
        )
        x_BTD = x_BTD + self.attention_dropout(h_BTD, sample_ids_B, positions_T)
        h_BTD = self.ffn(self.ffn_norm(x_BTD))
        return x_BTD + self.ffn_dropout(h_BTD, sample_ids_B, positions_T)


@dataclass(frozen=True)
class SequencePart:
    """Which positions of every sequence a rank computes."""

    cp_rank: int = 0
    cp: int = 1
    """The sequence is cut into `cp` parts, in order (context parallelism)."""
    tp_rank: int = 0
    tp: int = 1
    """Between attention and feed-forward each part is cut again (sequence parallelism)."""

    def positions(self, start: int, length: int, device: torch.device) -> torch.Tensor:
        """Return the positions that attention sees: `length` of them, the whole cp part."""
        first = start + self.cp_rank * length
        return torch.arange(first, first + length, device=device)

    def own(self, positions_T: torch.Tensor) -> torch.Tensor:
        """Return those of `positions_T` whose residual stream this rank holds."""
        return positions_T if self.tp == 1 else positions_T.chunk(self.tp)[self.tp_rank]


class Transformer(nn.Module):
    """A decoder-only language model, or some consecutive parts of one (a pipeline's stage).

    What it declares, as plain strings that the floors above interpret:
    NO_DECAY, HIDDEN and RESIDUAL are patterns of parameter names (fnmatch): never decayed; hidden
    matrices (Muon's); projections into the residual stream (scaled at the start).
    TP_PLAN gives modules (fnmatch of names, the first that matches) their tensor-parallel style,
    see `parallel.tensor`. PP_ORDER is the order in which activations pass the children.
    """

    NO_DECAY = ("*norm*", "*.bias")
    HIDDEN = ("blocks.*.w?.weight",)
    RESIDUAL = ("blocks.*.attention.wo.weight", "blocks.*.ffn.w2.weight")
    TP_PLAN: ClassVar = {
        "embed": "vocab",
        "positions": "positions",
        "blocks.*.*norm": "sequence",
        "blocks.*.attention": "gather",
        "blocks.*.attention.wq": "column",
        "blocks.*.attention.w[kv]": "kv_column",
        "blocks.*.attention.wo": "row",
        "blocks.*.ffn": "gather",
        "blocks.*.ffn.w[13]": "column",
        "blocks.*.ffn.w2": "row",
        "norm": "sequence",
        "head": "logits",
    }
    PP_ORDER = ("embed", "positions", "embed_dropout", "blocks", "norm", "head")

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
        # Any, since a stage lacks some of them.
        self.embed: Any = nn.Embedding(vocab_size, config.dim)
        self.positions: Any = None
        if rope_theta is None:
            self.positions = nn.Embedding(config.seq_len, config.dim)
        self.embed_dropout = Dropout(config.dropout)
        # Named by number and not by place, so that a pipeline stage keeps the names it holds.
        self.blocks = nn.ModuleDict({str(i): block for i, block in enumerate(blocks)})
        self.norm: Any = norm
        self.head: Any = nn.Linear(config.dim, vocab_size, bias=False)
        self.part = SequencePart()
        self.is_first = self.is_last = True
        self.tie()

    def keep(self, blocks: list[str], *, first: bool, last: bool) -> None:
        """Become a stage of a pipeline: drop all parts but those named. To be called on shapes.

        The last stage of a tied model keeps an embedding too, a copy that only the head uses.

        Args:
            blocks: Names of the blocks to keep.
            first: Whether the stage embeds tokens.
            last: Whether the stage ends in the head.
        """
        self.is_first, self.is_last = first, last
        for name in [name for name in self.blocks if name not in blocks]:
            del self.blocks[name]
        if not first:
            self.positions = None
            if not (last and self.tie_embeddings):
                self.embed = None
        if not last:
            self.norm = self.head = None

    def tie(self) -> None:
        """Let the head use the embedding's weight, if the model is so made."""
        if self.tie_embeddings and self.embed is not None and self.head is not None:
            self.head.weight = self.embed.weight

    def forward(
        self,
        input_BT: torch.Tensor,
        sample_ids_B: torch.Tensor | None = None,
        document_positions_BT: torch.Tensor | None = None,
        cache: list[LayerCache] | None = None,
    ) -> torch.Tensor:
        """Return logits (B, T, V), of a stage that is not the last activations (B, T, D).

        Args:
            input_BT: Token ids; T at most seq_len, the cached positions counted. Of a stage that is
                not the first: activations (B, T, D).
            sample_ids_B: The number of each sample in the run, for dropout; None without dropout.
            document_positions_BT: The position of each token in its document, at which it is
                embedded; attention stays within documents. Of whole rows, whatever part of them
                `input_BT` is. None: each row is one document.
            cache: One `LayerCache` a block, extended in place; None in training.
        """
        start = cache[0].length if cache else 0
        length = input_BT.shape[1] * (1 if self.is_first else self.part.tp)
        positions_T = self.part.positions(start, length, input_BT.device)
        own_T = self.part.own(positions_T)
        # Dropout's masks are keyed by the place in the row, whatever document it belongs to.
        placed, own_placed = positions_T, own_T
        if document_positions_BT is not None:
            placed, own_placed = (document_positions_BT[:, at] for at in (positions_T, own_T))
        x_BTD = input_BT
        if self.is_first:
            x_BTD = self._embed(input_BT, own_placed, own_T, sample_ids_B)
        mask = rotary = None
        if document_positions_BT is not None:
            mask = document_mask(document_positions_BT, _product_dtype(x_BTD))
        if self.rope_theta is not None:
            rotary = rotary_table(placed, self.head_dim, self.rope_theta)
        for i, block in enumerate(self.blocks.values()):
            layer_cache = cache[i] if cache else None
            x_BTD = block(x_BTD, own_T, rotary, sample_ids_B, layer_cache, mask)
        return self.head(self.norm(x_BTD)) if self.is_last else x_BTD

    def _embed(
        self,
        input_ids_BT: torch.Tensor,
        placed: torch.Tensor,
        positions_T: torch.Tensor,
        ids_B: torch.Tensor | None,
    ) -> torch.Tensor:
        x_BTD = self.embed(input_ids_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(placed)
        return self.embed_dropout(x_BTD, ids_B, positions_T)

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


def _product_dtype(x_BTD: torch.Tensor) -> torch.dtype:
    """Return what matrix products of `x_BTD` are computed in."""
    device = x_BTD.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BTD.dtype
