"""What modes share in which replicas train apart, after a synchronous start if asked."""

import abc
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.config.groups.sync import SemiSyncConfig
from llmtrain.sync.interface import Setting, SyncReport
from llmtrain.sync.reducer import Reducer
from llmtrain.sync.traffic import gradient_bytes
from llmtrain.sync.weights import Named, Weights


class Replicas(abc.ABC):
    """A mode of replicas that train apart. What they exchange, and when, is told by `_exchange`.

    A replica's own weights lie apart from the others' between exchanges; its optimizer's state
    always does. Peers are the ranks with the same place inside their replicas: they hold the same
    shards of the same parameters.
    """

    reduces_gradients = False

    def __init__(self, config: SemiSyncConfig, setting: Setting) -> None:
        """Set up the mode."""
        mesh = setting.mesh
        self.replica: int | None = mesh.rank("dp_replicate")
        self._name = config.name
        self._setting = setting
        self._replicas = mesh.size("dp_replicate")
        self._warmup = config.warmup_sync_steps
        self._weights = Weights(setting.module)
        self._exact = Reducer(mesh.group("dp_replicate"))
        """For what may not be rounded: the start's gradients, weights to evaluate."""
        self._step = 0
        """Steps done."""
        self._told = 0.0
        """Bytes sent that were reported, or are nobody's."""
        self._inside = gradient_bytes(
            setting.module, mesh, zero=setting.zero, micro_batches=setting.micro_batches,
            with_replicas=False,
        )  # fmt: skip

    def together(self, step: int) -> bool:
        """Replicas step together until `warmup_sync_steps`."""
        return step < self._warmup

    @abc.abstractmethod
    def exchanges(self, step: int) -> bool:
        """Whether replicas exchange something when `step` steps are done."""

    @abc.abstractmethod
    def meets(self, step: int) -> bool:
        """Whether all replicas wait for each other when `step` steps are done."""

    @abc.abstractmethod
    def _exchange(self, step: int) -> None:
        """Exchange what is due when `step` steps are done. Collective over dp_replicate."""

    @property
    @abc.abstractmethod
    def is_apart(self) -> bool:
        """Whether this replica's weights are not those to evaluate."""

    def before_step(self, step: int) -> None:  # noqa: B027 - most modes have nothing to do here
        """Nothing precedes a step."""

    def reduce_grads(self, step: int) -> None:
        """Average the gradients of a step of all replicas. Collective over dp_replicate."""
        if self.together(step):
            self._mean_(self._exact, self._weights.gradients())

    @torch.no_grad()
    def after_step(self, step: int) -> SyncReport:
        """Exchange what is due. Collective over dp_replicate where something is."""
        self._step = step + 1
        self._exchange(step + 1)
        sent = self._sent_bytes()
        report = SyncReport(comm_bytes=self._inside + sent - self._told)
        self._told = sent
        return report

    @contextlib.contextmanager
    def eval_context(self) -> Iterator[None]:
        """Put the weights to evaluate into the model for a while. May be a collective."""
        if not self.is_apart:
            yield
            return
        with torch.no_grad():
            others = self._evaluated()
            self._weights.swap(others)
            self._told = self._sent_bytes()
        try:
            yield
        finally:
            self._weights.swap(others)

    @abc.abstractmethod
    def _evaluated(self) -> Named:
        """Return the weights to evaluate, which may be written to and read back."""

    def describe(self) -> dict[str, Any]:
        """Return the mode, the number of replicas, and whether they have weights of their own."""
        return {"name": self._name, "replicas": self._replicas, "apart": self.is_apart}

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Return this replica's weights where they are its own."""
        return self._own("weights", self._weights.clones()) if self.is_apart else {}

    def blank(self, saved: dict[str, Any]) -> dict[str, Tensor]:
        """Return tensors for this replica's weights, where `saved` has weights of as many."""
        own = self._is_like(saved) and saved["apart"]
        return self._own("weights", self._weights.clones()) if own else {}

    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        """Go on with this replica's own weights, where there are any."""
        self._step = step
        self._weights.take(self._loaded("weights", state, own=True))

    def _is_like(self, saved: dict[str, Any]) -> bool:
        """Whether a checkpoint was saved by this mode with as many replicas."""
        return saved.get("name") == self._name and saved.get("replicas") == self._replicas

    def _own(self, kind: str, values: Named) -> Named:
        """Return `values` as a checkpoint names what each replica has of its own."""
        laid = self._weights.laid_out(values)
        return {f"replica{self.replica}.{kind}.{name}": value for name, value in laid.items()}

    def _loaded(self, kind: str, state: Mapping[str, Tensor], *, own: bool) -> Named:
        """Return what `state` has of `kind`, by parameter, as local tensors."""
        from llmtrain.distributed.shards import to_local

        prefix = f"replica{self.replica}.{kind}." if own else f"{kind}."
        return {
            key.removeprefix(prefix): to_local(value)
            for key, value in state.items()
            if key.startswith(prefix)
        }

    def _mean_(self, reducer: Reducer, values: Named) -> None:
        """Average `values` over `reducer`'s group, in place; a tied weight's copies stay equal."""
        reducer.mean_(values)
        self._agree_on_tied(values)

    def _agree_on_tied(self, values: Named) -> None:
        """Give the head's copy of a tied embedding what the embedding got, to the last bit.

        Sums of more than two numbers depend on where in a message they lie.
        """
        setting = self._setting
        named = setting.module.named_parameters()
        name = next((n for n, p in named if p is setting.tied), None)
        if name is None or name not in values:
            return
        group = setting.mesh.group("pp")
        peer = dist.get_world_size(group) - 1 if setting.is_first else 0
        if setting.is_first:
            dist.send(values[name].contiguous(), group=group, group_dst=peer)
        else:
            received = torch.empty_like(values[name])
            dist.recv(received, group=group, group_src=peer)
            values[name].copy_(received)

    def _sent_bytes(self) -> float:
        return self._exact.sent_bytes
