"""Loss and perplexity on a split: the same definition of the loss as in training, no smoothing."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from llmtrain.data.loader import Batch
from llmtrain.distributed.collectives import all_sum, any_rank


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation."""

    loss: float
    """Mean cross-entropy, in nats a token."""
    perplexity: float
    """exp(loss)."""
    tokens: int
    """Counted tokens read."""


@torch.no_grad()
def evaluate(
    module: nn.Module,
    loss_of: Callable[[Batch], torch.Tensor],
    batches: Iterable[Batch],
    *,
    group: dist.ProcessGroup,
    counts_batch: bool,
    asked: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Return the mean loss of `module` over `batches`. Collective over the world.

    None, on every rank: one of them was asked to stop. An evaluation may last longer than a
    scheduler waits, so it is left before the next batch; who goes on from here evaluates again.

    Args:
        module: The model, or this rank's part of it.
        loss_of: Returns this rank's part of the loss summed over a batch.
        batches: This data-parallel rank's part of the split; every rank has equally many.
        group: The ranks that hold different parts of the loss.
        counts_batch: Whether this rank counts the tokens of its batches, for those that share them.
        asked: Whether this process has been asked to stop.
    """
    was_training = module.training
    module.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    is_left = False
    for batch in batches:
        if is_left := any_rank(asked()):
            break
        totals[0] += loss_of(batch).double().cpu()
        totals[1] += batch.counted_tokens if counts_batch else 0
    module.train(was_training)
    if is_left:
        return None
    all_sum(totals, group)
    # Whether this was the best is decided on every rank: not by sums that could differ in a bit.
    dist.broadcast(totals, src=0)
    loss = float(totals[0] / totals[1].clamp(min=1))
    return Evaluation(loss, math.exp(min(loss, 700.0)), int(totals[1]))
