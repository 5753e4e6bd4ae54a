"""Several hosts: they meet, train as one, and are cut, slowed, killed and told wrong."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import Hosts, Program, hosts
from tests.support.runs import SYNTHETIC, TINY, metric_lines, train_to_end
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

SLOW = pytest.mark.slow
BASE = (*TINY, *SYNTHETIC, "train.steps=12")
PORT = 29500
END_S = 240.0
"""How long a run here may take on a busy machine."""


class Room:
    """Some hosts and one run over them."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.run_dir = folder / "run"

    def start(self, number: int, *words: str, endpoint: str = f"host0:{PORT}") -> Program:
        """Start host `number`'s part."""
        given = {word.partition("=")[0] for word in words}
        base = [word for word in BASE if word.partition("=")[0] not in given]
        nnodes = f"launcher.nnodes={len(self.hosts.names)}"
        # Only the first knows the folder; the default would be another on each.
        where = [f"run_dir={self.run_dir}"] if number == 0 else []
        command = [
            sys.executable, "-m", "llmtrain", "train", *base, "launcher=torchrun", nnodes,
            f"launcher.rdzv_endpoint={endpoint}", "launcher.nproc_per_node=1", *where, *words,
        ]  # fmt: skip
        env = {"LLMTRAIN_CACHE": str(self.folder / "cache")}
        return self.hosts.start(number, command, cwd=self.folder, env=env)

    def start_all(self, *words: str) -> list[Program]:
        return [self.start(number, *words) for number in range(len(self.hosts.names))]

    def result(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "result.json").read_text())

    def losses(self) -> list[float]:
        return [line["loss"] for line in metric_lines(self.run_dir)]

    def wait_for_step(self, step: int) -> None:
        path = self.run_dir / "metrics.jsonl"
        wait_until(
            lambda: path.exists() and any(x["step"] >= step for x in metric_lines(self.run_dir)),
            f"step {step}", END_S,
        )  # fmt: skip

    def is_empty(self) -> bool:
        return not any(self.hosts.pids(number) for number in range(len(self.hosts.names)))


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Room]:
    with hosts(2) as made:
        yield Room(made, tmp_path)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Room]:
    with hosts(3) as made:
        yield Room(made, tmp_path)


def one_process(folder: Path, *words: str) -> list[float]:
    """Return the losses of the same run in one process."""
    run_dir = train_to_end(folder / "one", BASE, words, END_S)
    return [line["loss"] for line in metric_lines(run_dir)]


def flat(told: str) -> str:
    """Return the words of a panel in a line."""
    return " ".join(told.replace("│", " ").split())


def words_of(pid: int) -> bytes:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_two_hosts_train_what_one_process_does(two: Room) -> None:
    first, second = two.start_all("strategy=data", "strategy.zero=3")
    assert first.ended(END_S) == 0, first.err
    assert second.ended(30) == 0, second.err
    assert two.result()["status"] == "completed"
    assert "2 of 2 hosts, 2 processes; here is rank 0" in first.err
    assert two.losses() == pytest.approx(one_process(two.folder), rel=1e-10)
    plan = json.loads((two.run_dir / "plan.json").read_text())
    assert plan["nnodes"] == 2 and plan["nproc_per_node"] == 1
    assert two.is_empty()


def test_what_cannot_be_reached_is_named(two: Room) -> None:
    words = ("strategy=data", "launcher.connect_timeout_s=2")
    name = two.start(1, *words, endpoint="hots0:29500")
    port = two.start(1, *words, endpoint="host0:29555")
    silent = two.start(1, *words, endpoint="10.77.0.9:29500")
    for program, words in (
        (name, ("launcher.rdzv_endpoint=hots0:29500", "no host of the name 'hots0'")),
        (port, ("launcher.rdzv_endpoint=host0:29555", "nothing listens on port 29555")),
        (silent, ("launcher.rdzv_endpoint=10.77.0.9:29500", "does not answer")),
    ):
        assert program.ended(END_S) == 2
        assert all(word in flat(program.err) for word in words), program.err
        assert "Traceback" not in program.err
        assert program.err.startswith("waiting for the first host at "), program.err
    assert two.is_empty()


@SLOW
def test_within_thirty_seconds_by_default(two: Room) -> None:
    program = two.start(1, "strategy=data", endpoint="hots0:29500")
    began = time.monotonic()
    assert program.ended(60) == 2
    assert time.monotonic() - began < 30
    assert "tried for 20 s" in flat(program.err)


