"""What our own optimizers share: one step over every parameter that has a gradient."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ShardOptimizer(Optimizer):
    """An optimizer that works on local shards and keeps its state as DTensors."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step on every parameter that has a gradient.

        Collective over the axes that cut the parameters, where `_update` says so.

        Returns:
            What `closure` returns, None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_kind.setdefault((p.dtype, p.device), []).append(p)
            for owners in by_kind.values():
                self._update(owners, group)
        return loss

    @abstractmethod
    def _update(self, owners: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Step `owners`, parameters of one dtype and device, with the settings of their group."""
