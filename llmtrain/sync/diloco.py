"""`sync=diloco`, `streaming_diloco`: an outer optimizer over what replicas have learned apart.

    every H steps   delta_w <- anchor - theta_w
                    delta   <- mean over w of delta_w
                    anchor  <- outer SGD with Nesterov momentum, delta as its gradient
                    theta_w <- anchor

DiLoCo (arXiv:2311.08105, algorithm 1). Streaming DiLoCo (arXiv:2501.18512) cuts the weights into
fragments that take turns, lets an exchange take `overlap_steps` while training goes on, and mixes
the anchor into a replica's own weights. One fragment, no overlap and no mixing are DiLoCo.

The weights to evaluate and to save are the anchors: the only ones that replicas have in common.
"""

from typing import Any

import torch
from torch import Tensor

from llmtrain.config.groups.sync import DiLoCoConfig
from llmtrain.sync.fragment import Fragment, names_in, split_names
from llmtrain.sync.interface import Setting
from llmtrain.sync.reducer import Reducer
from llmtrain.sync.replicas import Replicas
from llmtrain.sync.rounds import Rounds
from llmtrain.sync.weights import Named


class DiLoCo(Replicas):
    """Outer optimization over fragments of the weights."""

    def __init__(self, config: DiLoCoConfig, setting: Setting) -> None:
        """Set up the mode."""
        super().__init__(config, setting)
        self._config = config
        self._total = setting.total_steps
        self._reducer = Reducer(
            setting.mesh.group("dp_replicate"), wire_dtype=config.wire_dtype,
            error_feedback=config.error_feedback,
        )  # fmt: skip
        self._rounds = [
            Rounds(
                config.sync_every_steps, self._warmup, self._total,
                offset=(config.fragments - 1 - i) * config.sync_every_steps // config.fragments,
            )
            for i in range(config.fragments)
        ]  # fmt: skip
        self._fragments: list[Fragment] = []
        """Empty until the synchronous start is over."""
        if self._warmup == 0:
            self._begin()

    def _begin(self) -> None:
        """Let the anchors be where the weights are now."""
        local, config = self._weights.local(), self._config
        named = self._setting.module.named_parameters()
        tied = next((name for name, p in named if p is self._setting.tied), None)
        self._fragments = []
        for units, rounds in zip(
            split_names(self._setting.sizes, config.fragments), self._rounds, strict=True
        ):
            names = names_in(local, units, tied)
            part = {name: local[name] for name in names}
            self._fragments.append(Fragment(config, part, rounds))

    def _due(self, step: int, rounds: Rounds) -> int:
        """Return the steps done when an exchange started after `step` steps ends."""
        return min(step + self._config.overlap_steps, self._total)

    def exchanges(self, step: int) -> bool:
        """Where an exchange begins or ends."""
        started = (step - self._config.overlap_steps, step)
        return any(rounds.is_due(at) for rounds in self._rounds for at in started)

    def meets(self, step: int) -> bool:
        """Once in H steps: where the last fragment's exchange ends."""
        if step <= self._warmup or step == self._total:
            return step > 0
        return self._rounds[-1].is_due(step - self._config.overlap_steps)

    @property
    def is_apart(self) -> bool:
        """Whether weights differ from the anchors: always, but at DiLoCo's exchanges."""
        if not self._fragments:
            return False
        config = self._config
        follows = config.fragments == 1 and config.overlap_steps == 0 and config.mix_alpha == 0.0
        at_exchange = follows and self._rounds[0].is_due(self._step)
        return self._step > self._warmup and self._step != self._total and not at_exchange

    def _exchange(self, step: int) -> None:
        if step == self._warmup:
            self._begin()
        if step <= self._warmup:
            return
        weights = self._weights.local()
        for fragment in self._fragments:
            if fragment.due == step:
                self._finish(fragment, weights, self._config.mix_alpha)
        for fragment in self._fragments:
            if fragment.rounds.is_due(step):
                fragment.start(self._reducer, weights, self._due(step, fragment.rounds))
                if fragment.due == step:
                    is_whole = fragment.rounds.is_whole(step)
                    alpha = 0.0 if step == self._total else self._config.mix_alpha
                    self._finish(fragment, weights, alpha, is_whole=is_whole)

    def _finish(
        self, fragment: Fragment, weights: Named, alpha: float, *, is_whole: bool = True
    ) -> None:
        """End an exchange: by an outer step, or by the mean where the run's end cut its round."""
        fragment.arrive()
        self._agree_on_tied(fragment.delta)
        fragment.step(weights, alpha, is_whole=is_whole)

    def _evaluated(self) -> Named:
        return {name: value for f in self._fragments for name, value in f.anchor.items()}

    def _sent_bytes(self) -> float:
        return super()._sent_bytes() + self._reducer.sent_bytes

    def describe(self) -> dict[str, Any]:
        """Return the mode, the replicas, and which exchanges are under way."""
        under_way = [f.due for f in self._fragments]
        return {
            **super().describe(), "fragments": self._config.fragments,
            "has_anchors": bool(self._fragments), "under_way": under_way,
            "residuals": self._reducer.feeds_back,
        }  # fmt: skip

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Return the outer momentum, what is under way, and this replica's own."""
        return {**super().state_dict(), **self._outer_state(self.describe())}

    @torch.no_grad()
    def blank(self, saved: dict[str, Any]) -> dict[str, Tensor]:
        """Return tensors for what `saved` has; the outer momentum fits any number of replicas."""
        if saved.get("name") != self._name or not saved["has_anchors"]:
            return {}
        if not self._fragments:
            self._begin()
        return {**super().blank(saved), **self._outer_state(saved)}

    def _outer_state(self, saved: dict[str, Any]) -> dict[str, Tensor]:
        """Return what a checkpoint described by `saved` has for an outer step, as it is now."""
        if not saved["has_anchors"]:
            return {}
        momentum = {n: value for f in self._fragments for n, value in f.momentum.items()}
        state = {f"momentum.{n}": v for n, v in self._weights.laid_out(momentum).items()}
        if not self._is_like(saved):
            return state
        if saved["fragments"] == len(self._fragments):
            for fragment, due in zip(self._fragments, saved["under_way"], strict=True):
                if due is not None:
                    fragment.arrive()
                    delta = fragment.delta or fragment.anchor
                    laid = self._weights.laid_out(delta)
                    state |= {f"delta.{name}": value.clone() for name, value in laid.items()}
        if saved["residuals"] and self._reducer.feeds_back:
            anchors = {n: value for f in self._fragments for n, value in f.anchor.items()}
            residuals = {n: self._reducer.residual(n, a).view_as(a) for n, a in anchors.items()}
            state |= self._own("residual", residuals)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        """Go on from the loaded anchors, which the model holds."""
        self._step = step
        if step >= self._warmup or state:
            momentum = self._loaded("momentum", state, own=False)
            self._begin()
            for fragment in self._fragments:
                for name, value in fragment.momentum.items():
                    if name in momentum:
                        value.copy_(momentum[name])
        deltas = self._loaded("delta", state, own=False)
        for fragment in self._fragments:
            mine = {name: deltas[name] for name in fragment.anchor if name in deltas}
            if mine:
                fragment.arrived(mine, self._due_after(step, fragment.rounds))
        self._reducer.load_state_dict(self._loaded("residual", state, own=True))
        super().load_state_dict(state, step)

    def _due_after(self, step: int, rounds: Rounds) -> int:
        """Return when the exchange ends that is under way after `step` steps."""
        started = next(s for s in range(step, -1, -1) if rounds.is_due(s))
        return self._due(started, rounds)
