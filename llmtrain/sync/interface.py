"""What every synchronisation mode answers; the loop never asks which one it is.

    before_step -> forward, backward -> reduce_grads -> clip -> optimizer -> after_step

Communication between replicas only, over the mesh axis dp_replicate, on local shards.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llmtrain.distributed.mesh import Mesh


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a mode works on."""

    module: nn.Module
    """The model, parallel: its parameters are what this rank holds."""
    forward: nn.Module
    """What is called in training: the model, under DDP where there is one."""
    optimizers: Sequence[torch.optim.Optimizer]
    """The inner optimizers."""
    mesh: Mesh
    zero: int
    """strategy.zero."""
    micro_batches: int
    """Micro-batches in a step."""
    total_steps: int
    """Steps of the run: what is under way is brought to its end in the last."""
    sizes: Mapping[str, int]
    """Elements of every parameter of the whole model, wherever it lies."""
    replicas: int
    """How many replicas there are."""
    replica: int
    """Which of them this process belongs to."""
    tied: Tensor | None = None
    """This rank's copy of an embedding that another rank of pp holds too."""
    is_first: bool = True
    """Whether that copy is the embedding itself, not the head's."""


@dataclass(frozen=True)
class SyncReport:
    """What a step's synchronisation cost this rank."""

    comm_bytes: float = 0.0
    """Bytes sent."""


class SavedSync(Protocol):
    """What building a model and saving it ask of a synchronisation mode."""

    reduces_gradients: bool
    """Whether gradients are averaged over dp_replicate in every step, by the wrappers that
    `parallel.apply` puts round the model."""
    replica: int | None
    """This process's replica, where each has optimizer state of its own; None: all are equal."""

    def describe(self) -> dict[str, Any]:
        """Return what of a checkpoint saved now must be known before its state can be loaded:
        "name" and, of replicas that differ, "replicas"; plain values."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs, tensors by name. What differs between replicas has a
        name of its own in each."""

    def blank(self, saved: dict[str, Any]) -> dict[str, Tensor]:
        """Return tensors to load into, of what a checkpoint with the description `saved` has and
        this mode can use."""

    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        """Go on from `step` steps with what was loaded into `blank`; the model has its weights."""


class SyncStrategy(SavedSync, Protocol):
    """One synchronisation mode of replicas that step side by side."""

    def together(self, step: int) -> bool:
        """Return whether the gradients of all replicas make the step after `step` steps.

        The loss is then normalised over all replicas, else over each."""

    def exchanges(self, step: int) -> bool:
        """Return whether `after_step` sends to other replicas, or waits for them, when `step`
        steps are done."""

    def meets(self, step: int) -> bool:
        """Return whether all replicas have waited for each other when `step` steps are done."""

    def before_step(self, step: int) -> None:
        """Do what precedes the step after `step` steps. May block."""

    def reduce_grads(self, step: int) -> None:
        """Reduce the gradients that no wrapper has reduced, before they are clipped."""

    def after_step(self, step: int) -> SyncReport:
        """Do what follows the optimizer's step, the one after `step` steps, and say what the whole
        step sent."""

    def eval_context(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the model holds the weights to evaluate and to save, equal on
        all replicas. Entering it may be a collective."""
