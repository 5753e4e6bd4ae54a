"""Ranks that torchrun, srun or mpirun has started."""

from pathlib import Path

import pytest

from llmtrain import cli
from llmtrain.errors import EXIT_USER, ConfigError
from llmtrain.launch import foreign


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [foreign.SILENCE_S])])
def test_a_refused_rank_lets_rank_0_speak_first(
    rank: str,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # torchrun ends every rank as soon as one has ended: rank 0 would be cut off before its message.
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    slept: list[float] = []
    monkeypatch.setattr(foreign.time, "sleep", slept.append)
    assert cli.main(["train", "--nosuch"]) == EXIT_USER
    assert slept == waits
    # Nobody ended this rank: rank 0 has no such error, so it must be told here.
    assert "nosuch" in capsys.readouterr().err


SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_NTASKS": "5",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "970457089",
}  # fmt: skip
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "there", "MASTER_PORT": "5",
}  # fmt: skip


@pytest.mark.parametrize(
    ("env", "world"),
    [
        (SRUN, "4 5 0 1"),
        ({**SRUN, "SLURM_NODEID": "1", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, "3 5 1 2"),
        (MPIRUN, "1 2 1 2"),
        (TORCHRUN, "3 4 1 2"),
        ({**SRUN, **TORCHRUN}, "3 4 1 2"),  # torchrun as a job step
        # A batch script and a shell of one task are no ranks.
        ({k: v for k, v in SRUN.items() if "STEP" not in k}, ""),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, ""),
        ({**MPIRUN, "OMPI_COMM_WORLD_SIZE": "1"}, ""),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ""),
        ({}, ""),
    ],
)
def test_whose_ranks_there_are(env: dict[str, str], world: str) -> None:
    assert list(foreign.ranks_of(env).values()) == world.split()


def test_where_they_meet() -> None:
    here = foreign.meeting_of(MPIRUN)
    assert here["MASTER_ADDR"] == "127.0.0.1" and int(here["MASTER_PORT"]) in foreign.PORTS
    assert here == foreign.meeting_of({**MPIRUN, "OMPI_COMM_WORLD_RANK": "0"})
    assert here != foreign.meeting_of({**MPIRUN, "PMIX_NAMESPACE": "970457090"})
    assert foreign.meeting_of(TORCHRUN) == {"MASTER_ADDR": "there", "MASTER_PORT": "5"}
    apart = {**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    with pytest.raises(ConfigError, match="mpirun -x MASTER_ADDR=HOST"):
        foreign.meeting_of(apart)
    told = {**apart, "MASTER_ADDR": "node1", "MASTER_PORT": "9"}
    assert foreign.meeting_of(told) == {"MASTER_ADDR": "node1", "MASTER_PORT": "9"}


def test_ranks_that_cannot_meet_are_told_once_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = {**MPIRUN, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    for name, value in apart.items():
        monkeypatch.setenv(name, value)
    run_dir = tmp_path / "run"
    assert cli.main(["train", "strategy=data", f"run_dir={run_dir}"]) == EXIT_USER
    told = capsys.readouterr().err
    assert told.count("╭") == 1 and "mpirun -x MASTER_ADDR=HOST" in told
    assert not run_dir.exists()
