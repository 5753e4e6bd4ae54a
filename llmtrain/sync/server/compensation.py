"""Compensation: what a late gradient would be at the weights of now."""

import torch

from llmtrain.sync.server.rules import State
from llmtrain.sync.server.tensors import Tensors, clone, copy_into

EPSILON = 1e-7
"""Added under the root, as in the paper's code."""


class DelayCompensation:
    """DC-ASGD (arXiv:1609.08326, equation 10): a Taylor step with g g as the Hessian's diagonal.

        g' = g + lambda g * g * (theta_now - theta_then)

    `theta_then` is what the worker was given, so the server keeps a copy a worker. Gradients only:
    what an optimizer has preconditioned is no gradient.
    """

    def __init__(
        self, weights: Tensors, *, strength: float, mean_square_decay: float | None = None
    ) -> None:
        """Start with no gradient seen.

        Args:
            weights: For names and shapes.
            strength: lambda; where it is adaptive, lambda_0 of lambda_0 / sqrt(mean square).
            mean_square_decay: m of the running mean of g g; None leaves lambda constant.
        """
        self._strength, self._decay = strength, mean_square_decay
        adaptive = {} if mean_square_decay is None else weights
        self._mean_square = {name: torch.zeros_like(w) for name, w in adaptive.items()}

    def apply(self, gradient: Tensors, weights: Tensors, base: Tensors) -> Tensors:
        """Return `gradient`, computed at `base`, as it would be at `weights`."""
        compensated = {}
        for name, g in gradient.items():
            square = g * g
            term = self._strength * square * (weights[name] - base[name])
            if self._decay is not None:
                running = self._mean_square[name]
                running.mul_(self._decay).add_(square, alpha=1 - self._decay)
                term = term / (running + EPSILON).sqrt()
            compensated[name] = g + term
        return compensated

    def state_dict(self) -> State:
        """Return the running mean, empty where lambda is constant."""
        return clone(self._mean_square)

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        copy_into(self._mean_square, state)
