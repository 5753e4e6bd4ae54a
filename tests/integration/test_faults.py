"""Stops and deaths in every phase: real processes, real signals, and the next start goes on."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.integration.test_launch import TINY, TWO, Stage, rank_processes
from tests.support.processes import workers
from tests.support.runs import metric_lines, validation_losses
from tests.support.waiting import eventually, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

LONG = ("train.steps=1000000", "train.log_every_steps=1", "checkpoint.every_steps=null",
        "train.eval_every_steps=null")  # fmt: skip

SLOW_DISK = """
# A disk whose every fsync takes {seconds} s once `slow` stands beside this file.
import os, pathlib, time
_fsync = os.fsync
def fsync(descriptor):
    if (pathlib.Path(__file__).parent / "slow").exists():
        time.sleep({seconds})
    _fsync(descriptor)
os.fsync = fsync
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    for pid in stage.processes():
        os.kill(pid, signal.SIGKILL)


def start_on_slow_disk(stage: Stage, seconds: float, *words: str) -> subprocess.Popen[str]:
    site = stage.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW_DISK.format(seconds=seconds))
    env = {**os.environ, "LLMTRAIN_CACHE": str(stage.folder / "cache")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), env.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "llmtrain", "train", *TINY, f"run_dir={stage.run_dir}", *words],
        cwd=stage.folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def steps(stage: Stage) -> list[int]:
    try:
        return [line["step"] for line in metric_lines(stage.run_dir)]
    except (OSError, ValueError):
        return []


def checkpoints(stage: Stage) -> list[str]:
    return sorted(p.name for p in (stage.run_dir / "checkpoints").glob("step_*[0-9]"))


def preempted(stage: Stage, process: subprocess.Popen[str], within_s: float) -> str:
    """Wait for the end of a run that was asked to stop; return what it said."""
    asked = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert time.monotonic() - asked < within_s
    assert "Traceback" not in err
    assert stage.result()["status"] == "preempted"
    assert stage.processes() == []
    return err


def completes(stage: Stage, *words: str) -> str:
    again = stage.start("", *words)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    return err


# Stops. That of a start is in test_launch.py, that between steps there and in test_kill.py.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sent"),
    [
        pytest.param(TWO, signal.SIGUSR1, id="two, SIGUSR1"),
        pytest.param((), signal.SIGTERM, id="one"),
        pytest.param((*TWO, "sync=ssp"), signal.SIGTERM, id="with a server"),
        pytest.param(
            (*TWO, "sync=diloco", "sync.sync_every_steps=2"), signal.SIGTERM, id="apart"
        ),
        pytest.param(("strategy=pipeline", "strategy.pp=2"), signal.SIGTERM, id="pipeline"),
    ],
)  # fmt: skip
def test_an_evaluation_is_left_when_a_stop_is_asked_for(
    stage: Stage, words: tuple[str, ...], sent: signal.Signals
) -> None:
    # Thousands of batches of one sequence: a minute or more, if it were not left.
    much = ("data.documents=1500", "data.val_ratio=0.9", "train.micro_batch_size=1",
            "model.n_layers=8", "model.dim=256")  # fmt: skip
    train = (*words, *much, "train.steps=4", "train.eval_every_steps=4", "train.log_every_steps=1",
             "checkpoint.every_steps=null")  # fmt: skip
    process = stage.start("", *train, "train.eval_tokens=null")
    wait_until(lambda: steps(stage)[-1:] == [4], "the step before the evaluation")
    time.sleep(1.0)
    process.send_signal(sent)
    preempted(stage, process, within_s=20.0)
    assert stage.result()["step"] == 4 and validation_losses(stage.run_dir) == []
    assert checkpoints(stage) == ["step_00000004"]
    completes(stage, *train)
    assert [step for step, _, _ in validation_losses(stage.run_dir)] == [4]
    assert steps(stage) == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), TWO], ids=["one", "two"])
