"""Processes: started, stopped, killed. Workers that die are stand-ins, so that they die on cue."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

SLOW = pytest.mark.slow

LLMTRAIN = Path(sys.executable).with_name("llmtrain")

TINY = [
    "model.n_layers=1", "model.dim=32", "model.n_heads=2", "model.seq_len=32", "tokenizer=byte",
    "data=synthetic", "data.documents=40", "train.global_batch_size=4", "train.eval_tokens=256",
    "train.sample_tokens=0", "scheduler.warmup_steps=1", "metrics.peak_tflops=1",
]  # fmt: skip

SITE = """
# Puts the stand-in `worker.py` beside this file in the place of llmtrain's.
import os, pathlib, llmtrain
llmtrain.__path__.insert(0, str(pathlib.Path(__file__).parent / "stand_in"))
"""

WORKER = """
import json, os, pathlib, signal, sys, time
from llmtrain.lifeline import die_with_parent
die_with_parent()
rank = int(os.environ.get("RANK", 0))
run_dir = pathlib.Path(sys.argv[1])
log = run_dir / "logs" / f"rank_{rank}.log"
told = []
signal.signal(signal.SIGINT, lambda *_: told.append(130))
signal.signal(signal.SIGTERM, lambda *_: told.append(143))
# Renamed, so that who sees the file sees what is in it.
(run_dir / f"starting_{rank}").write_text(str(os.getpid()))
(run_dir / f"starting_{rank}").rename(run_dir / f"started_{rank}")

def fail(kind, message, code, user_error=False, lost_peer=False):
    failure = {"rank": rank, "time": time.time(), "type": kind, "message": message,
               "exit_code": code, "user_error": user_error, "lost_peer": lost_peer}
    (run_dir / "logs" / f"failure_rank_{rank}.json").write_text(json.dumps(failure))
    sys.exit(code)

def wait():
    while not told:
        time.sleep(0.02)
    sys.exit(told[0])

"""


class Stage:
    """A folder with a stand-in worker, and what has been started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"

    def start(self, body: str, *words: str) -> subprocess.Popen[str]:
        """Start `llmtrain train` with workers that do `body`; "": the real ones."""
        env = {**os.environ, "LLMTRAIN_CACHE": str(self.folder / "cache")}
        if body:
            site = self.folder / "site"
            (site / "stand_in").mkdir(parents=True)
            (site / "sitecustomize.py").write_text(SITE)
            (site / "stand_in" / "worker.py").write_text(WORKER + body)
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), env.get("PYTHONPATH")]))
        return subprocess.Popen(
            [LLMTRAIN, "train", *TINY, f"run_dir={self.run_dir}", *words],
            cwd=self.folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def result(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "result.json").read_text())

    def processes(self, module: str = "") -> list[int]:
        """Return every live process of this run, or those that run `module`.

        Whatever a process starts has its own command line until it has become something else.
        """
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            ours = str(self.run_dir) in words or f"run_dir={self.run_dir}" in words
            if entry.name.isdigit() and ours and state != "Z" and (not module or module in words):
                found.append(int(entry.name))
        return found

    def wait_for(self, *names: str) -> None:
        assert eventually(lambda: all((self.run_dir / name).exists() for name in names))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    # What a failed test leaves behind would slow down all that follow.
    for pid in stage.processes():
        os.kill(pid, signal.SIGKILL)


TWO = ("strategy=data", "launcher.nproc_per_node=2")


def test_a_rank_that_fails_is_the_one_that_is_told(stage: Stage) -> None:
    body = """
log.write_text("".join(f"rank {rank} line {n}\\n" for n in range(30)))
if rank == 1:
    time.sleep(0.3)
    fail("ZeroDivisionError", "the loss of step 7", 1)
wait()
"""
    process = stage.start(body, *TWO)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("╭") == 1 and "Traceback" not in err and "torch/distributed" not in err
    for part in ("rank 1 failed", "ZeroDivisionError: the loss of step 7", "rank 1 line 29"):
        assert part in err
    assert "rank 0 line" not in err
    assert stage.result()["status"] == "failed"
    assert "the loss of step 7" in stage.result()["error"]
    assert stage.processes() == []


def test_a_killed_rank_is_blamed_not_its_peer(stage: Stage) -> None:
    body = """
gone = log.parent / "gone"
if rank == 1:
    gone.touch()
    os.kill(os.getpid(), signal.SIGKILL)
while not gone.exists():
    time.sleep(0.01)
time.sleep(0.05)
fail("RuntimeError", "Connection closed by peer", 1, lost_peer=True)
"""
    process = stage.start(body, *TWO)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "rank 1 failed" in err and "SIGKILL" in err and "out-of-memory" in err