@SLOW
@pytest.mark.parametrize("backend", ["c10d", "static"])
def test_three_hosts_and_hybrid(three: Room, backend: str) -> None:
    words = (
        "strategy=hybrid", "strategy.pp=3", "strategy.tp=2", "launcher.nproc_per_node=2",
        "model.n_layers=3", "train.micro_batch_size=1", f"launcher.rdzv_backend={backend}",
    )  # fmt: skip
    started = [three.start(n, *words, f"launcher.node_rank={n}") for n in (2, 1, 0)]
    for program in started:
        assert program.ended(END_S) == 0, program.err
    one = one_process(three.folder, "model.n_layers=3")
    assert three.losses() == pytest.approx(one, rel=1e-9)
    assert "here are ranks 4 to 5, and rank 0's host shows the output" in started[0].err


@SLOW
def test_a_cable_out_for_five_seconds_delay_and_loss_change_nothing(two: Room) -> None:
    words = ("strategy=data", "train.steps=300", "train.hang_timeout_s=120")
    first, second = two.start_all(*words)
    two.wait_for_step(20)
    two.hosts.cut(1)
    time.sleep(5)
    before = len(two.losses())
    time.sleep(0.5)
    assert len(two.losses()) == before  # it did wait
    two.hosts.mend(1)
    two.wait_for_step(before + 10)
    two.hosts.hinder(1, delay_s=0.01, loss=0.02)
    two.wait_for_step(before + 40)
    two.hosts.hinder(1)
    assert first.ended(END_S) == 0, first.err
    assert second.ended(60) == 0, second.err
    assert two.hosts.switch.lost > 10
    assert two.losses() == pytest.approx(one_process(two.folder, "train.steps=300"), rel=1e-9)
    assert two.is_empty()


@SLOW
def test_a_host_that_is_gone_ends_the_run_within_the_limit(two: Room) -> None:
    words = ("strategy=data", "train.steps=100000", "train.hang_timeout_s=10")
    first, _ = two.start_all(*words)
    two.wait_for_step(20)
    two.hosts.kill(1)
    began = time.monotonic()
    assert first.ended(90) == 1
    assert time.monotonic() - began < 60
    assert "rank 1" in first.err
    assert two.result()["status"] == "failed"
    assert two.is_empty()


@SLOW
def test_the_others_go_on_without_a_host_that_is_gone(three: Room) -> None:
    words = (
        "strategy=data", "train.steps=400", "train.hang_timeout_s=10", "launcher.min_nodes=2",
        "launcher.max_restarts=3", "checkpoint.every_steps=20", "train.global_batch_size=12",
    )  # fmt: skip
    first, second, _ = three.start_all(*words)
    three.wait_for_step(45)
    three.hosts.kill(2)
    assert first.ended(END_S) == 0, first.err
    assert second.ended(60) == 0, second.err
    assert "going on with 2 processes" in first.err and "2 of 3 hosts" in first.err
    steps = [line["step"] for line in metric_lines(three.run_dir)]
    assert steps == list(range(1, 401))
    one = one_process(three.folder, "train.steps=400", "train.global_batch_size=12")
    assert three.losses() == pytest.approx(one, rel=1e-9)


@SLOW
def test_a_host_that_comes_back_takes_part_again(two: Room) -> None:
    words = (
        "strategy=data", "train.steps=1500", "train.hang_timeout_s=10", "launcher.min_nodes=1",
        "launcher.max_restarts=3", "checkpoint.every_steps=50",
    )  # fmt: skip
    first, second = two.start_all(*words)
    two.wait_for_step(60)
    for pid in two.hosts.pids(1):
        os.kill(pid, signal.SIGKILL)
    second.ended(30)
    wait_until(lambda: "going on with 1 processes" in first.err, "the first alone", END_S)
    again = two.start(1, *words)
    assert first.ended(END_S) == 0, first.err
    assert again.ended(60) == 0, again.err
    assert first.err.rindex("2 of 2 hosts") > first.err.index("1 of 2 hosts")
    one = one_process(two.folder, "train.steps=1500")
    assert two.losses() == pytest.approx(one, rel=1e-9)


