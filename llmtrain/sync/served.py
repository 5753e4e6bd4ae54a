"""A replica's end of the modes with a server: what it pushes, is given, saves and opens with.

The server knows tensors by place and parameter (`server.packing`): each process of a replica sends
and gets its own shards, so nothing is gathered, and the server never builds a model.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.config.groups.served import ServedConfig
from llmtrain.distributed.shards import cut_like, to_local
from llmtrain.sync.interface import Setting
from llmtrain.sync.server.packing import (
    OPTIMIZER,
    WEIGHTS,
    parameter_of,
    paths_of,
    relaid,
    under,
    with_place,
    without_place,
)
from llmtrain.sync.server.tensors import Tensors, clone
from llmtrain.sync.weights import Weights


class Served:
    """What a process of a replica has to do with the server."""

    reduces_gradients = False

    def __init__(self, config: ServedConfig, setting: Setting) -> None:
        """Look at the model; nothing is sent."""
        self._name, self._payload = config.name, config.payload
        self.replica = None if config.payload == "gradient" else setting.replica
        self._setting = setting
        self._elsewhere = (WEIGHTS, OPTIMIZER) if config.payload == "gradient" else (WEIGHTS,)
        """Paths of the server's state that a checkpoint has as model's and optimizer's."""
        self._weights = Weights(setting.module)
        self._place = dist.get_rank()
        self._received: Tensors = {}
        """The weights that the steps since the last answer began with."""
        self._plain: Any = None
        """The server's state without tensors: as it was loaded, or at this rest."""
        self._state: Tensors = {}
        """Its tensors, by path without place; this process's."""
        self.first_sample: int | None = None
        """Where the replicas' data begins, if a checkpoint of this mode has told."""
        self._restored = False
        """Whether that is the state of these replicas, not only of their rule."""

    def sizes(self) -> dict[str, int]:
        """Return the elements of each parameter of this process, as the server names them."""
        local = self._weights.local()
        return {f"{self._place}/{name}": value.numel() for name, value in local.items()}

    # -- training --------------------------------------------------------------------------------

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the weights that the server sent into the model."""
        local = self._weights.local()
        own = {without_place(name): tensor for name, tensor in tensors.items()}
        # What travelled lies on the CPU: how far a step went is computed where the model is.
        self._received = {name: t.to(local[name].device, copy=True) for name, t in own.items()}
        self._weights.take(self._received)

    @torch.no_grad()
    def payload(self) -> Tensors:
        """Return what is to be pushed: how far the optimizer went, where it is, or gradients."""
        if self._payload == "gradient":
            values = self._gradients()
        elif self._payload == "weights":
            values = self._weights.clones()
        else:
            local = self._weights.local()
            values = {name: start - local[name] for name, start in self._received.items()}
        return with_place(values, self._place)

    def _gradients(self) -> Tensors:
        """Return the gradients; a parameter that got none has zeros."""
        found = self._weights.gradients()
        return {
            name: found[name] if name in found else torch.zeros_like(weight)
            for name, weight in self._weights.local().items()
        }

    # -- the beginning ---------------------------------------------------------------------------

    @torch.no_grad()
    def opening(self) -> tuple[dict[str, Any], Tensors]:
        """Return what a server is built from: its state without tensors, or that of its rule, as
        far as there is one; and the weights and what else is known, by path."""
        tensors = {f"{WEIGHTS}{n}": v for n, v in self._placed(self._weights.clones()).items()}
        for path, value in self._state.items():
            tensors[self._placed_path(path)] = value
        if self._payload == "gradient":
            tensors |= self._optimizer_state()
        rule = self._plain["core"]["rule"] if self._plain and not self._restored else None
        return {"server": self._plain if self._restored else None, "rule": rule}, tensors

    def _optimizer_state(self) -> Tensors:
        names: dict[Tensor, str] = {p: name for name, p in self._setting.module.named_parameters()}
        return {
            f"{OPTIMIZER}{self._place}/{names[p]}|{key}": to_local(value).clone()
            for optimizer in self._setting.optimizers
            for p, state in optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    # -- checkpoints -----------------------------------------------------------------------------

    @torch.no_grad()
    def rest(self, plain: Any, tensors: Mapping[str, Tensor]) -> None:
        """Take the server's state in, to be saved: weights into the model, the server's optimizer
        into this process's, the rest as it is."""
        own = {without_place(path): value for path, value in tensors.items()}
        self._plain = plain
        self._weights.take(under(WEIGHTS, own))
        if self._payload == "gradient":
            self._take_optimizer(under(OPTIMIZER, own))
        kept = {path: v for path, v in own.items() if not path.startswith(self._elsewhere)}
        self._state = clone(kept)

    def _take_optimizer(self, state: Tensors) -> None:
        owners = {
            p: o for o in self._setting.optimizers for g in o.param_groups for p in g["params"]
        }
        named = dict(self._setting.module.named_parameters())
        for path, value in state.items():
            name, key = path.split("|")
            parameter = named[name]
            shard = value.ndim > 0 and value.shape == to_local(parameter).shape
            # Counters stay where the server has them: what optimizers want differs.
            kept = value.to(parameter.device, copy=True) if shard else value.clone()
            owners[parameter].state[parameter][key] = cut_like(kept, parameter) if shard else kept

    def describe(self) -> dict[str, Any]:
        """Return the mode, the layout that its state is of, and the server's state as JSON."""
        return {
            "name": self._name, "workers": self._setting.replicas,
            "replicas": None if self.replica is None else self._setting.replicas,
            "server": self._plain, "first_sample": self.first_sample,
        }  # fmt: skip

    def state_dict(self) -> Tensors:
        """Return the server's tensors, with their place in the whole."""
        parameters = dict(self._setting.module.named_parameters())
        return {
            f"server|{path}": cut_like(value, parameters[parameter_of(self._placed_path(path))])
            for path, value in self._state.items()
        }

    def blank(self, saved: dict[str, Any]) -> Tensors:
        """Return tensors for the server's state, where `saved` is of the same mode.

        Of other replicas only the rule's is wanted (an outer momentum): what they pushed, and how
        far each has read, says nothing about these.
        """
        own = self.describe()
        if saved.get("server") is None or saved.get("name") != own["name"]:
            return {}
        self._restored = saved.get("workers") == own["workers"]
        if self._restored:
            self.first_sample = saved["first_sample"]
        elif self._payload != "delta":
            return {}
        local = self._weights.local()
        self._plain = relaid(saved["server"], self._place, local)
        wanted = self._plain if self._restored else {"core": {"rule": self._plain["core"]["rule"]}}
        self._state = {
            without_place(path): torch.zeros_like(local[parameter_of(path)])
            for path in paths_of(wanted)
            if not path.startswith(self._elsewhere)
        }
        return self.state_dict()

    def load_state_dict(self, state: Tensors, step: int) -> None:
        """Keep what was loaded for the opening."""
        loaded = {name.removeprefix("server|"): to_local(value) for name, value in state.items()}
        self._state = clone(loaded)

    @property
    def incarnation(self) -> int:
        """Which incarnation of this replica the loaded state knows; 0 where it knows none."""
        members = self._plain["core"]["members"] if self._restored else []
        known = {member["worker"]: member["incarnation"] for member in members}
        return max(0, known.get(self._setting.replica, 0))

    def _placed(self, values: Tensors) -> Tensors:
        return with_place(values, self._place)

    def _placed_path(self, path: str) -> str:
        """Return a path of this process's as the server knows it: with the place at the name."""
        names = set(self._weights.names)
        return "|".join(f"{self._place}/{p}" if p in names else p for p in path.split("|"))
