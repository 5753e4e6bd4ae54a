"""Adafactor: a second moment of rows and columns (Shazeer and Stern, arXiv:1804.04235).

`torch.optim.Adafactor` (2.13) raises on every FSDP2 parameter, foreach or not: its
`norm(dim).square_()` is an in-place operation on a `_NormPartial` DTensor ("no valid strategy
preserves this placement"). It also floors the mean of the second moment at eps(dtype), 1.2e-7 in
fp32, where the paper adds 1e-30 to the squared gradient: with gradients under 3e-4, which is every
large model, the step is then not the paper's, and not the same in fp32 and fp64. This one follows
algorithms 4 and 5, and adds its sums over the axes that cut each parameter.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmtrain.distributed.shards import (
    local_grad,
    sharded_axes,
    sum_of_squares,
    sum_over_axes,
    to_local,
    zeros_over,
)
from llmtrain.optim.base import ShardOptimizer

EPS1 = 1e-30
"""Added to the squared gradient (section 8, table 4)."""

EPS2 = 1e-3
"""Least root mean square of a parameter that its step size is scaled by (section 8, table 4)."""


class Adafactor(ShardOptimizer):
    """Adafactor without momentum, with relative step sizes (algorithms 4 and 5).

    rho_t = min(lr, 1 / sqrt(t));  alpha_t = max(1e-3, RMS(X_{t-1})) rho_t
    R_t, C_t = running row and column means of G_t^2 + 1e-30, with decay 1 - t^beta2_decay
    U_t = G_t / sqrt(R_t C_t / mean(R_t))
    X_t = X_{t-1} (1 - lr weight_decay) - alpha_t U_t / max(1, RMS(U_t) / clip_threshold)

    Parameters with fewer than two dimensions keep the whole second moment. More than two: a batch
    of matrices in the last two; RMS is over the whole parameter.
    State: `step`; `row_var` (..., R) and `col_var` (..., C), or `variance`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def _update(self, owners: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Step `owners`.

        Collective over the axes that cut them: three all-reduces an axis, of rows, columns and
        scalars only.
        """
        lr = group["lr"]
        sizes = [max(1, p.numel()) for p in owners]
        everywhere = [sharded_axes(p) for p in owners]
        params = [to_local(p) for p in owners]
        grads = [local_grad(p) for p in owners]
        steps = [self._count(p) for p in owners]

        self._track(owners, grads, [t ** group["beta2_decay"] for t in steps])
        updates = [root.mul_(g) for root, g in zip(self._inverse_roots(owners), grads, strict=True)]

        squares = [sum_of_squares([tensor]) for tensor in [*params, *updates]]
        sums = sum_over_axes(squares, everywhere * 2)
        count = len(owners)
        for i, (param, update) in enumerate(zip(params, updates, strict=True)):
            param_rms = (sums[i] / sizes[i]).sqrt().clamp_min(EPS2)
            update_rms = (sums[count + i] / sizes[i]).sqrt() / group["clip_threshold"]
            alpha = min(lr, steps[i] ** -0.5) * param_rms / update_rms.clamp_min(1.0)
            param.mul_(1 - lr * group["weight_decay"]).addcmul_(update, alpha.to(param), value=-1)

    def _count(self, parameter: Tensor) -> float:
        """Count one more step of `parameter`, making its state at the first; return the count."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            if parameter.ndim < 2:
                state["variance"] = torch.zeros_like(parameter)
            else:
                batch = list(range(parameter.ndim - 2))
                state["row_var"] = zeros_over(parameter, [*batch, parameter.ndim - 2])
                state["col_var"] = zeros_over(parameter, [*batch, parameter.ndim - 1])
        state["step"] += 1
        return float(state["step"])

    def _track(
        self, owners: Sequence[Tensor], grads: Sequence[Tensor], weights: Sequence[float]
    ) -> None:
        """Move the running means towards those of grad^2 + EPS1 (algorithm 4, lines 5 and 6).

        Collective over the axes that cut the rows or the columns.
        """
        sums, axes, tracked = [], [], []
        for owner, grad, weight in zip(owners, grads, weights, strict=True):
            state = self.state[owner]
            square = grad.square()
            if owner.ndim < 2:
                to_local(state["variance"]).lerp_(square.add_(EPS1), weight)
                continue
            for name, dim in (("row_var", -1), ("col_var", -2)):
                sums.append(square.sum(dim))
                axes.append(sharded_axes(owner, dim))
                tracked.append((to_local(state[name]), owner.shape[dim], weight))
        for total, (mean, size, weight) in zip(sum_over_axes(sums, axes), tracked, strict=True):
            mean.lerp_(total / size + EPS1, weight)

    def _inverse_roots(self, owners: Sequence[Tensor]) -> list[Tensor]:
        """Return 1 / sqrt(second moment), a new tensor the size of each parameter's shard.

        Collective over the axes that cut the rows. R C / mean(R) is taken as (R / mean(R)) C:
        the product of two means of 1e-30 is no number in fp32.
        """
        matrices = [p for p in owners if p.ndim >= 2]
        rows = [to_local(self.state[p]["row_var"]) for p in matrices]
        sums = [row.sum(-1, keepdim=True) for row in rows]
        totals = sum_over_axes(sums, [sharded_axes(p, -2) for p in matrices])
        means = iter([total / p.shape[-2] for total, p in zip(totals, matrices, strict=True)])
        roots = []
        for p in owners:
            state = self.state[p]
            if p.ndim < 2:
                roots.append(to_local(state["variance"]).rsqrt())
                continue
            row = (to_local(state["row_var"]) / next(means)).rsqrt()
            col = to_local(state["col_var"]).rsqrt()
            roots.append(row.unsqueeze(-1) * col.unsqueeze(-2))
        return roots
