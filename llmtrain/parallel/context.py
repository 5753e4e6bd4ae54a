"""Context parallelism: every sequence cut over the axis cp.

DeepSpeed-Ulysses (arXiv:2309.14509, section 3): around attention, ranks trade their part of the
sequence for a share of the heads by one all-to-all, so that each computes whole causal rows of some
heads. The work is then equal on all ranks without any reordering of the sequence, and attention
itself is torch's, on every device. Everything else works on the rank's own positions.
"""

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_to_all_single_autograd

from llmtrain.models.attention import CausalSelfAttention
from llmtrain.models.transformer import Transformer


class HeadExchange:
    """Trades positions for heads and back. Shapes: T = all positions, N = the heads given."""

    def __init__(self, group: dist.ProcessGroup, n_heads: int) -> None:
        """Set up the exchange.

        Args:
            group: The axis cp.
            n_heads: Query heads of this rank (of its tp share); divisible by the axis.
        """
        self._group = group
        self._size = dist.get_world_size(group)
        self._n_heads = n_heads

    def to_heads(self, x_BTNH: torch.Tensor) -> torch.Tensor:
        """Return (B, T, N/cp, H) of `x_BTNH`, (B, T/cp, N, H). Collective over cp.

        Key/value heads that cp does not divide are repeated to one a query head first.
        """
        if x_BTNH.shape[2] % self._size:
            x_BTNH = x_BTNH.repeat_interleave(self._n_heads // x_BTNH.shape[2], dim=2)
        B, T, N, H = x_BTNH.shape
        parts = x_BTNH.view(B, T, self._size, N // self._size, H).permute(2, 0, 1, 3, 4)
        parts = self._trade(parts)  # (cp, B, T/cp, N/cp, H), now by position
        return parts.transpose(0, 1).reshape(B, self._size * T, N // self._size, H)

    def to_positions(self, x_BTNH: torch.Tensor) -> torch.Tensor:
        """Return (B, T/cp, N, H) of `x_BTNH`, (B, T, N/cp, H). Collective over cp."""
        B, T, N, H = x_BTNH.shape
        parts = x_BTNH.reshape(B, self._size, T // self._size, N, H).transpose(0, 1)
        parts = self._trade(parts)  # (cp, B, T/cp, N/cp, H), now by heads
        return parts.permute(1, 2, 0, 3, 4).reshape(B, T // self._size, self._size * N, H)

    def _trade(self, parts: torch.Tensor) -> torch.Tensor:
        """Send part r to rank r; return what came from each. Differentiable."""
        return all_to_all_single_autograd(parts.contiguous(), None, None, self._group)


def apply_context_parallel(model: Transformer, group: dist.ProcessGroup, n_heads: int) -> None:
    """Let the attention of `model` exchange heads over `group`, in place.

    Args:
        model: The model or a stage.
        group: The axis cp, of more than one rank.
        n_heads: Query heads of this rank.
    """
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.exchange = HeadExchange(group, n_heads)
