"""Runs with a server, as a user starts them, and what they leave behind."""

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from tests.support.runs import SYNTHETIC, TINY, environment, train_command, train_to_end

STEPS, EVERY = 48, 16
BASE = (*TINY, *SYNTHETIC, "model.dropout=0.1", f"checkpoint.every_steps={EVERY}")
DEADLINE_S = 150.0
EQUAL = 1e-12
"""fp64: a mean in another order of adding, through 48 steps."""
SAME_LAYOUT = 1e-9
"""fp64: sums inside a replica in another order, as for every layout."""
TWO = ("strategy=data", "launcher.nproc_per_node=2")


def command(run_dir: Path, *words: str, steps: int = STEPS) -> list[str]:
    return train_command(run_dir, BASE, (*words, f"train.steps={steps}"))


def train(run_dir: Path, *words: str, steps: int = STEPS) -> Path:
    return train_to_end(run_dir, BASE, (*words, f"train.steps={steps}"), DEADLINE_S)


def result(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "result.json").read_text()))


def saved(run_dir: Path, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """Return the tensors of the newest checkpoint, whole."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    from llmtrain.checkpoint.manager import load_tensors

    folder = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    reader = HuggingFaceStorageReader(str(folder))
    tensors = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(prefix)
    }
    load_tensors(folder, tensors, alone=True)
    return tensors


def distance(a: Path, b: Path, prefix: str = "model.") -> float:
    """Return the largest difference between the tensors of two runs' newest checkpoints."""
    first, second = saved(a, prefix), saved(b, prefix)
    assert first.keys() == second.keys() and first
    return max(float((first[n] - second[n]).abs().max()) for n in first)


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint; 0 where there is none."""
    return max((int(p.name[5:]) for p in run_dir.glob("checkpoints/step_????????")), default=0)


def pushes(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "pushes.jsonl").read_text().splitlines()]


def process(run_dir: Path, replica: int | None, server: int = 0) -> int | None:
    """Return the process id of a replica's worker, or of a server."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            env = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"llmtrain.worker" not in words or str(run_dir).encode() not in words:
            continue
        wanted = f"LLMTRAIN_REPLICA={replica}".encode()
        is_server = words[-3:-1] == [b"--server", str(server).encode()]
        if is_server if replica is None else wanted in env:
            return int(entry.name)
    return None


def start(run_dir: Path, *words: str, steps: int = STEPS) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(run_dir, *words, steps=steps), env=environment(), stderr=subprocess.PIPE, text=True
    )


def end(launcher: "subprocess.Popen[str]") -> str:
    _, words = launcher.communicate(timeout=DEADLINE_S)
    return words