@SLOW
def test_a_third_host_that_comes_back_is_taken_in_by_both_others(three: Room) -> None:
    words = (
        "strategy=data", "train.steps=100000", "train.hang_timeout_s=10", "launcher.min_nodes=2",
        "launcher.max_restarts=3", "checkpoint.every_steps=50", "train.global_batch_size=12",
    )  # fmt: skip
    first, second, third = three.start_all(*words)
    three.wait_for_step(60)
    for pid in three.hosts.pids(2):
        os.kill(pid, signal.SIGKILL)
    third.ended(30)
    wait_until(lambda: "going on with 2 processes" in first.err, "the first two", END_S)
    three.wait_for_step(max(line["step"] for line in metric_lines(three.run_dir)) + 5)
    again = three.start(2, *words)
    wait_until(lambda: "going on with 3 processes" in first.err, "all three", END_S)
    os.kill(min(three.hosts.pids(0)), signal.SIGTERM)
    for program in (first, second, again):
        assert program.ended(60) == 143, program.err
    steps = [line["step"] for line in metric_lines(three.run_dir)]
    assert steps == list(range(1, len(steps) + 1))


@SLOW
def test_the_first_host_is_gone(two: Room) -> None:
    words = ("strategy=data", "train.steps=100000", "train.hang_timeout_s=10")
    _, second = two.start_all(*words)
    two.wait_for_step(20)
    two.hosts.kill(0)
    assert second.ended(120) == 1
    assert two.is_empty()


@SLOW
def test_a_host_that_reaches_nobody_still_hears_a_signal(two: Room) -> None:
    words = ("strategy=data", "train.steps=100000", "checkpoint.grace_s=5")
    _, second = two.start_all(*words)
    two.wait_for_step(20)
    two.hosts.cut(1)
    os.kill(min(two.hosts.pids(1)), signal.SIGTERM)
    assert second.ended(90) == 143, second.err
    assert not two.hosts.pids(1)


@SLOW
def test_a_process_that_dies_has_all_start_again(two: Room) -> None:
    words = (
        "strategy=data", "train.steps=600", "launcher.max_restarts=2", "checkpoint.every_steps=20",
    )  # fmt: skip
    first, second = two.start_all(*words)
    two.wait_for_step(50)
    os.kill(next(p for p in two.hosts.pids(1) if b"llmtrain.worker" in words_of(p)), signal.SIGKILL)
    assert first.ended(END_S) == 0, first.err
    assert second.ended(60) == 0, second.err
    assert "started again, 1 of 2 times" in second.err
    one = one_process(two.folder, "train.steps=600")
    assert two.losses() == pytest.approx(one, rel=1e-9)


@SLOW
def test_the_first_host_is_the_one_that_was_named(two: Room) -> None:
    # Whose name comes first in the alphabet is not.
    named = two.start(1, "strategy=data", f"run_dir={two.run_dir}", endpoint="host1:29500")
    other = two.start(0, "strategy=data", endpoint="host1:29500")
    assert named.ended(END_S) == 0, named.err
    assert other.ended(60) == 0, other.err
    assert "completed at step 12/12" in named.err and "here is rank 1," in other.err


@SLOW
def test_a_stop_on_any_host_stops_all(two: Room) -> None:
    words = ("strategy=data", "train.steps=100000", "launcher.max_restarts=2")
    first, second = two.start_all(*words)
    two.wait_for_step(10)
    os.kill(min(two.hosts.pids(1)), signal.SIGTERM)
    for program in (second, first):
        assert program.ended(60) == 143, program.err
    assert two.result()["status"] == "preempted"
    step = two.result()["step"]
    assert (two.run_dir / "checkpoints" / f"step_{step:08d}").is_dir()
    assert two.is_empty()


@SLOW
def test_a_host_with_other_settings_is_refused(two: Room) -> None:
    first = two.start(0, "strategy=data")
    second = two.start(1, "strategy=data", "optimizer.lr=0.5")
    assert second.ended(60) == 2
    assert "other settings than the first" in flat(second.err)
    os.kill(min(two.hosts.pids(0)), signal.SIGTERM)
    assert first.ended(60) == 143, first.err


@SLOW
def test_all_that_came_say_who_is_missing(three: Room) -> None:
    words = ("strategy=data", "launcher.join_timeout_s=15", "train.global_batch_size=12")
    here = [three.start(number, *words) for number in (0, 1)]
    for program in here:
        assert program.ended(90) == 1
        assert "launcher.nnodes=3 hosts were waited for" in flat(program.err), program.err


@SLOW
def test_a_host_that_never_comes(two: Room) -> None:
    program = two.start(0, "strategy=data", "launcher.join_timeout_s=5")
    assert program.ended(60) == 1
    told = flat(program.err)
    assert "launcher.nnodes=2 hosts were waited for at host0:29500" in told
    assert "\nwaiting at host0:29500 for 2 hosts: 1 has come (host0)\n" in f"\n{program.err}"
    assert "1 came" in told and two.result()["status"] == "failed"
