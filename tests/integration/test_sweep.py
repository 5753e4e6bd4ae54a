"""Sweeps with processes: several at once, stopped, killed, resumed, searched."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.machine import usable_cores
from tests.support.leftovers import open_ports, orphaned_memory, ports, shared_memory
from tests.support.sweeps import Sweeps, await_statuses, finish
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

SLOW = pytest.mark.slow

TINY = [
    "model.n_layers=1", "model.dim=32", "model.n_heads=2", "model.seq_len=32", "tokenizer=byte",
    "data=synthetic", "data.documents=40", "train.global_batch_size=4", "train.eval_tokens=256",
    "train.sample_tokens=0", "scheduler.warmup_steps=1", "metrics.peak_tflops=1",
    "train.device=cpu",
]  # fmt: skip


@pytest.fixture
def sweeps(tmp_path: Path) -> Iterator[Sweeps]:
    sweeps = Sweeps(tmp_path)
    yield sweeps
    sweeps.close()


@pytest.fixture
def acted(sweeps: Sweeps) -> Sweeps:
    """With workers that end when they are told to."""
    sweeps.stand_in()
    return sweeps


HOLDER = """
import mmap, os, socket
path = "/dev/shm/llmtrain_test_%d" % os.getpid()
with open(path, "wb+") as stream:
    stream.truncate(4096)
    held = mmap.mmap(stream.fileno(), 4096)
