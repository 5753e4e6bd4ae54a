"""Under another launcher: torchrun, mpirun, and one that ends nobody, as srun does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_launch import TINY, Stage, eventually

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


StartRanks = Callable[..., list["subprocess.Popen[str]"]]
NO_HYDRA = "raise ImportError('this rank composes')"


@pytest.fixture
def start_ranks(stage: Stage) -> Iterator[StartRanks]:
    """Start two ranks as srun does, which lets a rank go on whose peer has ended.

    The one that is not the first cannot import Hydra.
    """
    broken = stage.folder / "broken" / "hydra"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(NO_HYDRA)
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> list["subprocess.Popen[str]"]:
        for rank in (0, 1):
            env = {
                **os.environ, "LLMTRAIN_CACHE": str(stage.folder / "cache"),
                "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NODEID": "0",
                "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2",
                "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "GLIBC_TUNABLES": "",
            }  # fmt: skip
            if rank:
                path = filter(None, [str(broken.parent), env.get("PYTHONPATH")])
                env["PYTHONPATH"] = os.pathsep.join(path)
            command = [sys.executable, *MODULE, *words, f"run_dir={stage.run_dir}"]
            started.append(
                subprocess.Popen(
                    command, cwd=stage.folder, env=env, text=True, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        return started

    yield start
    for process in started:
        process.kill()


def test_rank_0_alone_composes_and_the_others_take_its_settings(
    stage: Stage, start_ranks: StartRanks
) -> None:
    words = ("strategy=data", "train.steps=2", "launcher.threads_per_process=3")
    ranks = start_ranks(*words, "launcher.tune_allocator=false")
    # Rank 1 learns both only from the run directory, and needs them as it starts.
    assert eventually(lambda: len(stage.processes("llmtrain.worker")) == 2, 60)
    environments = [environment_of(pid) for pid in stage.processes("llmtrain.worker")]
    for rank in ranks:
        _, told = rank.communicate(timeout=120)
        assert rank.returncode == 0, told
    assert [env["OMP_NUM_THREADS"] for env in environments] == ["3", "3"]
    # glibc itself cuts it behind the first of several.
    assert [env.get("GLIBC_TUNABLES", "") for env in environments] == ["", ""]
    assert stage.result()["status"] == "completed"


def environment_of(pid: int) -> dict[str, str]:
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(word.split("=", 1) for word in words if word)


@pytest.mark.parametrize(
    ("words", "told"),
    [(("model.dimm=3",), "model.dim'"), (("strategy=data", "launcher=slurm"), "without torchrun")],
    ids=["a setting", "a launcher"],
)
def test_a_refusal_of_rank_0_ends_ranks_that_no_launcher_ends(
    stage: Stage, start_ranks: StartRanks, words: tuple[str, ...], told: str
) -> None:
    main, other = start_ranks(*words)
    said = main.communicate(timeout=60)[1], other.communicate(timeout=60)[1]
    assert (main.returncode, other.returncode) == (2, 2)
    assert told in said[0] and said[0].count("╭") == 1 and "Traceback" not in said[0]
    assert said[1] == ""
    assert not stage.run_dir.exists()
