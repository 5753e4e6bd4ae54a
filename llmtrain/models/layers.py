"""Small parts that both families use. Pure maths: no process, no mesh.

Shapes: B samples, T positions, D model width, F feed-forward width, N heads, H head width,
V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

from llmtrain.distributed.rng import keep_mask


class Dropout(nn.Module):
    """Dropout whose mask depends on (key, sample, position, feature) and on nothing else.

    Srivastava et al. 2014, with the kept entries scaled by 1 / (1 - p).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.key = 0
        """Set by `models.init.seed_dropout` from the run's seed and the module's name."""

    def forward(
        self, x_BTD: torch.Tensor, sample_ids_B: torch.Tensor | None, positions_T: torch.Tensor
    ) -> torch.Tensor:
        """Return `x_BTD` with a share p of its entries zeroed, in training only.

        Raises:
            ValueError: when training with p > 0 and no sample ids.
        """
        if not self.training or self.p == 0.0:
            return x_BTD
        if sample_ids_B is None:
            raise ValueError("dropout needs the sample ids of the batch")
        return drop(x_BTD, sample_ids_B, positions_T, self.key, self.p)


def drop(
    x_BTD: torch.Tensor, sample_ids_B: torch.Tensor, positions_T: torch.Tensor, key: int, p: float
) -> torch.Tensor:
    """Return `x_BTD` with a share p of its entries zeroed and the kept ones scaled."""
    mask = keep_mask(key, sample_ids_B, positions_T, x_BTD.shape[-1], 1.0 - p)
    # The scale is no bf16 tensor: 1 / 0.9 would be rounded by 0.16 %, on every entry alike.
    return (x_BTD * mask).mul_(1.0 / (1.0 - p))


class GELUFeedForward(nn.Module):
    """GPT-2's feed-forward: w2(gelu(w1 x)), the tanh form of GELU (arXiv:1606.08415)."""

    def __init__(self, dim: int, ffn_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, ffn_dim, bias=bias)
        self.w2 = nn.Linear(ffn_dim, dim, bias=bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D)."""
        return self.w2(F.gelu(self.w1(x_BTD), approximate="tanh"))


class SwiGLUFeedForward(nn.Module):
    """Llama's feed-forward: w2(silu(w1 x) * w3 x) (arXiv:2002.05202, eq. 6)."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, ffn_dim, bias=False)
        self.w2 = nn.Linear(ffn_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, ffn_dim, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D)."""
        return self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD))
