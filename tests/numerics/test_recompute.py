"""Blocks that are computed again, or compiled, compute the same."""

import dataclasses

import pytest
import torch

from llmtrain.config.groups.model import GPTConfig, LlamaConfig, ModelConfig
from llmtrain.models.build import build_model
from llmtrain.models.init import init_weights, seed_dropout
from llmtrain.models.transformer import Transformer
from llmtrain.parallel.activations import apply_checkpointing
from llmtrain.parallel.compiled import compile_block

CONFIGS: dict[str, ModelConfig] = {
    "gpt": GPTConfig(n_layers=3, n_heads=4, dim=32, seq_len=16, dropout=0.1),
    "llama": LlamaConfig(n_layers=3, n_heads=4, n_kv_heads=2, dim=32, seq_len=16, dropout=0.1),
}

COMPILED_RTOL = 1e-12
"""Fused sums in another order; measured 2e-15 after three blocks."""


def _model(family: str, dropout: float = 0.1) -> Transformer:
    config = dataclasses.replace(CONFIGS[family], dropout=dropout)
    model = build_model(config, 257, "cpu").double()
    init_weights(model, config, prefix="", residual=model.RESIDUAL, seed=1)
    seed_dropout(model, 1)
    return model.train()


DOCUMENTS = torch.tensor([[*range(5), *range(7), *range(4)], [*range(16)]])
"""Positions within documents: three in the first row, one in the second."""


def _gradients(model: Transformer, documents: torch.Tensor | None = None) -> list[torch.Tensor]:
    ids, sample_ids = torch.arange(32).view(2, 16) * 7 % 257, torch.tensor([3, 8])
    model(ids, sample_ids, documents).square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["", "documents"])
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_activation_checkpointing_is_bitwise_the_same(
    family: str, kind: str, documents: torch.Tensor | None
) -> None:
    plain, model = _model(family), _model(family)
    for block in model.blocks.values():
        apply_checkpointing(block, kind)
    runs = []
    for block in model.blocks.values():
        block.attention.register_forward_hook(lambda *_: runs.append(1))
    for ours, theirs in zip(
        _gradients(model, documents), _gradients(plain, documents), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert len(runs) == 6, "each of three blocks computes twice"


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["", "documents"])
@pytest.mark.parametrize(
    ("dropout", "kind", "graphs"),
    [(0.1, "none", 3), (0.0, "none", 1), (0.0, "full", 1), (0.0, "selective", 1)],
)
def test_compiled_blocks_compute_the_same(
    family: str, dropout: float, kind: str, graphs: int, documents: torch.Tensor | None
) -> None:
    """With dropout: its int32 hash, compiled, gave other masks (torch 2.13). Equal blocks share
    their graphs; masks that stay out cut a block in three."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, model = _model(family, dropout), _model(family, dropout)
    for block in model.blocks.values():
        apply_checkpointing(block, kind)
        compile_block(block)
    expected = _gradients(plain, documents)
    rms = float(torch.cat([g.flatten() for g in expected]).square().mean().sqrt())
    for ours, theirs in zip(_gradients(model, documents), expected, strict=True):
        # The gradient of a key's bias is 0 but for rounding: it has no relative error of its own.
        scale = max(float(theirs.abs().max()), rms)
        assert float((ours - theirs).abs().max()) <= COMPILED_RTOL * scale
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
