"""The task `evaluate`: loss and perplexity of a checkpoint, in one process."""

import dataclasses
import json
from pathlib import Path

import torch
import torch.distributed as dist
from rich.table import Table

from llmtrain.config.groups.inference import EvaluateConfig
from llmtrain.console import make_console
from llmtrain.data.loader import Batch, ValidationBatches
from llmtrain.data.opening import open_dataset
from llmtrain.distributed.env import (
    destroy_process_group,
    init_process_group,
    open_store,
    rank_info,
)
from llmtrain.errors import EXIT_OK, CheckpointError, ConfigError
from llmtrain.parallel.precision import Precision
from llmtrain.tasks.assist import prepare_with_help
from llmtrain.tasks.inference import load_trained
from llmtrain.train.evaluate import evaluate
from llmtrain.train.loss import token_loss_sum


def run_evaluate(config: EvaluateConfig) -> int:
    """Print the loss and perplexity of a checkpoint; return the exit code.

    Raises:
        UserError: when the run, its checkpoint or its data cannot be used.
    """
    assert config.run is not None
    info = rank_info(config.device)
    trained = load_trained(Path(config.run), config.step, info.device)
    run = trained.run
    if run.data.mode == "streaming" and config.split == "train":
        raise ConfigError(
            "split=train: of a run with data.mode=streaming only the validation split is kept; set "
            "split=validation."
        )
    folder = prepare_with_help(run.data, run.tokenizer, make_console(stderr=True))
    dataset = open_dataset(folder, config.split, truncate=run.data.truncate)
    if dataset.tokenizer().hash() != trained.manifest.tokenizer_hash:
        raise CheckpointError(
            f"{trained.folder} was trained with another tokenizer than the run's data gives now; "
            "has the text changed since?"
        )
    init_process_group(info, open_store())
    batches = ValidationBatches(
        dataset, seq_len=run.model.seq_len, samples=run.data.samples,
        batch_size=config.batch_size, dp_rank=0, dp_size=1, max_tokens=config.tokens,
        device=info.device,
    )  # fmt: skip
    assert dist.group.WORLD is not None
    precision = Precision(run.train.precision)

    def loss_of(batch: Batch) -> torch.Tensor:
        with precision.autocast(info.device):
            logits = trained.model(batch.input_ids, document_positions_BT=batch.document_positions)
            return token_loss_sum(logits, batch.labels)

    try:
        result = evaluate(
            trained.model, loss_of, batches, group=dist.group.WORLD, counts_batch=True
        )
    finally:
        destroy_process_group()  # NCCL complains of a process that ends inside one
    assert result is not None, "nobody was asked to stop"
    answer = {
        "split": config.split, "step": trained.manifest.step,
        "checkpoint": str(trained.folder), **dataclasses.asdict(result),
    }  # fmt: skip
    if config.json:
        print(json.dumps(answer))
        return EXIT_OK
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in answer.items():
        table.add_row(
            f"[bold]{name}[/]", f"{value:.4f}" if isinstance(value, float) else str(value)
        )
    make_console().print(table)
    return EXIT_OK