listener = socket.create_server(("127.0.0.1", 0))
print(os.path.basename(path), listener.getsockname()[1], flush=True)
input()
"""


def test_what_a_sweep_leaves_is_found(sweeps: Sweeps) -> None:
    memory = shared_memory()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLDER], env=sweeps.env, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        name, port = holder.stdout.readline().split()
        # Known by its environment alone.
        assert sweeps.processes() == [holder.pid]
        assert ports([holder.pid]) == {int(port)} <= open_ports()
        assert name not in orphaned_memory(memory)
        sweeps.close()
    try:
        assert sweeps.processes() == [] and int(port) not in open_ports()
        assert name in orphaned_memory(memory)
    finally:
        Path("/dev/shm", name).unlink()
    assert name not in orphaned_memory(memory)


def test_two_jobs_at_once_share_the_machine(acted: Sweeps) -> None:
    process = acted.start("-m", "sweep.parallel=2", "train.device=cpu", "train.seed=1,2,3,4")
    wait_until(lambda: acted.jobs() and acted.starts(0) and acted.starts(1), "two jobs")
    assert acted.statuses() == ["running", "running", "not started", "not started"]
    acted.end(2, "0.5")
    await_statuses(acted, ["running", "completed", "running", "not started"])
    acted.end(1, "fail")
    for seed, loss in ((3, "2.5"), (4, "1.5")):
        acted.end(seed, loss)
    out, err = finish(process, 1)
    assert acted.statuses() == ["failed", "completed", "completed", "completed"]
    assert [job["rank"] for job in acted.jobs()] == [None, 1, 3, 2]
    order = [seed for line in out.splitlines() for seed in "1234" if f"train.seed={seed} " in line]
    assert order == ["2", "4", "3", "1"]  # the best first
    assert "job 0 failed" in err and "rank 0: exit code 1" in err
    assert f"sweep.resume={acted.sweep()}" in err
    share = max(1, usable_cores() // 2)
    assert acted.starts(3) == [{"cores": share, "threads": str(share)}]
    assert acted.processes() == []

    # A job that failed goes on where it was; those that are done are not repeated.
    acted.end(1, "3.5")
    _, err = finish(acted.start("-m", f"sweep.resume={acted.sweep()}", "sweep.parallel=1"), 0)
    assert "job 0 failed before, and is tried again" in err
    assert [len(acted.starts(number)) for number in range(4)] == [2, 1, 1, 1]
    assert [job["rank"] for job in acted.jobs()] == [4, 1, 3, 2]


@SLOW
def test_ctrl_c_saves_what_runs_and_the_rest_is_for_later(acted: Sweeps) -> None:
    process = acted.start("-m", "sweep.parallel=2", "train.device=cpu", "train.seed=range(1,6)")
    wait_until(lambda: acted.jobs() and acted.starts(0) and acted.starts(1), "two jobs")
    acted.end(1, "1")
    wait_until(lambda: acted.starts(2), "the third job")
    process.send_signal(signal.SIGINT)
    out, _ = finish(process, 130)
    assert acted.statuses() == ["completed", "stopped", "stopped", "not started", "not started"]
    assert out.count("not started") == 2
    assert acted.processes() == []
    for seed in range(2, 6):
        acted.end(seed, str(seed))
    finish(acted.start(f"sweep.resume={acted.sweep()}"), 0)  # implies -m
    assert [len(acted.starts(number)) for number in range(5)] == [1, 2, 2, 1, 1]
    assert acted.statuses() == ["completed"] * 5


def test_a_sweep_that_is_killed_loses_nothing(acted: Sweeps) -> None:
    words = ["-m", "sweep.parallel=2", "train.device=cpu", "train.seed=1,2,3"]
    process = acted.start(*words)
    wait_until(lambda: acted.jobs() and acted.starts(0) and acted.starts(1), "two jobs")
    acted.end(1, "1")
    await_statuses(acted, ["completed", "running", "running"])
    refused = acted.start("-m", f"sweep.resume={acted.sweep()}")
    _, err = finish(refused, 2)
    assert "is in use" in err
    process.kill()
    process.communicate()
    wait_until(lambda: acted.processes() == [], "the end of all its processes")
    acted.end(2, "2")
    acted.end(3, "3")
    finish(acted.start("-m", f"sweep.resume={acted.sweep()}"), 0)
    assert acted.statuses() == ["completed"] * 3
    assert len(acted.starts(0)) == 1 and len(acted.starts(1)) == 2


@SLOW
def test_sigterm_preempts_all_jobs(acted: Sweeps) -> None:
    process = acted.start("-m", "sweep.parallel=2", "train.device=cpu", "train.seed=1,2")
    wait_until(lambda: acted.jobs() and acted.starts(0) and acted.starts(1), "two jobs")
    process.send_signal(signal.SIGTERM)
    _, err = finish(process, 143)
    assert "told to end: saving and stopping 2 jobs" in err and "Ctrl-C" not in err
    assert acted.statuses() == ["preempted", "preempted"]


def test_a_sweep_is_cancelled(acted: Sweeps) -> None:
    process = acted.start("-m", "sweep.parallel=2", "train.device=cpu", "train.seed=1,2,3")
    wait_until(lambda: acted.jobs() and acted.starts(0) and acted.starts(1), "two jobs")
    cancelled = subprocess.run(
        [sys.executable, "-m", "llmtrain", "cancel", str(acted.sweep())], env=acted.env,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert cancelled.returncode == 0, cancelled.stderr
    assert f"process {process.pid} on " in cancelled.stderr
    assert "has ended: 3 jobs: 2 preempted, 1 not started. To go on: " in cancelled.stderr
    assert cancelled.stderr.endswith(f"sweep.resume={acted.sweep()}\n")
    _, err = finish(process, 143)
    assert "told to end: saving and stopping 2 jobs" in err and "Ctrl-C" not in err
    assert acted.statuses() == ["preempted", "preempted", "not started"]
    assert acted.processes() == []


@SLOW
def test_six_jobs_of_two_processes_stopped_in_the_third(sweeps: Sweeps) -> None:
    """Real jobs: clean run directories, nothing left of them, and the rest done later."""
    memory = shared_memory()
    seeds = "train.seed=range(1,7)"
    long = ["train.steps=400", "train.log_every_steps=1", "strategy=data", "checkpoint.keep_last=1"]
    process = sweeps.start("-m", *TINY, *long, seeds)
    third = "sweeps/default/*/2/metrics.jsonl"
    wait_until(lambda: any("loss" in p.read_text() for p in sweeps.folder.glob(third)), "job 2")
    used = ports(sweeps.processes())
    assert used  # two processes have to meet somewhere
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    assert sweeps.statuses() == ["completed"] * 2 + ["stopped"] + ["not started"] * 3
    stopped = json.loads((sweeps.sweep() / "2" / "result.json").read_text())
    assert 0 < stopped["step"] < 400
    assert sweeps.processes() == []
    assert not used & open_ports() and not orphaned_memory(memory)

    finished = [(sweeps.sweep() / str(n) / "metrics.jsonl").stat().st_mtime_ns for n in (0, 1)]
    finish(sweeps.start("-m", f"sweep.resume={sweeps.sweep()}", "sweep.parallel=2"), 0, 600)
    assert sweeps.statuses() == ["completed"] * 6
    for number in range(6):
        run_dir = sweeps.sweep() / str(number)
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        # One run from the first step to the last, also where it was stopped in between.
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 401))
        assert json.loads((run_dir / "result.json").read_text())["status"] == "completed"
        assert json.loads((run_dir / "plan.json").read_text())["world_size"] == 2
        assert not list(run_dir.glob("**/*.tmp")) and not list(run_dir.glob("config.1.yaml"))
        assert (run_dir / "logs" / "rank_1.log").is_file()
    assert finished == [
        (sweeps.sweep() / str(n) / "metrics.jsonl").stat().st_mtime_ns for n in (0, 1)
    ]
    assert sweeps.processes() == []
    assert not used & open_ports() and not orphaned_memory(memory)


@SLOW
def test_a_search_gives_up_bad_runs_and_goes_on_when_it_is_killed(sweeps: Sweeps) -> None:
    pytest.importorskip("optuna", reason="needs the extra llmtrain[optuna]")
    words = [
        "-m", *TINY, "sweep.sampler=random", "sweep.trials=4", "sweep.pruner=median",
        "sweep.startup_trials=1", "sweep.seed=1", "train.steps=1500", "train.eval_every_steps=25",
        "train.log_every_steps=25", "optimizer.lr=choice(1e-3,1e-7)", "sweep.parallel=2",
    ]  # fmt: skip
    # The seed draws a good rate, a bad one, another bad one, and a good one.
    process = sweeps.start(*words)
    wait_until(lambda: "completed" in sweeps.statuses(), "a job that is done", 400)
    wait_until(lambda: "running" in sweeps.statuses(), "a job that runs")
    process.kill()
    process.communicate()
    wait_until(lambda: sweeps.processes() == [], "the end of all its processes")
    drawn = [job["given"] for job in sweeps.jobs()]
    out, _ = finish(sweeps.start("-m", f"sweep.resume={sweeps.sweep()}"), 0, 900)
    jobs = sweeps.jobs()
    assert [job["given"] for job in jobs][: len(drawn)] == drawn and len(jobs) == 4
    assert {job["status"] for job in jobs} == {"completed", "pruned"}
    best = min((job for job in jobs if job["val_loss"]), key=lambda job: job["val_loss"])
    assert best["rank"] == 1 and best["given"] == ["optimizer.lr=0.001"]
    pruned = [job for job in jobs if job["status"] == "pruned"]
    for job in pruned:
        assert job["given"] == ["optimizer.lr=1e-07"] and job["step"] < 1500
        assert job["val_loss"] > best["val_loss"]
    # What it had learned was saved, but where the metrics of an earlier start said enough.
    assert any(list((Path(job["run_dir"]) / "checkpoints").glob("step_*")) for job in pruned)
    assert out.count("pruned") == len(pruned)
