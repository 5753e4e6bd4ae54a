"""Muon: orthogonalised momentum for hidden matrices.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; weight decay
and update scale from Liu et al., arXiv:2502.16982, equation 4.

`torch.optim.Muon` (2.13) iterates in bf16 whatever the parameters are, and runs the iteration on
whatever DTensor hands it: no fp64 parity, and a gather for every product. This one gathers each
matrix once, iterates on plain tensors, and keeps its own shard of the result.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmtrain.distributed.shards import cut, gather, local_grad, to_local
from llmtrain.optim.base import ShardOptimizer

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic; chosen by Jordan et al. for the steepest slope at zero."""

NS_DTYPES = {
    torch.float64: torch.float64,
    torch.float32: torch.bfloat16,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.bfloat16,
}
"""Dtype of a matrix -> dtype of its iteration. bf16 is what Jordan et al. found enough and what
tensor cores are fast in; fp64 stays fp64, so that every layout takes the same step to 1e-10."""

RMS_SCALE = 0.2
"""Root mean square of AdamW's updates (arXiv:2502.16982, section 2.2), which Muon's then match."""


class Muon(ShardOptimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only.

    B_t = momentum B_{t-1} + G_t
    O_t = NewtonSchulz(G_t + momentum B_t)
    W_t = W_{t-1} - lr (0.2 sqrt(max(rows, columns)) O_t + weight_decay W_{t-1})

    A parameter with more than two dimensions is a batch of matrices in its last two.
    State: `momentum_buffer`, B, the size and the layout of the parameter.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        ns_steps: int = 5,
        weight_decay: float = 0.1,
    ) -> None:
        """Take `params`, the hidden matrices of a model.

        Raises:
            ValueError: when a parameter has fewer than two dimensions.
        """
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "ns_steps": ns_steps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(f"Muon takes matrices; got a parameter of {tuple(p.shape)}.")

    def _update(self, owners: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Step `owners`.

        Collective over the axes that cut them: one gather a matrix. Every rank then iterates on
        the whole matrix and keeps its shard.
        """
        for p in owners:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        params = [to_local(p) for p in owners]
        grads = [local_grad(p) for p in owners]
        buffers = [to_local(self.state[p]["momentum_buffer"]) for p in owners]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        ahead = torch._foreach_add(grads, buffers, alpha=group["momentum"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for owner, param, direction in zip(owners, params, ahead, strict=True):
            update = newton_schulz(gather(direction, owner), group["ns_steps"])
            param.add_(cut(update, owner), alpha=-group["lr"] * update_scale(owner.shape))


def newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    """Bring every singular value of `matrix` near 1 and keep its singular vectors.

    X <- a X + (b A + c A^2) X with A = X X^T, from X = matrix / |matrix|_F (Jordan et al. 2024).
    The quintic does not converge: after 5 steps the singular values lie in about 0.7 to 1.2.

    Args:
        matrix: (..., R, C), whole.
        steps: iterations.

    Returns:
        (..., R, C), in the dtype of `matrix`, computed in `NS_DTYPES[matrix.dtype]`.
    """
    a, b, c = NS_COEFFICIENTS
    norm = matrix.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-30)
    X = (matrix / norm).to(NS_DTYPES[matrix.dtype])
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X  # the product X X^T is then the smaller of the two
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return (X.mT if tall else X).to(matrix.dtype)


def update_scale(shape: torch.Size) -> float:
    """Return 0.2 sqrt(max(rows, columns)) of a (..., R, C) shape (arXiv:2502.16982, equation 4).

    An orthogonal (R, C) matrix has root mean square 1 / sqrt(max(R, C)), so the update has 0.2:
    AdamW's, and one `lr` and one `weight_decay` serve both.
    """
    rows, columns = shape[-2:]
    return float(RMS_SCALE * max(rows, columns) ** 0.5)