def test_a_stop_while_a_checkpoint_is_written_ends_with_that_one(
    stage: Stage, words: tuple[str, ...]
) -> None:
    every = (*words, *LONG[:2], "train.eval_every_steps=null", "checkpoint.every_steps=5")
    process = start_on_slow_disk(stage, 1.0, *every)
    wait_until(lambda: len(steps(stage)) > 1, "the first steps")
    (stage.folder / "site" / "slow").touch()
    staging = (stage.run_dir / "checkpoints").glob
    wait_until(lambda: list(staging("step_*.tmp")), "a checkpoint that is being written")
    process.send_signal(signal.SIGTERM)
    preempted(stage, process, within_s=30.0)
    step = stage.result()["step"]
    assert step % 5 == 0 and checkpoints(stage)[-1] == f"step_{step:08d}"
    (stage.folder / "site" / "slow").unlink()
    assert f"step_{step:08d}" in completes(stage, *every, f"train.steps={step + 2}")
    assert steps(stage) == list(range(1, step + 3))


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), TWO], ids=["one", "two"])
def test_a_checkpoint_that_takes_longer_than_the_grace_is_left(
    stage: Stage, words: tuple[str, ...]
) -> None:
    every = (*words, *LONG[:2], "train.eval_every_steps=null", "checkpoint.every_steps=5")
    process = start_on_slow_disk(stage, 60.0, *every, "checkpoint.grace_s=2")
    wait_until(lambda: checkpoints(stage), "the first checkpoint")
    (stage.folder / "site" / "slow").touch()
    process.send_signal(signal.SIGTERM)
    err = preempted(stage, process, within_s=15.0)
    assert "checkpoint.grace_s=2 is over" in err and "goes on from its newest checkpoint" in err
    kept = checkpoints(stage)
    assert stage.result()["step"] == int(kept[-1][5:]) and "grace" in stage.result()["error"]
    (stage.folder / "site" / "slow").unlink()
    step = int(kept[-1][5:]) + 2
    assert kept[-1] in completes(stage, *every, f"train.steps={step}")
    assert steps(stage) == list(range(1, step + 1))


@pytest.mark.slow
def test_a_second_ctrl_c_while_a_checkpoint_is_written_ends_at_once(stage: Stage) -> None:
    process = start_on_slow_disk(stage, 60.0, *LONG)
    wait_until(lambda: len(steps(stage)) > 1, "the first steps")
    (stage.folder / "site" / "slow").touch()
    (worker,) = workers(stage.run_dir)
    os.kill(worker, signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    os.kill(worker, signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert stage.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), TWO], ids=["one", "two"])
@pytest.mark.parametrize("helpers", [1, 2])
def test_a_stop_while_data_is_prepared(stage: Stage, words: tuple[str, ...], helpers: int) -> None:
    much = (*words, "data.documents=200000", f"data.processes={helpers}", "train.steps=2")
    process = stage.start("", *much)
    cache = stage.folder / "cache"
    wait_until(lambda: list(cache.rglob("*.work/*")), "the first prepared unit")
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    err = preempted(stage, process, within_s=10.0)
    assert "nothing to save" in err
    assert not list(stage.run_dir.glob("checkpoints/step_*"))
    completes(stage, *words, "train.steps=2")


# Deaths.


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG")
@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [(), TWO, (*TWO, "sync=ssp"), ("launcher.max_restarts=3",)],
    ids=["one", "two", "with a server", "restarts"],
)  # fmt: skip
def test_all_are_gone_ten_seconds_after_the_launcher_was_killed(
    stage: Stage, words: tuple[str, ...]
) -> None:
    process = stage.start("", *words, *LONG)
    wait_until(lambda: len(steps(stage)) > 1, "the first steps")
    process.kill()
    process.communicate(timeout=10)
    assert eventually(lambda: stage.processes() == [], deadline_s=10.0)
    completes(stage, *words, "train.steps=3")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG")