def test_what_a_dying_rank_printed_is_shown(stage: Stage) -> None:
    body = """
if rank == 1:
    print("fatal: native code says goodbye", file=sys.stderr, flush=True)
    os.abort()
wait()
"""
    process = stage.start(body, *TWO)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "SIGABRT" in err and "native code says goodbye" in err


def test_a_users_mistake_in_the_workers_is_told_once(stage: Stage) -> None:
    body = """
if rank == 0:
    print("one panel", file=sys.stderr, flush=True)
fail("DataError", "the corpus is empty", 2, user_error=True)
"""
    process = stage.start(body, *TWO)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("one panel") == 1 and "╭" not in err


def test_one_worker_that_dies(stage: Stage) -> None:
    process = stage.start("log.write_text('last words\\n')\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    _, err = process.communicate(timeout=150)
    assert process.returncode == 1
    assert "rank 0 failed" in err and "SIGSEGV" in err and "last words" in err
    assert stage.result()["status"] == "failed"


@pytest.mark.parametrize("words", [(), TWO], ids=["one", "two"])
@pytest.mark.parametrize(
    ("sent", "code", "status"),
    [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "preempted")],
)
def test_a_signal_before_the_worker_has_written_anything(
    stage: Stage, words: tuple[str, ...], sent: signal.Signals, code: int, status: str
) -> None:
    process = stage.start("wait()\n", *words)
    stage.wait_for(*(f"started_{rank}" for rank in range(len(words) or 1)))
    time.sleep(0.3)
    process.send_signal(sent)
    _, err = process.communicate(timeout=150)
    assert process.returncode == code
    assert err == f"{status} before training began: there was nothing to save\n"
    assert stage.result()["status"] == status
    assert stage.processes() == []


def test_a_second_interrupt_ends_stubborn_workers(stage: Stage) -> None:
    process = stage.start("while True:\n    time.sleep(0.02)\n", *TWO)
    stage.wait_for("started_0", "started_1")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=150)
    assert process.returncode == 130
    assert eventually(lambda: stage.processes() == [])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG")
@pytest.mark.parametrize("victim", ["launcher", "agent"])
def test_no_orphans_when_a_parent_is_killed(stage: Stage, victim: str) -> None:
    process = stage.start("wait()\n", *TWO)
    stage.wait_for("started_0", "started_1")
    workers = {int((stage.run_dir / f"started_{rank}").read_text()) for rank in (0, 1)}
    (agent,) = set(stage.processes()) - workers - {process.pid}
    os.kill(process.pid if victim == "launcher" else agent, signal.SIGKILL)
    process.communicate(timeout=150)
    assert eventually(lambda: stage.processes() == [])
    if victim == "agent":
        assert process.returncode == 1


def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    body = """
import socket
(run_dir / f"store_{rank}").write_text(os.environ["MASTER_PORT"])
deadline = time.monotonic() + 60
while not (run_dir.parent.parent / "go").exists() and time.monotonic() < deadline:
    time.sleep(0.02)
"""
    stages = [Stage(tmp_path / name) for name in ("a", "b")]
    for each in stages:
        each.folder.mkdir()
    processes = [each.start(body, *TWO) for each in stages]
    for each in stages:
        each.wait_for("store_0", "store_1")
    ports = [{(s.run_dir / f"store_{r}").read_text() for r in (0, 1)} for s in stages]
    (tmp_path / "go").write_text("")
    assert [process.wait(timeout=150) for process in processes] == [0, 0]
    assert len(ports[0]) == len(ports[1]) == 1 and ports[0] != ports[1]


def test_one_start_at_a_time_in_a_run_directory(stage: Stage) -> None:
    first = stage.start("wait()\n")
    stage.wait_for("started_0")
    second = subprocess.run(
        [LLMTRAIN, "train", *TINY, f"run_dir={stage.run_dir}"], capture_output=True, text=True
    )
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=150)
    assert second.returncode == 2 and "in use" in second.stderr


def test_a_stray_module_in_the_current_folder_is_not_imported(stage: Stage) -> None:
    (stage.folder / "random.py").write_text("raise SystemExit('the wrong random')\n")
    process = stage.start("import random\nsys.exit(0 if random.random() < 2 else 1)\n")
    _, err = process.communicate(timeout=150)
    assert process.returncode == 0, err


# The real worker.


