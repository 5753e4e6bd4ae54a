"""Faults to plant in a run: numbers that go bad in one layer, on one rank, in one step."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

ROWS = 8
"""train.global_batch_size of the tests."""


@dataclass(frozen=True)
class BadGradient:
    """A gradient of a layer's output is `value`, in the steps of some stretches of samples.

    A step is known by its samples, not by its number: after a rollback the same number comes with
    others. The step that is computed again for a diagnosis has them once more.
    """

    steps: tuple[int, ...]
    """Counted from 1, of a run that skips no samples."""
    rank: int = 0
    layer: str = "blocks.1.ffn.w2"
    value: float = math.nan
    times: int | None = None
    """How often it comes at most; None: whenever its samples do."""

    def __call__(self, parts: Any) -> None:
        if dist.get_rank() != self.rank:
            return
        left = [math.inf if self.times is None else self.times]

        def planted(gradient: torch.Tensor) -> torch.Tensor:
            if parts.state.samples // ROWS + 1 not in self.steps or left[0] <= 0:
                return gradient
            left[0] -= 1
            return gradient * self.value

        def hook(module: Any, given: Any, output: torch.Tensor) -> None:
            if output.requires_grad:
                output.register_hook(planted)

        parts.model.module.get_submodule(self.layer).register_forward_hook(hook)


@dataclass(frozen=True)
class NoUpdate:
    """The optimizer does nothing in `step`: the reference for a step that was never applied."""

    steps: tuple[int, ...]
    lr_ratio: float = 1.0
    """What the learning rate is multiplied by after each of them."""

    def __call__(self, parts: Any) -> None:
        for optimizer in parts.optimizers:
            update = optimizer.step

            def step(update: Any = update) -> None:
                if parts.state.step + 1 not in self.steps:
                    update()

            optimizer.step = step
        schedule = parts.schedule

        def lowered(step: int) -> float:
            return schedule(step) * self.lr_ratio ** sum(step >= bad for bad in self.steps)

        parts.schedule = lowered


@dataclass(frozen=True)
class Spike:
    """The loss, as it is reported, is `factor` times what it is, in one step, on one rank."""

    step: int
    factor: float
    rank: int = 0

    def __call__(self, parts: Any) -> None:
        inner = parts.step

        class Spiked:
            evaluate = inner.evaluate

            def __call__(self, batches: Any, **keywords: Any) -> Any:
                result = inner(batches, **keywords)
                if parts.state.samples // ROWS + 1 == spike.step and dist.get_rank() == spike.rank:
                    result.loss_sum.mul_(spike.factor)
                return result

        spike = self
        parts.step = Spiked()


class CrashError(Exception):
    """Planted; no cleaning up follows it."""


@dataclass(frozen=True)
class Crash:
    """Training ends without a word in the step after `step` steps."""

    step: int
    least_samples: int = 0
    """Of the run before, else it goes on: which pass over the step is meant."""

    def __call__(self, parts: Any) -> None:
        inner = parts.step

        class Crashing:
            evaluate = inner.evaluate

            def __call__(self, batches: Any, **keywords: Any) -> Any:
                if parts.state.step == crash.step and parts.state.samples >= crash.least_samples:
                    raise CrashError
                return inner(batches, **keywords)

        crash = self
        parts.step = Crashing()


@dataclass(frozen=True)
class Both:
    """Two faults."""

    first: Any
    second: Any

    def __call__(self, parts: Any) -> None:
        self.first(parts)
        self.second(parts)
