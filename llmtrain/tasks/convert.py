"""The task `convert`: a checkpoint as one safetensors file of whole tensors."""

from pathlib import Path

import torch
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llmtrain.checkpoint.collection import CheckpointCollection
from llmtrain.checkpoint.manager import load_tensors
from llmtrain.checkpoint.writer import write_tensors
from llmtrain.config import paths
from llmtrain.config.groups.checkpoint_command import CheckpointCommandConfig
from llmtrain.console import make_console
from llmtrain.errors import EXIT_OK, CheckpointError
from llmtrain.units import format_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

WEIGHTS = "model."
"""How the names of weights begin in a checkpoint; in a file of weights alone they do not."""


def run_convert(config: CheckpointCommandConfig) -> int:
    """Write `config.out`; return the exit code. Takes memory for all that is written.

    Raises:
        CheckpointError: there is no such checkpoint, or the file cannot be written.
    """
    run_dir = Path(str(config.run)).expanduser()
    folder, manifest = CheckpointCollection(run_dir / paths.CHECKPOINTS).find(
        config.step or "latest"
    )
    tensors = _blank(folder, everything=config.all)
    load_tensors(folder, tensors, alone=True)
    if config.dtype != "keep":
        wanted = DTYPES[config.dtype]
        tensors = {k: v.to(wanted) if v.is_floating_point() else v for k, v in tensors.items()}
    if not config.all:
        tensors = {name.removeprefix(WEIGHTS): value for name, value in tensors.items()}
    out = Path(str(config.out))
    staging = out.with_name(out.name + ".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "pt", "step": str(manifest.step), "from": folder.name}
        write_tensors(staging, tensors, metadata)
        staging.replace(out)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise CheckpointError(f"out={out} cannot be written: {error.strerror}.") from error
    size = format_bytes(out.stat().st_size)
    make_console(stderr=True).print(
        f"{out}: {len(tensors)} tensors of step {manifest.step}, {size}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return EXIT_OK


def _blank(folder: Path, *, everything: bool) -> dict[str, torch.Tensor]:
    """Return an empty tensor for each that the checkpoint has, or for its weights alone."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in found.items()
        if isinstance(meta, TensorStorageMetadata) and (everything or name.startswith(WEIGHTS))
    }
