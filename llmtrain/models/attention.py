"""Causal self-attention with grouped key/value heads, rotary positions and a key/value cache.

Shapes: B samples, T positions, D model width, N query heads, K key/value heads, H head width.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class LayerCache:
    """Keys and values of the positions one layer has seen."""

    k_BKTH: torch.Tensor
    v_BKTH: torch.Tensor
    length: int = 0
    """Positions filled so far."""

    def append(
        self, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new positions and return all keys and values so far."""
        end = self.length + k_BKTH.shape[2]
        self.k_BKTH[:, :, self.length : end] = k_BKTH
        self.v_BKTH[:, :, self.length : end] = v_BKTH
        self.length = end
        return self.k_BKTH[:, :, :end], self.v_BKTH[:, :, :end]


def rotary_table(
    positions_T: torch.Tensor, head_dim: int, theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin, (T, H/2) fp32, of the rotary angles (arXiv:2104.09864, eq. 15).

    Of positions (B, T), one for each sample: (B, T, H/2).
    """
    exponent = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float64)
    frequency = theta ** -(exponent / head_dim)
    angle = positions_T.to(torch.float64)[..., None] * frequency
    return angle.cos().float(), angle.sin().float()


def document_mask(document_positions_BT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to scores, (B, 1, T, T): 0 within a document's past, else -infinity.

    In numbers, not in truth values: torch makes such a copy of those anew in every layer, and keeps
    it for the backward.

    Args:
        document_positions_BT: Position of each token in its document; 0 starts the next one.
        dtype: Of the queries.
    """
    document_BT = (document_positions_BT == 0).cumsum(-1)
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    T = document_BT.shape[1]
    order_T = torch.arange(T, device=document_BT.device)
    seen_BTT = same_BTT & (order_T[:, None] >= order_T[None, :])
    mask_BTT = torch.zeros(seen_BTT.shape, dtype=dtype, device=document_BT.device)
    return mask_BTT.masked_fill(~seen_BTT, float("-inf"))[:, None]


def rotate(x_BTNH: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn each pair (x[i], x[i + H/2]) by its angle: the half-split form of Hugging Face."""
    # Promotion does the arithmetic of bf16 activations in fp32.
    cos, sin = (table[..., None, :] for table in rotary)
    x1, x2 = x_BTNH.chunk(2, dim=-1)
    turned = torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)
    return turned.to(x_BTNH.dtype)


class Exchange(Protocol):
    """Trades a part of every sequence for a part of the heads, and back (context parallelism)."""

    def to_heads(self, x_BTNH: torch.Tensor) -> torch.Tensor:
        """Return all positions of this rank's share of the heads."""

    def to_positions(self, x_BTNH: torch.Tensor) -> torch.Tensor:
        """Return this rank's positions of all heads."""


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(H)) v over earlier positions (Vaswani et al. 2017, eq. 1).

    What parallelism sets: `exchange` where ranks hold parts of a sequence, `kv_heads` where a rank
    has computed all key and value heads and needs only some.
    """

    exchange: Exchange | None = None
    kv_heads: slice | None = None

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, *, bias: bool) -> None:
        super().__init__()
        self.head_dim = dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=bias)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=bias)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=bias)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=bias)

    def forward(
        self,
        x_BTD: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
        cache: LayerCache | None = None,
        mask_B1TT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, T, D).

        Args:
            x_BTD: Activations.
            rotary: cos and sin of `rotary_table` for these positions; None without rotary.
            cache: Keys and values of earlier positions, extended in place.
            mask_B1TT: `document_mask` of whole rows; None: every position sees all before it.
        """
        B, T, _ = x_BTD.shape
        # -1: under tensor parallelism a rank holds only some of the heads.
        q_BTNH = self.wq(x_BTD).view(B, T, -1, self.head_dim)
        k_BTKH = self.wk(x_BTD).view(B, T, -1, self.head_dim)
        v_BTKH = self.wv(x_BTD).view(B, T, -1, self.head_dim)
        if self.kv_heads is not None:
            k_BTKH, v_BTKH = k_BTKH[:, :, self.kv_heads], v_BTKH[:, :, self.kv_heads]
        if rotary is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, rotary), rotate(k_BTKH, rotary)
        if self.exchange is not None:
            q_BTNH, k_BTKH, v_BTKH = map(self.exchange.to_heads, (q_BTNH, k_BTKH, v_BTKH))
        q_BNTH, k_BKTH, v_BKTH = (t.transpose(1, 2) for t in (q_BTNH, k_BTKH, v_BTKH))
        is_causal = mask_B1TT is None  # which is causal itself
        if cache is not None:
            # With a filled cache only single positions are asked for, and they see all of it.
            is_causal = cache.length == 0 and T > 1
            k_BKTH, v_BKTH = cache.append(k_BKTH, v_BKTH)
        y_BNTH = F.scaled_dot_product_attention(
            q_BNTH, k_BKTH, v_BKTH, attn_mask=mask_B1TT, is_causal=is_causal,
            enable_gqa=q_BNTH.shape[1] != k_BKTH.shape[1],
        )  # fmt: skip
        y_BTNH = y_BNTH.transpose(1, 2)
        if self.exchange is not None:
            y_BTNH = self.exchange.to_positions(y_BTNH)
        return self.wo(y_BTNH.reshape(B, T, -1))
