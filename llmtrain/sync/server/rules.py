"""Rules: how an update moves the weights.

A rule owns the weights. An update is a direction to descend, whether it is a gradient or a
difference of weights: what is done with it is one and the same.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from llmtrain.sync.server.tensors import Tensors, clone, copy_into

State = dict[str, Any]
"""Nested dicts with string keys and lists; leaves are tensors and what JSON can say."""


class UpdateRule(Protocol):
    """One way to move the weights."""

    weights: Tensors
    """The weights, in the same memory for life."""

    def apply(self, update: Tensors, lr: float) -> Tensors | None:
        """Move the weights by one update.

        Returns:
            What the sender goes on from where that is not the weights, else None.
        """

    def state_dict(self) -> State:
        """Return copies of the weights and of what later updates depend on."""

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""


class OptimizerRule:
    """A torch optimizer over the weights: the update is their gradient.

    SGD alone is the plain outer step on differences, theta <- theta - lr delta; SGD with Nesterov
    momentum DiLoCo's (arXiv:2311.08105, algorithm 1).
    """

    def __init__(self, weights: Tensors, build: Callable[[Tensors], Optimizer]) -> None:
        """Copy `weights` and build the optimizer over the copies.

        Args:
            weights: Where training starts.
            build: From the named parameters to an optimizer of them; its lr is overwritten.
        """
        self.weights = clone(weights)
        self._optimizer = build(self.weights)

    def apply(self, update: Tensors, lr: float) -> None:
        """Do one step of the optimizer with `update` as gradient."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        for name, weight in self.weights.items():
            weight.grad = update[name]
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self) -> State:
        """Return weights and the optimizer's state by name; the configuration has the rest."""
        state = {}
        for name, weight in self.weights.items():
            own = self._optimizer.state.get(weight, {})
            state[name] = {key: _copied(value) for key, value in own.items()}
        return {"weights": clone(self.weights), "optimizer": state}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        copy_into(self.weights, state["weights"])
        self._optimizer.state.clear()
        for name, own in state["optimizer"].items():
            if own:
                copied = {key: _copied(value) for key, value in own.items()}
                self._optimizer.state[self.weights[name]] = copied


class DelayedNesterov:
    """Momentum once in N pushes, for pushes that come one by one (arXiv:2401.09135, algorithm 3).

        D <- D + delta;  b = c, at every N-th push: 1 - c N + c, and v <- mu v + D / N, D <- 0
        theta <- theta - lr (b mu v + delta / N)

    N pushes from one point move it as one Nesterov step with their mean. Momentum in every push
    would apply it N times as often as it decays, and diverges.
    """

    def __init__(
        self, weights: Tensors, *, buffer: int, momentum: float, spread: float = 0.0
    ) -> None:
        """Start at `weights` with no momentum.

        Args:
            weights: Where training starts.
            buffer: N, pushes between two updates of the momentum; the number of workers, usually.
            momentum: mu.
            spread: c, 0 to 1/N: how much of the momentum the pushes between take.

        Raises:
            ValueError: when `spread` is out of its range.
        """
        if not 0 <= spread <= 1 / buffer:
            raise ValueError(f"spread={spread} must lie in 0 to 1/buffer={1 / buffer}.")
        self.weights = clone(weights)
        self._buffer, self._momentum, self._spread = buffer, momentum, spread
        self._count = 0
        self._sum = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self._velocity = clone(self._sum)

    def apply(self, update: Tensors, lr: float) -> None:
        """Move the weights by one push."""
        n, c = self._buffer, self._spread
        self._count = (self._count + 1) % n
        last = self._count == 0
        factor = (1 - c * n + c if last else c) * self._momentum
        for name, weight in self.weights.items():
            total, velocity = self._sum[name].add_(update[name]), self._velocity[name]
            if last:
                velocity.mul_(self._momentum).add_(total / n)
                total.zero_()
            weight.add_((update[name] / n).add_(velocity, alpha=factor), alpha=-lr)

    def state_dict(self) -> State:
        """Return weights, momentum, and the pushes since it was last updated."""
        named = {"weights": self.weights, "sum": self._sum, "velocity": self._velocity}
        return {"count": self._count, **{key: clone(value) for key, value in named.items()}}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self._count = state["count"]
        copy_into(self.weights, state["weights"])
        copy_into(self._sum, state["sum"])
        copy_into(self._velocity, state["velocity"])


class Elastic:
    """Workers loosely tied to a centre (EASGD, arXiv:1412.6651, algorithm 1).

    A worker sends the weights it has reached. It and the centre move towards each other by
    alpha (theta_w - theta), so that their sum stays; the answer is where the worker then is. Done
    at the server, both moves see the same centre, whoever else pushes.
    """

    def __init__(self, weights: Tensors, *, alpha: float) -> None:
        """Start with the centre at `weights`; `alpha` is 0.9 / workers in the paper."""
        self.weights = clone(weights)
        self._alpha = alpha

    def apply(self, update: Tensors, lr: float) -> Tensors:
        """Move the centre; return the worker's new weights. The learning rate is the worker's."""
        answer = {}
        for name, centre in self.weights.items():
            pull = self._alpha * (update[name] - centre)
            centre.add_(pull)
            answer[name] = update[name] - pull
        return answer

    def state_dict(self) -> State:
        """Return the centre."""
        return {"weights": clone(self.weights)}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        copy_into(self.weights, state["weights"])


class NoWeights:
    """The rule of a server that decides for others and holds no weights itself."""

    def __init__(self) -> None:
        self.weights: Tensors = {}

    def apply(self, update: Tensors, lr: float) -> None:
        """Move nothing."""

    def state_dict(self) -> State:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take nothing back."""


def _copied(value: object) -> object:
    """Return a copy of a tensor, anything else as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value
