"""One step's forward and backward: the step knows *how*, the trainer knows *when*.

Every kind of step has the signature of `TrainStep`, so the loop has no branch for a pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist

from llmtrain.data.loader import Batch
from llmtrain.distributed.collectives import all_sum
from llmtrain.distributed.mesh import Mesh
from llmtrain.parallel.apply import ParallelModel
from llmtrain.parallel.precision import Precision
from llmtrain.train.loss import token_loss_sum


@dataclass(frozen=True)
class StepResult:
    """What a forward and backward over the global batch gave."""

    loss_sum: torch.Tensor
    """This rank's part of the loss, summed over its counted tokens, smoothed if asked; a scalar.
    Over the mesh's `token_group` the parts add up to the whole."""
    tokens: int
    """Counted tokens of the global batch."""
    stop: bool
    """Whether any rank has been asked to stop. Equal on all ranks."""


class TrainStep(Protocol):
    """A kind of step."""

    @property
    def ideal_bubble(self) -> float | None:
        """The idle share, 0-1, that a pipeline's schedule leaves by theory; None: no pipeline."""

    def __call__(self, batches: Sequence[Batch], *, stop: bool) -> StepResult:
        """Leave in every parameter the gradient of the mean loss over the global batch."""

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Return this rank's part of the loss summed over `batch`, without smoothing or grads."""


@dataclass(frozen=True)
class Counts:
    """What all ranks of a step agree on."""

    tokens: int
    """Counted tokens of the global batch."""
    stop: bool
    """Whether any rank has been asked to stop."""


def agree(batches: Sequence[Batch], mesh: Mesh, *, stop: bool) -> Counts:
    """Return the tokens of all batches, and whether to stop. Collective over the world.

    They travel on the CPU: no device waits for them. Of the ranks that share a batch one counts.
    """
    own = sum(b.counted_tokens for b in batches) if mesh.counts_batch else 0
    assert dist.group.WORLD is not None
    tokens, stopping = all_sum(torch.tensor([own, int(stop)]), dist.group.WORLD).tolist()
    return Counts(tokens, bool(stopping))


class SequentialStep:
    """Micro-batches one after the other through a whole model."""

    ideal_bubble = None

    def __init__(
        self,
        model: ParallelModel,
        *,
        mesh: Mesh,
        precision: Precision,
        device: torch.device,
        label_smoothing: float,
    ) -> None:
        """Set up the step.

        Args:
            model: The parallel model.
            mesh: The mesh; gradients are averaged over its `gradient_group`.
            precision: Number formats.
            device: Where batches go.
            label_smoothing: train.label_smoothing.
        """
        self._model = model
        self._mesh = mesh
        self._precision = precision
        self._device = device
        self._label_smoothing = label_smoothing

    def __call__(self, batches: Sequence[Batch], *, stop: bool) -> StepResult:
        """Run forward and backward. Collective over the world.

        Gradients are averaged over W ranks, so each rank's summed loss is scaled by
        W / (tokens of the global batch): the average is then the gradient of the global mean,
        however unevenly padding falls on ranks and micro-batches.

        Args:
            batches: This rank's micro-batches.
            stop: Whether this rank has been asked to stop.
        """
        counts = agree(batches, self._mesh, stop=stop)
        scale = self._mesh.gradient_size / max(counts.tokens, 1)
        loss_sum = torch.zeros((), dtype=self._precision.parameter_dtype, device=self._device)
        for i, whole in enumerate(batches):
            batch = self._own(whole)
            with self._model.microbatch(i == len(batches) - 1):
                with self._precision.autocast(self._device):
                    logits = self._model.forward(batch.input_ids, batch.sample_ids)
                    loss = self._loss(logits, batch, self._label_smoothing)
                (loss * scale).backward()
            loss_sum += loss.detach()
        self._model.finish_grads()
        return StepResult(loss_sum=loss_sum, tokens=counts.tokens, stop=counts.stop)

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Return this rank's part of the summed loss. Collective over cp, tp and what is sharded.

        Args:
            batch: This data-parallel rank's rows.
        """
        batch = self._own(batch)
        with self._precision.autocast(self._device):
            return self._loss(self._model.module(batch.input_ids), batch, 0.0)

    def _own(self, batch: Batch) -> Batch:
        return batch.part(self._mesh.rank("cp"), self._mesh.size("cp"))

    def _loss(self, logits: torch.Tensor, batch: Batch, label_smoothing: float) -> torch.Tensor:
        return token_loss_sum(logits, batch.labels, label_smoothing, self._model.vocab_part)
