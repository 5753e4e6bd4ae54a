"""What workers find in their environment."""

import subprocess
import sys

import pytest

from llmtrain.config.groups.launcher import LocalLauncherConfig
from llmtrain.launch import environment
from llmtrain.launch.environment import TUNABLES, worker_environment
from llmtrain.machine import busy_cores
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 8)
    monkeypatch.setattr(environment, "busy_cores", lambda: 0)
    monkeypatch.setattr(environment, "_hostname_resolves", lambda: True)


@pytest.mark.parametrize(("processes", "threads"), [(1, "8"), (3, "2"), (16, "1")])
def test_cores_are_divided(processes: int, threads: str) -> None:
    env = worker_environment(LocalLauncherConfig(), processes, {})
    assert env["OMP_NUM_THREADS"] == threads


def test_what_the_user_has_set_stays() -> None:
    given = {
        "OMP_NUM_THREADS": "5", "PYTHONUNBUFFERED": "0", "TORCH_CPP_LOG_LEVEL": "INFO",
        "GLIBC_TUNABLES": "glibc.malloc.trim_threshold=7", "GLOO_SOCKET_IFNAME": "eth7",
    }  # fmt: skip
    env = worker_environment(LocalLauncherConfig(), 4, given)
    assert env | given == env | {"GLIBC_TUNABLES": given["GLIBC_TUNABLES"]}
    assert env["GLIBC_TUNABLES"].startswith("glibc.malloc.trim_threshold=7")
    assert env["GLIBC_TUNABLES"].count("trim_threshold") == 1


@pytest.mark.parametrize(
    ("busy", "processes", "patient"), [(0, 2, False), (1, 2, True), (None, 2, True), (0, 9, True)]
)
def test_threads_spin_only_on_cores_of_their_own(
    busy: int | None, processes: int, patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "busy_cores", lambda: busy)
    env = worker_environment(LocalLauncherConfig(), processes, {})
    assert ("GOMP_SPINCOUNT" in env) == patient
    given = {"GOMP_SPINCOUNT": "7"}
    assert worker_environment(LocalLauncherConfig(), processes, given)["GOMP_SPINCOUNT"] == "7"


def test_threads_may_be_given_for_nested_levels() -> None:
    env = worker_environment(LocalLauncherConfig(), 2, {"OMP_NUM_THREADS": "4,2"})
    assert env["OMP_NUM_THREADS"] == "4,2" and "GOMP_SPINCOUNT" not in env


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/loadavg")
def test_a_busy_core_is_seen() -> None:
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert eventually(lambda: (busy_cores() or 0) >= 1)
    finally:
        loop.kill()
        loop.wait()


def test_the_configuration_wins_over_the_environment() -> None:
    launcher = LocalLauncherConfig(threads_per_process=3)
    assert worker_environment(launcher, 4, {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "3"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_the_allocator_can_be_left_alone() -> None:
    tuned = worker_environment(LocalLauncherConfig(), 1, {})
    assert all(f"{name}={value}" in tuned["GLIBC_TUNABLES"] for name, value in TUNABLES.items())
    launcher = LocalLauncherConfig(tune_allocator=False)
    assert "GLIBC_TUNABLES" not in worker_environment(launcher, 1, {})


def test_ranks_of_one_machine_listen_on_its_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for base in ({}, {"WORLD_SIZE": "2"}):
        env = worker_environment(LocalLauncherConfig(), 2, base)
        assert all(env[name].startswith("lo") for name in names)
    several_nodes = {"WORLD_SIZE": "4"}
    env = worker_environment(LocalLauncherConfig(), 2, several_nodes)
    assert not set(names) & set(env)
    monkeypatch.setattr(environment, "_hostname_resolves", lambda: False)
    env = worker_environment(LocalLauncherConfig(), 2, several_nodes)
    assert env["GLOO_SOCKET_IFNAME"].startswith("lo") and "NCCL_SOCKET_IFNAME" not in env
