"""Pipeline parallelism: the stack of blocks cut into stages over the axis pp.

torch.distributed.pipelining's stages and schedules run it; `parallel.stages` cuts the model.

    schedule               stages a rank   micro-batches       source
    GPipe                  1               any                 arXiv:1811.06965
    1F1B                   1               pp or more          arXiv:1806.03377
    Interleaved1F1B        v >= 2          a multiple of pp    arXiv:2104.04473, section 2.2
    InterleavedZeroBubble  v >= 2          a multiple of pp    arXiv:2401.10241
    ZBVZeroBubble          2, V-shaped     any                 arXiv:2405.15362
    DualPipeV              2, V-shaped     2 pp or more        arXiv:2412.19437, section 3.2.1
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.profiler import record_function

from llmtrain.config.footprint import process_of_stage
from llmtrain.config.plan import Plan
from llmtrain.parallel.bubble import replayed_bubble, textbook_bubble
from llmtrain.parallel.precision import Precision
from llmtrain.parallel.stages import StagePlace

SPAN = "pipeline "
"""What the name of a computation begins with in a trace; torch's name for it follows: stage, F, B,
I or W, micro-batch, as in "pipeline 1F0"."""


class _Stage(PipelineStage):
    """A stage whose forward runs in the run's precision, and its backward outside of it.

    What it computes is named in traces.
    """

    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    def forward_maybe_with_nosync(self, *args: Any, **kwargs: Any) -> Any:
        with self.autocast():
            return super().forward_maybe_with_nosync(*args, **kwargs)

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        with record_function(f"{SPAN}{self.stage_index}F{fwd_chunk_id}"):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Any = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> Any:
        kind = "B" if full_backward else "I"
        with record_function(f"{SPAN}{self.stage_index}{kind}{bwd_chunk_id}"):
            return super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        with record_function(f"{SPAN}{self.stage_index}W{bwd_chunk_id}"):
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)


class Pipeline:
    """This rank's stages, and torch's schedule that trains through them."""

    def __init__(
        self,
        stages: Sequence[nn.Module],
        places: Sequence[StagePlace],
        plan: Plan,
        schedule: str,
        *,
        ids_shape: tuple[int, int],
        activation_shape: tuple[int, int, int],
        logits_shape: tuple[int, int, int],
        loss: Callable[..., Tensor],
        precision: Precision,
        device: torch.device,
        group: dist.ProcessGroup,
    ) -> None:
        """Build the schedule.

        Args:
            stages: This rank's stages, in order.
            places: Their places.
            plan: Micro-batches of a step.
            schedule: strategy.schedule.
            ids_shape: What the first stage is given for one micro-batch, on this rank.
            activation_shape: What it passes between stages.
            logits_shape: What the last stage gives for it.
            loss: Called with (logits, labels, **keywords of `train`).
            precision: Number formats.
            device: Where it all runs.
            group: The axis pp.
        """
        self._stages, self._places = stages, places
        self._plan, self._schedule = plan, schedule
        self._shape, self._dtype = activation_shape, precision.parameter_dtype
        self._loss = loss
        self._autocast = partial(precision.autocast, device)
        self._device, self._group = device, group
        # Shapes are given, so that no forward is run to find them.
        like = partial(torch.empty, device="meta", dtype=self._dtype, requires_grad=True)
        ids = torch.empty(ids_shape, dtype=torch.int64, device="meta")
        logits = like(logits_shape, dtype=precision.compute_dtype)
        built = []
        for module, place in zip(stages, places, strict=True):
            stage = _Stage(
                module, place.index, place.n_stages, device, group=group,
                input_args=ids if place.is_first else like(activation_shape),
                output_args=logits if place.is_last else like(activation_shape),
            )  # fmt: skip
            stage.autocast = self._autocast
            built.append(stage)
        self._torch_schedule: Any = get_schedule_class(schedule)(
            built if plan.stages_per_rank > 1 else built[0],
            n_microbatches=plan.gradient_accumulation_steps, loss_fn=self._named_loss,
            scale_grads=False,
        )  # fmt: skip

    def train(
        self, ids: Tensor, labels: Tensor, to_all: Mapping[str, Tensor], **keywords: float
    ) -> list[Tensor]:
        """Run forward and backward of a step; return the losses, on the last stage's rank.

        Collective over pp.

        Args:
            ids: Token ids of all micro-batches, (M * B, T).
            labels: Their labels.
            to_all: What every stage takes beside what it is passed, by argument; (M * B, ...) each.
            keywords: Passed on to the loss.
        """
        losses: list[Tensor] = []
        last = self._places[-1].is_last
        self._torch_schedule.step(
            *([ids] if self._places[0].is_first else []),
            target=labels if last else None,
            losses=losses if last else None,
            return_outputs=False,
            loss_kwargs=keywords,
            **to_all,
        )
        return [loss.detach() for loss in losses]

    def _named_loss(self, *args: Tensor, **keywords: float) -> Tensor:
        with record_function(f"{SPAN}loss"):
            return self._loss(*args, **keywords)

    @property
    def ideal_bubble(self) -> float:
        """The idle share, 0-1, that the schedule leaves with equal stages and free messages."""
        plan = self._plan
        if plan.stages_per_rank == 1:
            # torch's table of 1F1B is for show, and lacks a forward; it runs another order.
            return textbook_bubble(plan.pp, 1, plan.gradient_accumulation_steps)
        order = self._torch_schedule.pipeline_order
        return replayed_bubble(order, plan.pp * plan.stages_per_rank)

    @torch.no_grad()
    def evaluate(
        self, ids: Tensor, labels: Tensor, to_all: Mapping[str, Tensor], **keywords: float
    ) -> list[Tensor]:
        """Run forwards alone; return the losses, on the last stage's rank. Collective over pp.

        Arguments are those of `train`.

        Stage after stage, each with all its micro-batches. Written out because torch's
        `schedule.eval` fails for V-shaped schedules (2.13), and prepares all its buffers anew at
        each change between training and evaluation.
        """
        chunks = list(ids.split(self._shape[0]))
        split = {name: tensor.split(self._shape[0]) for name, tensor in to_all.items()}
        beside = [{name: parts[i] for name, parts in split.items()} for i in range(len(chunks))]
        sends: list[Any] = []
        losses = []
        for stage, place in zip(self._stages, self._places, strict=True):
            before, after = (self._rank_of(place.index + step) for step in (-1, 1))
            passed = []
            given_from: Iterable[Tensor] = chunks
            if not place.is_first and before != self._rank:
                given_from = (self._receive(before) for _ in chunks)
                if before == after:
                    # Messages between two ranks pass in one queue (NCCL): what is sent must not
                    # stand before what the other side is still to send.
                    given_from = list(given_from)
            for given, also in zip(given_from, beside, strict=True):
                with self._autocast():
                    passed.append(stage(given, **also))
                if not place.is_last and after != self._rank:
                    sends.append(dist.isend(passed[-1], group=self._group, group_dst=after))
            chunks = passed  # what the next stage takes, if it is here
            if place.is_last:
                parts = labels.split(self._shape[0])
                losses = [self._loss(*each, **keywords) for each in zip(chunks, parts, strict=True)]
            elif after != self._rank:
                chunks = list(ids.split(self._shape[0]))  # only their number counts
        for send in sends:
            send.wait()
        return losses

    def _receive(self, peer: int) -> Tensor:
        """Return a micro-batch's activations from the rank `peer` of pp."""
        given = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        dist.recv(given, group=self._group, group_src=peer)
        return given

    @property
    def _rank(self) -> int:
        return dist.get_rank(self._group)

    def _rank_of(self, stage: int) -> int:
        return process_of_stage(self._schedule, self._plan.pp, stage)
