"""The stages of a pipeline: which blocks each holds, and what two of them share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtrain.config.footprint import process_of_stage
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.distributed.shards import local_grad
from llmtrain.errors import require
from llmtrain.models.transformer import Transformer


@dataclass(frozen=True)
class StagePlace:
    """One stage of the pipeline."""

    index: int
    n_stages: int
    blocks: range
    """Of the model's; none where a traced graph is cut, which knows no blocks."""

    @property
    def is_first(self) -> bool:
        """Whether it embeds tokens."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether it ends in the head."""
        return self.index == self.n_stages - 1


def local_stages(plan: Plan, schedule: str, pp_rank: int) -> list[int]:
    """Return the stages that the rank `pp_rank` of the axis pp holds, in order."""
    stages = range(plan.pp * plan.stages_per_rank)
    return [stage for stage in stages if process_of_stage(schedule, plan.pp, stage) == pp_rank]


def cut_stages(run: RunConfig, plan: Plan, shapes: Transformer) -> list[StagePlace]:
    """Return every stage of the pipeline that `shapes` becomes.

    Args:
        run: The configuration, its vocabulary known.
        plan: Its plan.
        shapes: The whole model, on the meta device.

    Raises:
        ConfigError: when the model cannot be cut so, or no cut keeps to the memory allowed.
    """
    footprint = plan.footprint(run)
    if run.strategy.cut == "graph":
        ranges = [range(0)] * footprint.n_stages
    else:
        require(
            footprint.n_stages == 1 or bool(shapes.PP_ORDER),
            f"strategy.cut={run.strategy.cut}: model={run.model.name} does not say in which order "
            "activations pass its parts (PP_ORDER); set strategy.cut=graph, which traces it.",
        )
        ranges = footprint.stages()
    return [StagePlace(i, len(ranges), blocks) for i, blocks in enumerate(ranges)]


def join_stages(whole: Transformer, stages: Sequence[Transformer]) -> Transformer:
    """Let `whole` hold the parts of this rank's `stages`, under their names in the model.

    It is what is named, counted, optimised and saved; the stages are what is run.
    """
    whole.keep([], first=False, last=False)
    whole.blocks = nn.ModuleDict({n: b for stage in stages for n, b in stage.blocks.items()})
    whole.embed_dropout = stages[0].embed_dropout
    for stage in stages:
        for name in ("embed", "positions", "norm", "head"):
            if getattr(whole, name) is None:
                setattr(whole, name, getattr(stage, name))
    return whole


def exchange_tied_gradient(copy: Tensor, group: dist.ProcessGroup, *, is_first: bool) -> None:
    """Add up the gradients of a tied embedding's two copies, on the first and last rank of pp.

    Collective over the first and the last rank of `group`. Both ranks add the same two numbers, so
    the copies stay equal bit for bit.

    Args:
        copy: The embedding (first rank), or the head's copy of it (last rank).
        group: The axis pp.
        is_first: Which of the two this rank is.
    """
    grad = local_grad(copy)
    theirs = torch.empty_like(grad)
    peer = dist.get_global_rank(group, dist.get_world_size(group) - 1 if is_first else 0)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, grad.contiguous(), peer, group),
            dist.P2POp(dist.irecv, theirs, peer, group),
        ]
    )
    for work in works:
        work.wait()
    grad.add_(theirs)
