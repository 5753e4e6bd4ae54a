"""The models compute what their papers say, whatever the path through the code."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from llmtrain.config.groups.model import GPTConfig, LlamaConfig, ModelConfig
from llmtrain.models.attention import rotary_table, rotate
from llmtrain.models.build import build_model, count_parameters, flops_per_token
from llmtrain.models.generate import filter_logits, generate
from llmtrain.models.init import init_weights, seed_dropout
from llmtrain.models.transformer import Transformer

FP64_ATOL = 1e-12
"""Logits of order 1 from a few dozen fp64 sums."""

GPT = GPTConfig(n_layers=2, n_heads=4, dim=32, seq_len=24, init_std=0.2)
LLAMA = LlamaConfig(n_layers=2, n_heads=4, n_kv_heads=2, dim=32, seq_len=24, init_std=0.2)


def make(config: ModelConfig, vocab_size: int = 50, seed: int = 0) -> Transformer:
    model = build_model(config, vocab_size, device="cpu").double()
    init_weights(model, config, prefix="", residual=model.RESIDUAL, seed=seed)
    seed_dropout(model, seed)
    return model


def plain_attention(x: torch.Tensor, block: torch.nn.Module, config: ModelConfig) -> torch.Tensor:
    """Attention written from the equation, one head and one query at a time."""
    attention = block.attention
    T, H = x.shape[0], config.dim // config.n_heads
    n_kv = getattr(config, "n_kv_heads", None) or config.n_heads
    q = attention.wq(x).view(T, config.n_heads, H)
    k = attention.wk(x).view(T, n_kv, H)
    v = attention.wv(x).view(T, n_kv, H)
    if isinstance(config, LlamaConfig):
        q, k = (turn(t, config.rope_theta) for t in (q, k))
    out = torch.zeros(T, config.n_heads, H, dtype=x.dtype)
    for head, t in itertools.product(range(config.n_heads), range(T)):
        group = head // (config.n_heads // n_kv)
        scores = k[: t + 1, group] @ q[t, head] / math.sqrt(H)
        out[t, head] = torch.softmax(scores, 0) @ v[: t + 1, group]
    return attention.wo(out.reshape(T, -1))


def turn(x: torch.Tensor, theta: float) -> torch.Tensor:
    """RoPE as complex multiplication (arXiv:2104.09864, eq. 12)."""
    T, _, H = x.shape
    angle = torch.arange(T).double()[:, None] * theta ** (-torch.arange(0, H, 2).double() / H)
    # The tables are kept in fp32; the reference rounds alike.
    cos, sin = angle.cos().float().double(), angle.sin().float().double()
    z = torch.complex(x[..., : H // 2], x[..., H // 2 :]) * torch.complex(cos, sin)[:, None]
    return torch.cat((z.real, z.imag), -1)


def plain_forward(model: Transformer, config: ModelConfig, ids: torch.Tensor) -> torch.Tensor:
    x = model.embed.weight[ids]
    if model.positions is not None:
        x = x + model.positions.weight[: len(ids)]
    for block in model.blocks.values():
        x = x + plain_attention(norm(x, block.attention_norm, config), block, config)
        h = norm(x, block.ffn_norm, config)
        if isinstance(config, LlamaConfig):
            h = block.ffn.w2(F.silu(block.ffn.w1(h)) * block.ffn.w3(h))
        else:
            u = block.ffn.w1(h)
            cubic = math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)
            h = block.ffn.w2(0.5 * u * (1 + torch.tanh(cubic)))
        x = x + h
    return norm(x, model.norm, config) @ model.head.weight.T


def norm(x: torch.Tensor, module: torch.nn.Module, config: ModelConfig) -> torch.Tensor:
    if isinstance(config, LlamaConfig):
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + config.norm_eps) * module.weight
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + config.norm_eps) * module.weight + module.bias


@pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])
def test_forward_equals_the_equations(config: ModelConfig) -> None:
    model = make(config).eval()
    ids = torch.randint(50, (20,), generator=torch.Generator().manual_seed(1))
    ours = model(ids[None])[0]
    assert torch.allclose(ours, plain_forward(model, config, ids), rtol=0, atol=FP64_ATOL)


@pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])
def test_the_cache_changes_nothing(config: ModelConfig) -> None:
    model = make(config).eval()
    ids = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(1))
    cache = model.make_cache(3)
    parts = [model(ids[:, :7], cache=cache)]
    parts += [model(ids[:, t : t + 1], cache=cache) for t in range(7, 20)]
    assert torch.allclose(torch.cat(parts, 1), model(ids), rtol=0, atol=FP64_ATOL)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=generator)

    def score(at_q: int, at_k: int) -> float:
        tables = [rotary_table(torch.tensor([at]), 8, 100.0) for at in (at_q, at_k)]
        return float((rotate(q, tables[0]) * rotate(k, tables[1])).sum())

    # fp32 tables: 2^-24 relative.
    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-6)
    assert abs(score(9, 4) - score(9, 3)) > 1e-3


def test_weights_depend_on_seed_and_name_alone() -> None:
    whole, part = make(LLAMA), build_model(LLAMA, 50, device="cpu").double()
    block = part.blocks["1"]
    init_weights(block, LLAMA, prefix="blocks.1.", residual=part.RESIDUAL, seed=0)
    for name, value in block.named_parameters():
        assert torch.equal(value, whole.get_parameter(f"blocks.1.{name}"))
    other = make(LLAMA, seed=1)
    assert not torch.equal(other.embed.weight, whole.embed.weight)


def test_initial_spread_is_as_published() -> None:
    config = dataclasses.replace(GPT, dim=256, n_layers=3, init_std=0.02)
    model = make(config, vocab_size=1000)
    for name, p in model.named_parameters():
        if name.endswith(".bias"):
            assert p.abs().max() == 0
        elif "norm" in name:
            assert torch.equal(p, torch.ones_like(p))
        else:
            scaled = name.endswith(("wo.weight", "w2.weight"))
            expected = 0.02 / math.sqrt(2 * 3) if scaled else 0.02
            # The standard error of a standard deviation of n draws is sd / sqrt(2 n); 5 of them.
            assert p.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * p.numel()))


def test_tied_weights_are_one_parameter() -> None:
    tied = make(dataclasses.replace(LLAMA, tie_embeddings=True))
    untied = make(LLAMA)
    assert tied.head.weight is tied.embed.weight
    assert count_parameters(untied) - count_parameters(tied) == 50 * 32


def test_flops_count_every_multiplication() -> None:
    """Against torch's own counter, which sees a forward: a third of forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    model = make(LLAMA)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 24, dtype=torch.long))
    attention = (
        2 * 2 * 2 * 24 * 24 * 32
    )  # 2 layers, 2 products, 2 T T D: SDPA on CPU is not counted
    assert flops_per_token(model) * 24 == 3 * (counter.get_total_flops() + attention)


