"""`llmtrain logs`, `cancel` and `jobs` of runs on this machine; under Slurm: test_slurm.py."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_launch import LLMTRAIN, Stage
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    assert stage.processes() == []


def llmtrain(stage: Stage, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LLMTRAIN, *words], cwd=stage.folder, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def test_a_run_is_followed_and_cancelled(stage: Stage) -> None:
    run = stage.start("log.write_text('begun\\n'); wait()")
    stage.wait_for("started_0")
    follower = subprocess.Popen(
        [LLMTRAIN, "logs", "run", "-f"], cwd=stage.folder, text=True, stdout=subprocess.PIPE
    )
    log = stage.run_dir / "logs" / "rank_0.log"
    wait_until(log.exists, "the log")
    assert follower.stdout is not None
    assert follower.stdout.readline() == f"==> {Path('run') / 'logs' / 'rank_0.log'} <==\n"
    assert follower.stdout.readline() == "begun\n"
    with log.open("a") as stream:
        stream.write("more\n")
    assert follower.stdout.readline() == "more\n"
    cancelled = llmtrain(stage, "cancel", "run")
    assert cancelled.returncode == 0 and "has ended: preempted" in cancelled.stderr
    assert run.wait(timeout=60) == 143
    assert follower.wait(timeout=60) == 0  # by itself
    again = llmtrain(stage, "cancel", "run")
    assert again.returncode == 0 and "run is not running: preempted" in again.stderr


def test_what_is_not_there_is_refused(stage: Stage) -> None:
    (stage.run_dir / "logs").mkdir(parents=True)
    (stage.run_dir / "config.yaml").touch()
    (stage.run_dir / "logs" / "rank_1.log").write_text("a\n")
    refusals = {
        ("logs", "run", "rank=5"): "run has no log of rank 5 yet; its folder has rank_1.log",
        ("logs",): "takes one run directory",
        ("cancel", "rum"): "did you mean 'run'",
        ("jobs", "nowhere"): "nowhere: there is no such folder",
    }
    for words, said in refusals.items():
        refused = llmtrain(stage, *words)
        assert refused.returncode == 2, words
        assert said.lower() in refused.stderr.lower(), refused.stderr
    assert llmtrain(stage, "logs", "run", "rank=1").stdout.endswith("a\n")
    assert json.loads(llmtrain(stage, "jobs", "--json").stdout) == {"jobs": []}
