"""Under another launcher: torchrun, mpirun."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_launch import TINY, Stage

pytestmark = [pytest.mark.integration]
SLOW = pytest.mark.slow

MODULE = ("-m", "llmtrain", "train", *TINY)
TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
)  # fmt: skip
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable)


def run(stage: Stage, launcher: tuple[str, ...], *words: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "LLMTRAIN_CACHE": str(stage.folder / "cache")}
    return subprocess.run(
        [*launcher, *MODULE, *words, f"run_dir={stage.run_dir}"], cwd=stage.folder, env=env,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize(
    "launcher",
    [pytest.param(TORCHRUN, id="torchrun"), pytest.param(MPIRUN, id="mpirun", marks=SLOW)],
)
def test_its_ranks_become_workers(stage: Stage, launcher: tuple[str, ...]) -> None:
    if shutil.which(launcher[0]) is None:
        pytest.skip(f"{launcher[0]} IS NOT INSTALLED: nobody sees its ranks find each other here")
    ended = run(stage, launcher, "strategy=data", "train.steps=2")
    assert ended.returncode == 0, ended.stderr
    assert stage.result()["status"] == "completed"
    assert json.loads((stage.run_dir / "plan.json").read_text())["world_size"] == 2
    assert (stage.run_dir / "logs" / "rank_1.log").is_file()


@pytest.mark.parametrize("launcher", [TORCHRUN, MPIRUN], ids=["torchrun", "mpirun"])
def test_a_refusal_is_told_once_and_ends_all_ranks(stage: Stage, launcher: tuple[str, ...]) -> None:
    if shutil.which(launcher[0]) is None:
        pytest.skip(f"{launcher[0]} IS NOT INSTALLED: nobody sees its ranks refuse here")
    ended = run(stage, launcher)
    assert ended.returncode != 0
    assert ended.stderr.count("╭") == 1 and "use strategy=data" in ended.stderr
    assert "forcefully exiting" not in ended.stderr
    assert stage.processes() == []
