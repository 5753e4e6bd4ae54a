"""Ranks that sleep, are stopped or die: told by name, ended, gone on from; slow ones left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.hanging import Plan, planted
from tests.support.processes import workers
from tests.support.runs import SYNTHETIC, TINY, train_command, train_to_end
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.chaos,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

LIMIT_S = 2.0
BASE = (
    *TINY, *SYNTHETIC, "train.steps=1000000", f"train.hang_timeout_s={LIMIT_S}",
    "checkpoint.every_steps=3",
)  # fmt: skip
TWO = ("strategy=data", "launcher.nproc_per_node=2")
FOUR = ("strategy=data", "launcher.nproc_per_node=4", "strategy.zero=3")
PIPELINE = ("strategy=pipeline", "launcher.nproc_per_node=2")
DEADLINE_S = 240.0

STEP = ("llmtrain.train.trainer", "Trainer.one_step")
"""What a step is done by. In its sixth call the checkpoint of step 3 is there."""


def run(folder: Path, words: tuple[str, ...], *plans: Plan) -> tuple[int, str, Path]:
    """Train with planted faults; return the exit code, what was printed, the run directory."""
    run_dir = folder / "run"
    ended = subprocess.run(
        train_command(run_dir, BASE, words), env=planted(folder / "site", *plans), text=True,
        capture_output=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert not workers(run_dir), "orphans"
    return ended.returncode, ended.stderr, run_dir


def result(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def check_hang(ended: tuple[int, str, Path], rank: int, *signs: str) -> str:
    """Check how a run ended whose `rank` hung in step 6; return the report."""
    code, err, run_dir = ended
    assert code == 1, err
    report_path = run_dir / "logs" / "hang_report.txt"
    report = report_path.read_text()
    cause = report.splitlines()[0]
    assert cause.startswith(f"rank {rank} hangs"), cause
    assert "step 6" in cause, cause
    for sign in signs:
        assert sign in report, report
    # Its place is written as it enters the step.
    began = (run_dir / "logs" / f"rank_{rank}.place").stat().st_mtime
    assert report_path.stat().st_mtime - began <= LIMIT_S + 5
    # One panel, whose cause is the report's, also in result.json.
    assert err.count("╭") == 1 and "the run hung" in err and "Traceback" not in err
    assert f"rank {rank} hangs" in err
    assert (result(run_dir)["status"], result(run_dir)["error"]) == ("failed", cause)
    return report


def test_a_rank_that_sleeps_is_named_with_what_the_other_waits_in(tmp_path: Path) -> None:
    report = check_hang(run(tmp_path, TWO, (*STEP, (1,), (6,), "sleep")), 1)
    cause = report.splitlines()[0]
    assert "sitecustomize.py" in cause and " sleep, called by llmtrain/train/trainer.py" in cause
    assert "rank 0 in all_reduce no. " in cause and "of long[2] over all ranks" in cause
    assert "time.sleep(1000)" in report  # the stack of the one, with its source
    assert "agree" in report and "work.wait()" in report  # and of the other


@pytest.mark.slow
def test_the_next_start_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    *_, run_dir = ended = run(tmp_path, TWO, (*STEP, (0,), (6,), "sleep"))
    check_hang(ended, 0)
    train_to_end(run_dir, BASE, (*TWO, "train.steps=9"), DEADLINE_S)
    assert result(run_dir)["step"] == 9
    log = (run_dir / "logs" / "rank_0.log").read_text()
    assert "step_00000003" in log and log.count("step_00000009") >= 1
    # The report is of the earlier start, and says so by its name.
    assert [p.name for p in (run_dir / "logs").glob("hang*")] == ["hang_report.1.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named_and_killed(rank: int, tmp_path: Path) -> None:
    ended = run(tmp_path, TWO, (*STEP, (rank,), (6,), "stop"))
    check_hang(ended, rank, "its process is stopped", f"rank {1 - rank}: step 6")


@pytest.mark.slow
def test_a_rank_in_native_code_that_holds_the_interpreter(tmp_path: Path) -> None:
    ended = run(tmp_path, TWO, (*STEP, (1,), (6,), "hold"))
    check_hang(ended, 1, "native code holds its interpreter", "in hold")


@pytest.mark.slow
def test_one_of_four_shards(tmp_path: Path) -> None:
    # Within the forward, where the others wait for its shard of the next block's weights.
    plan = ("llmtrain.models.transformer", "Transformer.forward", (2,), (6,), "sleep")
    report = check_hang(run(tmp_path, FOUR, plan), 2)
    assert "ranks 0-1, 3" in report.splitlines()[0]


@pytest.mark.slow
def test_a_stage_of_a_pipeline(tmp_path: Path) -> None:
    # gloo's sends and receives are in no flight recorder: told by the stack.
    plan = ("llmtrain.models.transformer", "Transformer.forward", (0,), (44,), "sleep")
    code, err, run_dir = run(tmp_path, PIPELINE, plan)
    assert code == 1, err
    cause = (run_dir / "logs" / "hang_report.txt").read_text().splitlines()[0]
    assert cause.startswith("rank 0 hangs in step"), cause
    assert "rank 1 in " in cause and "p2p" in cause, cause


@pytest.mark.slow
def test_a_run_of_one_process(tmp_path: Path) -> None:
    check_hang(run(tmp_path, (), (*STEP, (0,), (6,), "sleep")), 0, "is in no collective")


@pytest.mark.slow
def test_a_rank_that_dies_in_a_step_is_told_without_a_hang(tmp_path: Path) -> None:
    code, err, run_dir = run(tmp_path, TWO, (*STEP, (1,), (6,), "die"))
    assert code == 1
    assert err.count("╭") == 1 and "rank 1 failed" in err and "in step 6" in err
    assert "SIGKILL" in err and "out-of-memory" in err
    assert not (run_dir / "logs" / "hang_report.txt").exists()


@pytest.mark.slow
def test_slow_is_not_hanging(tmp_path: Path) -> None:
    # Rank 0 waits 8 x 0.6 s for the other replica, and 3 s for it to save: both beyond the limit.
    words = (
        "strategy=data", "sync=local_sgd", "sync.sync_every_steps=8", "train.steps=16",
        "checkpoint.every_steps=null",
    )  # fmt: skip
    save = ("llmtrain.checkpoint.manager", "CheckpointManager.save", (1,), (), "pause")
    code, err, run_dir = run(tmp_path, words, (*STEP, (1,), (), "slow"), save)
    assert code == 0, err
    assert result(run_dir)["step"] == 16
    assert not (run_dir / "logs" / "hang_report.txt").exists()
    assert not list((run_dir / "logs").glob("*.calls"))


@pytest.mark.slow
def test_a_replica_that_hangs_while_the_others_train_apart(tmp_path: Path) -> None:
    words = ("strategy=data", "sync=diloco", "sync.sync_every_steps=40")
    code, err, run_dir = run(tmp_path, words, (*STEP, (1,), (6,), "sleep"))
    assert code == 1, err
    cause = (run_dir / "logs" / "hang_report.txt").read_text().splitlines()[0]
    assert cause.startswith("rank 1 hangs in step 6"), cause


@pytest.mark.slow
def test_a_run_that_was_suspended_as_a_whole_goes_on(tmp_path: Path) -> None:
    # Stopped within a step that has still to go on for a while when all are continued.
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        train_command(run_dir, BASE, (*TWO, "train.steps=6", "checkpoint.every_steps=null")),
        env=planted(tmp_path / "site", (*STEP, (0, 1), (), "work")),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    place = run_dir / "logs" / "rank_0.place"
    wait_until(lambda: place.is_file() and place.read_text().startswith("step 3"), "step 3")
    time.sleep(0.2)
    pids = workers(run_dir)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3 * LIMIT_S)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
