"""Checkpoints beside the disk, and what saving costs training, in one run.

    python -m benchmarks.checkpoint [--megabytes 500] [--rounds 5] [--folder DIR] [--steps 20]

Bandwidth, in interleaved rounds on the same folder: `dd` with fsync into a new file, which takes
the place of the one before, and a whole `save` (shards, hashes, manifest, rename, the checkpoint
before deleted) of as many bytes; then `dd` from the disk and a whole load (every file read and
compared with its hash, then the tensors filled), the page cache emptied of the files before each.

Cost: steps of gpt_10m in turns of `--steps`, each turn with no save, with one that is waited for,
and with one in a thread; medians of the turns, as ratios to no save.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from llmtrain.checkpoint.collection import CheckpointCollection
from llmtrain.checkpoint.manager import CheckpointManager, load_tensors
from llmtrain.checkpoint.manifest import Manifest, verify
from llmtrain.checkpoint.retention import Retention
from llmtrain.checkpoint.tensors import model_tensors, optimizer_tensors
from llmtrain.config.groups.model import GPTConfig
from llmtrain.models.build import build_model
from llmtrain.models.transformer import Transformer

TENSOR_VALUES = 1 << 20
"""fp32 values of a tensor whose saving is timed: 4 MiB, a square matrix of a small model."""

SEQ_LEN, ROWS, VOCABULARY = 256, 8, 32_768


def manifest_of(step: int) -> Manifest:
    """Return a manifest in which nothing but the step matters."""
    return Manifest(
        step=step, train_state={}, val_loss=None, model={}, optimizer="adamw", tokenizer="byte",
        tokenizer_hash="", data="",
    )  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forget(folder: Path) -> None:
    """Empty the page cache of the files in `folder`."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def dd(*words: str) -> None:
    """Run `dd`."""
    subprocess.run(["dd", *words, "bs=4M"], check=True, capture_output=True)


def bandwidth(megabytes: float, rounds: int, folder: Path) -> list[tuple[str, float, float]]:
    """Return rows of name, MB/s, and ratio to `dd` with fsync."""
    count = max(1, int(megabytes * 1e6 / 4 / TENSOR_VALUES))
    tensors = {f"model.{n}": torch.randn(TENSOR_VALUES) for n in range(count)}
    size = count * TENSOR_VALUES * 4
    manager = CheckpointManager(CheckpointCollection(folder / "saved"), Retention(keep_last=1))
    raw = folder / "raw"
    raw.mkdir()
    blank = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    seconds: dict[str, list[float]] = {"dd write": [], "save": [], "dd read": [], "load": []}
    blocks = f"count={size // (4 << 20)}"

    def write(number: int) -> None:
        # A new file beside the one before, which then goes: as a save must do it.
        dd("if=/dev/zero", f"of={raw / str(number)}", blocks, "conv=fsync")
        (raw / str(number - 1)).unlink(missing_ok=True)

    def load(saved: Path) -> None:
        verify(saved)
        load_tensors(saved, blank)

    for step in range(rounds):
        seconds["dd write"].append(timed(partial(write, step)))
        seconds["save"].append(timed(partial(manager.save, tensors, manifest_of(step))))
        forget(folder)
        seconds["dd read"].append(timed(partial(dd, f"if={raw / str(step)}", "of=/dev/null")))
        forget(folder)
        seconds["load"].append(timed(partial(load, manager.collection.step_folder(step))))
    assert all(torch.equal(blank[name], tensor) for name, tensor in tensors.items())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peers = {"save": "dd write", "load": "dd write", "dd read": "dd write"}
    return [
        (
            name,
            size / 1e6 / medians[name],
            statistics.median(
                b / a for a, b in zip(times, seconds[peers.get(name, name)], strict=True)
            ),
        )
        for name, times in seconds.items()
    ]


class Training:
    """gpt_10m with AdamW on made-up tokens."""

    def __init__(self) -> None:
        config = GPTConfig(n_layers=6, n_heads=6, dim=384, seq_len=SEQ_LEN)
        self.model: Transformer = build_model(config, VOCABULARY, device="cpu")
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.ids = torch.randint(VOCABULARY, (ROWS, SEQ_LEN))

    def step(self) -> None:
        """Do one step."""
        logits = self.model(self.ids)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.ids.flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint has of it."""
        return model_tensors(self.model) | optimizer_tensors(self.model, (self.optimizer,), None)


def cost(steps: int, rounds: int, folder: Path) -> list[tuple[str, float, float]]:
    """Return rows of name, milliseconds a step, and ratio to training without saves."""
    training = Training()
    manager = CheckpointManager(CheckpointCollection(folder / "cost"), Retention(keep_last=1))
    ways: dict[str, Callable[[int], object]] = {
        "no save": lambda _: None,
        "save": lambda step: manager.save(training.tensors(), manifest_of(step)),
        "save in a thread": lambda step: manager.save_later(training.tensors(), manifest_of(step)),
    }
    for _ in range(3):
        training.step()
    manager.save_later(training.tensors(), manifest_of(0))  # makes the copy's memory
    manager.wait()

    def turn(save: Callable[[int], object], number: int) -> None:
        save(number)
        for _ in range(steps):
            training.step()
        manager.wait()

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    number = 0
    for _ in range(rounds):
        for name, save in ways.items():
            number += 1
            seconds[name].append(timed(partial(turn, save, number)) / steps)
    base = seconds["no save"]
    return [
        (
            name,
            statistics.median(times) * 1e3,
            statistics.median(a / b for a, b in zip(times, base, strict=True)),
        )
        for name, times in seconds.items()
    ]


def show(title: str, unit: str, rows: list[tuple[str, float, float]]) -> None:
    """Print one table."""
    table = Table("", unit, "ratio", title=title)
    for name, value, ratio in rows:
        table.add_row(name, f"{value:,.4g}", f"{ratio:.3f}")
    Console().print(table)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--steps", type=int, default=20, help="steps between two saves")
    parser.add_argument("--folder", type=Path, help="where to write; else the folder of tempfile")
    options = parser.parse_args()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rows = bandwidth(options.megabytes, options.rounds, folder)
        show(f"{options.megabytes:g} MB, one process", "MB/s", rows)
        shutil.rmtree(folder / "saved")
        rows = cost(options.steps, options.rounds, folder)
        show(f"gpt_10m, a save every {options.steps} steps", "ms a step", rows)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
