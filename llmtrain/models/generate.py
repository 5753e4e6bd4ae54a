"""Text from a model, one token at a time, with a key/value cache.

Past `seq_len` positions the cache is rebuilt from the newest half of the text.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from llmtrain.models.transformer import Transformer


@torch.inference_mode()
def generate(
    model: Transformer,
    prompt_ids_BT: torch.Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> Iterator[torch.Tensor]:
    """Yield the next token of each text, (B,) int64, `max_new_tokens` times.

    Args:
        model: In evaluation mode.
        prompt_ids_BT: At least one token each; only the newest seq_len are read.
        max_new_tokens: How many tokens to draw.
        temperature: Divides the logits; 0: the likeliest token.
        top_k: See `filter_logits`.
        top_p: See `filter_logits`.
        generator: Draws, on the CPU.
    """
    ids_BT = prompt_ids_BT
    cache = model.make_cache(ids_BT.shape[0])
    fresh_BT = ids_BT[:, -model.seq_len :]
    for _ in range(max_new_tokens):
        if cache[0].length + fresh_BT.shape[1] > model.seq_len:
            cache = model.make_cache(ids_BT.shape[0])
            fresh_BT = ids_BT[:, -max(1, model.seq_len // 2) :]
        logits_BV = model(fresh_BT, cache=cache)[:, -1]
        next_B = draw(logits_BV.float().cpu(), temperature, top_k, top_p, generator)
        yield next_B
        fresh_BT = next_B[:, None].to(ids_BT.device)
        ids_BT = torch.cat((ids_BT, fresh_BT), dim=1)


def draw(
    logits_BV: torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return one token a row, (B,) int64: the likeliest at temperature 0, else drawn."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    filtered_BV = filter_logits(logits_BV / temperature, top_k, top_p)
    probabilities_BV = F.softmax(filtered_BV, dim=-1)
    return torch.multinomial(probabilities_BV, 1, generator=generator).squeeze(-1)


def filter_logits(logits_BV: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """Return the logits with every token that may not be drawn at minus infinity.

    Args:
        logits_BV: Already divided by the temperature.
        top_k: Keep the k likeliest.
        top_p: Keep the smallest set of likeliest tokens that reaches this probability (nucleus
            sampling, arXiv:1904.09751, section 3.1), after top_k.
    """
    if top_k is not None and top_k < logits_BV.shape[-1]:
        limit = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < limit, float("-inf"))
    if top_p is not None and top_p < 1.0:
        ordered, order = logits_BV.sort(dim=-1, descending=True)
        probabilities = F.softmax(ordered, dim=-1)
        # A token goes if those before it already reach top_p; the first always stays.
        before = probabilities.cumsum(dim=-1) - probabilities
        drop = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits_BV = logits_BV.masked_fill(drop, float("-inf"))
    return logits_BV