@pytest.mark.parametrize("words", [(), TWO], ids=["one", "two"])
def test_ctrl_c_while_workers_are_still_importing(stage: Stage, words: tuple[str, ...]) -> None:
    process = stage.start("", *words)
    workers = 2 if words else 1
    assert eventually(lambda: len(stage.processes("llmtrain.worker")) == workers)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=150)
    assert process.returncode == 130
    assert "Traceback" not in err and "stopped before training began" in err
    assert stage.result()["status"] == "stopped"
    assert stage.processes() == []


@pytest.mark.parametrize(
    ("words", "sent", "code", "status"),
    [
        pytest.param((), signal.SIGINT, 130, "stopped", id="Ctrl-C, one"),
        pytest.param(TWO, signal.SIGTERM, 143, "preempted", id="SIGTERM, two", marks=SLOW),
        pytest.param(TWO, signal.SIGINT, 130, "stopped", id="Ctrl-C, two", marks=SLOW),
        pytest.param((), signal.SIGTERM, 143, "preempted", id="SIGTERM, one", marks=SLOW),
    ],
)
def test_a_signal_leaves_a_checkpoint_that_is_resumed(
    stage: Stage, words: tuple[str, ...], sent: signal.Signals, code: int, status: str
) -> None:
    long = ("train.steps=1000000", "checkpoint.every_steps=null", "train.log_every_steps=1")
    process = stage.start("", *words, *long)
    stage.wait_for("metrics.jsonl")
    assert eventually(lambda: "loss" in (stage.run_dir / "metrics.jsonl").read_text())
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in err
    stopped = stage.result()
    assert stopped["status"] == status and stopped["step"] > 0
    assert list((stage.run_dir / "checkpoints").glob("step_*"))
    assert stage.processes() == []
    again = stage.start("", *words, f"train.steps={stopped['step'] + 2}")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert " since step 0)" in err
    assert stage.result()["step"] == stopped["step"] + 2
    assert (stage.run_dir / "config.1.yaml").is_file()


def test_a_real_rank_that_dies_is_told_with_its_log(stage: Stage) -> None:
    process = stage.start("", *TWO, "train.steps=1000000", "train.log_every_steps=1")
    stage.wait_for("metrics.jsonl")
    assert eventually(lambda: "loss" in (stage.run_dir / "metrics.jsonl").read_text())
    os.kill(rank_processes(stage)["1"], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "rank 1 failed" in err and "SIGKILL" in err and "rank_1.log" in err
    assert "Traceback" not in err and err.count("╭") == 1
    assert stage.result()["status"] == "failed"
    assert stage.processes() == []


def rank_processes(stage: Stage) -> dict[str, int]:
    """Return RANK -> process id of the run's workers."""
    found = {}
    for pid in stage.processes():
        if b"llmtrain.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {p[5:].decode(): pid for p in pairs if p.startswith(b"RANK=")}
    return found


def test_a_sweep_goes_on_after_a_failed_job(stage: Stage) -> None:
    env = {**os.environ, "LLMTRAIN_CACHE": str(stage.folder / "cache")}
    words = [w for w in TINY if not w.startswith("model.n_heads")]
    ended = subprocess.run(
        [LLMTRAIN, "train", "-m", *words, "train.steps=2", "model.n_heads=3,2,1"],
        cwd=stage.folder, env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 1
    (folder,) = (stage.folder / "sweeps" / "default").iterdir()
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["refused", "completed", "completed"]
    assert "model.n_heads=3" in jobs[0]["error"]
    assert all(job["val_loss"] > 0 for job in jobs[1:])
    assert (folder / "2" / "config.yaml").is_file()
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert rows[0][:5] == ["rank", "job", "overrides", "status", "step"]
    assert [row[3] for row in rows[1:3]] == ["completed", "completed"]  # the best first
    assert rows[3][:3] == ["0", "model.n_heads=3", "refused"]


def test_ctrl_c_ends_a_sweep(stage: Stage) -> None:
    env = {**os.environ, "LLMTRAIN_CACHE": str(stage.folder / "cache")}
    process = subprocess.Popen(
        [LLMTRAIN, "train", "-m", *TINY, "train.steps=1000000", "train.log_every_steps=1",
         "optimizer=adamw,sgd"],
        cwd=stage.folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    found = "sweeps/default/*/0/metrics.jsonl"
    assert eventually(lambda: any("loss" in p.read_text() for p in stage.folder.glob(found)))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "To go on: llmtrain train -m" in err and "go on with:" not in err  # one way, not two
    (summary,) = stage.folder.glob("sweeps/default/*/sweep.json")
    jobs = json.loads(summary.read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["stopped", "not started"]
    assert "not started" in out