@pytest.mark.slow
def test_helpers_of_prepare_are_gone_when_the_launcher_was_killed(stage: Stage) -> None:
    env = {**os.environ, "LLMTRAIN_CACHE": str(stage.folder / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtrain", "prepare", "data=synthetic", "tokenizer=byte",
         "data.documents=300000", "data.processes=3"],
        cwd=stage.folder, env=env, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def descendants() -> list[int]:
        ours = f"LLMTRAIN_CACHE={stage.folder / 'cache'}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if not dead and ours in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    wait_until(lambda: len(descendants()) >= 4, "the launcher, a worker and two helpers")
    process.kill()
    process.wait()
    assert eventually(lambda: descendants() == [], deadline_s=10.0)


def test_a_start_waits_for_orphans_and_refuses_to_meet_them(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmtrain.errors import ConfigError
    from llmtrain.launch import claim

    (tmp_path / "logs").mkdir()
    body = "import sys, pathlib, time; from llmtrain.launch.claim import hold\n"
    body += "hold(pathlib.Path(sys.argv[1])); print('holds', flush=True); time.sleep(600)"
    orphan = subprocess.Popen(
        [sys.executable, "-c", body, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert orphan.stdout is not None and orphan.stdout.readline() == "holds\n"
    monkeypatch.setattr(claim, "ORPHANS_S", 0.5)
    with pytest.raises(ConfigError, match="still live"), claim.claimed(tmp_path):
        pass
    monkeypatch.setattr(claim, "ORPHANS_S", 60.0)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {orphan.pid}"])
    with claim.claimed(tmp_path):
        assert orphan.wait(timeout=5) == -signal.SIGKILL
    assert killer.wait(timeout=5) == 0


def test_workers_hold_the_run_directory(stage: Stage) -> None:
    process = stage.start("", *TWO, *LONG)
    wait_until(lambda: len(rank_processes(stage)) == 2, "two workers")
    wait_until(lambda: len(steps(stage)) > 0, "the first step")
    with (stage.run_dir / "logs" / "workers.lock").open("r+") as stream:
        with pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.communicate(timeout=10)
        # A process that ends loses its command line first, and its locks a little later.
        wait_until(lambda: is_free(stream), "the workers' lock", deadline_s=10.0)


def is_free(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# Restarts.


def test_a_dead_rank_is_started_again_with_all_others(stage: Stage) -> None:
    body = """
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
(run_dir / "metrics.jsonl").write_text(json.dumps({"step": 10 * attempt}) + "\\n")
if attempt < 2 and rank == 1:
    print(f"the last words of attempt {attempt}", file=sys.stderr, flush=True)
    if attempt:
        fail("ZeroDivisionError", "the second", 1)
    os.kill(os.getpid(), signal.SIGKILL)
if attempt < 2:
    wait()
"""
    process = stage.start(body, *TWO, "launcher.max_restarts=5")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    told = err.splitlines()
    assert len(told) == 2 and "killed by SIGKILL" in told[0] and "2 of 5 times" in told[1]
    logs = stage.run_dir / "logs"
    assert "words of attempt 1" in (logs / "attempt_2" / "rank_1.err").read_text()
    assert "the second" in (logs / "attempt_2" / "failure_rank_1.json").read_text()
    assert len((logs / "attempts.jsonl").read_text().splitlines()) == 2


def test_a_mistake_is_not_started_again(stage: Stage) -> None:
    body = """
if rank == 0:
    print("one panel", file=sys.stderr, flush=True)
    (run_dir / f"try_{time.time()}").touch()
fail("DataError", "the corpus is empty", 2, user_error=True)
"""
    process = stage.start(body, *TWO, "launcher.max_restarts=5")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("one panel") == 1 and len(list(stage.run_dir.glob("try_*"))) == 1


def test_a_run_that_always_dies_at_the_same_step_ends_early(stage: Stage) -> None:
    body = "(run_dir / f'try_{time.time()}').touch()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    process = stage.start(body, "launcher.max_restarts=50")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "died at the same step" in err and err.count("╭") == 1
    assert len(list(stage.run_dir.glob("try_*"))) == 3
    assert stage.result()["status"] == "failed"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_that_was_started_again(stage: Stage, sent: signal.Signals) -> None:
    body = """
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    fail("ZeroDivisionError", "once", 1)
(run_dir / "again").touch()
wait()
"""
    process = stage.start(body, "launcher.max_restarts=5")
    stage.wait_for("again")
    time.sleep(0.3)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if sent == signal.SIGINT else 143), err
    assert stage.result()["status"] == ("stopped" if sent == signal.SIGINT else "preempted")
    assert stage.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "victim"),
    [((), "0"), (TWO, "1"), ((*TWO, "strategy.zero=3"), "0")], ids=["one", "two", "zero 3"],
)  # fmt: skip
def test_killed_ranks_are_started_again_and_compute_the_same(
    stage: Stage, tmp_path: Path, words: tuple[str, ...], victim: str
) -> None:
    train = (*words, "train.steps=600", "train.log_every_steps=1", "checkpoint.every_steps=40",
             "train.eval_every_steps=200", "train.precision=fp64")  # fmt: skip
    straight = Stage(tmp_path / "straight")
    straight.folder.mkdir()
    completes(straight, *train)
    process = stage.start("", *train, "launcher.max_restarts=5")
    for past in (50, 250):
        wait_until(lambda past=past: steps(stage)[-1:] > [past], f"step {past}")
        victims = rank_processes(stage)
        os.kill(victims.get(victim) or workers(stage.run_dir)[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("started again") == 2
    lines = [json.loads(line) for line in (stage.run_dir / "logs" / "attempts.jsonl").open()]
    assert len(lines) == 2 and all(line["step"] for line in lines)
    for told in (metric_lines, validation_losses):
        results = []
        for each in (straight, stage):
            keys = ("step", "loss", "grad_norm", "lr", "tokens")
            found = told(each.run_dir)
            results.append([[x[k] for k in keys] if isinstance(x, dict) else x for x in found])
        assert results[0] == results[1]
