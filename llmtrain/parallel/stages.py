"""The stages of a pipeline: which blocks each holds, and what two of them share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtrain.config.plan import Plan
from llmtrain.config.split import V_SHAPED
from llmtrain.distributed.shards import local_grad
from llmtrain.models.transformer import Transformer
from llmtrain.parallel.cut import balanced_cut, uniform_cut


@dataclass(frozen=True)
class StagePlace:
    """One stage of the pipeline."""

    index: int
    n_stages: int
    blocks: range

    @property
    def is_first(self) -> bool:
        """Whether it embeds tokens."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether it ends in the head."""
        return self.index == self.n_stages - 1


def rank_of_stage(plan: Plan, schedule: str, stage: int) -> int:
    """Return the rank of the axis pp that holds `stage`: in a loop, or there and back in a V."""
    if schedule in V_SHAPED and stage >= plan.pp:
        return 2 * plan.pp - 1 - stage
    return stage % plan.pp


def local_stages(plan: Plan, schedule: str, pp_rank: int) -> list[int]:
    """Return the stages that the rank `pp_rank` of the axis pp holds, in order."""
    stages = range(plan.pp * plan.stages_per_rank)
    return [stage for stage in stages if rank_of_stage(plan, schedule, stage) == pp_rank]


def cut_stages(shapes: Transformer, cut: str, n_stages: int) -> list[StagePlace]:
    """Return every stage of the pipeline that `shapes` becomes.

    Args:
        shapes: The whole model, on the meta device.
        cut: uniform | balanced.
        n_stages: How many.

    Raises:
        ConfigError: when there are more stages than blocks.
    """
    n_layers = len(shapes.blocks)
    if cut == "uniform":
        ranges = uniform_cut(n_layers, n_stages)
    else:
        costs = [_multiplications(block) for block in shapes.blocks.values()]
        # Scores and values: 2 * T * D each for a token, of which the causal half is computed.
        width = shapes.head.in_features
        costs = [cost + shapes.seq_len * width for cost in costs]
        ranges = balanced_cut(costs, n_stages, last=_multiplications(shapes.head))
    return [StagePlace(i, n_stages, blocks) for i, blocks in enumerate(ranges)]


def _multiplications(module: nn.Module) -> float:
    """Return the multiplications of a token's forward: one a weight of a matrix."""
    return float(sum(p.numel() for p in module.parameters() if p.dim() == 2))


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
