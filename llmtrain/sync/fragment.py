"""A fragment: a part of the weights that replicas exchange at once, and its outer optimizer."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from llmtrain.config.groups.sync import DiLoCoConfig
from llmtrain.sync.reducer import PendingMean, Reducer
from llmtrain.sync.rounds import Rounds
from llmtrain.sync.weights import Named


class Fragment:
    """The weights `names`: where all replicas last stood (the anchor), and how to go on from there.

    delta_w = anchor - theta_w;  delta = mean over w;  anchor <- outer step with delta as gradient
    (arXiv:2311.08105, algorithm 1).
    """

    def __init__(self, config: DiLoCoConfig, weights: Mapping[str, Tensor], rounds: Rounds) -> None:
        """Start a fragment.

        Args:
            config: The group `sync`.
            weights: This rank's shards; copied.
            rounds: When it is exchanged.
        """
        self.rounds = rounds
        self.anchor: Named = {name: value.detach().clone() for name, value in weights.items()}
        self.due: int | None = None
        """Steps done when the exchange that is under way must have ended."""
        self.delta: Named = {}
        """Of the exchange that is under way."""
        self._pending: PendingMean | None = None
        self._outer: torch.optim.SGD | None = None
        if self.anchor:
            momentum = config.outer_momentum
            self._outer = torch.optim.SGD(
                list(self.anchor.values()), lr=config.outer_lr, momentum=momentum,
                nesterov=config.outer_nesterov and momentum > 0,
            )  # fmt: skip
            if momentum > 0:
                for value in self.anchor.values():
                    self._outer.state[value]["momentum_buffer"] = torch.zeros_like(value)

    @property
    def momentum(self) -> Named:
        """The outer momentum, by parameter; written to in place when it is loaded."""
        if self._outer is None or not self._outer.defaults["momentum"]:
            return {}
        state = self._outer.state
        return {name: state[value]["momentum_buffer"] for name, value in self.anchor.items()}

    def start(self, reducer: Reducer, weights: Mapping[str, Tensor], due: int) -> None:
        """Start an exchange, to end when `due` steps are done. Collective over dp_replicate."""
        self.delta = {name: anchor - weights[name] for name, anchor in self.anchor.items()}
        self._pending = reducer.start(self.delta)
        self.due = due

    def arrive(self) -> None:
        """Wait for the exchange that is under way; `delta` is then the mean."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def arrived(self, delta: Named, due: int) -> None:
        """Take back an exchange that was under way when a checkpoint was saved."""
        self.delta, self.due = delta, due

    def step(self, weights: Mapping[str, Tensor], alpha: float, *, is_whole: bool = True) -> None:
        """Move the anchor by the mean that has arrived, and the weights with it.

        theta_w <- alpha theta_w + (1 - alpha) anchor (arXiv:2501.18512, algorithm 2).

        Args:
            weights: This replica's.
            alpha: How much of them stays.
            is_whole: Whether the round was as long as all others. One that the run's end cuts short
                ends by the mean of the weights: the momentum's step would be as long as ever,
                whatever little the round has to say.
        """
        for name, anchor in self.anchor.items():
            if is_whole:
                anchor.grad = self.delta[name]
            else:
                anchor.sub_(self.delta[name])
        if is_whole and self._outer is not None:
            self._outer.step()
            self._outer.zero_grad(set_to_none=True)
        for name, anchor in self.anchor.items():
            if alpha == 0.0:
                weights[name].copy_(anchor)
            else:
                weights[name].lerp_(anchor, 1.0 - alpha)
        self.delta, self.due = {}, None


def split_names(sizes: Mapping[str, int], count: int) -> list[set[str]]:
    """Return the units of the model that each of `count` fragments has, evenly by size.

    A unit is a block ("blocks.3") or one of the parts beside them ("embed"): equal blocks are
    dealt out in turns, which spreads every fragment over the depth (arXiv:2501.18512, section 3).

    Args:
        sizes: Parameter name -> elements, of the whole model: all ranks must cut it alike.
        count: How many fragments.
    """
    units: dict[str, int] = {}
    for name, size in sizes.items():
        units[unit_of(name)] = units.get(unit_of(name), 0) + size
    found: list[set[str]] = [set() for _ in range(count)]
    filled = [0] * count
    for unit in sorted(units, key=lambda unit: -units[unit]):  # stable: in the model's order
        lightest = filled.index(min(filled))
        found[lightest].add(unit)
        filled[lightest] += units[unit]
    return found


def unit_of(name: str) -> str:
    """Return the block, or the part beside the blocks, that the parameter `name` belongs to."""
    block = re.match(r"blocks\.[^.]+", name)
    return block.group() if block else name.partition(".")[0]


def names_in(names: Iterable[str], units: set[str], tied: str | None) -> list[str]:
    """Return those of `names` that belong to `units`; the tied head goes with the embedding."""
    return [n for n in names if ("embed" if n == tied else unit_of(n)) in units]
