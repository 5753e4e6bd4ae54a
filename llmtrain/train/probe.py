"""LayerProbe: what every module of a model put out in a step, and what came back through it.

It hangs hooks on the model for one step and takes them off again, so that other steps cost nothing.
All it sees is this rank's own: its shards, its samples, its gradients before they are averaged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmtrain.distributed.shards import to_local
from llmtrain.models.transformer import Transformer
from llmtrain.optim.optimizer import clean_name

OUTPUT = "output"
OUTPUT_GRADIENT = "output gradient"
PARAMETER_GRADIENT = "parameter gradient"


@dataclass
class Reading:
    """What one tensor was, over the micro-batches of a step; this rank's part of it."""

    squares: float = 0.0
    """Sum of squares. Not finite where an element is not, or its square overflows fp64."""
    largest: float = 0.0
    """Largest absolute value."""
    not_finite: int = 0
    """Elements that are NaN or infinite."""

    @property
    def norm(self) -> float:
        """The 2-norm over all micro-batches."""
        return self.squares**0.5

    @torch.no_grad()
    def add(self, tensor: Tensor) -> None:
        """Add a micro-batch's `tensor`."""
        local = to_local(tensor).detach()
        if not local.numel():
            return
        self.squares += float(torch.linalg.vector_norm(local, dtype=torch.float64)) ** 2
        largest = float(local.abs().max())
        # max() of Python would lose a NaN.
        self.largest = largest if not largest <= self.largest else self.largest
        self.not_finite += int(local.numel() - local.isfinite().sum())


@dataclass(frozen=True)
class Sighting:
    """Something that was not finite."""

    kind: str
    """output | output gradient | parameter gradient."""
    name: str
    """Of the module or the parameter."""
    place: tuple[int, int]
    """Where its layer stands in the model, whatever rank holds it; see `place_of`."""
    moment: int
    """When it was, among all that this rank has looked at: ranks that compute the same layer can be
    compared by it."""


def place_of(name: str) -> tuple[int, int]:
    """Return where the layer that `name` belongs to stands in the order of the forward.

    Args:
        name: Of a module or parameter of the whole model.
    """
    first, *rest = name.split(".")
    known = Transformer.PP_ORDER
    number = int(rest[0]) if first == "blocks" and rest and rest[0].isdigit() else 0
    return (known.index(first) if first in known else len(known)), number


def first_sighting(seen: Sequence[Sighting], kinds: tuple[str, ...]) -> Sighting | None:
    """Return the first of `kinds` in the order in which they are computed.

    That is the earliest layer for outputs, the latest for gradients, and within a layer what came
    first: inner modules before those that hold them.
    """
    found = [sighting for sighting in seen if sighting.kind in kinds]
    sign = 1 if OUTPUT in kinds else -1
    return min(found, key=lambda s: (sign * s.place[0], sign * s.place[1], s.moment), default=None)


@dataclass
class LayerProbe:
    """A context in which every module of `module` is watched. Keeps no tensor."""

    module: nn.Module
    outputs: dict[str, Reading] = field(default_factory=dict)
    """By module, in the order of the forward."""
    output_gradients: dict[str, Reading] = field(default_factory=dict)
    seen: list[Sighting] = field(default_factory=list)
    """What was not finite, as it came."""
    _moment: int = 0
    _handles: list[RemovableHandle] = field(default_factory=list)
    _watched: set[Tensor] = field(default_factory=set)
    """Parameters that have a hook."""

    def __enter__(self) -> Self:
        """Hang up the hooks."""
        for name, part in self.module.named_modules():
            if name:
                hook = _ForwardHook(self, clean_name(name))
                self._handles.append(part.register_forward_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._watched.clear()

    def forward(self, name: str, part: nn.Module, output: Any) -> None:
        """Take note of a module's output, and watch for the gradients that come back."""
        # Activation checkpointing computes forwards again inside the backward.
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        for tensor in _tensors(output):
            self._take(OUTPUT, name, tensor, self.outputs)
            if tensor.requires_grad:
                self._handles.append(tensor.register_hook(_GradientHook(self, name)))
        # Here, not before the step: FSDP's weights are whole, and others, only in the forward.
        for own, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in self._watched:
                self._watched.add(parameter)
                hook = _GradientHook(self, f"{name}.{own}", of_parameter=True)
                self._handles.append(parameter.register_hook(hook))

    def backward(self, name: str, gradient: Tensor, *, of_parameter: bool) -> None:
        """Take note of a gradient."""
        if of_parameter:
            self._take(PARAMETER_GRADIENT, name, gradient, {})
        else:
            self._take(OUTPUT_GRADIENT, name, gradient, self.output_gradients)

    def _take(self, kind: str, name: str, tensor: Tensor, into: dict[str, Reading]) -> None:
        self._moment += 1
        reading = into.setdefault(name, Reading())
        before = reading.not_finite
        reading.add(tensor)
        if reading.not_finite > before:
            self.seen.append(Sighting(kind, name, place_of(name), self._moment))


@dataclass(frozen=True)
class _ForwardHook:
    """What is called with a module's output."""

    probe: LayerProbe
    name: str

    def __call__(self, part: nn.Module, given: Any, output: Any) -> None:
        self.probe.forward(self.name, part, output)


@dataclass(frozen=True)
class _GradientHook:
    """What is called with a gradient."""

    probe: LayerProbe
    name: str
    of_parameter: bool = False

    def __call__(self, gradient: Tensor) -> None:
        self.probe.backward(self.name, gradient, of_parameter=self.of_parameter)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Return the floating-point tensors of a module's output."""
    for value in output if isinstance(output, tuple | list) else (output,):
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value
