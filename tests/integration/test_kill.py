"""kill -9 at any moment: the run goes on from its newest checkpoint and computes the same."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.processes import workers
from tests.support.runs import (
    SYNTHETIC,
    TINY,
    environment,
    metric_lines,
    train_command,
    train_to_end,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

STEPS, EVERY = 150, 50
OVERRIDES = (
    *TINY, *SYNTHETIC, f"train.steps={STEPS}", f"checkpoint.every_steps={EVERY}",
    "train.precision=fp32", "model.dropout=0.1",
)  # fmt: skip
TWO = ("strategy=data", "strategy.zero=3")
APART = ("strategy=data", "sync=diloco", "sync.sync_every_steps=40", "sync.wire_dtype=int8")
"""The checkpoints lie inside rounds."""
DEADLINE_S = 120.0


def command(run_dir: Path, *extra: str) -> list[str]:
    return train_command(run_dir, OVERRIDES, extra)


def finish(run_dir: Path, *extra: str) -> None:
    train_to_end(run_dir, OVERRIDES, extra, DEADLINE_S)


def final_weights(run_dir: Path) -> dict[str, object]:
    folder = run_dir / "checkpoints" / f"step_{STEPS:08d}"
    tensors: dict[str, object] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, value in load_file(file).items():
            tensors[f"{file.name}:{name}"] = value.numpy().tobytes()
    return tensors


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers through /proc")
@pytest.mark.parametrize(
    ("victim", "extra"),
    [
        pytest.param("launcher", (), id="launcher", marks=pytest.mark.slow),
        pytest.param("worker", (), id="worker", marks=pytest.mark.slow),
        pytest.param("worker", TWO, id="one of two workers", marks=pytest.mark.slow),
        pytest.param("launcher", TWO, id="launcher of two", marks=pytest.mark.slow),
        pytest.param("worker", APART, id="one of two replicas", marks=pytest.mark.slow),
    ],
)
def test_kill_minus_nine_loses_nothing(victim: str, extra: tuple[str, ...], tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(straight, *extra)
    launcher = subprocess.Popen(
        command(killed, *extra), env=environment(), stderr=subprocess.DEVNULL
    )
    first = killed / "checkpoints" / f"step_{EVERY:08d}"
    wait_until(first.is_dir, "the first checkpoint")
    os.kill(workers(killed)[-1] if victim == "worker" else launcher.pid, signal.SIGKILL)
    launcher.wait(timeout=DEADLINE_S)
    # Nobody outlives the launcher: a restart must never meet an orphan that still writes.
    wait_until(lambda: not workers(killed), "the workers to end")
    assert not (killed / "checkpoints" / f"step_{STEPS:08d}").exists(), "killed too late"
    finish(killed, *extra)
    keys = ("step", "loss", "grad_norm", "lr", "tokens")
    results = [[[line[k] for k in keys] for line in metric_lines(d)] for d in (straight, killed)]
    assert results[0] == results[1]
    assert final_weights(straight) == final_weights(killed)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers through /proc")
def test_one_replica_that_is_asked_to_stop_has_all_save_the_same_step(tmp_path: Path) -> None:
    # One round as long as the run: nothing but the vote can bring replicas to the same step.
    apart = ("strategy=data", "sync=local_sgd", "sync.sync_every_steps=1000",
             "checkpoint.every_steps=null")  # fmt: skip
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    finish(straight, *apart)
    # Slow enough to be interrupted in the middle.
    launcher = subprocess.Popen(
        command(cut, *apart), env=environment(), stderr=subprocess.DEVNULL
    )  # fmt: skip
    place = cut / "logs" / "rank_1.place"
    wait_until(lambda: place.is_file() and place.read_text().startswith("step"), "rank 1 to train")
    os.kill(workers(cut)[-1], signal.SIGTERM)
    assert launcher.wait(timeout=DEADLINE_S) == 143
    result = json.loads((cut / "result.json").read_text())
    assert result["status"] == "preempted"
    assert 0 < result["step"] < STEPS
    finish(cut, *apart)
    keys = ("step", "loss", "grad_norm", "lr", "tokens")
    results = [[[line[k] for k in keys] for line in metric_lines(d)] for d in (straight, cut)]
    assert results[0] == results[1]
    assert final_weights(straight) == final_weights(cut)
