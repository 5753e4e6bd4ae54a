"""The loss of pairs is that of their targets, and of nothing else."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from llmtrain.config import paths
from llmtrain.config.groups.data import SAMPLES, CsvDataConfig
from llmtrain.config.groups.model import GPTConfig
from llmtrain.config.groups.tokenizer import ByteTokenizerConfig
from llmtrain.data.dataset import IGNORED, TokenDataset
from llmtrain.data.prepare import prepare
from llmtrain.models.build import build_model
from llmtrain.models.init import init_weights
from llmtrain.train.loss import token_loss_sum
from tests.support.runs import metric_lines, tiny_run, train_frozen

RTOL = 1e-12
"""fp64 sums over the same positions in another order."""

TEMPLATES = {"prompt": "Text: {text}\\nClass:", "target": " {label}"}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of texts that begin with their class."""
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for i in range(200):
            writer.writerow([f"{'ab'[i % 2]} {i:03d}", "no" if i % 2 else "yes"])
    return path


def test_the_loss_is_that_of_the_targets(table: Path, tmp_path: Path) -> None:
    """Computed by hand from the logits of each document alone."""
    config = CsvDataConfig(path=str(table), cache_dir=str(tmp_path), **TEMPLATES)
    dataset = TokenDataset(prepare(config, ByteTokenizerConfig()), "train")
    tokens = np.fromfile(dataset.folder / "train-00000.bin", dtype="<u2").astype(int)
    starts = np.fromfile(dataset.folder / "train-00000.idx", dtype="<u8").astype(int)
    prompts = np.fromfile(dataset.folder / "train-00000.tgt", dtype="<u4").astype(int)
    sizes = GPTConfig(n_layers=2, n_heads=2, dim=16, seq_len=32, init_std=0.2)
    model = build_model(sizes, 257, device="cpu").double()
    init_weights(model, sizes, prefix="", residual=model.RESIDUAL, seed=3)

    model.requires_grad_(False)
    by_hand = everything = 0.0
    for start, end, prompt in zip(starts, starts[1:], prompts, strict=False):
        ids = torch.from_numpy(tokens[start:end])
        scores = log_softmax(model(ids[None, :-1])[0], dim=-1)
        losses = -scores[torch.arange(len(ids) - 1), ids[1:]]
        by_hand += float(losses[prompt - 1 :].sum())
        everything += float(losses.sum())

    for samples in ("documents", "packed"):
        count = dataset.n_samples(32, samples)
        rows = dataset.fill(np.arange(count), 32, samples)
        within = rows.document_positions
        logits = model(
            torch.from_numpy(rows.input_ids),
            document_positions_BT=None if within is None else torch.from_numpy(within),
        )
        labels = torch.from_numpy(rows.labels)
        loss = float(token_loss_sum(logits, labels))
        assert loss == pytest.approx(by_hand, rel=RTOL)
        assert loss < 0.7 * everything
        # Another label where a target is counted changes it.
        row, column = np.argwhere(rows.labels != IGNORED)[0]
        labels[row, column] = (labels[row, column] + 1) % 257
        assert float(token_loss_sum(logits, labels)) != pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("samples", SAMPLES)
def test_a_run_counts_and_learns_targets(table: Path, tmp_path: Path, samples: str) -> None:
    cache = tmp_path / "cache"
    run_dir = tiny_run(
        tmp_path / "run", "data=csv", f"data.path={table}", f"data.cache_dir={cache}",
        "data.prompt='Text: {text}\\nClass:'", "data.target=' {label}'",
        f"data.samples={samples}", "model.seq_len=32", "train.steps=30", "optimizer.lr=1e-2",
        "train.log_every_steps=1", "train.eval_every_steps=30", "train.eval_tokens=null",
    )  # fmt: skip
    train_frozen(run_dir)
    (folder,) = cache.glob("csv-*")
    written = map(json.loads, (run_dir / paths.METRICS).read_text().splitlines())
    (evaluation,) = (line for line in written if "val_loss" in line)
    validation = TokenDataset(folder, "validation")
    prompts = np.fromfile(folder / "validation-00000.tgt", dtype="<u4")
    assert evaluation["val_tokens"] == validation.n_tokens - prompts.sum()
    lines = metric_lines(run_dir)
    # Four or five of 256 bytes, of which all but one follow from the others.
    assert lines[0]["loss"] > 4 and lines[-1]["loss"] < 1
    if samples == "documents":
        assert 8 * 4 <= lines[0]["tokens"] <= 8 * 5
