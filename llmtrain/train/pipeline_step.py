"""A step through a pipeline: torch's schedule runs the micro-batches, each rank its stages."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.data.loader import Batch
from llmtrain.distributed.mesh import Mesh, Team
from llmtrain.parallel.apply import ParallelModel
from llmtrain.parallel.pipeline import Pipeline
from llmtrain.parallel.precision import Precision
from llmtrain.train.loss import token_loss_sum
from llmtrain.train.step import StepResult, agree


class PipelineStep:
    """All micro-batches of a step through the stages of a pipeline."""

    def __init__(
        self,
        model: ParallelModel,
        run: RunConfig,
        plan: Plan,
        *,
        mesh: Mesh,
        precision: Precision,
        device: torch.device,
        vocab_size: int,
    ) -> None:
        """Set up the step.

        Args:
            model: The parallel model.
            run: The configuration.
            plan: Its plan.
            mesh: The mesh.
            precision: Number formats.
            device: Where batches go.
            vocab_size: Columns of the logits, V.
        """
        self._model = model
        self._mesh = mesh
        self._precision = precision
        self._device = device
        self._label_smoothing = run.train.label_smoothing
        rows, length = plan.micro_batch_size, run.model.seq_len // plan.cp
        own = length // (plan.tp if run.strategy.sequence_parallel else 1)
        self._pipeline = Pipeline(
            model.stages,
            model.places,
            plan,
            run.strategy.schedule,
            ids_shape=(rows, length),
            activation_shape=(rows, own, run.model.dim),
            logits_shape=(rows, length, _columns(vocab_size, mesh)),
            loss=self._loss,
            precision=precision,
            device=device,
            group=mesh.group("pp"),
        )

    def __call__(self, batches: Sequence[Batch], *, team: Team, stop: bool) -> StepResult:
        """Run forward and backward. Collective over `team`.

        Args:
            batches: The micro-batches that this rank's pipeline sees.
            team: Whose gradients make the step.
            stop: Whether this rank has been asked to stop.
        """
        counts = agree(batches, self._mesh, team, stop=stop)
        scale = team.gradient_size / max(counts.tokens, 1)
        own = [self._own(batch) for batch in batches]
        ids, labels, sample_ids = (
            torch.cat([getattr(batch, name) for batch in own])
            for name in ("input_ids", "labels", "sample_ids")
        )
        losses = self._pipeline.train(
            ids, labels, {"sample_ids_B": sample_ids, **_documents(own)},
            scale=scale, label_smoothing=self._label_smoothing,
        )  # fmt: skip
        self._model.finish_grads()
        loss_sum = self._sum(losses) / scale
        return StepResult(loss_sum=loss_sum, tokens=counts.tokens, stop=counts.stop)

    @property
    def ideal_bubble(self) -> float:
        """The idle share, 0-1, that the schedule leaves with equal stages and free messages."""
        return self._pipeline.ideal_bubble

    def evaluate(self, batch: Batch) -> Tensor:
        """Return this rank's part of the summed loss. Collective over pp, cp and tp.

        Args:
            batch: The rows of all micro-batches of a step.
        """
        own = self._own(batch)
        losses = self._pipeline.evaluate(
            own.input_ids, own.labels, _documents([own]), scale=1.0, label_smoothing=0.0
        )
        return self._sum(losses)

    def _own(self, batch: Batch) -> Batch:
        return batch.part(self._mesh.rank("cp"), self._mesh.size("cp"))

    def _sum(self, losses: Sequence[Tensor]) -> Tensor:
        """Return the sum of the micro-batches' losses; 0 on ranks without the last stage."""
        total = torch.zeros((), dtype=self._precision.parameter_dtype, device=self._device)
        for loss in losses:
            total += loss
        return total

    def _loss(
        self, logits: Tensor, labels: Tensor, *, scale: float, label_smoothing: float
    ) -> Tensor:
        return token_loss_sum(logits, labels, label_smoothing, self._model.vocab_part) * scale


def _documents(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return the document positions of `batches`, where they have any, for every stage."""
    parts = [b.document_positions for b in batches if b.document_positions is not None]
    return {"document_positions_BT": torch.cat(parts)} if parts else {}


def _columns(vocab_size: int, mesh: Mesh) -> int:
    """Return the columns of the logits on this rank; cut as `torch.chunk` cuts."""
    size = -(-vocab_size // mesh.size("tp"))
    return max(0, min(size, vocab_size - size * mesh.rank("tp")))
