"""The one definition of the loss: a sum over counted tokens, to be divided by the global count."""

import torch
import torch.nn.functional as F

from llmtrain.data.dataset import IGNORED
from llmtrain.parallel.vocab_loss import VocabPart, vocab_parallel_loss_sum


def token_loss_sum(
    logits_BTV: torch.Tensor,
    labels_BT: torch.Tensor,
    label_smoothing: float = 0.0,
    part: VocabPart | None = None,
) -> torch.Tensor:
    """Return the cross-entropy summed over counted tokens, a scalar in at least fp32.

    Args:
        logits_BTV: Scores of the next token.
        labels_BT: The next tokens; IGNORED where not counted.
        label_smoothing: Share of the target spread evenly (arXiv:1512.00567, section 7).
        part: Which columns the logits are, where tensor parallelism cuts the vocabulary; the loss
            is then a collective over tp, and equal on its ranks.
    """
    logits = logits_BTV.flatten(0, 1)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if part is not None:
        return vocab_parallel_loss_sum(
            logits, labels_BT.flatten(), part, ignored=IGNORED, label_smoothing=label_smoothing
        )
    return F.cross_entropy(
        logits, labels_BT.flatten(), ignore_index=IGNORED, reduction="sum",
        label_smoothing=label_smoothing,
    )  # fmt: skip
