"""A finished run as a model and its tokenizer, in one process, whatever layout trained it."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llmtrain.checkpoint.collection import CheckpointCollection
from llmtrain.checkpoint.manager import load_tensors
from llmtrain.checkpoint.manifest import Manifest
from llmtrain.checkpoint.tensors import model_tensors
from llmtrain.config import paths
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import load_run_config
from llmtrain.errors import ConfigError
from llmtrain.models.build import build_model
from llmtrain.models.transformer import Transformer
from llmtrain.parallel.precision import Precision
from llmtrain.tokenizer.base import Tokenizer
from llmtrain.tokenizer.build import load_tokenizer


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights, in evaluation mode."""

    model: Transformer
    tokenizer: Tokenizer
    run: RunConfig
    manifest: Manifest
    folder: Path
    """The checkpoint."""


def load_trained(run_dir: Path, step: str, device: torch.device) -> TrainedModel:
    """Load a checkpoint of `run_dir`. Not a collective: each process that calls it loads alone.

    Args:
        run_dir: The run directory.
        step: Which checkpoint: best | latest | a step.
        device: Where the weights go.

    Raises:
        UserError: when there is no such run or checkpoint, or it is damaged.
    """
    if not (run_dir / paths.CONFIG).is_file():
        raise ConfigError(f"run={run_dir} is not a run directory: it has no {paths.CONFIG}.")
    run = load_run_config(run_dir / paths.CONFIG)
    folder, manifest = CheckpointCollection(run_dir / paths.CHECKPOINTS).find(step)
    vocab_size = manifest.model["vocab_size"]
    run = replace(run, model=replace(run.model, vocab_size=vocab_size))
    model = build_model(run.model, vocab_size)
    model.to(Precision(run.train.precision).parameter_dtype).to_empty(device=device)
    model.tie()
    load_tensors(folder, model_tensors(model), alone=True)
    return TrainedModel(
        model.eval(), load_tokenizer(run_dir / paths.TOKENIZER), run, manifest, folder
    )
