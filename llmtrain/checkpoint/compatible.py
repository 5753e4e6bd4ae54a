"""Whether a run may go on from a checkpoint. No torch: the launching tower asks it too."""

from pathlib import Path
from typing import Any

from llmtrain.checkpoint.manifest import Manifest, read_manifest, step_folders
from llmtrain.errors import CheckpointError
from llmtrain.units import as_typed

FREE = frozenset({"dropout", "init_std"})
"""Fields of the model that may change between a checkpoint and the run that goes on from it."""


def require_resumable(
    folder: Path, manifest: Manifest, *, model: dict[str, Any], optimizer: str, tokenizer: str
) -> None:
    """Refuse a checkpoint of another model, optimizer or tokenizer, naming what differs.

    Every field counts, not only those that change a shape: another n_heads loads well and computes
    something else.

    Args:
        folder: The checkpoint.
        manifest: Its manifest.
        model: The group `model` of the run; a vocab_size of None is not known yet.
        optimizer: optimizer.name of the run.
        tokenizer: tokenizer.name of the run.

    Raises:
        CheckpointError: names the checkpoint, what differs and a fix.
    """
    fixed = set(model) | set(manifest.model)
    fixed -= FREE
    if model.get("vocab_size") is None:
        fixed.discard("vocab_size")
    if model.get("name") == manifest.model.get("name") == "llama":
        # Rotary positions have no weights: a Llama may go on with longer sequences.
        fixed.discard("seq_len")
    different = sorted(key for key in fixed if model.get(key) != manifest.model.get(key))
    if different:
        saved = " ".join(f"model.{key}={as_typed(manifest.model.get(key))}" for key in different)
        asked = " ".join(f"model.{key}={as_typed(model.get(key))}" for key in different)
        raise CheckpointError(
            f"{folder} is of another model: it has {saved}, this run asks for {asked}. "
            "Train the saved model, or name another folder with run_dir=DIR."
        )
    if tokenizer != manifest.tokenizer:
        raise CheckpointError(
            f"{folder} was trained with tokenizer={manifest.tokenizer}, this run has "
            f"tokenizer={tokenizer}; use the saved one, or name another folder with run_dir=DIR."
        )
    if optimizer != manifest.optimizer:
        raise CheckpointError(
            f"{folder} holds the state of optimizer={manifest.optimizer}, this run has "
            f"optimizer={optimizer}; use the saved one, or name another folder with run_dir=DIR."
        )


def check_newest(
    checkpoints: Path, *, model: dict[str, Any], optimizer: str, tokenizer: str
) -> None:
    """Refuse what `require_resumable` refuses, looking at the newest readable manifest only.

    Raises:
        CheckpointError: see `require_resumable`.
    """
    for folder in reversed(step_folders(checkpoints)):
        try:
            manifest = read_manifest(folder)
        except CheckpointError:
            continue  # The worker says which checkpoints are damaged and falls back.
        require_resumable(folder, manifest, model=model, optimizer=optimizer, tokenizer=tokenizer)
        return
