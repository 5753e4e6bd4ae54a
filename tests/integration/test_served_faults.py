"""Runs with a server: what stops and deaths of replicas and servers do to them."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.runs import metric_lines
from tests.support.served import (
    EVERY,
    TWO,
    distance,
    end,
    newest_step,
    process,
    pushes,
    result,
    start,
    train,
)
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers through /proc"),
]

EXACT = {
    "ssp": ("sync=ssp", "sync.max_staleness=0"),
    "quorum_diloco": ("sync=quorum_diloco", "sync.sync_every_steps=5", "sync.quorum=2"),
}
"""Modes of two replicas whose numbers do not depend on who comes first."""
ALONE = {
    "async_local_sgd": ("sync=async_local_sgd", "sync.sync_every_steps=5",
                        "sync.outer_momentum=0.5", "sync.adapt_local_steps=false",
                        "sync.servers=2"),
    "easgd": ("sync=easgd", "sync.sync_every_steps=5", "sync.beta=0.5", "sync.servers=2"),
    "dc_asgd": ("sync=async_ps", "sync.compensation=dc_asgd_adaptive", "sync.servers=2"),
}  # fmt: skip
"""Modes whose numbers do, with one replica."""
CASES = {**{n: (*TWO, *w) for n, w in EXACT.items()},
         **{n: ("strategy=single", *w) for n, w in ALONE.items()}}  # fmt: skip
LONG = 96


@pytest.mark.slow
@pytest.mark.parametrize("mode", CASES)
def test_a_run_that_is_stopped_and_killed_goes_on_exactly(mode: str, tmp_path: Path) -> None:
    words = (*CASES[mode], "train.precision=fp32", "checkpoint.keep_last=100")
    straight = train(tmp_path / "straight", *words, steps=LONG)
    cut = tmp_path / "cut"
    launcher = start(cut, *words, steps=LONG)
    wait_until(lambda: newest_step(cut) >= EVERY, "the first checkpoint")
    launcher.send_signal(signal.SIGTERM)
    end(launcher)
    assert launcher.returncode == 143
    told = result(cut)
    assert told["status"] == "preempted" and EVERY <= told["step"] < LONG
    launcher = start(cut, *words, steps=LONG)
    wait_until(lambda: newest_step(cut) > told["step"] + EVERY, "a later checkpoint")
    launcher.kill()
    end(launcher)
    wait_until(lambda: process(cut, None) is None, "the server to die with its launcher")
    train(cut, *words, steps=LONG)
    assert distance(straight, cut) == 0.0
    assert distance(straight, cut, "") == 0.0
    keys = ("step", "loss", "grad_norm", "tokens")
    lines = [[[line[k] for k in keys] for line in metric_lines(run)] for run in (straight, cut)]
    # A line tells of the pushes since the line before; a stop's own line cuts one in two.
    kept = [[line for line in run if line[0] > told["step"] + 2 * EVERY] for run in lines]
    assert kept[0] == kept[1] and kept[0]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("servers", [1, 2])
def test_kill_minus_nine_of_one_of_three_replicas(servers: int, tmp_path: Path) -> None:
    run_dir, steps = tmp_path / "run", 400
    words = ("strategy=data", "launcher.nproc_per_node=3", "train.global_batch_size=12",
             "sync=async_ps", "checkpoint.every_steps=100", f"sync.servers={servers}")  # fmt: skip
    launcher = start(run_dir, *words, steps=steps)
    wait_until(lambda: newest_step(run_dir) >= 100, "the first checkpoint")
    victim = process(run_dir, 1)
    assert victim is not None
    others = [process(run_dir, replica) for replica in (0, 2)]
    os.kill(victim, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 0, said
    assert "replica 1 ended (killed by SIGKILL): started again" in said
    assert result(run_dir)["status"] == "completed" and result(run_dir)["step"] == steps
    log = pushes(run_dir)
    left = [i for i, line in enumerate(log) if line["kind"] == "leave" and line["worker"] == 1]
    back = [i for i, line in enumerate(log) if line["kind"] == "join" and line["worker"] == 1][1]
    meanwhile = [line["worker"] for line in log[left[0] : back] if line["kind"] == "push"]
    assert {0, 2} <= set(meanwhile) and 1 not in meanwhile, "the others did not go on"
    assert any(line["worker"] == 1 for line in log[back + 1 :] if line["kind"] == "push")
    assert all(other is not None for other in others)
    # Every update is there once: tickets without a gap, and as many as the tokens say.
    tickets = [line["ticket"] for line in log if line["kind"] == "push"]
    assert tickets == list(range(1, len(tickets) + 1))
    push_tokens = 12 * 16 // 3
    assert steps * 3 <= len(tickets) <= steps * 3 + 2  # those under way at the end do not count
    assert result(run_dir)["tokens"] == steps * 3 * push_tokens


@pytest.mark.slow
@pytest.mark.chaos
def test_a_replica_that_keeps_dying_is_done_without(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = (*TWO, "sync=async_local_sgd", "sync.sync_every_steps=2", "sync.max_restarts=0")
    launcher = start(run_dir, *words, steps=400)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    os.kill(process(run_dir, 0) or 0, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 0, said
    assert "the others go on without it" in said
    assert result(run_dir)["status"] == "completed"
    # Replica 1 has led since, and the checkpoint says whose optimizers it has.
    newest = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["sync"]["saved_replicas"] == [1]
    train(run_dir, *words, steps=420)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize(
    "servers, victim, name",
    [
        (1, 0, "the server"),
        (2, 0, "server 0"),
        (2, 1, "server 1"),
    ],
)
def test_a_server_that_dies_is_told_and_its_checkpoint_goes_on(
    servers: int, victim: int, name: str, tmp_path: Path
) -> None:
    words = (*TWO, *EXACT["ssp"], "train.precision=fp32", f"sync.servers={servers}")
    straight = train(tmp_path / "straight", *words, steps=LONG)
    run_dir = tmp_path / "run"
    launcher = start(run_dir, *words, steps=LONG)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    os.kill(process(run_dir, None, victim) or 0, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 1
    assert f"{name} failed" in said and "SIGKILL" in said and "newest checkpoint" in said
    assert "Traceback" not in said
    told = result(run_dir)
    assert told["status"] == "failed" and "server" in told["error"]
    assert process(run_dir, 0) is None and process(run_dir, 1) is None
    assert all(process(run_dir, None, server) is None for server in range(servers))
    train(run_dir, *words, steps=LONG)
    assert distance(straight, run_dir, "") == 0.0


@pytest.mark.slow
def test_a_grace_ends_and_frees_those_who_wait(tmp_path: Path) -> None:
    """One stands still: the other's rounds close with their grace, long before it is dead."""
    run_dir = tmp_path / "run"
    words = (*TWO, "sync=quorum_diloco", "sync.sync_every_steps=2", "sync.quorum=1",
             "sync.grace_s=0.3", "sync.dead_after_s=60", "checkpoint.every_steps=null")  # fmt: skip
    launcher = start(run_dir, *words, steps=3000)
    wait_until(lambda: (run_dir / "pushes.jsonl").exists() and len(pushes(run_dir)) > 10, "pushes")
    victim = process(run_dir, 1) or 0
    os.kill(victim, signal.SIGSTOP)
    time.sleep(0.5)  # what it has sent is taken in
    size = len(pushes(run_dir))
    wait_until(lambda: len(pushes(run_dir)) >= size + 4, "rounds without it")
    assert {line["worker"] for line in pushes(run_dir)[size:]} == {0}
    os.kill(victim, signal.SIGCONT)
    launcher.send_signal(signal.SIGTERM)
    said = end(launcher)
    assert launcher.returncode == 143, said


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 2])
def test_a_replica_that_stands_still_counts_as_dead_and_joins_again(
    servers: int, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = (*TWO, "sync=async_ps", "sync.dead_after_s=3", f"sync.servers={servers}")
    launcher = start(run_dir, *words, steps=3000)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    victim = process(run_dir, 1) or 0
    os.kill(victim, signal.SIGSTOP)
    size = len(pushes(run_dir))
    # Rests wait for it until it is dead; then the other goes on alone.
    wait_until(lambda: len(pushes(run_dir)) > size + 3 * EVERY, "the other to go on")
    os.kill(victim, signal.SIGCONT)
    wait_until(
        lambda: [line["kind"] for line in pushes(run_dir) if line["worker"] == 1].count("join") > 1,
        "it to join again",
    )
    launcher.send_signal(signal.SIGTERM)
    said = end(launcher)
    assert launcher.returncode == 143, said
    assert result(run_dir)["status"] == "preempted"


@pytest.mark.slow
@pytest.mark.chaos
def test_one_that_cannot_be_started_ends_a_run_that_has_not_begun(tmp_path: Path) -> None:
    """All are waited for before training begins: without it that would be for ever."""
    run_dir = tmp_path / "run"
    launcher = start(run_dir, *TWO, "sync=async_ps", "sync.max_restarts=0")
    wait_until(lambda: process(run_dir, 1), "the replica's process")
    os.kill(process(run_dir, 1) or 0, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 1, said
    assert "SIGKILL" in said and "go on without it" not in said
    assert result(run_dir)["status"] == "failed"


@pytest.mark.slow
@pytest.mark.chaos
def test_too_few_replicas_end_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = (*TWO, "sync=async_ps", "sync.max_restarts=0", "sync.min_replicas=2")
    launcher = start(run_dir, *words, steps=5000)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    os.kill(process(run_dir, 1) or 0, signal.SIGKILL)
    said = end(launcher)
    assert launcher.returncode == 1, said
    assert result(run_dir)["status"] == "failed" and newest_step(run_dir) >= EVERY


@pytest.mark.slow
def test_a_signal_to_one_replica_stops_the_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    launcher = start(run_dir, *TWO, "sync=async_ps", "sync.servers=2", steps=5000)
    wait_until(lambda: newest_step(run_dir) >= EVERY, "the first checkpoint")
    os.kill(process(run_dir, 1) or 0, signal.SIGTERM)
    said = end(launcher)
    assert launcher.returncode == 143, said
    told = result(run_dir)
    assert told["status"] == "preempted" and told["step"] >= EVERY
    newest = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    assert int(newest.name.split("_")[1]) == told["step"]
