"""Which checkpoint a run may go on from, and how the others are refused."""

from pathlib import Path

import pytest

from llmtrain.checkpoint.compatible import require_resumable
from llmtrain.checkpoint.manifest import Manifest
from llmtrain.errors import CheckpointError
from llmtrain.units import as_typed, counted


def test_a_refusal_spells_values_as_they_are_typed() -> None:
    saved = {"name": "llama", "tie_embeddings": True, "n_kv_heads": None}
    manifest = Manifest(
        step=1, train_state={}, val_loss=None, model=saved, optimizer="adamw", tokenizer="byte",
        tokenizer_hash="0", data="x", llmtrain_version="0",
    )  # fmt: skip
    asked = {"name": "llama", "tie_embeddings": False, "n_kv_heads": 2}
    with pytest.raises(CheckpointError) as refusal:
        require_resumable(
            Path("step_1"), manifest, model=asked, optimizer="adamw", tokenizer="byte"
        )
    message = str(refusal.value)
    assert "model.n_kv_heads=null model.tie_embeddings=true" in message
    assert "model.n_kv_heads=2 model.tie_embeddings=false" in message


def test_values_for_people() -> None:
    assert [as_typed(v) for v in (None, True, 3e-4, "x")] == ["null", "true", "0.0003", "x"]
    assert as_typed(["US", None]) == "[US,null]"
    assert counted(1, "step") == "1 step"
    assert counted(2, "strategy", "strategies") == "2 strategies"
    assert (counted(0.5, "epoch"), counted(1.0, "epoch")) == ("0.5 epochs", "1 epoch")
