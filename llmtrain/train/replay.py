"""Replay: steps of a run again, in one process, without a word into its run directory.

The steps up to the wanted ones are trained as the run trained them: with the samples that it had,
without the updates that it left out. What it left out, and where it went back, stands in its audit
log; all else is a function of its configuration and of the checkpoint.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llmtrain.optim.clip import clip_grads
from llmtrain.optim.optimizer import clean_name
from llmtrain.optim.scheduler import apply_lr
from llmtrain.sync.interface import SyncStrategy
from llmtrain.train.audit import LOWERED, ROLLED_BACK, SKIPPED, lasting
from llmtrain.train.diagnosis import NOTHING, Diagnosis, diagnose_alone
from llmtrain.train.probe import LayerProbe, Reading
from llmtrain.train.trainer import Parts


@dataclass(frozen=True)
class Course:
    """What a run did otherwise than step after step."""

    skipped: frozenset[int] = frozenset()
    """Steps, counted from 1, whose update was left out."""
    lr_ratios: dict[int, float] = field(default_factory=dict)
    """Step -> what the learning rate was multiplied by after it."""
    jumps: dict[int, int] = field(default_factory=dict)
    """Steps done -> the samples seen by then, where the run went back and left some out."""

    @classmethod
    def of(cls, events: Sequence[dict[str, Any]]) -> "Course":
        """Return the course that the audit log's `events` tell of."""
        last = lasting(list(events))
        return cls(
            frozenset(e["step"] for e in last if e["action"] in (SKIPPED, LOWERED)),
            {e["step"]: e["lr_ratio"] for e in last if e["action"] == LOWERED},
            {e["to_step"]: e["samples"][1] for e in last if e["action"] == ROLLED_BACK},
        )

    def samples_at(self, step: int, start: int, samples: int, rows: int) -> int:
        """Return the samples seen when `step` steps are done.

        Args:
            step: Steps done.
            start: Steps done at an earlier moment,
            samples: and the samples seen by then.
            rows: Samples in a step.
        """
        for done in range(start, step):
            samples = max(samples, self.jumps.get(done, 0)) + rows
        return max(samples, self.jumps.get(step, 0))


@dataclass(frozen=True)
class Layer:
    """What a module did in a step, over its micro-batches."""

    name: str
    output: Reading
    output_gradient: Reading | None
    """Of the loss, with respect to its output; None: none came back."""
    parameter_gradient_norm: float | None
    """Of all parameters in it, before clipping; None: it has none."""


@dataclass(frozen=True)
class Replayed:
    """A step, computed again."""

    step: int
    """Counted from 1."""
    loss: float
    """Mean over the tokens, in nats."""
    grad_norm: float
    lr: float
    tokens: int
    is_applied: bool
    """Whether the run applied its update."""
    first: int
    """Samples that the run had seen before."""
    samples: list[int]
    """Which samples of the training split it saw."""
    layers: list[Layer]
    """In the order in which they finish."""
    diagnosis: Diagnosis | None
    """Where it went bad; None: all is finite."""


def replay(parts: Parts[SyncStrategy], course: Course, steps: range) -> Iterator[Replayed | int]:
    """Train to the end of `steps`; yield what they were, and the numbers of the steps before.

    Args:
        parts: A run of one process, at a checkpoint before `steps`.
        course: What the run did otherwise.
        steps: The wanted ones, counted from 1.
    """
    state = parts.state
    parts.loader.start(state.samples)
    try:
        while state.step + 1 < steps.stop:
            jump = course.jumps.get(state.step, 0)
            if jump > state.samples:
                state.samples = jump
                parts.loader.start(jump)
            wanted = state.step + 1 in steps
            step = _step(parts, course, wanted=wanted)
            state.step += 1
            state.samples += parts.plan.global_batch_size
            state.bad.lr_ratio = course.lr_ratios.get(state.step, state.bad.lr_ratio)
            yield step if wanted else state.step
    finally:
        parts.loader.close()


def _step(parts: Parts[SyncStrategy], course: Course, *, wanted: bool) -> Replayed:
    """Do a step as the trainer does; look at every layer if it is `wanted`."""
    state, module = parts.state, parts.model.module
    batches = parts.loader.next()
    ratio = parts.schedule(state.step) * state.bad.lr_ratio
    lr = apply_lr(parts.optimizers, parts.run.optimizer.lr, ratio)
    probe, layers, found = LayerProbe(module), [], None
    if wanted:
        with probe:
            result = parts.step(batches, team=parts.mesh.everyone, stop=False)
        layers, found = _layers(probe), diagnose_alone(probe)
    else:
        result = parts.step(batches, team=parts.mesh.everyone, stop=False)
    norm = clip_grads(list(module.parameters()), parts.run.train.max_grad_norm)
    is_applied = state.step + 1 not in course.skipped
    for optimizer in parts.optimizers:
        if is_applied:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    rows = parts.plan.global_batch_size
    return Replayed(
        step=state.step + 1,
        loss=float(result.loss_sum.detach().double()) / max(result.tokens, 1),
        grad_norm=float(norm),
        lr=lr,
        tokens=result.tokens,
        is_applied=is_applied,
        first=state.samples,
        samples=parts.loader.sampler.run(state.samples, rows).tolist() if wanted else [],
        layers=layers,
        diagnosis=None if found is None or found.kind == NOTHING else found,
    )


def _layers(probe: LayerProbe) -> list[Layer]:
    """Return what `probe` saw of every module, with the gradients of its parameters."""
    modules = {clean_name(name): part for name, part in probe.module.named_modules()}
    return [
        Layer(name, output, probe.output_gradients.get(name), _gradient_norm(modules[name]))
        for name, output in probe.outputs.items()
    ]


def _gradient_norm(part: nn.Module) -> float | None:
    grads = [p.grad for p in part.parameters() if p.grad is not None]
    if not grads:
        return None
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    return float(torch.linalg.vector_norm(torch.stack(norms)))
