"""Loss and perplexity on a split: the same definition of the loss as in training, no smoothing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from llmtrain.data.loader import Batch
from llmtrain.distributed.collectives import all_sum
from llmtrain.parallel.precision import Precision
from llmtrain.train.loss import token_loss_sum


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
    batches: Iterable[Batch],
    *,
    precision: Precision,
    device: torch.device,
    group: dist.ProcessGroup,
) -> Evaluation:
    """Return the mean loss of `module` over `batches`. Collective over `group`.

    Args:
        module: The model.
        batches: This rank's part of the split; every rank has equally many (sharded models gather
            weights in each forward).
        precision: Number formats.
        device: Where batches go.
        group: The ranks that share the split.
    """
    was_training = module.training
    module.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        with precision.autocast(device):
            logits = module(batch.input_ids)
        totals[0] += token_loss_sum(logits, batch.labels).double().cpu()
        totals[1] += batch.counted_tokens
    module.train(was_training)
    all_sum(totals, group)
    loss = float(totals[0] / totals[1].clamp(min=1))
    return Evaluation(loss, math.exp(min(loss, 700.0)), int(totals[1]))
