"""Lion: the sign of an interpolated momentum (Chen et al., arXiv:2302.06675, algorithm 2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmtrain.distributed.shards import local_grad, to_local
from llmtrain.optim.base import ShardOptimizer


class Lion(ShardOptimizer):
    """Lion with decoupled weight decay; elementwise, so it runs on local shards unchanged.

    c_t = beta1 m_{t-1} + (1 - beta1) g_t
    theta_t = theta_{t-1} - lr (sign(c_t) + weight_decay theta_{t-1})
    m_t = beta2 m_{t-1} + (1 - beta2) g_t

    State: `exp_avg`, m, the size and the layout of the parameter.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _update(self, owners: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Step `owners`; no communication."""
        for p in owners:
            if "exp_avg" not in self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
        beta1, beta2 = group["betas"]
        params = [to_local(p) for p in owners]
        grads = [local_grad(p) for p in owners]
        momenta = [to_local(self.state[p]["exp_avg"]) for p in owners]
        signs = torch._foreach_lerp(momenta, grads, 1 - beta1)
        torch._foreach_sign_(signs)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, signs, alpha=-group["lr"])
        torch._foreach_lerp_(momenta, grads, 1 - beta2)
