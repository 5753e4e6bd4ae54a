"""One step's forward and backward: the step knows *how*, the trainer knows *when*.

Every kind of step has the signature of `TrainStep`, so the loop has no branch for a pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from llmtrain.data.loader import Batch
from llmtrain.distributed.collectives import all_sum
from llmtrain.distributed.mesh import Mesh, Team
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
    """Counted tokens of the team's batch."""
    stop: bool
    """Whether any rank of the team has been asked to stop. Equal on all of them."""


class TrainStep(Protocol):
    """A kind of step."""

    @property
    def ideal_bubble(self) -> float | None:
        """The idle share, 0-1, that a pipeline's schedule leaves by theory; None: no pipeline."""

    def __call__(self, batches: Sequence[Batch], *, team: Team, stop: bool) -> StepResult:
        """Leave in every parameter the gradient of the mean loss over the team's batch.

        Where the team is everyone and no wrapper reduces over replicas, what is left is each
        replica's part, and the mean over replicas is that gradient.
        """

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Return this rank's part of the loss summed over `batch`, without smoothing or grads."""


@dataclass(frozen=True)
class Counts:
    """What all ranks of a team agree on."""

    tokens: int
    """Counted tokens of the team's batch."""
    stop: bool
    """Whether any of its ranks has been asked to stop."""


def agree(batches: Sequence[Batch], mesh: Mesh, team: Team, *, stop: bool) -> Counts:
    """Return the tokens of all batches, and whether to stop. Collective over `team`.

    They travel on the CPU: no device waits for them. Of the ranks that share a batch one counts.
    """
    own = sum(b.counted_tokens for b in batches) if mesh.counts_batch else 0
    tokens, stopping = all_sum(torch.tensor([own, int(stop)]), team.group).tolist()
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
            mesh: The mesh.
            precision: Number formats.
            device: Where batches go.
            label_smoothing: train.label_smoothing.
        """
        self._model = model
        self._mesh = mesh
        self._precision = precision
        self._device = device
        self._label_smoothing = label_smoothing

    def __call__(self, batches: Sequence[Batch], *, team: Team, stop: bool) -> StepResult:
        """Run forward and backward. Collective over `team`.

        Gradients are averaged over W ranks, so each rank's summed loss is scaled by
        W / (tokens of the team's batch): the average is then the gradient of the team's mean,
        however unevenly padding falls on ranks and micro-batches.

        Args:
            batches: This rank's micro-batches.
            team: Whose gradients make the step.
            stop: Whether this rank has been asked to stop.
        """
        counts = agree(batches, self._mesh, team, stop=stop)
        scale = team.gradient_size / max(counts.tokens, 1)
        loss_sum = torch.zeros((), dtype=self._precision.parameter_dtype, device=self._device)
        for i, whole in enumerate(batches):
            batch = self._own(whole)
            with self._model.microbatch(i == len(batches) - 1):
                with self._precision.autocast(self._device):
                    logits = self._model.forward(
                        batch.input_ids, batch.sample_ids, batch.document_positions
                    )
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
            logits = self._model.module(
                batch.input_ids, document_positions_BT=batch.document_positions
            )
            return self._loss(logits, batch, 0.0)

    def _own(self, batch: Batch) -> Batch:
        return batch.part(self._mesh.rank("cp"), self._mesh.size("cp"))

    def _loss(self, logits: torch.Tensor, batch: Batch, label_smoothing: float) -> torch.Tensor:
        return token_loss_sum(logits, batch.labels, label_smoothing, self._model.vocab_part)
