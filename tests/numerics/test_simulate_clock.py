"""The clock of a simulation: graces end on it, it goes on where it stood, and real logs replay."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain.errors import ConfigError
from tests.numerics.test_simulate import EVERY, equal, saved, simulate
from tests.support.runs import metric_lines

WALL = {
    "time", "tokens_per_s", "tokens_per_s_per_device", "mfu", "step_time_s", "data_time_s",
    "memory_bytes",
}  # fmt: skip
"""What metrics tell of the machine that simulates."""
SMALL = ("model.n_layers=1", "model.dim=16", "model.n_heads=2")


def told(run_dir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in WALL} for line in lines]


def test_a_grace_ends_when_it_is_over(tmp_path: Path) -> None:
    """Rounds of 2 steps: the quorum is in after 2 s, the slow one's 6 s are not waited for."""
    words = ("sync=quorum_diloco", "sync.sync_every_steps=2", "sync.quorum=3", "sync.grace_s=0.5",
             "sync.simulate.schedule=straggler")  # fmt: skip
    simulate(tmp_path / "run", *SMALL, *words, "checkpoint.every_steps=null", workers=4)
    lines = [json.loads(x) for x in (tmp_path / "run" / "pushes.jsonl").read_text().splitlines()]
    at = {x["now"] for x in lines if x["kind"] == "push" and x["worker"] == 0}
    assert {2.0, 4.5} <= at, at  # the first round ended at 2 + 0.5
    assert metric_lines(tmp_path / "run")[-1]["step"] == 12
    replay = ("sync.simulate.schedule=replay", f"sync.simulate.log={tmp_path}/run/pushes.jsonl")
    simulate(tmp_path / "again", *SMALL, *words[:4], "checkpoint.every_steps=null", *replay,
             workers=4)  # fmt: skip
    assert equal(saved(tmp_path / "run"), saved(tmp_path / "again"))


@pytest.mark.parametrize("mode", ["sync=allreduce", "sync=ssp sync.max_staleness=1"])
def test_a_cut_run_tells_what_an_uncut_one_does(mode: str, tmp_path: Path) -> None:
    """0.1 has no exact binary: a clock that began anew would round other sums."""
    words = (*mode.split(), *SMALL, "sync.simulate.schedule=straggler", "sync.simulate.step_s=0.1")
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    simulate(straight, *words)
    simulate(cut, *words, "checkpoint.keep_last=100")
    for folder in (cut / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > EVERY:
            shutil.rmtree(folder)
    simulate(cut, *words)
    assert equal(saved(straight), saved(cut))
    assert told(straight) == told(cut)
    assert all("virtual_s" in line for line in told(straight))


def test_a_log_of_a_real_run_ends_with_goodbyes(tmp_path: Path) -> None:
    words = ("sync=async_ps", *SMALL)
    simulate(tmp_path / "run", *words, "sync.simulate.schedule=straggler")
    lines = (tmp_path / "run" / "pushes.jsonl").read_text().splitlines()
    left = [json.dumps({"now": 1e3, "kind": "leave", "worker": worker}) for worker in (1, 0)]
    log = tmp_path / "pushes.jsonl"
    replay = ("sync.simulate.schedule=replay", f"sync.simulate.log={log}")
    log.write_text("\n".join([*lines, *left]) + "\n")
    simulate(tmp_path / "again", *words, *replay)
    assert equal(saved(tmp_path / "run"), saved(tmp_path / "again"))
    log.write_text("\n".join([*lines[:10], left[0], *lines[10:]]) + "\n")
    with pytest.raises(ConfigError, match=r"replicas \[1\] died"):
        simulate(tmp_path / "died", *words, *replay)


@pytest.mark.parametrize(
    "mode", ["sync=quorum_diloco", "sync=async_local_sgd sync.outer_momentum=0.9"]
)
def test_an_outer_momentum_outlives_another_number_of_replicas(mode: str, tmp_path: Path) -> None:
    """Replicas that do not move have the weights go on where the momentum goes."""
    words = (*mode.split(), *SMALL, "sync.sync_every_steps=2", "scheduler=constant")
    simulate(tmp_path / "run", *words, "optimizer.lr=0.01", "train.steps=8")
    before = saved(tmp_path / "run")
    simulate(tmp_path / "run", *words, "optimizer.lr=1e-12", workers=4)
    after = saved(tmp_path / "run")
    moved = max(float((after[n] - before[n]).abs().max()) for n in before if n.startswith("model."))
    assert moved > 1e-4
