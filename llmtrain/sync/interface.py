"""What every synchronisation mode answers; the loop never asks which one it is.

    before_step -> forward, backward -> reduce_grads -> clip -> optimizer -> after_step

Communication between replicas only, over the mesh axis dp_replicate, on local shards.
"""

import contextlib
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class SyncReport:
    """What a step's synchronisation cost this rank."""

    comm_bytes: float = 0.0
    """Bytes sent."""


class SyncStrategy(Protocol):
    """One synchronisation mode."""

    reduces_gradients: bool
    """Whether gradients are averaged over dp_replicate in every step. `parallel.apply` asks before
    it wraps the model; the loss is then normalised over all replicas, else over one."""

    def before_step(self, step: int) -> None:
        """Do what precedes step `step`. May block."""

    def reduce_grads(self, step: int) -> None:
        """Reduce the gradients that no wrapper has reduced, before they are clipped."""

    def after_step(self, step: int) -> SyncReport:
        """Do what follows the optimizer's step, and say what the whole step sent."""

    def finish(self) -> None:
        """Do what is left when training ends."""

    def eval_context(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the model holds the weights to evaluate and to save."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what a resumed run needs, tensors by name."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave."""
