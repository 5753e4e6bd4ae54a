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
from llmtrain.parallel.apply import ParallelModel
from llmtrain.parallel.precision import Precision
from llmtrain.train.loss import token_loss_sum


@dataclass(frozen=True)
class StepResult:
    """What a forward and backward over the global batch gave."""

    loss_sum: torch.Tensor
    """This rank's part of the loss, summed over its counted tokens, smoothed if asked; a scalar."""
    tokens: int
    """Counted tokens of the global batch."""
    stop: bool
    """Whether any rank has been asked to stop. Equal on all ranks."""


class TrainStep(Protocol):
    """A kind of step."""

    def __call__(self, batches: Sequence[Batch], *, stop: bool) -> StepResult:
        """Leave in every parameter the gradient of the mean loss over the global batch."""


class SequentialStep:
    """Micro-batches one after the other through a whole model."""

    def __init__(
        self,
        model: ParallelModel,
        *,
        precision: Precision,
        device: torch.device,
        loss_group: dist.ProcessGroup,
        label_smoothing: float,
    ) -> None:
        """Set up the step.

        Args:
            model: The parallel model.
            precision: Number formats.
            device: Where batches go.
            loss_group: The ranks over whose batches the loss is one mean; gradients are averaged
                over the same ranks.
            label_smoothing: train.label_smoothing.
        """
        self._model = model
        self._precision = precision
        self._device = device
        self._group = loss_group
        self._group_size = dist.get_world_size(loss_group)
        self._label_smoothing = label_smoothing

    def __call__(self, batches: Sequence[Batch], *, stop: bool) -> StepResult:
        """Run forward and backward. Collective over the loss group.

        The wrappers average gradients over W ranks, so each rank's summed loss is scaled by
        W / (tokens of the global batch): the average is then the gradient of the global mean,
        however unevenly padding falls on ranks and micro-batches.

        Args:
            batches: This rank's micro-batches.
            stop: Whether this rank has been asked to stop.
        """
        # Counts and the stop flag travel on the CPU: no device waits for them.
        shared = torch.tensor([sum(b.counted_tokens for b in batches), int(stop)])
        all_sum(shared, self._group)
        tokens, stopping = shared.tolist()
        scale = self._group_size / max(tokens, 1)
        loss_sum = torch.zeros((), dtype=self._precision.parameter_dtype, device=self._device)
        for i, batch in enumerate(batches):
            with self._model.microbatch(i == len(batches) - 1):
                with self._precision.autocast(self._device):
                    logits = self._model.forward(batch.input_ids, batch.sample_ids)
                    loss = token_loss_sum(logits, batch.labels, self._label_smoothing)
                (loss * scale).backward()
            loss_sum += loss.detach()
        return StepResult(loss_sum=loss_sum, tokens=tokens, stop=bool(stopping))
