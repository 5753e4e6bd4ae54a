"""`sync=local_sgd`, `hierarchical`: replicas average their weights every few steps.

    theta_w <- 1/W sum over w of theta_w         after every H-th step of a replica

Local SGD (arXiv:1805.09767); after a synchronous start post-local SGD (arXiv:1808.07217), which
also describes averaging in levels: neighbours often, all seldom (its section 5).
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from llmtrain.config.groups.sync import HierarchicalConfig, LevelConfig, LocalSGDConfig
from llmtrain.distributed.mesh import Mesh
from llmtrain.distributed.shards import to_local
from llmtrain.sync.interface import Setting
from llmtrain.sync.reducer import Reducer
from llmtrain.sync.replicas import Replicas
from llmtrain.sync.rounds import Rounds
from llmtrain.sync.weights import Named


class LocalSGD(Replicas):
    """Periodic averaging of weights, in one level or several."""

    def __init__(self, config: LocalSGDConfig | HierarchicalConfig, setting: Setting) -> None:
        """Set up the mode. Collective over the world where there are several levels."""
        super().__init__(config, setting)
        self._averages_state = config.inner_state == "average"
        levels = (
            config.levels
            if isinstance(config, HierarchicalConfig)
            else [LevelConfig(replicas=-1, every_steps=config.sync_every_steps)]
        )
        self._levels = [
            (Rounds(level.every_steps, self._warmup, setting.total_steps), reducer)
            for level, reducer in zip(levels, _reducers(levels, setting.mesh), strict=True)
        ]

    def exchanges(self, step: int) -> bool:
        """At the end of the innermost level's rounds."""
        return any(rounds.is_due(step) for rounds, _ in self._levels)

    def meets(self, step: int) -> bool:
        """At the end of the outermost level's rounds, and in every step of the start."""
        return 0 < step <= self._warmup or self._levels[-1][0].is_due(step)

    @property
    def is_apart(self) -> bool:
        """Inside a round of the outermost level."""
        return self._step > self._warmup and not self._levels[-1][0].is_due(self._step)

    def _exchange(self, step: int) -> None:
        # An average of all makes those of some superfluous.
        for rounds, reducer in reversed(self._levels):
            if rounds.is_due(step):
                self._mean_(reducer, self._weights.local())
                if self._averages_state:
                    reducer.mean_(self._inner_state())
                return

    def _inner_state(self) -> Named:
        """Return the inner optimizers' moments, which are tensors of more than one number."""
        found = {}
        for i, optimizer in enumerate(self._setting.optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for j, parameter in enumerate(parameters):
                for key, value in optimizer.state[parameter].items():
                    if isinstance(value, torch.Tensor) and value.dim() > 0:
                        found[f"{i}.{j}.{key}"] = to_local(value)
        return found

    def _evaluated(self) -> Named:
        average = self._weights.clones()
        self._mean_(self._exact, average)
        return average

    def _sent_bytes(self) -> float:
        return super()._sent_bytes() + sum(reducer.sent_bytes for _, reducer in self._levels)


def _reducers(levels: Sequence[LevelConfig], mesh: Mesh) -> list[Reducer]:
    """Return a reducer a level. Collective over the world where a level is not of all replicas.

    Level groups are neighbouring replicas' ranks with the same place inside their replicas.
    """
    replicas = mesh.size("dp_replicate")
    peers = mesh.device_mesh.mesh.movedim(1, -1).reshape(-1, replicas)  # (places, replicas)
    found = []
    for level in levels:
        if level.replicas == -1 or level.replicas >= replicas:
            found.append(Reducer(mesh.group("dp_replicate")))
            continue
        ranks = peers.reshape(-1, level.replicas).tolist()
        group, _ = dist.new_subgroups_by_enumeration(ranks)
        assert isinstance(group, dist.ProcessGroup)
        found.append(Reducer(group))
    return found