def test_dropout_masks_do_not_depend_on_the_batch_they_are_in() -> None:
    config = dataclasses.replace(GPT, dropout=0.3)
    model = make(config)
    ids = torch.randint(50, (4, 24), generator=torch.Generator().manual_seed(1))
    names = torch.tensor([7, 2**33, 11, 12])
    together = model(ids, names)
    alone = torch.cat([model(ids[i : i + 1], names[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, rtol=0, atol=FP64_ATOL)
    assert not torch.allclose(together, model(ids, names + 1))
    assert torch.equal(model.eval()(ids, names), model(ids))


def test_top_k_and_top_p_keep_what_they_say() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))
    kept = torch.isfinite(filter_logits(logits, 2, None))[0].tolist()
    assert kept == [True, True, False, False]
    kept = torch.isfinite(filter_logits(logits, None, 0.7))[0].tolist()
    assert kept == [True, True, False, False]
    kept = torch.isfinite(filter_logits(logits, None, 0.76))[0].tolist()
    assert kept == [True, True, True, False]
    kept = torch.isfinite(filter_logits(logits, None, 1e-9))[0].tolist()
    assert kept == [True, False, False, False]


def test_generation_goes_on_past_the_context() -> None:
    model = make(GPT).eval()
    prompt = torch.tensor([[1, 2, 3]])
    tokens = list(
        generate(
            model, prompt, max_new_tokens=60, temperature=0, top_k=None, top_p=None,
            generator=torch.Generator(),
        )
    )  # fmt: skip
    assert len(tokens) == 60
    # Until the context is full, each token is the likeliest after all before it.
    ids = torch.cat([prompt, torch.stack(tokens, 1)], 1)
    for t in range(3, GPT.seq_len):
        assert ids[0, t] == model(ids[:, :t])[0, -1].argmax()
