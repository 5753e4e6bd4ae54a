"""`sync=gossip`: replicas step on their own and mix weights with a few peers.

    every H steps   x_w <- sum over i of P[w, i] x_i         P: `graphs`, another one each round

D-PSGD (arXiv:1705.09056) has peers that hear each other: P is symmetric and doubly stochastic.
Stochastic gradient push (SGP, arXiv:1811.10792, algorithm 1) sends without hearing back. Where some
hear from more peers than others, x_w drifts away in size; the same rounds of a number y_w, 1 at
first, tell by how much:

    z_w = x_w / y_w           what the model is, and what the gradient is computed at
    x_w <- Opt(x_w, g(z_w))   what the optimizer changes, and what is sent

Between steps the model holds z_w and x_w is y_w z_w: no second copy of the weights. Every replica
knows who sends to whom, and so all of y: nothing is sent for it. In D-PSGD, and on the exponential
graph, where each sends to one and hears from one, y stays 1.

Both conserve the mean of x, which is what is evaluated and saved. The optimizer steps before the
round, as in SGP; D-PSGD's paper has the gradient of the unmixed weights, too, but mixes first.
"""

from typing import Any

import torch
from torch import Tensor

from llmtrain.config.groups.gossip import GossipConfig
from llmtrain.sync.graphs import build_graph, push
from llmtrain.sync.interface import Setting
from llmtrain.sync.mixer import Mixer
from llmtrain.sync.replicas import Replicas
from llmtrain.sync.rounds import Rounds
from llmtrain.sync.weights import Named

_Y = "push_sum.y"


class Gossip(Replicas):
    """Mixing of weights on a graph; all replicas average in the last step."""

    def __init__(self, config: GossipConfig, setting: Setting) -> None:
        """Set up the mode. Collective over dp_replicate."""
        super().__init__(config, setting)
        self._algorithm = config.algorithm
        self._total = setting.total_steps
        self._every = config.sync_every_steps
        self._rounds = Rounds(config.sync_every_steps, self._warmup, setting.total_steps)
        self._targets = build_graph(config, self._replicas)
        self._rank = setting.mesh.rank("dp_replicate")
        device = next(iter(setting.module.parameters())).device
        self._mixer = Mixer(setting.mesh.group("dp_replicate"), device)
        self._y = [1.0] * self._replicas

    def exchanges(self, step: int) -> bool:
        """At the end of a round, on all replicas: also where one has no peer in it."""
        return self._rounds.is_due(step)

    def meets(self, step: int) -> bool:
        """In every step of the start and in the last; in a round where all are peers of all."""
        if 0 < step <= self._warmup or step == self._total:
            return True
        if not self._rounds.is_due(step):
            return False
        # A degree of all but one is that of every replica, on any graph.
        return len(self._targets(self._number(step))[0]) == self._replicas - 1

    @property
    def is_apart(self) -> bool:
        """From the start's end to the last step."""
        return self._warmup < self._step != self._total

    def _number(self, step: int) -> int:
        """Return the number, from 0, of the round that ends when `step` steps are done."""
        return (step - self._warmup) // self._every - 1

    @torch.no_grad()
    def reduce_grads(self, step: int) -> None:
        """Average gradients in the start; then turn z into x, which the optimizer steps on."""
        super().reduce_grads(step)
        self._scale_(self._weights.local(), self._y[self._rank])

    def _exchange(self, step: int) -> None:
        weights = self._weights.local()
        if step == self._total and step > self._warmup:
            self._mean_(self._exact, weights)
            self._y = [1.0] * self._replicas
        elif self._rounds.is_due(step):
            targets = self._targets(self._number(step))
            self._mixer.mix_(weights, targets)
            self._agree_on_tied(weights)
            if self._algorithm == "push_sum":
                self._y = push(self._y, targets)
        self._scale_(weights, 1.0 / self._y[self._rank])

    @staticmethod
    def _scale_(weights: Named, factor: float) -> None:
        if factor != 1.0:
            for value in weights.values():
                value.mul_(factor)

    def _evaluated(self) -> Named:
        average = self._weights.clones()
        self._scale_(average, self._y[self._rank])
        self._mean_(self._exact, average)
        return average

    def _sent_bytes(self) -> float:
        return super()._sent_bytes() + self._mixer.sent_bytes

    def describe(self) -> dict[str, Any]:
        """Return the mode, the replicas, and what each has of its own.

        "apart" stays false: it has another mode go on from the plain mean of the replicas' weights,
        and the mean of x is in the checkpoint as the model.
        """
        kept = {"algorithm": self._algorithm, "has_own": self.is_apart}
        return {**super().describe(), "apart": False, **kept}

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Return this replica's weights and all of y."""
        state = super().state_dict()
        if self.is_apart and self._algorithm == "push_sum":
            state[_Y] = torch.tensor(self._y, dtype=torch.float64)
        return state

    def blank(self, saved: dict[str, Any]) -> dict[str, Tensor]:
        """Return tensors for this replica's weights and y, where `saved` has those of as many.

        Another algorithm begins anew from the mean: weights are z, of which y is a part.
        """
        if not self._is_like(saved) or saved["algorithm"] != self._algorithm:
            return {}
        state = super().blank({**saved, "apart": saved["has_own"]})
        if state and self._algorithm == "push_sum":
            state[_Y] = torch.ones(self._replicas, dtype=torch.float64)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        """Go on with this replica's own weights and y, where there are any."""
        super().load_state_dict(state, step)
        if _Y in state:
            self._y = state[_Y].tolist()
