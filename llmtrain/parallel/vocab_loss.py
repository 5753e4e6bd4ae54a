"""Cross-entropy over logits whose vocabulary is cut over tp: the whole logits are never gathered.

Megatron-LM (arXiv:1909.08053, section 3): three numbers a token cross the axis, the maximum, the
sum of exponentials and the target's logit. torch's `loss_parallel` does the same but refuses label
smoothing (torch 2.13), so it is written out here.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabPart:
    """Which columns of the logits this rank holds."""

    group: dist.ProcessGroup
    """The axis tp."""
    vocab_size: int
    """Columns over all ranks."""

    @property
    def first(self) -> int:
        """The vocabulary id of this rank's first column; cut as `torch.chunk` cuts."""
        size = -(-self.vocab_size // dist.get_world_size(self.group))
        return min(size * dist.get_rank(self.group), self.vocab_size)


def vocab_parallel_loss_sum(
    logits_NV: Tensor, labels_N: Tensor, part: VocabPart, *, ignored: int, label_smoothing: float
) -> Tensor:
    """Return the cross-entropy summed over counted tokens, a scalar equal on all ranks.

    Collective over tp.

    Args:
        logits_NV: This rank's columns, in at least fp32.
        labels_N: Vocabulary ids, the same on all ranks.
        part: Which columns these are.
        ignored: The label that is not counted.
        label_smoothing: Share of the target spread evenly (arXiv:1512.00567, section 7).
    """
    loss: Tensor = _VocabParallelLoss.apply(logits_NV, labels_N, part, ignored, label_smoothing)
    return loss


class _VocabParallelLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, part: VocabPart, ignored: int, smoothing: float
    ) -> Tensor:
        maximum = logits.amax(-1)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=part.group)
        shifted = logits - maximum[:, None]
        column = labels - part.first
        own = (column >= 0) & (column < logits.shape[1])
        column = column.clamp(0, logits.shape[1] - 1)
        target = shifted.gather(1, column[:, None])[:, 0] * own
        exp = shifted.exp()
        sums = torch.stack((exp.sum(-1), target, shifted.sum(-1)))
        dist.all_reduce(sums, group=part.group)
        exp_sum, target, shifted_sum = sums
        counted = labels != ignored
        log_sum = exp_sum.log()
        loss = log_sum - (1 - smoothing) * target - smoothing * shifted_sum / part.vocab_size
        ctx.save_for_backward(exp.div_(exp_sum[:, None]), column, own & counted, counted)
        ctx.smoothing, ctx.vocab_size = smoothing, part.vocab_size
        return (loss * counted).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        softmax, column, own, counted = ctx.saved_tensors
        grad = softmax - ctx.smoothing / ctx.vocab_size
        target = own.to(grad.dtype)[:, None].mul(ctx.smoothing - 1.0)
        grad.scatter_add_(1, column[:, None], target)
        return grad.mul_(counted[:, None] * grads[0]), None, None, None, None
